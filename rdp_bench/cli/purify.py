"""`rdp-bench purify`: image files through a defense."""

import io
from pathlib import Path

import click

from rdp_bench.cli import common, complete
from rdp_bench.errors import UsageError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
"""Of image files in a folder."""


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("to", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--defense", required=True, metavar="NAME", shell_complete=complete.of_kind("defense"), help="Defense.")
@click.option(
    "--size", type=click.IntRange(8), help="First resize images to squares of this many pixels, as for a data set."
)
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@common.plugins
def purify(
    source: Path,
    to: Path,
    defense: str,
    size: int | None,
    seed: int,
    models_dir: Path | None,
    device: str,
    plugins_: tuple[Path, ...],
) -> None:
    """Purify the image IN, or each image of the folder IN, and write PNG files to the folder OUT.

    Images are square, or are made so by --size. Pixels are rounded to 8 bits.
    """
    from rdp_bench import plugins
    from rdp_bench.environment import choose_device

    plugins.load(plugins_)
    paths = _images(source, to)
    chosen = choose_device(device)

    import numpy as np
    from PIL import Image

    from rdp_bench.api import load_defense
    from rdp_bench.cache.store import write_atomic
    from rdp_bench.data import _images as files
    from rdp_bench.engine.levels import to_float, to_uint8

    purifier = load_defense(defense, models_dir=models_dir)
    for path in paths:
        if size is None:
            image = files.decode(path)
            if image.width != image.height:
                raise UsageError(
                    f"{path} has {image.width} x {image.height} pixels; images are square: name a size, like --size 299"
                )
            pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        else:
            pixels = files.prepare(path, size)
        purified = to_uint8(purifier(to_float(pixels[None], chosen), seed=seed))[0]
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(purified.transpose(1, 2, 0))).save(content, "PNG")
        write_atomic(to / f"{path.stem}.png", content.getvalue())
    click.echo(f"{to}: {len(paths)} image{'s' * (len(paths) != 1)} purified by {purifier.label}")


def _images(source: Path, to: Path) -> list[Path]:
    """The image files that IN names.

    Raises:
        UsageError: there are none, two would become one file, or OUT would replace them.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file; OUT is a folder")
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise UsageError(f"{source} holds no images ({', '.join(ENDINGS)})")
    stems = [path.stem for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"{source} holds several images called {twice[0]}; each becomes {twice[0]}.png")
    if to.resolve() == paths[0].parent.resolve():
        raise UsageError(f"OUT {to} is the folder of the images; name another, so that none is replaced")
    return paths
