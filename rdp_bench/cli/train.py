"""`rdp-bench train`: its flags, its progress and what it prints at the end."""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.cli import common
from rdp_bench.errors import UsageError
from rdp_bench.keys import hash_file
from rdp_bench.train.recipes import TRAINERS, get

if TYPE_CHECKING:
    from rdp_bench.train.loop import Training
    from rdp_bench.train.photos import Photos
    from rdp_bench.train.recipe import Recipe

log = logging.getLogger(__name__)


@click.command()
@click.argument("name", type=click.Choice(tuple(TRAINERS)))
@click.option(
    "--images", required=True, type=click.Path(path_type=Path), help="Folder of photographs, searched recursively."
)
@click.option("--size", default="compact", show_default=True, help="compact (CPU) or paper (the paper's networks).")
@click.option("--steps", type=int, help="Optimizer steps.")
@click.option("--batch", type=int, help="Crops per step.")
@click.option("--crop", type=int, help="Side of a crop in pixels, a multiple of 32.")
@click.option("--rate", type=float, help="Adam's learning rate.")
@click.option("--schedule", help="constant, halving, drops or cosine.")
@click.option("--features", multiple=True, metavar="MODEL", help="Feature extractor F, or HGD's guide; repeatable.")
@click.option("--levels", metavar="N[,N]", help="Feature maps of F, numbered as in timm.")
@click.option("--eps", type=float, help="L-infinity size of training perturbations, in /255.")
@click.option("--attack", help="How training inputs are perturbed: paper or wide.")
@click.option(
    "--attack-steps",
    type=int,
    help="Steps of that attack; for ens-adv, a random number of steps up to this.  [default: 10; 100 for rdp and nrp "
    "with --size paper; 3 for ens-adv]",
)
@click.option(
    "--clean",
    type=float,
    metavar="SHARE",
    help="Share of training inputs left clean (rdp, nrp).  [default: 0.125 for --attack wide, 0 for paper]",
)
@click.option("--scale", help="Scale at which F sees a crop: image (as in a whole image) or native (no resizing).")
@click.option("--without", metavar="PART[,PART]", help="Remove parts of the method: recon, lat, pix, adv, feat.")
@click.option("--weight", multiple=True, metavar="TERM=W", help="Weight of a loss term; repeatable.")
@click.option(
    "--blend",
    type=float,
    help="ens-adv: weight of the trained parameters against the initial ones; 1 keeps only the trained.",
)
@click.option(
    "--average",
    type=float,
    metavar="DECAY",
    help="Validate and save a moving average of the weights, like 0.998; 0: the weights themselves.  [default: 0; "
    "0.998 for denoiser]",
)
@click.option("--precision", help="auto (bfloat16 on a GPU, else float32), float32 or bfloat16.")
@click.option("--seed", type=int, help="Seed of all randomness.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: rdp-bench-train/NAME]")
@click.option("--start", type=click.Path(path_type=Path), help="Weight file to start from.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --out.")
@click.option(
    "--validate-every", default=250, show_default=True, type=click.IntRange(1), help="Steps between validations."
)
@click.option(
    "--validation-images",
    default=32,
    show_default=True,
    type=click.IntRange(0, 64),
    help="Held-out photographs; 0: none.",
)
@common.cache
def train(name: str, images: Path, out: Path | None, resume: bool, **given: Any) -> None:
    """Train a learned defense (or the target ens-adv) on a folder of photographs.

    Writes OUT/NAME.safetensors (the best weights so far), OUT/train.csv, OUT/curves.svg and a checkpoint. Training
    can be stopped at any time; the same command with --resume continues from the last checkpoint.
    """
    from rdp_bench.cache.store import default_root
    from rdp_bench.environment import choose_device
    from rdp_bench.train.extractor import WHOLE
    from rdp_bench.train.loop import only_training
    from rdp_bench.train.photos import SHORT, open_photos
    from rdp_bench.weights import files as weight_files

    out = out or Path("rdp-bench-train") / name
    recipe = get(name)
    start: Path | None = given["start"]
    if start and start.resolve() == (out / f"{name}.safetensors").resolve():
        raise UsageError(f"--start {start}: this training would overwrite it; choose another --out")
    options = recipe.settings(given["size"], _settings(given) | {"start": _hash(start) if start else None})
    device = choose_device(given["device"])
    short = WHOLE if options.scale == "native" else SHORT
    _unused(out, resume)
    photos = open_photos(images, options.crop, given["cache"] or default_root(), short)
    made = recipe(options, device, given["models_dir"])
    if start:
        made.begin_with(weight_files.read_tensors(start), f"{name} of size {options.size}", start)
    with only_training(out):
        _unused(out, resume)  # another may have ended since
        _train(made, photos, out, resume, given)


