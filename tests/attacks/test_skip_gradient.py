"""SGM against networks in whose code the gradient of each residual branch is multiplied by gamma."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rdp_bench import plugins, registry
from rdp_bench.attacks._loop import begin, loss_gradient
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.errors import UsageError
from rdp_bench.models.resnet_v2 import ResNetV2
from tests.helpers import toy

GAMMA = 0.2
EPS = 8 / 255


class Decayed(nn.Module):
    """The identity; its gradient is multiplied by gamma."""

    def forward(self, x: Tensor) -> Tensor:
        return GAMMA * x + (1 - GAMMA) * x.detach()


def after(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(module, Decayed())


class Block(nn.Module):
    """Two branches, the second added to a view of the first sum."""

    def __init__(self, decay: nn.Module, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6 * 64, 6 * 64)
        self.decay = decay
        self.place = nn.Parameter(toy.random(6, 8, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place
        x = self.decay(torch.tanh(self.one(x))) + x
        x = x.reshape(len(x), -1)
        return (x + self.decay(torch.tanh(self.two(x)))).view(-1, 6, 8, 8)


class Strided(nn.Module):
    """A ResNet's block: a projection on the skip, a sum in place, an activation after it."""

    def __init__(self, decay: nn.Module, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, stride, padding=1)
        self.downsample = nn.Conv2d(6, 6, 1, stride) if stride > 1 else None
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        x = self.decay(self.conv(torch.tanh(x)))
        x += short
        return x.relu_()


def network(decay: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), Block(decay(), 1), Block(decay(), 2), Strided(decay(), 1),
            Strided(decay(), 2), nn.Flatten(), nn.Linear(6 * 16, 5),
        )  # fmt: skip
    return net.eval()


def slope(net: Any, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(net(leaf), y, reduction="sum"), leaf)
    return grad


def ours(net: nn.Module, x: Tensor, y: Tensor, text: str = f"I(1)|SGM(gamma={GAMMA})") -> Tensor:
    """The gradient of the attack's only step."""
    source = toy.source(toy.Wrapped(net, 1000))
    run = begin(compose(text).parts, source, x, y, EPS, EPS)
    with ExitStack() as stack:
        for part in run.parts:
            stack.enter_context(part.around(run))
        return loss_gradient(run, x)


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < 1e-5


def test_every_branch_is_multiplied_by_gamma() -> None:
    x, y = toy.images(3, 8), torch.arange(3)
    plain, decayed = network(nn.Identity), network(Decayed)
    assert torch.allclose(plain(x), decayed(x), atol=1e-6)
    assert close(ours(plain, x, y), slope(decayed, x, y))
    assert not close(slope(plain, x, y), slope(decayed, x, y))
    assert close(ours(plain, x, y, "I(1)|SGM(gamma=1)"), slope(plain, x, y))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    assert not any(weight._backward_hooks for weight in plain.parameters())


def resnet(name: str, last: str) -> tuple[nn.Module, nn.Module]:
    nets = created(name), created(name)
    for module in list(nets[1].modules()):
        if hasattr(module, last) and hasattr(module, "downsample"):
            setattr(module, last, after(getattr(module, last)))
    return nets


def with_paths(name: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Every branch of these families ends in timm's `drop_path`."""
    nets = created(name, **settings), created(name, **settings)
    for module in list(nets[1].modules()):
        for path in ("drop_path", "drop_path1", "drop_path2"):
            if isinstance(getattr(module, path, None), nn.Module) and getattr(module, "has_skip", True):
                setattr(module, path, after(getattr(module, path)))
    return nets


def created(name: str, **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(name, **settings)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # timm starts the last norm of a branch at zero
                nn.init.uniform_(module.weight, 0.5, 1.5)
            if (gamma := getattr(module, "gamma", None)) is not None:
                nn.init.uniform_(gamma, 0.5, 1.5)
    return net.requires_grad_(False).eval()


def slim() -> tuple[nn.Module, nn.Module]:
    nets = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nets.append(ResNetV2((2, 2), 7).requires_grad_(False).eval())
    for block in nets[1].blocks:
        for unit in block:
            unit.conv3 = after(unit.conv3)
    return nets[0], nets[1]


TINY = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 3), "window_size": 4, "img_size": 64}
NETS = {
    "resnet18": lambda: resnet("resnet18", "bn2"),
    "resnet50": lambda: resnet("resnet50", "bn3"),
    "efficientnet": lambda: with_paths("tf_efficientnet_lite0"),
    "vit": lambda: with_paths("vit_tiny_patch16_224", img_size=64, depth=2),
    "swin": lambda: with_paths("swin_tiny_patch4_window7_224", **TINY),
    "convnext": lambda: with_paths("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "resnet-v2 of slim": slim,
}


@pytest.mark.parametrize("name", NETS)
def test_branches_are_found_in_every_family(name: str) -> None:
    plain, decayed = (net.double() for net in NETS[name]())  # in float32, a ReLU at zero may fall to either side
    x, y = toy.images(2, 64).double(), torch.tensor([1, 5])
    assert close(ours(plain, x, y), slope(decayed, x, y))
    assert not close(slope(plain, x, y), slope(decayed, x, y))


def test_the_preset_is_the_loop_of_the_authors() -> None:
    plugins.load()
    x, y = toy.images(2, 8), torch.tensor([1, 4])
    decayed, adv = network(Decayed), x
    for _ in range(10):
        adv = adv + 2 / 255 * slope(decayed, adv, y).sign()
        adv = torch.minimum(torch.maximum(adv, x - 16 / 255), x + 16 / 255).clamp(0, 1)
    attack = registry.attack.resolve("sgm").value
    found = attack(toy.source(toy.Wrapped(network(nn.Identity), 5)), x, y, 16 / 255, toy.image_rng(2))
    assert float(((found - adv).abs() > 1e-5).float().mean()) < 4e-3


@pytest.mark.parametrize("make", [toy.network, lambda: created("densenet121")], ids=["plain", "densenet"])
def test_networks_without_residual_sums_are_refused(make: Callable[[], nn.Module]) -> None:
    net = make()
    with pytest.raises(UsageError, match="SGM needs a source with residual branches"):
        ours(net, toy.images(1, 32), torch.tensor([0]))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_function_is_refused() -> None:
    with pytest.raises(UsageError, match="hooks into the layers of the source; 'conv-0'"):
        compose("SGM")(toy.source(toy.conv()), toy.images(1, 8), torch.tensor([0]), EPS, toy.image_rng(1))
