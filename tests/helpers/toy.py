"""Tiny classifiers with fixed weights: small enough to work out by hand, and the draws to script an attack."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rdp_bench.models.zoo import LoadedSource
from rdp_bench.rng import ImageRng


class Toy:
    """A classifier from a function of the image; remembers every image and zoom it is called with."""

    def __init__(self, logits: Callable[[Tensor], Tensor], classes: int, name: str = "toy") -> None:
        self.logits = logits
        self.classes = classes
        self.name = name
        self.seen: list[Tensor] = []
        self.zooms: list[float] = []

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        self.seen.append(x.detach().clone())
        self.zooms.append(zoom)
        return self.logits(x)

    def record(self) -> dict[str, Any]:
        return {"toy": self.name}


class Wrapped(Toy):
    """A toy around a module, which attacks that hook into layers look for."""

    def __init__(self, net: nn.Module, classes: int, name: str = "net") -> None:
        super().__init__(net, classes, name)
        self.net = net


class TwoHeads(Toy):
    """A toy with an auxiliary head, as TF Inception networks have one."""

    def __init__(
        self, logits: Callable[[Tensor], Tensor], aux: Callable[[Tensor], Tensor], classes: int, name: str = "two"
    ) -> None:
        super().__init__(logits, classes, name)
        self.aux = aux

    def logits_and_aux(self, x: Tensor, zoom: float = 1.0) -> tuple[Tensor, Tensor]:
        return self(x, zoom), self.aux(x)


def random(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) that is the same everywhere."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n: int, size: int = 8, seed: int = 0) -> Tensor:
    """U[0, 1) images `[n, 3, size, size]`."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def linear(classes: int = 5, size: int = 8, seed: int = 0, scale: float = 1.0) -> Toy:
    """Logits that are linear in the pixels; one image size only."""
    weight = random(3 * size * size, classes, seed=seed) * scale
    return Toy(lambda x: x.flatten(1) @ weight, classes, f"linear-{seed}")


def network(classes: int = 5, seed: int = 0) -> nn.Sequential:
    """A conv net for every image size, as a module."""
    with torch.random.fork_rng(devices=[]):  # torch fills new layers from the global stream
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Tanh(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
        )  # fmt: skip
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.copy_(random(*weight.shape, seed=seed + number) * (0.5 if weight.ndim > 1 else 0.1))
    return net.requires_grad_(False).eval()


def transformer(size: int = 24, classes: int = 5) -> Any:
    """A vision transformer of timm with two blocks."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        net = VisionTransformer(img_size=size, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=classes)
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.copy_(random(*weight.shape, seed=number) * 0.3)
    return net.requires_grad_(False).eval()


def conv(classes: int = 5, seed: int = 0) -> Toy:
    """`network` as a classifier."""
    return Toy(network(classes, seed), classes, f"conv-{seed}")


def flat(classes: int = 5) -> Toy:
    """The same logits for every image, so a gradient of zero."""
    return Toy(lambda x: x.sum((1, 2, 3))[:, None] * 0 + torch.arange(float(classes)), classes, "flat")


def mean(classes: int = 5) -> Toy:
    """Logits of the mean colour: autograd gives its gradient as one number an image, expanded."""
    weight = random(3, classes)
    return Toy(lambda x: x.mean((2, 3)) @ weight, classes, "mean")


def source(*members: Any) -> LoadedSource:
    return LoadedSource("+".join(member.name for member in members), members)


def image_rng(n: int, seed: str = "") -> ImageRng:
    return ImageRng([f"{seed}{i}" for i in range(n)])


class Script(ImageRng):
    """Draws whose integers are read from a script; the bounds they were asked for are kept."""

    def __init__(self, n: int, integers: Sequence[int]) -> None:
        super().__init__([str(i) for i in range(n)])
        self.script = list(integers)
        self.bounds: list[tuple[int, int]] = []

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        self.bounds.append((low, int(torch.as_tensor(high).max())))
        return torch.full((len(self), *shape), self.script.pop(0))
