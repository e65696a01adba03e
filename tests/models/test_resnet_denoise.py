"""AT-FD's network against torchvision, numpy and a graph out of tensorpack's variables; its weight file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, max_pool2d, pad

from rdp_bench.cli.main import main
from rdp_bench.errors import BadModelError
from rdp_bench.models import classifier as network
from rdp_bench.models import zoo
from rdp_bench.models.convert import convert
from rdp_bench.models.resnet_denoise import UNITS, Denoising, ResNetDenoise, SameConv, from_tensorpack
from rdp_bench.weights import legacy, object_arrays
from rdp_bench.weights.kept import Kept
from tests.helpers import toy
from tests.helpers.paths import TESTS

NAME = "resnet152-denoise"
SMALL = (2, 2, 1, 1)
Arrays = dict[str, NDArray[np.float32]]


def variables(units: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Every variable that tensorpack saves of the authors' network, and its shape."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(scope: str, size: int, before: int, after: int, norm: bool = True) -> None:
        found[f"{scope}/W"] = (size, size, before, after)
        for part in ("gamma", "beta", "mean/EMA", "variance/EMA") if norm else ():
            found[f"{scope}/bn/{part}"] = (after,)

    conv("conv0", 7, 3, 64)
    channels = 64
    for group, count in enumerate(units):
        width = 64 * 2**group
        for block in range(count):
            scope = f"group{group}/block{block}"
            conv(f"{scope}/conv1", 1, channels, width)
            conv(f"{scope}/conv2", 3, width, width)
            conv(f"{scope}/conv3", 1, width, 4 * width)
            if block == 0:
                conv(f"{scope}/convshortcut", 1, channels, 4 * width)
            channels = 4 * width
        for name in ("embedding_theta", "embedding_phi"):
            conv(f"group{group}_denoise/{name}", 1, channels, channels // 2, norm=False)
        conv(f"group{group}_denoise/conv", 1, channels, channels)
    return found | {"linear/W": (2048, 1000), "linear/b": (1000,)}


def values(units: tuple[int, ...]) -> Arrays:
    """Random values for them, under which activations neither vanish nor explode and attention is uneven."""
    rng = np.random.default_rng(0)
    out: Arrays = {}
    for name, shape in variables(units).items():
        if name.endswith("/W"):
            made = rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[:-1]))
        elif name.endswith(("gamma", "variance/EMA")):
            made = rng.uniform(0.5, 1.5, shape)
        else:
            made = rng.normal(0, 0.3, shape)
        out[name] = made.astype(np.float32)
    return out


def graph(given: Arrays, units: tuple[int, ...], image: Tensor) -> Tensor:
    """Logits of `image` `[n, 3, h, h]`, blue first, in [-1, 1], straight from tensorpack's variables."""

    def same(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        return pad(x, [total // 2, total - total // 2] * 2, value=value)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = torch.from_numpy(given[f"{name}/W"].transpose(3, 2, 0, 1).copy())
        x = conv2d(same(x, weight.shape[-1], stride), weight, stride=stride)
        if f"{name}/bn/gamma" not in given:
            return x
        parts = [torch.from_numpy(given[f"{name}/bn/{part}"]) for part in ("mean/EMA", "variance/EMA", "gamma", "beta")]
        return batch_norm(x, *parts, eps=1.001e-5)

    x = conv("conv0", image, 2).relu()
    x = max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for group, count in enumerate(units):
        for block in range(count):
            scope, stride = f"group{group}/block{block}", 2 if group and not block else 1
            inner = conv(f"{scope}/conv2", conv(f"{scope}/conv1", x).relu(), stride).relu()
            short = conv(f"{scope}/convshortcut", x, stride) if block == 0 else x
            x = (conv(f"{scope}/conv3", inner) + short).relu()
        scope = f"group{group}_denoise"
        theta, phi = conv(f"{scope}/embedding_theta", x), conv(f"{scope}/embedding_phi", x)
        share = torch.einsum("niab,nicd->nabcd", theta, phi) / theta.shape[1] ** 0.5
        share = share.flatten(3).softmax(-1).view_as(share)
        x = x + conv(f"{scope}/conv", torch.einsum("nabcd,nicd->niab", share, x))
    return x.mean((2, 3)) @ torch.from_numpy(given["linear/W"]) + torch.from_numpy(given["linear/b"])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of six bottlenecks under the released one's name."""
    monkeypatch.setitem(UNITS, NAME, SMALL)
    monkeypatch.setattr(network, "_loaded", Kept(weighed=True))


def saved(path: Path, arrays: dict[str, NDArray[np.generic]]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# --- the architecture ------------------------------------------------------------------------------------


def test_names_shapes_and_count_are_the_released_ones() -> None:
    with torch.device("meta"):
        net = ResNetDenoise(UNITS[NAME])
    named = {key: np.broadcast_to(np.float32(0), shape) for key, shape in variables(UNITS[NAME]).items()}
    found = {key: tuple(tensor.shape) for key, tensor in from_tensorpack(named).items()}
    assert found == {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    # torchvision's ResNet-152, and for C = 256, ..., 2048 two embeddings of C C/2, a convolution of C C, a norm of 2 C.
    added = sum(2 * c * c + 2 * c for c in (256, 512, 1024, 2048))
    assert sum(p.numel() for p in net.parameters()) == 60_192_808 + added


@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("side", [6, 7, 8])
def test_convolutions_are_padded_as_tensorflow_does(size: int, stride: int, side: int) -> None:
    conv, x = SameConv(2, 3, size, stride), toy.random(1, 2, side, side)
    found, out = conv(x), -(-side // stride)
    before = max((out - 1) * stride + size - side, 0) // 2
    assert found.shape == (1, 3, out, out)
    for i in range(out):
        for j in range(out):
            total = torch.zeros(3)
            for a in range(size):
                for b in range(size):
                    row, column = i * stride - before + a, j * stride - before + b
                    if 0 <= row < side and 0 <= column < side:
                        total += conv.weight[:, :, a, b] @ x[0, :, row, column]
            assert torch.allclose(found[0, :, i, j], total, atol=1e-5)


def test_a_denoising_block_by_hand() -> None:
    """Place after place in numpy: the mean of all places, each weighted by e^(theta phi / sqrt(C / 2))."""
    block = Denoising(4).eval()
    for seed, tensor in enumerate(block.state_dict().values()):
        if tensor.ndim:
            tensor.copy_(toy.random(*tensor.shape, seed=seed))
    block.norm.running_var.copy_(torch.tensor([0.5, 1, 2, 3]))  # type: ignore[union-attr]
    x = toy.random(1, 4, 2, 3)
    found = block(x)[0].flatten(1).detach().numpy()
    state = {name: tensor.squeeze().numpy() for name, tensor in block.state_dict().items()}
    theta, phi, conv = (state[f"{name}.weight"] for name in ("theta", "phi", "conv"))
    mean, var, gamma, beta = (state[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    places = x[0].flatten(1).numpy().T
    for at, place in enumerate(places):
        likeness = np.array([np.exp((theta @ place) @ (phi @ other) / np.sqrt(2)) for other in places])
        assert likeness.max() > 1.3 * likeness.min()
        taken = conv @ (likeness[:, None] * places).sum(0) / likeness.sum()
        assert np.allclose(found[:, at], place + (taken - mean) / np.sqrt(var + 1.001e-5) * gamma + beta, atol=1e-5)


def test_without_denoising_it_is_torchvisions_resnet152() -> None:
    """At 33 pixels every halved side is odd, and TensorFlow pads as torch does."""
    ours = ResNetDenoise(UNITS[NAME]).eval()
    theirs = torchvision.models.resnet152().eval()
    with torch.no_grad():
        for block in ours.denoise:
            block.norm.weight.zero_()  # as it is before training
        for number, tensor in enumerate(theirs.state_dict().values()):
            if tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number)) + 0.5)
        names = {"downsample.0": "convshortcut", "downsample.1": "normshortcut", "fc": "linear"}
        state = {}
        for name, tensor in theirs.state_dict().items():
            for old, new in names.items():
                name = name.replace(old, new)
            name = name.replace("bn", "norm")
            first, _, rest = name.partition(".")
            if first.startswith("layer"):
                name = f"groups.{int(first[-1]) - 1}.{rest}"
            elif first in ("conv1", "norm1"):
                name = f"{first[:-1]}0.{rest}"
            state[name] = tensor
        missing, unexpected = ours.load_state_dict(state, strict=False)
        assert not unexpected
        assert {name.partition(".")[0] for name in missing} == {"denoise"}
        x = toy.random(2, 3, 33, 33)
        found, expected = ours(x), theirs(x)
    assert float(expected.std()) > 0
    assert float((found - expected).norm() / expected.norm()) < 1e-4


# --- its weight file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ":0"])
def test_a_released_file_gives_the_authors_network(small: None, tmp_path: Path, ending: str) -> None:
    """Through the card: RGB in [0, 1] here is their BGR in [-1, 1] there, and the middle 224 of 256 pixels count."""
    given = values(SMALL)
    extra = {"global_step": np.int64(7), "learning_rate": np.float32(0.1)}
    path = saved(tmp_path / "R152-Denoise.npz", {f"{name}{ending}": array for name, array in given.items()} | extra)
    with pytest.raises(BadModelError, match=r"Convert it: rdp-bench weights convert .*R152-Denoise\.npz"):
        zoo.find(NAME, tmp_path)
    convert(path, tmp_path / f"{NAME}.safetensors", NAME)
    member = zoo.find(NAME, tmp_path)
    assert isinstance(member, zoo.ModelRef)
    classifier = member.load("cpu")
    x = toy.images(1, 64)
    with torch.no_grad():
        found = classifier(x, 0.25)  # a quarter of the size: 56 pixels
        seen = torch.nn.functional.interpolate(x, 64, mode="bicubic")[:, :, 4:60, 4:60]
        expected = graph(given, SMALL, seen.flip(1) * 2 - 1)
    assert expected.shape == (1, classifier.classes) == (1, 1000)
    assert float(expected.std()) > 0.1
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group1_denoise/embedding_phi/W": None}, r"missing denoise\.1\.phi\.weight"),
        ({"linear/W": np.zeros((2048, 1001), np.float32)}, r"linear\.weight: \[1001, 2048\] instead of \[1000, 2048\]"),
        ({"group3/block1/conv1/W": np.zeros((1, 1, 4, 4), np.float32)}, r"unexpected groups\.3\.1\.conv1"),
        ({"conv0/W": np.array([print], object)}, "refused"),
        ({"conv0/W": np.array(["text"])}, "conv0/W is an array of <U4"),
    ],
)
def test_another_file_is_refused(
    small: None, tmp_path: Path, change: dict[str, NDArray[np.generic] | None], message: str
) -> None:
    arrays = {name: array for name, array in {**values(SMALL), **change}.items() if array is not None}
    path = saved(tmp_path / "R152-Denoise.npz", arrays)
    with pytest.raises(BadModelError, match=message):
        convert(path, tmp_path / f"{NAME}.safetensors", NAME)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_files_that_are_no_archive_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.npz").write_bytes(b"no archive")
    with pytest.raises(BadModelError, match=r"no\.npz: refused .*Expected \.npz of arrays"):
        legacy.read_npz(tmp_path / "no.npz")
    monkeypatch.setattr(object_arrays, "LARGEST", 1 << 20)
    path = saved(tmp_path / "bomb.npz", {"zeros": np.zeros(1 << 20, np.float32)})
    with pytest.raises(BadModelError, match="larger than 1 MiB"):
        legacy.read_npz(path)


# --- AT-FD as a row --------------------------------------------------------------------------------------

GRID = """
title = "Rows"
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [16]
sources = ["white-box"]
targets = ["tiny/two"]
baselines = ["BASELINE"]
dataset = "tiny/noise"
"""
PLUGIN = TESTS / "plugin" / "tiny.py"


def rows(tmp_path: Path, baseline: str, *flags: str) -> tuple[str, dict[tuple[str, str, str], dict[str, str]]]:
    """Output and results.csv by attack, target and defense."""
    (tmp_path / "rows.toml").write_text(GRID.replace("BASELINE", baseline))
    command = ["run", "--grid", "rows.toml", "--plugin", str(PLUGIN), "--models-dir", ".", *flags]
    found = CliRunner().invoke(main, command)
    with (tmp_path / "rdp-bench-out" / "results.csv").open() as file:
        return found.output, {(row["attack"], row["target"], row["defense"]): row for row in csv.DictReader(file)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_baseline_stands_beside_the_targets_undefended(here: Path) -> None:
    output, found = rows(here, "tiny/one")
    assert "accuracy % of tiny/one on clean images\nnone            100.0\n" in output
    assert set(found) == {
        (attack, *place)
        for attack in ("clean", "fgsm")
        for place in (("tiny/two", "none"), ("tiny/two", "tiny/round"), ("tiny/one", "none"))
    }
    assert {row["status"] for row in found.values()} == {"done"}
    _, alone = rows(here, "tiny/one", "--target", "tiny/two")
    assert {target for _, target, _ in alone} == {"tiny/two"}
    _, defended = rows(here, "tiny/one", "--defense", "tiny/round")
    assert {(target, defense) for _, target, defense in defended} == {("tiny/two", "tiny/round")}


def test_a_baseline_without_weights_fails_alone_and_says_where_they_are(here: Path) -> None:
    output, found = rows(here, NAME)
    assert "4 of 6 cells done, 2 failed" in output
    for (_, target, _), row in found.items():
        assert row["status"] == ("failed" if target == NAME else "done")
        assert ("Download R152-Denoise.npz of release v0.1 of" in row["reason"]) == (target == NAME)
