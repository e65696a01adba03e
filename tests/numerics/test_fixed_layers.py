"""Layers with fixed weights: torch's own results, and equal bits for every thread count and batch size."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from rdp_bench import plugins, registry
from rdp_bench.data.open import open_dataset
from rdp_bench.defenses._networks.comdefend import Elu
from rdp_bench.engine.levels import to_float
from rdp_bench.models import zoo
from rdp_bench.models.fold_batch_norm import fuse_relu6
from rdp_bench.numerics import fixed_layers
from rdp_bench.numerics.fixed_layers import Convolution, fix_layers
from rdp_bench.numerics.resizing import resize, resize_gathered, resize_matrix
from rdp_bench.rng import ImageRng
from tests.helpers import toy

plugins.load()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def both(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output without gradient, the output with it, and the gradient of a weighted sum."""
    with torch.no_grad():
        judged = net(x.clone())
    leaf = x.clone().requires_grad_()
    out = net(leaf)
    (grad,) = torch.autograd.grad((out * toy.random(*out.shape, seed=1)).sum(), leaf)
    return judged, out.detach(), grad


LAYERS = {
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "1x1 of groups": lambda: nn.Conv2d(6, 8, 1, groups=2),
    "1x1 strided": lambda: nn.Conv2d(6, 8, 1, 2),
    "1x1 padded": lambda: nn.Conv2d(6, 8, 1, padding=1),
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 5, 2, padding=2, groups=6),
}


def seeded(layer: nn.Module) -> nn.Module:
    for number, weight in enumerate(layer.parameters()):
        weight.data = toy.random(*weight.shape, seed=number + 5)
    return layer.requires_grad_(False).eval()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_is_torchs(name: str, clip: bool) -> None:
    plain = nn.Sequential(seeded(LAYERS[name]()), *([nn.ReLU6(inplace=True)] if clip else []))
    x = toy.random(3, 6, 11, 14)
    ours = fix_layers(copy.deepcopy(plain))
    fuse_relu6(ours, x[:1])
    assert [type(layer) for layer in ours] == [Convolution, nn.Identity][: len(plain)]
    for one, two in zip(both(ours, x), both(plain, x), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(11, 3, 2), (12, 3, 2), (12, 5, 2), (13, 5, 2), (12, 4, 3)])
def test_tensorflows_padding(size: int, kernel: int, stride: int, groups: int) -> None:
    """Of timm's layer, with a pixel more at the end or without."""
    same = pytest.importorskip("timm.layers").Conv2dSame
    plain = nn.Sequential(seeded(same(6, 6, kernel, stride, groups=groups)))
    ours = fix_layers(copy.deepcopy(plain), same)
    x = toy.random(3, 6, size, size + 1)
    assert isinstance(ours[0], Convolution)
    for one, two in zip(both(ours, x), both(plain, x), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_is_torchs() -> None:
    plain = nn.Sequential(seeded(nn.Linear(20, 7)))
    ours = fix_layers(copy.deepcopy(plain))
    for x in (toy.random(3, 20), toy.random(2, 3, 20)):
        for one, two in zip(both(ours, x), both(plain, x), strict=True):
            assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 4, 1), lambda: nn.Conv2d(4, 4, 3, padding=1)])
def test_changed_weights_are_noticed(make: object) -> None:
    plain = nn.Sequential(seeded(make()))  # type: ignore[operator]
    ours = fix_layers(copy.deepcopy(plain))
    x = toy.random(2, 4, 8, 8)
    both(ours, x)
    copied = copy.deepcopy(ours)
    for net in (plain, ours, copied):
        net[0].weight.mul_(2)
    for net in (ours, copied):
        for one, two in zip(both(net, x), both(plain, x), strict=True):
            assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)
    copied.requires_grad_(True)
    copied(x).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in copied.parameters())


