"""`rdp-bench data`: bring data sets here."""

import sys
from pathlib import Path

import click


@click.group("data")
def data_() -> None:
    """Bring data sets here."""


@data_.command("get")
@click.argument("name", type=click.Choice(["nips2017"]))
@click.option("--from", "source", metavar="FOLDER|ZIP|URL", help="Where it is, instead of the web addresses above.")
@click.option(
    "--to", type=click.Path(path_type=Path), default="nips2017", show_default=True, help="Folder that it goes to."
)
def get(name: str, source: str | None, to: Path) -> None:
    """Bring NIPS-2017 DEV here: 1000 images of 299 x 299 as TO/images/*.png, labels as TO/dev_dataset.csv.

    It comes from where the competition's organisers keep it, without an account, and where that fails from the copy of
    a paper's authors:

    \b
    https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set
    https://github.com/ZhengyuZhao/Targeted-Tansfer

    Neither is ours, and either may go: any folder or zip with the PNGs and dev_dataset.csv (Kaggle calls it images.csv)
    does as well. The images are their photographers', under CC BY.

    The pixels of 500 images are known and compared; the others are counted as unverified. A download goes on where it
    stopped, and a second call brings what is missing.
    """  # noqa: D301 - click wants the control character
    from rdp_bench.obtain import WHOLE, obtain

    bar = _Bar()
    try:
        found = obtain(to, source, bar)
    finally:
        bar.close()
    have = len(found.verified) + len(found.unverified)
    rest = f", {len(found.unverified)} unverified (no hash of theirs is known)" if found.unverified else ""
    click.echo(f"{name} in {to}: {have} of {WHOLE} images, {len(found.verified)} verified by their pixels{rest}")
    for image, why in list(found.refused.items())[:5]:
        click.echo(f"refused: {image}: {why}", err=True)
    if found.missing:
        click.echo(f"missing: {', '.join(found.missing[:5])}{', ...' if len(found.missing) > 5 else ''}", err=True)
    if found.missing or found.refused:
        click.echo(
            f"{len(found.refused)} refused, {len(found.missing)} missing: bring them with --from another source",
            err=True,
        )
        sys.exit(1)
    click.echo(f"next: rdp-bench run --grid table1 --profile paper --dataset {to}")


class _Bar:
    """A bar for the bytes of a download, and one for the images."""

    def __init__(self) -> None:
        self.what, self.bar = "", None

    def __call__(self, what: str, have: int, end: int | None) -> None:
        from tqdm import tqdm

        if what != self.what:
            self.close()
            of_bytes = what == "bytes"
            self.bar = tqdm(
                desc=what, unit="B" if of_bytes else "", unit_scale=of_bytes, unit_divisor=1024, disable=None
            )
            self.what = what
        assert self.bar is not None
        if self.bar.total != end:
            self.bar.total = end
            self.bar.refresh()
        self.bar.update(have - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
