"""A part of one's own is one class and one word: an averaged gradient, defined here, against a plain loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

import rdp_bench.attacks.presets  # noqa: F401 - registers them
from rdp_bench import registry
from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.attacks.parts import WORDS, Diversity, Momentum, Part, word
from rdp_bench.errors import UsageError
from rdp_bench.rng import ImageRng
from tests.helpers import toy

if TYPE_CHECKING:
    from rdp_bench.attacks.parts.base import Gradient, Run

EPS = 16 / 255


@dataclass(frozen=True)
class AveragedGradient(Part):
    """G = mean_i grad J(x_t + r_i), r_i of U(-range, range) per pixel: a smoothed loss."""

    id: ClassVar[str] = "averaged-gradient"
    order: ClassVar[int] = 43
    off: ClassVar[Any] = 0
    aliases: ClassVar = {"n": "averaged_samples"}

    averaged_samples: int = 3
    averaged_range: float = 1.5

    @property
    def evaluations(self) -> int:
        return self.averaged_samples

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        bound = self.averaged_range * float(run.eps)
        total = torch.zeros_like(at)
        for _ in range(self.averaged_samples):
            total += inner(at + run.rng.uniform(*at.shape[1:], low=-bound, high=bound))
        return total / self.averaged_samples


@pytest.fixture(autouse=True)
def _word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORDS, "VR", word(AveragedGradient()))


def plain(model: toy.Toy, x: Tensor, y: Tensor, rng: ImageRng, *, steps: int, mu: float, prob: float | None) -> Tensor:
    """The attack on one image, with autograd, interpolate and pad; `prob` None: without DI."""
    size, padded = x.shape[-1], round(x.shape[-1] * 330 / 299)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        seen = leaf
        if prob is not None:
            applied = bool(rng.uniform()[0] < prob)
            resized = int(rng.integers(size, padded)[0])
            top, left = (int(rng.integers(0, padded - resized)[0]) for _ in range(2))
            if applied:
                rest = padded - resized
                small = interpolate(leaf, size=(resized, resized), mode="nearest")
                seen = pad(small, (left, rest - left, top, rest - top), value=0.5)
        (grad,) = torch.autograd.grad(cross_entropy(model(seen), y, reduction="sum"), leaf)
        return grad

    adv, g = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        total = torch.zeros_like(x)
        for _ in range(3):
            r = rng.uniform(*x.shape[1:], low=-1.5 * EPS, high=1.5 * EPS)
            total += gradient(adv + r)
        g = mu * g + total / total.abs().mean()
        adv = torch.minimum(torch.maximum(adv + EPS / steps * g.sign(), x - EPS), x + EPS).clamp(0, 1)
    return adv


@pytest.mark.parametrize(
    ("text", "prob"), [("I(4)|MI|VR", None), ("I(4)|MI|VR|DI", 0.7), ("I(4)|MI(.5)|VR|DI(.4)", 0.4)]
)
def test_it_is_a_plain_loop(text: str, prob: float | None) -> None:
    x, y = toy.images(5, 24), torch.arange(5)
    found = compose(text)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(5))
    momentum = compose(text).part(Momentum)
    assert momentum is not None
    for i in range(5):
        rng = toy.image_rng(5).select(torch.tensor([i]))
        one = slice(i, i + 1)
        wanted = plain(toy.conv(), x[one], y[one], rng, steps=4, mu=momentum.momentum, prob=prob)
        assert float(((found[one] - wanted).abs() > 1e-5).float().mean()) < 2e-3  # where a gradient is next to nothing
    without = compose(text.replace("|VR", ""))(toy.source(toy.conv()), x, y, EPS, toy.image_rng(5))
    assert float(((found - without).abs() > 1e-5).float().mean()) > 0.05


def test_its_parameters_are_read_and_counted() -> None:
    made = compose("MI|VR(2, averaged_range=.5)|DI")
    assert made.part(AveragedGradient) == AveragedGradient(2, 0.5)
    assert made.part(Diversity) == Diversity()
    assert made.gradients(16) == 20
    assert compose("VR(n=2)|MI").resolved(16)["averaged_samples"] == 2
    assert registry.attack.resolve("mi-fgsm(averaged_samples=2)").value == compose("MI|VR(2)")
    assert compose("MI|VR(0)") == compose("MI")
    with pytest.raises(UsageError, match="averaged_range has no effect without averaged_samples"):
        registry.attack.resolve("mi-fgsm(averaged_range=2)")
    with pytest.raises(UsageError, match=r"expected a whole number, like 3; found 'x'"):
        compose("VR(x)")


def test_its_parameters_version_and_code_are_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(text: str) -> dict[str, Any]:
        return registry.identity(registry.attack.resolve(text), 8.0)

    record = identity("MI|VR|DI")
    own = record["params"]["parts"].pop("averaged-gradient")
    assert record == identity("MI|DI")
    version, plus, code = own.pop("version").partition("+")
    assert (version, plus) == ("1", "+")
    assert len(code) == 16  # a hash of this file: it is no part of the package
    assert own == {"averaged_samples": 3, "averaged_range": 1.5}
    monkeypatch.setattr(AveragedGradient, "version", 2)
    assert identity("MI|VR|DI")["params"]["parts"]["averaged-gradient"]["version"].startswith("2+")


@dataclass(frozen=True)
class Clash(Part):
    """A part whose field is another's."""

    id: ClassVar[str] = "clash"
    order: ClassVar[int] = 41
    momentum: float = 0.5


@dataclass(frozen=True)
class Looks(Part):
    """A part that decides what the source sees."""

    id: ClassVar[str] = "looks"
    order: ClassVar[int] = 42
    brightness: float = 0.5

    def look(self, run: Run, view: Any, images: Tensor) -> Any:
        return view(images * self.brightness)


@dataclass(frozen=True)
class Twin(Part):
    """A part with another's id."""

    id: ClassVar[str] = "momentum"
    order: ClassVar[int] = 43
    strength: float = 0.5


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((Momentum(), Momentum(0.5)), "part Momentum is given twice"),
        ((Momentum(), Clash()), "two parts have a parameter momentum"),
        ((Diversity(), Looks()), "only one part may decide what the source sees, found looks and diversity"),
        ((Momentum(), Twin()), "two parts have the id momentum"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: tuple[Part, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GradientSign(parts)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Momentum(float("nan"))
