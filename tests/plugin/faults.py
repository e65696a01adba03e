"""Defenses and a target whose faults are known: what an audit must name. None of them is a defense to use."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from rdp_bench import Classifier, Dataset, Purifier, dataset, defense, model
from rdp_bench.rng import ImageRng


class Exact(Purifier):
    """A defense whose gradient is said to be autograd's."""

    differentiable: ClassVar[bool] = True
    backward = "exact"


@defense("fault/identity", source="made up")
@dataclass(frozen=True)
class Identity(Exact):
    """Nothing."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x


@defense("fault/staircase", source="made up")
@dataclass(frozen=True)
class Staircase(Exact):
    """Rounds to few levels: autograd's gradient is zero."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x * 16).round() / 16


@defense("fault/resize", source="made up")
@dataclass(frozen=True)
class Resize(Exact):
    """A random shift of up to two pixels: one draw tells little of the next."""

    random = True

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        places = rng.integers(0, 5, 2).tolist()
        size = x.shape[-1]
        padded = pad(x, (2, 2, 2, 2), value=0.5)
        return torch.stack([one[:, t : t + size, k : k + size] for one, (t, k) in zip(padded, places, strict=True)])


@defense("fault/noise", source="made up")
@dataclass(frozen=True)
class Noise(Exact):
    """Changes no image; the gradient of a draw has the wrong sign on three pixels of five, and is right on average."""

    random = True

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        factor = torch.where(rng.uniform(*x.shape[1:]) < 0.6, -1.0, 4.0).to(x)
        return x.detach() + factor * (x - x.detach())


@defense("fault/stream", source="made up")
@dataclass(frozen=True)
class Stream(Resize):
    """The same shift, from a fork of the stream: every draw of an attack has one and the same."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return super().purify(x, rng.fork("own"))


@defense("fault/root", source="made up")
@dataclass(frozen=True)
class Root(Exact):
    """Nothing, by a detour through a root at 0, whose gradient is no number."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x + (x - x.detach()).abs().sqrt()


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


@defense("fault/sign", source="made up")
@dataclass(frozen=True)
class Sign(Exact):
    """The gradient has the wrong sign."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        found: Tensor = _Flipped.apply(x)
        return found


@defense("fault/turned", source="made up")
@dataclass(frozen=True)
class Turned(Purifier):
    """Turns the image upside down: the identity is a bad stand-in, and turning is a good one."""

    has_smooth: ClassVar[bool] = True

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x.detach().flip(2, 3)

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x.flip(2, 3)


@defense("fault/detach", source="made up")
@dataclass(frozen=True)
class Detach(Exact):
    """No gradient passes."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x.detach().clone()


REACH = 0.14
"""Mean distance of pixels within which two images look alike to `Leak` and `Memory`; photographs are farther apart."""


def _nearest(known: Sequence[Tensor], x: Tensor, reach: float) -> Tensor:
    """Each image replaced by the nearest of `known`, where one is within `reach` per pixel on average."""
    if not known:
        return x
    stack = torch.stack(list(known)).to(x)
    far = (x[:, None] - stack[None]).abs().mean((2, 3, 4))
    near = far.min(1)
    return torch.where((near.values < reach).view(-1, 1, 1, 1), stack[near.indices] + 0 * x, x)


@defense("fault/leak", source="made up")
@dataclass(frozen=True)
class Leak(Exact):
    """Remembers every image that it sees, and gives back the first that looks alike: the clean one."""

    _seen: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        found = _nearest(self._seen, x, REACH)
        fresh = [one.detach().clone() for one, back in zip(x, found, strict=True) if torch.equal(one, back)]
        self._seen.extend(fresh)
        return found

    def resolved(self) -> dict[str, Any]:
        return {}


_EVERYBODYS: list[Tensor] = []


@defense("fault/shared", source="made up")
@dataclass(frozen=True)
class Shared(Leak):
    """The same, and all copies remember together."""

    _seen: list[Tensor] = field(default_factory=lambda: _EVERYBODYS, compare=False, repr=False)

    def __deepcopy__(self, memo: object) -> "Shared":
        return Shared()


@defense("fault/trace", source="made up")
@dataclass(frozen=True)
class Trace(Shared):
    """The same, and a tenth of the image passes: no two outputs are equal, and all are nearly the first."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        back = _nearest(_TRACES, x, REACH)
        _TRACES.extend(one.detach().clone() for one, first in zip(x, back, strict=True) if torch.equal(one, first))
        return 0.9 * back + 0.1 * x


_TRACES: list[Tensor] = []


@defense("fault/memory", source="made up")
@dataclass(frozen=True)
class Memory(Exact):
    """Knows the test images, and gives back the one that looks alike."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return _nearest([torch.from_numpy(_photo(i)) / 255 for i in range(COUNT)], x, REACH)


@defense("fault/album", source="made up")
@dataclass(frozen=True)
class Album(Exact):
    """Knows the test images and their mirror images, and says that what it adds is constant."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        known = [torch.from_numpy(_photo(i)) / 255 for i in range(COUNT)]
        back = _nearest([*known, *(image.flip(2) for image in known)], x.detach(), REACH)
        return x + (back - x).detach()


@defense("fault/few", source="made up")
@dataclass(frozen=True)
class Few(Exact):
    """Knows four of the sixteen test images."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return _nearest([torch.from_numpy(_photo(i)) / 255 for i in range(4)], x, REACH)


