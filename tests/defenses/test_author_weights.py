"""Weight files that the authors released, against independent arithmetic on the same tensors."""

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

from rdp_bench import plugins
from rdp_bench.defenses._learned import ready
from rdp_bench.defenses._networks import comdefend
from rdp_bench.errors import BadModelError
from tests.helpers.learned import comdefend_arrays, image_rng, made, ours, photo, shuffled, tiny
from tests.helpers.paths import ROOT

plugins.load()

pytestmark = pytest.mark.usefixtures("folder")


SHARED = ROOT.parent / "shared"


State = dict[str, Tensor]


def random_state(shapes: Mapping[str, tuple[int, ...]], gain: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, shape in shapes.items():
        size = gain * 2**0.5 * float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
        found[name] = torch.randn(shape, generator=generator) * size
    return found


def layer(state: State, name: str, x: Tensor, **how: Any) -> Tensor:
    return conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding="same", **how)


def add_conv(shapes: dict[str, tuple[int, ...]], name: str, old: int, new: int, side: int = 3) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (new, old, side, side), (new,)


@pytest.mark.parametrize("blocks", [1, 2])
def test_nrp_from_its_authors_file(folder: Path, blocks: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    add_conv(shapes, "conv_first", 3, 64)
    for i in range(blocks):
        for j in (1, 2, 3):
            for k in range(1, 6):
                add_conv(shapes, f"RRDB_trunk.{i}.RDB{j}.conv{k}", 64 + 32 * (k - 1), 32 if k < 5 else 64)
    add_conv(shapes, "trunk_conv", 64, 3)
    state = random_state(shapes, gain=0.7)
    torch.save(OrderedDict(state), folder / "NRP.pth")
    x = photo(1, 17)

    def dense(name: str, start: Tensor) -> Tensor:
        maps = [start]
        for k in range(1, 5):
            maps.append(leaky_relu(layer(state, f"{name}.conv{k}", torch.cat(maps, 1)), 0.2))
        return start + 0.2 * layer(state, f"{name}.conv5", torch.cat(maps, 1))

    out = layer(state, "conv_first", x)
    for i in range(blocks):
        inner = out
        for j in (1, 2, 3):
            inner = dense(f"RRDB_trunk.{i}.RDB{j}", inner)
        out = out + 0.2 * inner
    expected = layer(state, "trunk_conv", out)

    entry = made("nrp(weights=NRP.pth)")
    assert torch.allclose(entry.forward(x), expected, atol=1e-4)
    assert expected.std() > 0.05


def test_nrp_resg_from_its_authors_file(folder: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    add_conv(shapes, "conv_first", 3, 64)
    for i in range(3):
        add_conv(shapes, f"recon_trunk.{i}.conv1", 64, 64)
        add_conv(shapes, f"recon_trunk.{i}.conv2", 64, 64)
    add_conv(shapes, "conv_last", 64, 3)
    state = random_state(shapes)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "NRP_resG.pth")
    x = photo(1, 17)
    out = leaky_relu(layer(state, "conv_first", x), 0.1)
    for i in range(3):
        out = out + layer(state, f"recon_trunk.{i}.conv2", layer(state, f"recon_trunk.{i}.conv1", out).relu())
    expected = layer(state, "conv_last", out)

    assert torch.allclose(made("nrp-resg(weights=NRP_resG.pth)").forward(x), expected, atol=1e-3)
    with pytest.raises(BadModelError, match=r"NRP_resG\.pth does not fit nrp .*: missing conv_last.*unexpected"):
        made("nrp(weights=NRP_resG.pth)").purify(x, image_rng(1))


def aligned(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with aligned corners, as two matrices: the first and last pixel stay where they are."""

    def matrix(old: int, new: int) -> Tensor:
        found = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            place = i * (old - 1) / (new - 1) if new > 1 else 0.0
            low = min(int(place), old - 1)
            found[i, low] += 1 - (place - low)
            found[i, min(low + 1, old - 1)] += place - low
        return found.float()

    return matrix(x.shape[2], height) @ x @ matrix(x.shape[3], width).T


ENCODER, DECODER = [(64, 2), (128, 3), (256, 3), (256, 3), (256, 3)], [(64, 2), (128, 3), (256, 3), (256, 3)]


def dunet(classifier: str) -> State:
    """A checkpoint as PyTorch 0.2 wrote it: classifier and denoiser, no batch counts."""
    shapes: dict[str, tuple[int, ...]] = {f"net.{classifier}.weight": (8, 3, 3, 3)}
    prefix = "net.denoise.0" if classifier == "conv2d_1a.conv" else "net.denoise"

    def block(name: str, old: int, new: int) -> None:
        shapes[f"{prefix}.{name}.conv.weight"] = (new, old, 3, 3)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{name}.bn.{kind}"] = (new,)

    old = 3
    for i, (width, count) in enumerate(ENCODER):
        for j in range(count):
            block(f"fwd.{i}.{j}", width if j else old, width)
        old = width
    for i, (width, count) in enumerate(DECODER):
        below = DECODER[i + 1][0] if i + 1 < len(DECODER) else ENCODER[-1][0]
        for j in range(count):
            block(f"back.{i}.{j}", width if j else width + below, width)
    shapes[f"{prefix}.final.weight"] = (3, 64, 1, 1)
    state = random_state(shapes)
    for name, tensor in state.items():
        if name.endswith("running_var"):
            state[name] = tensor.abs() + 0.5
        elif name.endswith("bn.weight"):
            state[name] = 1 + tensor
    return state


@pytest.mark.parametrize(
    ("classifier", "mean", "std"),
    [
        ("conv2d_1a.conv", [0.5] * 3, [0.5] * 3),
        ("conv1", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_hgd_from_its_authors_file(folder: Path, classifier: str, mean: list[float], std: list[float]) -> None:
    state = dunet(classifier)
    args = argparse.Namespace(lr=0.01)
    torch.save({"epoch": 14, "state_dict": state, "args": args}, folder / "denoise.ckpt")
    prefix = "net.denoise.0" if classifier == "conv2d_1a.conv" else "net.denoise"
    x = photo(1, 35)

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        def part(kind: str) -> Tensor:
            return state[f"{prefix}.{name}.bn.{kind}"].view(1, -1, 1, 1)

        x = conv2d(x, state[f"{prefix}.{name}.conv.weight"], stride=stride, padding=1)
        return ((x - part("running_mean")) / (part("running_var") + 1e-5).sqrt() * part("weight") + part("bias")).relu()

    centre, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    fed = out = (x - centre) / spread
    maps = []
    for i, (_, count) in enumerate(ENCODER):
        for j in range(count):
            out = block(f"fwd.{i}.{j}", out, 2 if i and not j else 1)
        maps.append(out)
    assert [m.shape[-1] for m in maps] == [35, 18, 9, 5, 3]
    for i in (3, 2, 1, 0):
        out = torch.cat([aligned(out, *maps[i].shape[2:]), maps[i]], 1)
        for j in range(DECODER[i][1]):
            out = block(f"back.{i}.{j}", out, 1)
    expected = (fed + conv2d(out, state[f"{prefix}.final.weight"])) * spread + centre

    found = made("hgd(weights=denoise.ckpt)").forward(x)
    assert (expected - x).std() > 0.02
    assert torch.allclose(found, expected, atol=1e-3)


def test_batch_norms_are_folded_for_inference() -> None:
    net, x = tiny("hgd"), photo(2, 33)
    before = net(x)
    after = ready(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in after.modules())
    assert torch.allclose(after(x), before, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in after.parameters())


def walk(arrays: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """`[h, w, c]` through 3x3 convolutions over zeros, ELU between."""
    for i in range(0, len(arrays), 2):
        height, width, _ = x.shape
        around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        taps = [(a, b) for a in range(3) for b in range(3)]
        x = sum(around[a : a + height, b : b + width] @ arrays[i][a, b].astype(float) for a, b in taps) + arrays[i + 1]
        if i + 2 < len(arrays):
            x = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
    return x


@pytest.mark.parametrize("pack", [True, False])
def test_comdefend_from_its_authors_files(folder: Path, pack: bool) -> None:
    widths = [3, 16, 32, 64, 128, 256, 128, 64, 32, 12]
    com = comdefend_arrays(folder / "enc20.npy", widths, 0, pack)
    rec = comdefend_arrays(folder / "dec20.npy", [12, 32, 64, 128, 256, 128, 64, 32, 16, 3], 1, pack)
    x = photo(1, 64)
    expected, close_calls = np.zeros((64, 64, 3)), np.zeros((64, 64), bool)
    swapped = x[0].permute(1, 2, 0).double().numpy()[..., ::-1]
    for a in (0, 32):
        for b in (0, 32):
            code = walk(com, swapped[a : a + 32, b : b + 32] - 0.5)
            close_calls[a : a + 32, b : b + 32] = (np.abs(code) < 1e-5).any()  # rounding may decide a bit
            expected[a : a + 32, b : b + 32] = 1 / (1 + np.exp(-walk(rec, (code > 0).astype(float))))

    entry = made("comdefend(weights=enc20.npy, size=64)")
    purified = entry.purify(x, image_rng(1))
    found = purified[0].permute(1, 2, 0).numpy()
    assert entry.resolved()["order"] == "bgr"
    assert close_calls.mean() < 0.6
    assert expected.std() > 0.05
    assert np.allclose(found[~close_calls], expected[..., ::-1][~close_calls], atol=1e-4)
    assert torch.equal(made("comdefend(weights=enc20.npy, size=0)").purify(x, image_rng(1)), purified)
    for other in ("order=rgb", "patch=0", "noise=1"):
        assert not torch.equal(
            made(f"comdefend(weights=enc20.npy, size=64, {other})").purify(x, image_rng(1)), purified
        )


def test_patches_lie_row_by_row() -> None:
    x = torch.arange(2 * 1 * 4 * 4.0).view(2, 1, 4, 4)
    patches = comdefend.cut(x, 2)
    assert patches.shape == (8, 1, 2, 2)
    assert patches[1].flatten().tolist() == [2, 3, 6, 7]
    assert patches[2].flatten().tolist() == [8, 9, 12, 13]
    assert patches[5].flatten().tolist() == [18, 19, 22, 23]
    assert torch.equal(comdefend.join(patches, 2), x)


def test_comdefend_goes_to_224_and_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours(folder / "a.safetensors", "comdefend")
    sizes: list[torch.Size] = []
    entry = made("comdefend(weights=a.safetensors)")
    network: Any = type(entry.net("cpu"))
    usual = network.forward
    monkeypatch.setattr(network, "forward", lambda self, x, *more: (sizes.append(x.shape), usual(self, x, *more))[1])
    assert entry.purify(photo(2, 299), image_rng(2)).shape == (2, 3, 299, 299)
    assert sizes == [torch.Size([2 * 49, 3, 32, 32])]
    made("comdefend(weights=a.safetensors, size=0)").purify(photo(2, 75), image_rng(2))
    made("comdefend(weights=a.safetensors, patch=0)").purify(photo(2, 75), image_rng(2))
    assert sizes[1:] == [torch.Size([2 * 9, 3, 32, 32]), torch.Size([2, 3, 224, 224])]


def test_comdefends_noise_flips_bits(folder: Path) -> None:
    ours(folder / "a.safetensors", "comdefend")
    x = photo(1, 32)
    quiet, noisy = (made(f"comdefend(weights=a.safetensors, size=32, noise={n})") for n in (0, 1))
    assert (quiet.random, noisy.random) == (False, True)
    assert torch.equal(noisy.purify(x, image_rng(1)), noisy.purify(x, image_rng(1)))
    assert not torch.equal(noisy.purify(x, image_rng(1)), noisy.purify(x, image_rng(1, "b")))
    assert torch.equal(quiet.purify(x, image_rng(1)), quiet.purify(x, image_rng(1, "b")))
    net = quiet.net("cpu")
    noise = image_rng(1).normal(12, 32, 32)
    bits = (net.com(x - 0.5) > noise).float()
    assert torch.allclose(noisy.purify(x, image_rng(1)), net.rec(bits).sigmoid(), atol=1e-5)


def test_edsr_from_its_authors_file(folder: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    add_conv(shapes, "sub_mean", 3, 3, 1)
    add_conv(shapes, "add_mean", 3, 3, 1)
    add_conv(shapes, "head.0", 3, 64)
    for i in range(2):
        add_conv(shapes, f"body.{i}.body.0", 64, 64)
        add_conv(shapes, f"body.{i}.body.2", 64, 64)
    add_conv(shapes, "body.2", 64, 64)
    add_conv(shapes, "tail.0.0", 64, 256)
    add_conv(shapes, "tail.1", 64, 3)
    state = random_state(shapes, gain=0.6)
    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040])
    eye = torch.eye(3).view(3, 3, 1, 1)
    state |= {"sub_mean.weight": eye, "sub_mean.bias": -mean, "add_mean.weight": eye, "add_mean.bias": mean}
    torch.save(state, folder / "edsr.pt")
    x = photo(1, 19)
    start = out = layer(state, "head.0", layer(state, "sub_mean", 255 * x))
    for i in range(2):
        out = out + layer(state, f"body.{i}.body.2", layer(state, f"body.{i}.body.0", out).relu())
    out = layer(state, "tail.0.0", start + layer(state, "body.2", out))
    expected = layer(state, "add_mean", layer(state, "tail.1", shuffled(out))) / 255

    entry = made("sr(weights=edsr.pt)")
    assert expected.std() > 0.05
    assert torch.allclose(entry.forward(x), expected, atol=1e-3)
    clean = made("wavelet").purify(x, image_rng(1))
    assert torch.equal(entry.purify(x, image_rng(1)), entry.forward(clean).clamp(0, 1))
    assert torch.equal(
        made("sr(weights=edsr.pt, sigma=0.01, jpeg=0)").purify(x, image_rng(1)),
        entry.forward(made("wavelet(sigma=0.01, jpeg=0)").purify(x, image_rng(1))).clamp(0, 1),
    )


def test_sr_hands_on_twice_the_size_unless_resized(folder: Path) -> None:
    ours(folder / "a.safetensors", "sr")
    double, back = made("sr(weights=a.safetensors)"), made("sr(weights=a.safetensors, resize=true)")
    assert (double.scale, back.scale) == (2.0, 1.0)
    x = photo(1, 33)
    large, small = double.purify(x, image_rng(1)), back.purify(x, image_rng(1))
    assert (large.shape[-1], small.shape[-1]) == (66, 33)
    pillow = Image.fromarray((large[0, 0].numpy() * 255).astype(np.float32)).resize((33, 33), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(pillow).clip(0, 255) / 255 - small[0, 0].numpy()).max() < 1e-2


def test_srs_stand_in_adds_up_four_gradients(folder: Path) -> None:
    ours(folder / "a.safetensors", "sr")
    entry, x = made("sr(weights=a.safetensors)"), photo(1, 8).requires_grad_()
    weight = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = entry.bpda(x, image_rng(1))
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.allclose(out.detach(), entry.purify(x.detach(), image_rng(1)), atol=1e-6)
    four = weight[..., ::2, ::2] + weight[..., 1::2, ::2] + weight[..., ::2, 1::2] + weight[..., 1::2, 1::2]
    assert torch.allclose(gradient, four, atol=1e-6)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="../shared/weights is not here")
def test_comdefends_real_weights() -> None:
    """Reconstruction of 224 pixels: 29.9 dB fed red, green, blue, as trained; less as released, blue first."""
    paths = sorted((SHARED / "nips17").rglob("*.png"))[:4]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()[..., 64:160, 64:160] / 255

    def psnr(params: str) -> float:
        file = SHARED / "weights" / "comdefend_enc20_0.0001.npy"
        purified = made(f"comdefend(weights={file}, size=96{params})").purify(x, image_rng(len(x)))
        return float((-10 * (purified - x).square().mean((1, 2, 3)).log10()).mean())

    released, trained = psnr(""), psnr(", order=rgb")
    assert 26 < released < trained < 32
    assert psnr(", noise=1") == pytest.approx(released, abs=0.1)  # flips 0.2 % of the bits
