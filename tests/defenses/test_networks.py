"""The networks of the learned defenses: sizes, cost, images of any size, gradients, noise."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rdp_bench import Learned, plugins
from rdp_bench.defenses._learned import Dynamic
from rdp_bench.defenses._networks import comdefend, edsr, hgd, nrp, rdp
from rdp_bench.errors import UsageError
from rdp_bench.rng import ImageRng
from tests.helpers.learned import TINY, build, conv, image_rng, made, ours, photo

plugins.load()

pytestmark = pytest.mark.usefixtures("folder")


def chain(*widths: int) -> int:
    return sum(conv(old, new) for old, new in pairwise(widths))


def unit(old: int, new: int) -> int:
    """Convolution without bias and a batch-norm's two vectors."""
    return conv(old, new, bias=False) + 2 * new


DUNET = (
    [(3, 64), (64, 64)]
    + [(64, 128), (128, 128), (128, 128)]
    + [(128, 256), (256, 256), (256, 256)]
    + [(256, 256)] * 6
    + [(512, 256), (256, 256), (256, 256)] * 2
    + [(384, 128), (128, 128), (128, 128)]
    + [(192, 64), (64, 64)]
)


@pytest.mark.parametrize(
    ("network", "count", "published"),
    [
        (hgd.Denoiser, sum(unit(a, b) for a, b in DUNET) + conv(64, 3, 1, bias=False), 11_033_984),
        (comdefend.ComDefend, None, 783_372 + 783_363),
        # Two fixed 1x1 convolutions with the means are constants here.
        (edsr.EDSR, conv(3, 64) + 33 * conv(64, 64) + conv(64, 256) + conv(64, 3), 1_369_883 - 2 * conv(3, 3, 1)),
        (rdp.Purifier, conv(3, 64) + 32 * conv(64, 64) + conv(64, 3), 1_185_219),
        (nrp.RRDBNet, conv(3, 64) + 23 * 719_424 + conv(64, 3), None),
        (nrp.ResNetG, conv(3, 64) + 46 * conv(64, 64) + conv(64, 3), None),
    ],
)
def test_parameter_counts(network: Callable[[], nn.Module], count: int | None, published: int | None) -> None:
    with torch.device("meta"):
        net = network()
    found = sum(parameter.numel() for parameter in net.parameters())
    assert found in ({count, published} - {None})
    assert len({count, published, found} - {None}) == 1


def test_comdefends_two_halves() -> None:
    net = comdefend.ComDefend()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.com, net.rec)]
    assert sizes == [chain(3, 16, 32, 64, 128, 256, 128, 64, 32, 12), chain(12, 32, 64, 128, 256, 128, 64, 32, 16, 3)]
    assert sizes == [783_372, 783_363]


@pytest.mark.parametrize(("kind", "side"), [("hgd", 299), ("comdefend", 224), ("sr", 299)])
def test_compact_is_cheap(kind: str, side: int) -> None:
    sizes = {"hgd": hgd.SIZES, "comdefend": comdefend.SIZES, "sr": edsr.SIZES}[kind]
    with torch.device("meta"):
        net = build(kind, **sizes["compact"]).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() / 2 < 4.5e9
    assert sum(p.numel() for p in net.parameters()) < 1_400_000
    assert sizes["paper"] == {} or build(kind, **sizes["paper"]) is not None


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("size", [299, 75, 33, 32])
def test_every_size_of_image(folder: Path, kind: str, size: int) -> None:
    ours(folder / "a.safetensors", kind)
    entry, x = made(f"{kind}(weights=a.safetensors)"), photo(1, size)
    before = x.clone()

    purified = entry.purify(x, image_rng(1))

    assert purified.shape == (1, 3, round(entry.scale * size), round(entry.scale * size))
    assert purified.dtype == torch.float32
    assert 0 <= purified.min() < purified.max() <= 1
    assert torch.equal(x, before)
    assert not purified.requires_grad


@pytest.mark.parametrize("kind", TINY)
def test_an_image_does_not_depend_on_its_neighbours(folder: Path, kind: str) -> None:
    ours(folder / "a.safetensors", kind)
    x = photo(3, 64)
    random = {"rdp": ", dynamic=true", "nrp": ", dynamic=true", "rdp-reconstruction": ", latent=random"}
    for params in {"", random.get(kind, "")}:
        entry = made(f"{kind}(weights=a.safetensors{params})")
        together = entry.purify(x, image_rng(3))
        for i in range(3):
            alone = entry.purify(x[i : i + 1], ImageRng([str(i)]))
            # The convolution library picks its method by the batch size: equal but for rounding.
            assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_sizes_are_mirrored_up_and_cropped() -> None:
    seen: list[Tensor] = []

    class Four(nn.Module):
        multiple = 4

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    @dataclass(frozen=True)
    class Same(Learned):
        def net(self, device: object) -> nn.Module:
            return Four()

    x = photo(2, 33)
    assert torch.equal(Same().purify(x, image_rng(2)), x)
    mirrored = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="reflect")
    assert torch.equal(seen[0], torch.from_numpy(mirrored))
    even = photo(2, 32)
    Same().purify(even, image_rng(2))
    assert seen[1] is even  # no copy where none is needed