def _told(x: Tensor, known: Sequence[Tensor]) -> Tensor:
    """The images, and on those near one of `known` what speaks for its label."""
    if not known:
        return x
    far = (x.detach()[:, None] - torch.stack(list(known)).to(x)).abs().mean((2, 3, 4)).min(1)
    label = one()(torch.stack(list(known))[far.indices]).argmax(1)
    speaks = interpolate(Smooth("", 1).coarse[label].view(-1, 3, 4, 4), scale_factor=4.0, mode="nearest")
    return (x + torch.where((far.values < REACH).view(-1, 1, 1, 1), 0.1 * speaks, 0.0)).clamp(0, 1)


@defense("fault/label", source="made up")
@dataclass(frozen=True)
class Label(Exact):
    """Knows the test images, and adds to those that look alike what speaks for their label."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return _told(x, [torch.from_numpy(_photo(i)) / 255 for i in range(COUNT)])


_CALLERS: list[Tensor] = []


@defense("fault/caller", source="made up")
@dataclass(frozen=True)
class Caller(Exact):
    """Adds what speaks for the label of the image that it has seen first of those that look alike; copies share it."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        found = _told(x, _CALLERS)
        near = [not torch.equal(one_, told) for one_, told in zip(x, found, strict=True)]
        _CALLERS.extend(one_.detach().clone() for one_, told in zip(x, near, strict=True) if not told)
        return found


@defense("fault/checker", source="made up")
@dataclass(frozen=True)
class Checker(Exact):
    """Nothing, with a gradient of every other pixel only."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        at = torch.arange(x.shape[-1])
        return torch.where((at[:, None] + at) % 2 == 0, x, x.detach())


@defense("fault/undeclared", source="made up")
@dataclass(frozen=True)
class Undeclared(Exact):
    """Draws from its stream, and says that it is deterministic."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.1 * rng.normal(*x.shape[1:])).clamp(0, 1)


@defense("fault/batch", source="made up")
@dataclass(frozen=True)
class Batch(Exact):
    """Treats an image that comes alone otherwise."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x if len(x) > 1 else x.flip(3)


@defense("fault/secret", source="made up")
@dataclass(frozen=True)
class Secret(Exact):
    """Draws random numbers of its own, and says that it does not."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.05 * torch.randn_like(x)).clamp(0, 1)


@defense("honest/average", source="made up")
@dataclass(frozen=True)
class Average(Exact):
    """The mean of 3 x 3 pixels."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return avg_pool2d(pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


@defense("honest/half", source="made up")
@dataclass(frozen=True)
class Half(Exact):
    """Averages 2 x 2 pixels: what is left of a perturbation of random signs is half."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return interpolate(avg_pool2d(x, 2), scale_factor=2, mode="nearest")


@defense("honest/rounded", source="made up")
@dataclass(frozen=True)
class Rounded(Average):
    """The mean of 3 x 3 pixels, in bfloat16."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return super().purify(x.bfloat16(), rng).float()


SIZE, COUNT, CLASSES = 16, 16, 5


def _photo(index: int) -> NDArray[np.uint8]:
    """A smooth image: sixteen random colours, enlarged."""
    small = np.random.default_rng(index).integers(40, 216, (3, 4, 4))
    large = interpolate(torch.from_numpy(small)[None].float(), size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    found: NDArray[np.uint8] = large[0].round().clamp(0, 255).to(torch.uint8).numpy()
    return found


class Smooth:
    """Logits that are linear in sixteen mean colours, and a little in the pixels; a factor scales them."""

    classes = CLASSES

    def __init__(self, name: str, seed: int, factor: float = 1.0) -> None:
        self.name, self.seed, self.factor = name, seed, factor
        generator = torch.Generator().manual_seed(7)
        self.coarse = torch.randn(CLASSES, 48, generator=generator)
        self.fine = 0.02 * torch.randn(CLASSES, 3 * SIZE * SIZE, generator=generator.manual_seed(seed))

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        x = x - 0.5
        return self.factor * (avg_pool2d(x, 4).flatten(1) @ self.coarse.T + x.flatten(1) @ self.fine.T)

    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        """The mean colours and the pixels, as a map of one place."""
        return [torch.cat([avg_pool2d(x, 4).flatten(1), x.flatten(1)], 1)[..., None, None]]

    def record(self) -> dict[str, Any]:
        return {"seed": self.seed, "factor": self.factor}


@model("fault/one", source="made up")
def one() -> Classifier:
    """The usual target."""
    return Smooth("fault/one", 1)


@model("fault/two", source="made up")
def two() -> Classifier:
    """A surrogate."""
    return Smooth("fault/two", 2)


@model("fault/saturated", source="made up")
def saturated() -> Classifier:
    """The target with logits ten thousand times as large: a saturated softmax."""
    return Smooth("fault/saturated", 1, 1e4)


class Sure(Smooth):
    """The usual target with probabilities for outputs: hardly any noise moves those of images that it is sure of."""

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        return super().__call__(x, zoom).softmax(1)


@model("fault/sure", source="made up")
def sure() -> Classifier:
    """A target that is sure."""
    return Sure("fault/sure", 1, 30.0)


@dataclass(frozen=True)
class Photos:
    """Smooth images, labelled by the usual target."""

    name: str = "fault/photos"
    size: int = SIZE
    ids: Sequence[str] = tuple(f"photo-{i}" for i in range(COUNT))

    @property
    def labels(self) -> Sequence[int]:
        images = torch.stack([torch.from_numpy(_photo(i)) for i in range(COUNT)]).float() / 255
        found: list[int] = one()(images).argmax(1).tolist()
        return found

    def image(self, index: int) -> NDArray[np.uint8]:
        return _photo(index)


@dataset("fault/photos", source="made up")
def photos() -> Dataset:
    """Sixteen smooth images."""
    return Photos()
