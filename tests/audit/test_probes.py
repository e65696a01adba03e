"""Probes on defenses that do an honest thing in an unusual way are not accused; parts of a gradient are missed."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from rdp_bench.audits import checks_of_probes, probes
from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.finding import FAIL, NA, PASS, Finding
from rdp_bench.audits.measured import PROBES
from rdp_bench.audits.parts import Subject
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier
from rdp_bench.models.zoo import LoadedSource
from rdp_bench.protocols import Purifier
from rdp_bench.registry import Resolved
from tests.helpers import toy


@dataclass(frozen=True)
class Made(Purifier):
    """A defense from a function of images."""

    function: Callable[[Tensor], Tensor]
    differentiable = True

    def purify(self, x: Tensor, rng: Any) -> Tensor:
        return self.function(x)


def context(function: Callable[[Tensor], Tensor], x: Tensor, net: toy.Toy | None = None) -> probes.Context:
    def source() -> LoadedSource:
        way = AttackedDefense("exact", Resolved("it", deepcopy(Made(function)), "", "", "1"), 1)
        return LoadedSource("source", [DefendedClassifier(net or toy.conv(), way)], 1)

    y = source().members[0].stochastic_logits(x, toy.image_rng(len(x))).argmax(1)  # type: ignore[attr-defined]
    return probes.Context(source(), x, y, random=False, draws=1, fresh=source)


def finding(check: Callable[[Evidence], Finding], name: str, at: probes.Context) -> Finding:
    numbers = probes.PROBES[name](at)
    assert numbers is not None
    return check(Evidence(Subject("it", "target"), False, (), {name: numbers}))


def in_levels(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    return ((low + (high - low) * toy.random(*shape, seed=seed).sigmoid()) * 255).round() / 255


def tiles(side: int, levels: int) -> Callable[[Tensor], Tensor]:
    """Means of tiles, in few levels."""
    return lambda x: interpolate((avg_pool2d(x, side) * levels).round() / levels, scale_factor=side, mode="nearest")


@pytest.mark.parametrize("side", [8, 16])
def test_a_quantiser_is_not_said_to_keep_images(side: int) -> None:
    """The mean of noise is in one level, whichever the noise."""
    assert finding(checks_of_probes.state, "state", context(tiles(side, 4), in_levels(8, 3, 16, 16))).status == PASS


@pytest.mark.parametrize("side", [12, 16])
@pytest.mark.parametrize("seed", range(5))
def test_a_quantiser_is_not_said_to_know_images(side: int, seed: int) -> None:
    """Noise moves what it gives back by chance, of any image."""
    smooth = interpolate(in_levels(6, 3, 6, 6, seed=seed), (96, 96), mode="bilinear")
    at = context(tiles(side, 4), (255 * smooth).round() / 255)
    assert finding(checks_of_probes.elsewhere, "elsewhere", at).status == PASS


@pytest.mark.parametrize("tone", [lambda x: x**3, lambda x: (x - 0.3).clamp(min=0), lambda x: (x - 0.2).clamp(min=0)])
def test_a_tone_curve_is_not_said_to_know_dark_images(tone: Callable[[Tensor], Tensor]) -> None:
    at = context(tone, in_levels(8, 3, 16, 16, low=0.02, high=0.25))
    assert finding(checks_of_probes.elsewhere, "elsewhere", at).status in (PASS, NA)


def framed(x: Tensor, inside: Tensor) -> Tensor:
    """A grey frame of two pixels."""
    out = torch.full_like(x, 0.5)
    out[..., 2:-2, 2:-2] = inside[..., 2:-2, 2:-2]
    return out


def every_other(x: Tensor) -> Tensor:
    """Every other pixel without its gradient."""
    at = torch.arange(x.shape[-1])
    return torch.where((at[:, None] + at) % 2 == 0, x, x.detach())


def test_values_that_never_move_are_no_rounding() -> None:
    """44 % of the values are a frame; half of the gradient of the others is missing."""
    x = in_levels(4, 3, 16, 16)
    found = finding(checks_of_probes.slopes, "slopes", context(lambda x: framed(x, every_other(x)), x))
    assert (found.status, "rounds" in found.meaning) == (FAIL, False)
    whole = finding(checks_of_probes.slopes, "slopes", context(lambda x: framed(x, x), x))
    assert whole.status == PASS


def test_rounding_is_still_told_apart() -> None:
    x = in_levels(4, 3, 16, 16)

    def rounded(x: Tensor) -> Tensor:
        return x + ((x * 255).round() / 255 - x).detach()

    found = finding(checks_of_probes.slopes, "slopes", context(rounded, x))
    assert "rounds its output" in found.meaning


def test_an_order_filter_of_equal_pixels_has_a_right_gradient() -> None:
    """Each of nine equal pixels may be the smallest: the gradient is that of one."""
    flat = in_levels(4, 3, 1, 1).expand(4, 3, 16, 16).clone()

    def opening(x: Tensor) -> Tensor:
        return max_pool2d(-max_pool2d(-x, 3, 1, 1), 3, 1, 1)

    assert finding(checks_of_probes.slopes, "slopes", context(opening, flat)).status == PASS


def test_one_saturated_image_of_many_is_found() -> None:
    """The thirteenth image of sixteen is bright, and the logits grow with brightness."""
    x = torch.full((16, 3, 8, 8), 0.1)
    x[12] = 0.9
    weights = torch.tensor([1.0, -1.0, 0.5])

    def logits(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] ** 4 * 1e3 * weights

    at = context(lambda x: x, x, toy.Toy(logits, 3))
    assert PROBES["gradient"].images > 10_000  # all of an audit
    assert finding(checks_of_probes.saturation, "gradient", at).evidence.startswith("the cross-entropy of 1 of 16")