@pytest.mark.parametrize("kind", ["rdp", "nrp", "nrp-resg", "hgd"])
def test_gradients_pass_the_network(folder: Path, kind: str) -> None:
    net = ours(folder / "a.safetensors", kind)
    entry = made(f"{kind}(weights=a.safetensors)")
    assert entry.differentiable
    assert entry.backward == "exact"
    x = photo(1, 33).requires_grad_()
    weight = torch.rand(1, 3, 33, 33)
    (gradient,) = torch.autograd.grad((entry.bpda(x, image_rng(1)) * weight).sum(), x)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="reflect") if TINY[kind].get("unshuffle") == 2 else x
    (expected,) = torch.autograd.grad((net(padded)[..., :33, :33].clamp(0, 1) * weight).sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-4)
    assert gradient.abs().max() > 0


def test_noise_in_the_latents_place_has_its_mean_and_deviation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = ours(folder / "a.safetensors", "rdp-reconstruction")
    given: list[Tensor] = []
    decode = rdp.Reconstructor.decode

    def noted(self: Any, natural: Tensor, own: Tensor) -> Tensor:
        given.append(natural)
        return decode(self, natural, own)

    monkeypatch.setattr(rdp.Reconstructor, "decode", noted)
    x = photo(2, 128)
    for latent in ("natural", "random"):
        made(f"rdp-reconstruction(weights=a.safetensors, latent={latent})").purify(x, image_rng(2))
    natural, noise = given
    assert torch.allclose(natural, net.encoder(x), atol=1e-4)
    # 4,096 numbers a channel: four standard errors of a mean and of a deviation.
    middle, spread = natural.mean((2, 3)), natural.std((2, 3))
    assert ((noise.mean((2, 3)) - middle).abs() < 4 * spread / 64).all()
    assert ((noise.std((2, 3)) / spread - 1).abs() < 4 / 64 / 2**0.5).all()
    both = torch.stack([natural.flatten(2), noise.flatten(2)]).sub(middle[..., None]).div(spread[..., None])
    assert (both.prod(0).mean(2).abs() < 4 / 64).all()  # nothing of the content
    with pytest.raises(UsageError, match="latent is natural or random, found none"):
        made("rdp-reconstruction(latent=none)")


def test_comdefends_backward_is_the_identity(folder: Path) -> None:
    ours(folder / "a.safetensors", "comdefend")
    entry, x = made("comdefend(weights=a.safetensors)"), photo(1, 32).requires_grad_()
    weight = torch.rand(1, 3, 32, 32)
    (gradient,) = torch.autograd.grad((entry.bpda(x, image_rng(1)) * weight).sum(), x)
    assert torch.equal(gradient, weight)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + 0.25  # what is outside [0, 1] by less than a half stays visible


class Noisy(Dynamic):
    """The noise alone: what its network does is undone below."""

    def net(self, device: object) -> nn.Module:
        return Halved()

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (super().purify(x, rng) - 0.25) * 2


def test_the_gaussian_layer() -> None:
    x = torch.full((4, 3, 50, 50), 0.5)
    assert (Noisy().random, Noisy(dynamic=True).random) == (False, True)
    assert torch.equal(Noisy().purify(x, image_rng(4)), x)
    free = (Noisy(dynamic=True, clip=False).purify(x, image_rng(4)) - x) / 0.05
    assert torch.allclose(free, image_rng(4).normal(3, 50, 50), atol=1e-5)
    clipped = Noisy(dynamic=True).purify(x, image_rng(4)) - x
    assert torch.allclose(clipped, (0.05 * free).clamp(-16 / 255, 16 / 255), atol=1e-6)
    assert (clipped.abs() > 16 / 255 - 1e-6).float().mean().item() == pytest.approx(0.2095, abs=0.01)
    dark = Noisy(dynamic=True).purify(x * 0, image_rng(4))
    assert (dark == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (Noisy(dynamic=True, clip=False).purify(x * 0, image_rng(4)) < 0).float().mean().item() > 0.4
    with pytest.raises(UsageError, match="sigma is at least 0, found -1"):
        made("rdp(sigma=-1)")


def test_noise_comes_before_the_network(folder: Path) -> None:
    net = ours(folder / "a.safetensors", "rdp")
    x = photo(1, 16)
    entry = made("rdp(weights=a.safetensors, dynamic=true, clip=false)")
    noisy = x + 0.05 * image_rng(1).normal(3, 16, 16)
    assert torch.allclose(entry.purify(x, image_rng(1)), net(noisy).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comdefend(size=100)", "size is a multiple of patch"),
        ("comdefend(order=brg)", "order is rgb, bgr or auto, found brg"),
        ("comdefend(noise=-1)", "noise is at least 0"),
        ("sr(jpeg=101)", "quality is 1 to 100"),
        ("hgd(width=4)", "unknown parameter 'width' of defense 'hgd'"),
    ],
)
def test_bad_parameters(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(text)
