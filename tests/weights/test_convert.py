"""`rdp-bench weights convert`: what it writes, what it refuses."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from rdp_bench.cli.main import main
from rdp_bench.models import classifier, zoo
from rdp_bench.models.card import cards
from rdp_bench.weights import files as weight_files

LITE = "effnet-lite0"


def convert(*words: object) -> Result:
    return CliRunner().invoke(main, ["weights", "convert", *map(str, words)], catch_exceptions=False)


def test_a_converted_file_gives_the_same_logits(tmp_path: Path) -> None:
    """The package's own weights, as a training script might keep them."""
    installed = zoo.find(LITE)
    assert isinstance(installed, zoo.ModelRef)
    assert installed.file is not None
    torch.save({"state_dict": weight_files.read_tensors(installed.file)}, tmp_path / "checkpoint.pth")
    done = convert(tmp_path / "checkpoint.pth", tmp_path / f"{LITE}.safetensors", "--model", LITE)
    assert done.exit_code == 0, done.stderr
    written = load_file(tmp_path / f"{LITE}.safetensors")
    assert f"{len(written)} tensors of {LITE}" in done.stdout
    assert set(written) == set(classifier.create(cards()[LITE]).state_dict())  # timm's names, in_order no more
    said = weight_files.read_metadata(tmp_path / f"{LITE}.safetensors")
    assert said["model"] == LITE
    assert said["source"] == "checkpoint.pth"
    (tmp_path / "checkpoint.pth").unlink()
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(installed.load("cpu")(x), zoo.find(LITE, tmp_path).load("cpu")(x))


@pytest.mark.parametrize(
    ("source", "out", "model", "message"),
    [
        ("missing.npy", "a.safetensors", "resnet-v2-101", "missing.npy: no such file"),
        ("a.npy", "a.pth", "resnet-v2-101", "name one that ends in .safetensors"),
        ("a.npy", "taken.safetensors", "resnet-v2-101", "taken.safetensors exists; choose another name"),
        ("a.npy", "a.safetensors", "resnet-v2-102", "unknown timm model 'resnet-v2-102'"),
        ("a.npy", "a.safetensors", LITE, "model effnet-lite0 was not released in this format"),
        ("a.npz", "a.safetensors", "resnet-v2-101", "was not released in this format; expected tf2torch_resnet_v2_101"),
        ("a.npy", "a.safetensors", "resnet152-denoise", "expected R152-Denoise.npz, .safetensors or .pth"),
        ("a.npy", "a.safetensors", "resnet-v2-101", "a.npy: refused"),
        ("a.ckpt", "a.safetensors", "resnet-v2-101", "a.ckpt: refused"),
        ("a.npz", "a.safetensors", "resnet152-denoise", "a.npz: refused"),
        ("a.pth", "a.safetensors", LITE, "a.pth: refused"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(
    tmp_path: Path, source: str, out: str, model: str, message: str
) -> None:
    for name in ("a.npy", "a.npz", "a.ckpt", "a.pth", "taken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
    before = {path.name for path in tmp_path.iterdir()}
    done = convert(tmp_path / source, tmp_path / out, "--model", model)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before
