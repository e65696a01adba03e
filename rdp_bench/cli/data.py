"""`rdp-bench data`: download data sets."""

import sys
from pathlib import Path

import click


@click.group("data")
def data_() -> None:
    """Download data sets."""


@data_.command("get")
@click.argument("name", type=click.Choice(["nips2017"]))
@click.option("--from", "source", metavar="FOLDER|ZIP|URL", help="Read the set from here instead of the web.")
@click.option("--to", type=click.Path(path_type=Path), default="nips2017", show_default=True, help="Folder to write.")
def get(name: str, source: str | None, to: Path) -> None:
    """Download NIPS-2017 DEV: 1000 images of 299 x 299 to TO/images/*.png, labels to TO/dev_dataset.csv.

    The source is the competition organisers' copy, which needs no account, and if that fails the copy of the authors of
    a paper:

    \b
    https://www.kaggle.com/datasets/google-brain/nips-2017-adversarial-learning-development-set
    https://github.com/ZhengyuZhao/Targeted-Tansfer

    Either may disappear. --from accepts any folder or zip with the PNGs and dev_dataset.csv (images.csv on Kaggle). The
    images belong to their photographers and are licensed CC BY.

    The pixels and labels of all 1000 images are verified. Two copies of the set circulate. Copy A is undamaged. Copy B
    (re-encoded) is accepted and reported, but its two images that show "This photo is no longer available" are refused.
    TO/differences.csv lists what differs from copy A. "rdp-bench run --dataset TO" also accepts an incomplete set. A
    download resumes where it stopped; a second call adds missing images.
    """  # noqa: D301 - click wants the control character
    from rdp_bench.data.nips2017 import COPY_B, manifest
    from rdp_bench.download.nips2017 import DIFFERENCES, fetch_nips2017

    bar = _Bar()
    try:
        found = fetch_nips2017(to, source, bar)
    finally:
        bar.close()
    click.echo(f"{name} in {to}: {found.images} of {len(manifest())} images, pixels and labels verified")
    if found.copy_b:
        click.echo(f"{len(found.copy_b)} images are of {COPY_B}")
    for image, why in list(found.refused.items())[:5]:
        click.echo(f"refused: {image}: {why}", err=True)
    if found.missing:
        click.echo(f"missing: {', '.join(found.missing[:5])}{', ...' if len(found.missing) > 5 else ''}", err=True)
    if found.missing or found.refused:
        click.echo(
            f"{len(found.refused)} refused, {len(found.missing)} missing: add them with --from another source",
            err=True,
        )
    if found.images and found.differences:
        click.echo(f"what differs from copy A: {to / DIFFERENCES}")
    if found.images:
        click.echo(f"next: rdp-bench run --grid table1 --profile paper --dataset {to}")
    if found.refused or not found.images or (found.missing and not source):
        sys.exit(1)


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
