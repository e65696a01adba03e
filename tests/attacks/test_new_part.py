"""A part of one's own is one class and one word: variance tuning, defined here, against a plain loop of its paper."""

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
class VarianceTuning(Part):
    """G = grad J(x_t) + v_t, v_{t+1} = mean_i grad J(x_t + r_i) - grad J(x_t) (Wang & He 2021, Eq. 6-7)."""

    id: ClassVar[str] = "variance-tuning"
    order: ClassVar[int] = 40
    off: ClassVar[Any] = 0
    aliases: ClassVar = {"n": "variance_samples"}

    variance_samples: int = 3
    variance_range: float = 1.5

    @property
    def evaluations(self) -> int:
        return 1 + self.variance_samples

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        bound = self.variance_range * float(run.eps)
        gradient = inner(at)
        tuned = gradient + run.memory.get(self.id, torch.zeros_like(at))
        total = torch.zeros_like(at)
        for _ in range(self.variance_samples):
            total += inner(at + run.rng.uniform(*at.shape[1:], low=-bound, high=bound))
        run.memory[self.id] = total / self.variance_samples - gradient
        return tuned


@pytest.fixture(autouse=True)
def _word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORDS, "VT", word(VarianceTuning()))


def plain(model: toy.Toy, x: Tensor, y: Tensor, rng: ImageRng, *, steps: int, mu: float, prob: float | None) -> Tensor:
    """VMI-DI-FGSM of one image as the paper writes it, with autograd, interpolate and pad; `prob` None: without DI."""
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

    adv, g, v = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(steps):
        now = gradient(adv)
        total = torch.zeros_like(x)
        for _ in range(3):
            r = rng.uniform(*x.shape[1:], low=-1.5 * EPS, high=1.5 * EPS)
            total += gradient(adv + r)
        tuned = now + v
        g = mu * g + tuned / tuned.abs().mean()
        v = total / 3 - now
        adv = torch.minimum(torch.maximum(adv + EPS / steps * g.sign(), x - EPS), x + EPS).clamp(0, 1)
    return adv


@pytest.mark.parametrize(
    ("text", "prob"), [("I(4)|MI|VT", None), ("I(4)|MI|VT|DI", 0.7), ("I(4)|MI(.5)|VT|DI(.4)", 0.4)]
)
def test_variance_tuning_is_the_loop_of_its_paper(text: str, prob: float | None) -> None:
    x, y = toy.images(5, 24), torch.arange(5)
    found = compose(text)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(5))
    momentum = compose(text).part(Momentum)
    assert momentum is not None
    for i in range(5):
        rng = toy.image_rng(5).select(torch.tensor([i]))
        one = slice(i, i + 1)
        wanted = plain(toy.conv(), x[one], y[one], rng, steps=4, mu=momentum.momentum, prob=prob)
        assert float(((found[one] - wanted).abs() > 1e-5).float().mean()) < 2e-3  # where a gradient is next to nothing
    without = compose(text.replace("|VT", ""))(toy.source(toy.conv()), x, y, EPS, toy.image_rng(5))
    assert float(((found - without).abs() > 1e-5).float().mean()) > 0.05


def test_its_parameters_are_read_and_counted() -> None:
    made = compose("MI|VT(2, variance_range=.5)|DI")
    assert made.part(VarianceTuning) == VarianceTuning(2, 0.5)
    assert made.part(Diversity) == Diversity()
    assert made.gradients(16) == 30
    assert compose("VT(n=2)|MI").resolved(16)["variance_samples"] == 2
    assert registry.attack.resolve("mi-fgsm(variance_samples=2)").value == compose("MI|VT(2)")
    assert compose("MI|VT(0)") == compose("MI")
    with pytest.raises(UsageError, match="variance_range has no effect without variance_samples"):
        registry.attack.resolve("mi-fgsm(variance_range=2)")
    with pytest.raises(UsageError, match=r"expected a whole number, like 3; found 'x'"):
        compose("VT(x)")


def test_its_parameters_version_and_code_are_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(text: str) -> dict[str, Any]:
        return registry.identity(registry.attack.resolve(text), 8.0)

    record = identity("MI|VT|DI")
    own = record["params"]["parts"].pop("variance-tuning")
    assert record == identity("MI|DI")
    version, plus, code = own.pop("version").partition("+")
    assert (version, plus) == ("1", "+")
    assert len(code) == 16  # a hash of this file: it is no part of the package
    assert own == {"variance_samples": 3, "variance_range": 1.5}
    monkeypatch.setattr(VarianceTuning, "version", 2)
    assert identity("MI|VT|DI")["params"]["parts"]["variance-tuning"]["version"].startswith("2+")


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