def _unused(out: Path, resume: bool) -> None:
    if (out / "checkpoint.pt").exists() and not resume:
        raise UsageError(f"{out} already holds a training: continue it with --resume, or choose another --out")


def _train(made: "Recipe", photos: "Photos", out: Path, resume: bool, given: dict[str, Any]) -> None:
    from rdp_bench.train.loop import LoopIntervals, Training

    validate = None
    if given["validation_images"]:
        click.echo("making validation sets", err=True)
        validate = made.validation(photos.validation(given["validation_images"]))
    pace = LoopIntervals(validate_every=given["validate_every"])
    training = Training(made, photos, out, validate, pace, given["start"])
    if resume:
        training.resume()
    try:
        _with_bar(training)
    except KeyboardInterrupt:
        click.echo(f"stopped at step {training.done}; --resume continues from the last checkpoint", err=True)
        click.get_current_context().exit(130)
    finally:
        _curves(out)
    _tell(training)


def _hash(start: Path) -> str:
    if not start.is_file():
        raise UsageError(f"--start {start}: no such file")
    return hash_file(start)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    def parts(text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())

    loss_weights = []
    for item in given["weight"]:
        term, _, value = item.partition("=")
        try:
            loss_weights.append((term, float(value)))
        except ValueError:
            raise UsageError(f"--weight {item}: expected TERM=NUMBER, like pix=0.1") from None
    terms = [term for term, _ in loss_weights]
    if twice := [term for term in terms if terms.count(term) > 1]:
        raise UsageError(f"--weight gives {twice[0]} twice; give it once")
    levels = parts(given["levels"])
    if levels == ():
        raise UsageError(f"--levels '{given['levels']}' names no level; expected numbers, like 2 or 2,3")
    if levels and not all(level.isdecimal() for level in levels):
        raise UsageError(f"--levels {given['levels']}: expected numbers, like 2 or 2,3")
    return given | {
        "features": given["features"] or None,
        "levels": tuple(map(int, levels)) if levels else None,
        "without": parts(given["without"]),
        "weights": tuple(sorted(loss_weights)) or None,
    }


def _with_bar(training: "Training") -> None:
    from tqdm import tqdm

    command = "rdp-bench " + shlex.join(_without_folders(sys.argv[1:]))
    with tqdm(total=training.options.steps, initial=training.done, unit="step", disable=None) as bar:

        def on_step(done: int, metrics: dict[str, float]) -> None:
            bar.update(done - bar.n)
            if metrics:
                shown = {key: f"{metrics[key]:.1f}" for key in ("agree_clean", "agree_mi-fgsm") if key in metrics}
                bar.set_postfix(shown, refresh=False)

        training.run(command, on_step)


def _without_folders(arguments: list[str]) -> list[str]:
    """A command for a card that others will read: of every path, its last part.

    >>> _without_folders(["train", "rdp", "--images", "../my/photos", "--features", "timm:a/b"])
    ['train', 'rdp', '--images', 'photos', '--features', 'timm:a/b']
    >>> _without_folders(["train", "rdp", "--images=../my/photos"])
    ['train', 'rdp', '--images=photos']
    """
    paths = {"--images", "--out", "--models-dir", "--start", "--cache"}

    def shown(before: str, text: str) -> str:
        flag, equals, value = text.partition("=")
        if equals and flag in paths:
            return f"{flag}={Path(value).name}"
        return Path(text).name if before in paths else text

    return [shown(before, text) for before, text in zip(["", *arguments], arguments, strict=False)]


def _curves(out: Path) -> None:
    from rdp_bench.train.curves import draw

    try:
        draw(out)
    except OSError as error:  # it may end a training that has an error of its own, which is the one to show
        log.warning("%s cannot be drawn: %s", out / "curves.svg", error)


def _tell(training: "Training") -> None:
    best = training.best
    click.echo(f"{training.product_file}: best at step {best['step']} of {training.done}")
    undefended = getattr(training.validate, "undefended", {})
    for key, value in best["metrics"].items():
        before = f"   without: {undefended[key]:.1f}" if key in undefended else ""
        click.echo(f"  {key:16} {value:8.2f}{before}")
