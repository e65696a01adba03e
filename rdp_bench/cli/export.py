"""`rdp-bench export`: predictions and adversarial images as files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rdp_bench.cli import common
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.cache.files import Location


@click.command()
@common.out
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write.  [default: OUT/export]")
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="The run's data set, if it has moved.")
@click.option("--only", multiple=True, metavar="GRID", help="Only the run of this grid; repeatable.")
@click.option("--predictions/--no-predictions", default=True, help="Predictions for every image.  [default: yes]")
@click.option("--images", is_flag=True, help="Also export the adversarial images, as PNG.")
@click.option("--parquet", is_flag=True, help="Predictions as Parquet instead of CSV (needs pyarrow).")
@common.plugins
@common.cache
def export(
    out: Path,
    to: Path | None,
    dataset: str | None,
    only: tuple[str, ...],
    predictions: bool,
    images: bool,
    parquet: bool,
    plugins_: tuple[Path, ...],
    cache: "Location | None",
) -> None:
    """Export the predictions in OUT and, with --images, the adversarial images in the cache."""
    from rdp_bench import plugins
    from rdp_bench.cache.store import Store
    from rdp_bench.results.export import export as write

    if not (predictions or images):
        raise UsageError("--no-predictions leaves nothing to export; add --images, or leave it out")
    if parquet and not predictions:
        raise UsageError("--parquet is a format of predictions, and --no-predictions leaves them out; use one of them")
    plugins.load(plugins_, ("data",))
    to = to or out / "export"
    found = write(out, Store(cache), to, dataset, images=images, parquet=parquet, only=only, predictions=predictions)
    click.echo(f"{to}: {found['predictions']} predictions, {found['images']} images")
    if found["lacking"]:
        click.echo(f"{found['lacking']} adversarial sets are not in the cache; run the grid again", err=True)
        sys.exit(1)
