"""`rdp-bench train` from a folder of photographs to a defense that a grid can use."""

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from PIL import Image

from rdp_bench import plugins
from rdp_bench.cli.main import main
from rdp_bench.errors import RdpBenchError
from rdp_bench.registry import defense
from rdp_bench.train import validate
from rdp_bench.train.loop import Training
from rdp_bench.train.scalars import read_csv, write_csv
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy models, an empty folder, photographs in `photos`, of which one is large enough to validate on."""
    toy_train.install(monkeypatch.setitem)
    monkeypatch.setattr(validate, "SOURCE", "toy/one")
    monkeypatch.setattr(validate, "JUDGE", "toy/two")
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        size = 224 if i == 0 else 40
        smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((size, size))
        smooth.save(f"photos/{i}.png")


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """ssp of the validation at a level that the toys have."""
    kind = validate.SelfSupervised
    monkeypatch.setattr(validate, "SelfSupervised", lambda steps: kind(steps=steps, level=1))


def train(*args: object) -> Result:
    return CliRunner().invoke(main, ["train", *(str(arg) for arg in args)])


TINY = ("--images", "photos", "--size", "tiny", "--steps", 3)
BOARD = {"tensorboard"} if find_spec("tensorboard") else set()
BLIND = (*TINY, "--validation-images", 0)


@pytest.mark.parametrize("name", toy_train.NAMES)
def test_from_photographs_to_a_defense(name: str, seeing: None) -> None:
    done = train(name, *TINY, "--validate-every", 2, "--validation-images", 1)
    assert done.exit_code == 0, done.output
    out = Path("rdp-bench-train") / name
    products = {f"{name}.safetensors"} | ({"rdp-reconstruction.safetensors"} if name == "rdp" else set())
    assert {path.name for path in out.iterdir()} == products | {"train.csv", "checkpoint.pt", "curves.svg"} | BOARD
    rows = read_csv(out / "train.csv")
    assert [(row["step"], "score" in row) for row in rows] == [("2", True), ("3", False), ("3", True)]
    card = weight_files.read_metadata(out / f"{name}.safetensors")["card"]
    assert card["command"].startswith("rdp-bench ")
    assert card["options"]["size"] == "tiny"
    assert card["data"]["photographs"] == 9
    assert card["data"]["held_out"] == 1
    assert card["data"]["validated"] == 1
    assert set(card["undefended"]) < set(card["validation"])
    assert card["steps"] in (2, 3)
    assert f"best at step {card['steps']} of 3" in done.output
    assert ("psnr_sigma_0.25" if name == "denoiser" else "agree_mi-fgsm") in done.output
    assert "without:" in done.output
    plugins.load()
    x = toy.images(2, 64)
    made = defense.resolve(f"{name}(weights={out / name}.safetensors)").value.purify(x, toy.image_rng(2))
    assert made.shape == ((2, 3, 128, 128) if name == "sr" else x.shape)
    assert made.isfinite().all()


def test_what_is_there_is_not_overwritten_and_can_be_resumed() -> None:
    assert train("sr", *BLIND).exit_code == 0
    again = train("sr", *BLIND)
    assert again.exit_code == 2
    assert (
        "rdp-bench-train/sr already holds a training: continue it with --resume, or choose another --out"
        in again.output
    )
    resumed = train("sr", *BLIND, "--resume")
    assert resumed.exit_code == 0
    assert "best at step 3 of 3" in resumed.output
    other = train("sr", *BLIND, "--resume", "--seed", 1)
    assert other.exit_code == 2
    assert "belongs to another training (options.seed: 0 -> 1)" in other.output
    nothing = train("sr", *BLIND, "--resume", "--out", "new")
    assert nothing.exit_code == 2
    assert "no checkpoint.pt in new" in nothing.output


def test_curves_that_cannot_be_drawn_hide_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(self: Figure, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    def failed(self: Training, *_: object) -> Path:
        rows = [{"step": str(i), "pix": "1"} for i in range(2)]
        write_csv(self.out / "train.csv", rows)
        raise RdpBenchError("the first error")

    monkeypatch.setattr(Figure, "savefig", half)
    monkeypatch.setattr(Training, "run", failed)
    found = train("sr", *BLIND)
    assert "the first error" in f"{found.output}{found.exception}"
    assert "curves.svg cannot be drawn" in caplog.text
    assert {path.name for path in Path("rdp-bench-train/sr").iterdir()} == {"train.csv"}


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training.step

    def struck(self: Training, crops: torch.Tensor) -> None:
        if self.done == 1:
            signal.raise_signal(signal.SIGINT)
        step(self, crops)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", struck)
        stopped = train("sr", *BLIND)
    assert stopped.exit_code == 130
    assert "stopped at step 2; --resume continues from the last checkpoint" in stopped.output
    assert stopped.output.count("stopped") == 1
    whole = train("sr", *BLIND, "--out", "whole")
    assert train("sr", *BLIND, "--resume").exit_code == whole.exit_code == 0
    a, b = (weight_files.read_tensors(Path(place) / "sr.safetensors") for place in ("rdp-bench-train/sr", "whole"))
    assert toy_train.same(dict(a), dict(b))


def test_options_reach_the_recipe() -> None:
    flags = (
        "--batch", 2, "--crop", 64, "--rate", "2e-3", "--schedule", "drops", "--features", "toy/two", "--features",
        "toy/one", "--levels", "1", "--eps", 8, "--attack", "wide", "--without", "lat, adv", "--weight", "pix=0.5",
        "--weight", "feat=2", "--seed", 7, "--precision", "bfloat16", "--average", 0.5,
    )  # fmt: skip
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save("photos/more0.png")
    for i in range(8):
        Image.open("photos/more0.png").save(f"photos/more{i}.png")
    done = train("rdp", *BLIND, *flags)
    assert done.exit_code == 0, done.output
    options = weight_files.read_metadata(Path("rdp-bench-train/rdp/rdp.safetensors"))["card"]["options"]
    assert options == {
        "recipe": "rdp", "size": "tiny", "steps": 3, "batch": 2, "crop": 64, "rate": 2e-3, "schedule": "drops",
        "features": ["toy/two", "toy/one"], "levels": [1], "eps": 8.0, "attack": "wide", "attack_steps": 2,
        "without": ["lat", "adv"], "weights": {"feat": 2.0, "pix": 0.5}, "seed": 7, "blend": 1.0, "start": "",
        "precision": "bfloat16", "scale": "image", "average": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "flags"), [("rdp", ("--batch", 2)), ("nrp", ("--batch", 1, "--without", "adv"))])
def test_the_smallest_that_work_do(name: str, flags: tuple[Any, ...]) -> None:
    assert train(name, *BLIND, *flags).exit_code == 0


def test_start_from_a_file() -> None:
    assert train("sr", *BLIND).exit_code == 0
    file = Path("rdp-bench-train/sr/sr.safetensors")
    first = weight_files.read_tensors(file)
    done = train("sr", *BLIND, "--rate", "1e-9", "--schedule", "drops", "--start", file, "--out", "on")
    assert done.exit_code == 0, done.output
    after = weight_files.read_tensors(Path("on/sr.safetensors"))
    assert all(torch.allclose(first[name].float(), after[name].float(), atol=1e-5) for name in first)
    assert len(weight_files.read_metadata(Path("on/sr.safetensors"))["card"]["options"]["start"]) == 64
    before = file.read_bytes()
    (file.parent / "checkpoint.pt").unlink()
    itself = train("sr", *BLIND, "--start", file)
    assert itself.exit_code == 2
    assert "this training would overwrite it; choose another --out" in itself.output
    assert file.read_bytes() == before
    missing = train("sr", *BLIND, "--start", "gone.safetensors", "--out", "x")
    assert (missing.exit_code, "--start gone.safetensors: no such file" in missing.output) == (2, True)
    other = train("comdefend", *BLIND, "--start", file, "--out", "x")
    assert other.exit_code == 2
    assert "does not fit comdefend of size tiny" in other.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("rdp", *BLIND, "--without", "recno"), "unknown part 'recno' of rdp. Did you mean 'recon'?"),
        (("sr", *BLIND, "--without", "pix"), "unknown part 'pix' of sr"),
        (("rdp", *BLIND, "--weight", "pxi=1"), "unknown loss weight 'pxi' of rdp. Did you mean 'pix'?"),
        (("rdp", *BLIND, "--weight", "pix"), "--weight pix: expected TERM=NUMBER, like pix=0.1"),
        (("rdp", *BLIND, "--weight", "pix=much"), "--weight pix=much: expected TERM=NUMBER"),
        (("rdp", *BLIND, "--size", "huge"), "unknown size 'huge' of rdp"),
        (("rdp", *BLIND, "--schedule", "cosinus"), "unknown schedule 'cosinus'. Did you mean 'cosine'?"),
        (("rdp", *BLIND, "--attack", "narrow"), "unknown training attack 'narrow'"),
        (("rdp", *BLIND, "--levels", "two"), "--levels two: expected numbers, like 2 or 2,3"),
        (("rdp", *BLIND, "--features", "toy/three"), "unknown model 'toy/three'"),
        (("rdp", *BLIND, "--crop", 33), "--crop is a multiple of 32, found 33"),
        (("rdp", *BLIND, "--crop", 64), "10 image files, 1 usable; training needs at least 8"),
        (("rdp", *BLIND, "--crop", 288), "a shorter side of 288 pixels or more"),
        (("rdp", *BLIND, "--batch", 1), "The smallest that work: --batch 2, or --crop 64, or any with --without adv"),
        (("nrp", *BLIND, "--batch", 1), "--batch 1 --crop 32 leave the discriminator of nrp one value a channel"),
        (("rdp", *BLIND, "--steps", 0), "--steps is at least 1, found 0"),
        (("rdp", *BLIND, "--device", "tpu"), "expected auto, cpu, cuda or cuda:<number>"),
        (("rdp", "--images", "gone"), "--images gone: no such folder"),
        (("hgd", *BLIND, "--eps", "1.5"), "--eps of hgd is a whole number from 2"),
        (("rdq", *BLIND), "'rdq' is not one of"),
        (("rdp", *BLIND, "--validate-every", 0), "0 is not in the range"),
        (("rdp", *TINY, "--validation-images", -1), "-1 is not in the range"),
        (("rdp",), "Missing option '--images'"),
    ],
)
def test_bad_requests_are_refused_in_one_line(args: tuple[Any, ...], message: str) -> None:
    found = train(*args)
    assert found.exit_code == 2, found.output
    assert message in found.output
    assert "Traceback" not in found.output
    assert not Path("rdp-bench-train").exists()


def test_too_small_photographs_to_validate_on() -> None:
    Path("photos/0.png").unlink()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("photos/0.png")
    found = train("sr", *TINY)
    assert found.exit_code == 2
    assert "no photograph has a shorter side of 224 pixels or more" in found.output
    assert train("sr", *BLIND).exit_code == 0