def test_without_onednn_and_in_lower_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Sequential(seeded(nn.Conv2d(6, 8, 1)), nn.Flatten(), seeded(nn.Linear(72, 4)))
    ours = fix_layers(copy.deepcopy(plain))
    x = toy.random(3, 6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), plain(x))
    monkeypatch.setattr(fixed_layers, "AVAILABLE", False)
    for one, two in zip(both(ours, x), both(plain, x), strict=True):
        assert torch.equal(one, two)


def test_elu() -> None:
    x = torch.cat([toy.random(1000) * 20 - 10, torch.tensor([0.0, -0.0, -1e-9, 1e-9, -200.0, 200.0])])
    assert torch.allclose(Elu()(x.clone()), elu(x), rtol=0, atol=1.2e-7)


def photos(n: int) -> tuple[Tensor, Tensor]:
    data = open_dataset("photos20", limit=n)
    x = torch.stack([to_float(data.image(i), "cpu") for i in range(n)])
    return x, torch.tensor(list(data.labels))


ATTACKS = ["fgsm", "mi-fgsm(steps=2)", "dim(steps=2)", "ti-dim(steps=2)", "sini-tidim(steps=1)"]


@pytest.mark.parametrize("name", ATTACKS)
def test_crafting_depends_neither_on_threads_nor_on_the_batch(name: str, threads: None) -> None:
    """With a real network: 1 x 1 convolutions, few images, parts of batches that input diversity splits."""
    source, (x, y) = zoo.find_source("effnet-lite0", {}).load("cpu"), photos(5)
    attack = registry.attack.resolve(name).value

    def crafted(count: int, number: int) -> Tensor:
        torch.set_num_threads(number)
        found: Tensor = attack(source, x[:count].clone(), y[:count], 16 / 255, ImageRng([str(i) for i in range(count)]))
        return found

    found = crafted(5, 1)
    assert torch.equal(found, crafted(5, 2))
    assert torch.equal(found[:1], crafted(1, 1))


@pytest.mark.parametrize("name", ["none", "hgd", "rdp", "comdefend"])
def test_judging_depends_neither_on_threads_nor_on_the_batch(name: str, threads: None) -> None:
    model, (x, _) = zoo.find("effnet-lite2-ens").load("cpu"), photos(3)
    defense = registry.defense.resolve(name).value

    def judged(count: int, number: int) -> Tensor:
        torch.set_num_threads(number)
        with torch.no_grad():
            found: Tensor = model(defense.purify(x[:count].clone(), ImageRng([""] * count)))
        return found

    found = judged(3, 1)
    assert torch.equal(found, judged(3, 2))
    assert torch.equal(found[:1], judged(1, 1))


def second(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the size of a gradient."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(net(leaf).square().sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(first.square().sum(), leaf)
    return found


def test_second_derivatives_are_those_of_plain_layers() -> None:
    """Asked for as autograd.grad does, which drops a term without a word where a layer has no second derivative."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(),
                        nn.Conv2d(8, 4, 1)).requires_grad_(False)  # fmt: skip
    x = toy.images(2, 12)
    wanted = second(net, x)
    fixed = fix_layers(copy.deepcopy(net))
    fuse_relu6(fixed, x)
    found = second(fixed, x)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert float(wanted.norm()) > 0


@pytest.mark.parametrize("gathered", [False, True])
def test_second_derivatives_pass_resizing(gathered: bool) -> None:
    x = toy.images(2, 24)
    index = torch.arange(24).expand(2, -1)

    def resized(images: Tensor) -> Tensor:
        small = resize_gathered(images, index, index, 16, "bicubic") if gathered else resize(images, 16, "bicubic")
        return small**2

    def plain(images: Tensor) -> Tensor:
        matrix = resize_matrix(24, 16, "bicubic", 1.0, torch.device("cpu"))
        return (matrix @ images @ matrix.T) ** 2

    wanted = second(plain, x)
    assert float((second(resized, x) - wanted).norm() / wanted.norm()) < 1e-4
