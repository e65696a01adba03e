"""Closer stand-ins: near what they stand in for, with its gradient, and used by `smooth(...)` sources."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.defenses import _smooth_jpeg
from rdp_bench.defenses._smooth_jpeg import smooth_jpeg, soft_round
from rdp_bench.defenses._tv import inpaint
from rdp_bench.defenses._tv_unrolled import unrolled
from rdp_bench.defenses.jpeg import jpeg_round_trip
from rdp_bench.errors import UsageError
from rdp_bench.models.defended import parse
from rdp_bench.protocols import Purifier
from tests.helpers import toy
from tests.helpers.learned import photo

plugins.load()


def made(label: str) -> Any:
    return registry.defense.resolve(label).value


def gradient(way: Any, x: Tensor, defense: Any = None) -> Tensor:
    """Of a weighted sum of the outputs."""
    leaf = x.clone().requires_grad_()
    out = way(leaf, toy.image_rng(len(x)))
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    found: Tensor = torch.autograd.grad((weights * out).sum(), leaf)[0]
    return found


def test_soft_rounding_by_hand() -> None:
    x = torch.tensor([0.0, 0.4, -1.3, 2.5], requires_grad=True)
    out = soft_round(x)
    assert torch.allclose(out, torch.tensor([0.0, 0.064, -1.027, 2.125]))
    assert torch.allclose(torch.autograd.grad(out.sum(), x)[0], torch.tensor([0.0, 0.48, 0.27, 0.75]))


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_smooth_jpeg_is_near_the_codec(quality: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a level of it, with hard rounding and with soft; and much nearer than the identity."""
    x = (photo(2, 61) * 255).round() / 255  # no multiple of 16
    coded = jpeg_round_trip(x, quality)
    moved = (coded - x).abs().mean()
    assert (smooth_jpeg(x, quality) - coded).abs().mean() < 0.6 * moved
    monkeypatch.setattr(_smooth_jpeg, "soft_round", torch.round)
    hard = (smooth_jpeg(x, quality) - coded).abs().mean()
    assert hard < 0.5 * moved
    assert hard < 1.2 / 255


def test_the_unrolled_iteration_is_that_of_the_defense() -> None:
    x, kept = photo(2, 24), (toy.random(2, 3, 24, 24) < 0.5).float()
    for last in (4, 12):
        assert torch.allclose(unrolled(x, kept, 33.0, 12, last), inpaint(x, kept, 33.0, 12), atol=2e-6)


def test_the_gradient_of_the_unrolled_iteration_is_that_of_differences() -> None:
    x = photo(1, 6)[:, :1].double()
    kept = (toy.random(1, 1, 6, 6, seed=3) < 0.6).double()
    leaf = x.clone().requires_grad_()
    weights = toy.random(1, 1, 6, 6, seed=4).double()
    (found,) = torch.autograd.grad((weights * unrolled(leaf, kept, 33.0, 5, 5)).sum(), leaf)
    for at in range(36):
        step = torch.zeros(36, dtype=torch.float64)
        step[at] = 1e-6
        up, down = (unrolled(x + sign * step.view_as(x), kept, 33.0, 5, 5) for sign in (1, -1))
        assert float((weights * (up - down)).sum() / 2e-6) == pytest.approx(float(found.flatten()[at]), abs=2e-4)
    assert (found[kept == 0] == 0).all()  # dropped values


SMOOTH = ("jpeg", "fd", "wavelet", "pixel-deflection", "tvm", "fixed(tvm)", "jpeg >> bit-red")


@pytest.mark.parametrize("label", SMOOTH)
def test_what_is_seen_is_the_defense_itself(label: str) -> None:
    """Forward, the defense with the draws of an evaluation; backward, not the identity."""
    defense, x = made(label), photo(2, 32)
    out = defense.smooth_through(x.clone(), toy.image_rng(2))
    if label != "jpeg >> bit-red":  # a chain with streams of its own
        assert torch.allclose(out, defense.purify(x.clone(), toy.image_rng(2)), atol=1e-6)
    near, usual = (gradient(way, x) for way in (defense.smooth_through, defense.bpda))
    assert torch.isfinite(near).all()
    assert not torch.allclose(near, usual, atol=1e-3)


@pytest.mark.parametrize("label", ["wavelet(jpeg=0)", "pixel-deflection"])
def test_what_is_differentiable_has_its_own_gradient(label: str) -> None:
    """Outputs rise along it as it says: the stand-in is the defense."""
    defense, x = made(label), photo(1, 32)
    slope = gradient(defense.smooth, x)
    step = 1e-3 * slope / slope.norm()

    def value(x: Tensor) -> float:
        out = defense.purify(x, toy.image_rng(1))
        return float((torch.linspace(-1, 1, out.numel()).view_as(out) * out).double().sum())

    assert value(x + step) - value(x - step) == pytest.approx(2e-3 * float(slope.norm()), rel=0.02)


def test_the_stand_in_has_the_draws_of_what_is_seen() -> None:
    """TVM: a value that the defense dropped has no gradient, and another has."""
    dropped = toy.image_rng(2).uniform(3, 16, 16) >= 0.5
    assert torch.equal(gradient(made("tvm").smooth_through, photo(2, 16)) == 0, dropped)


def test_sources_name_it() -> None:
    found = parse("smooth(jpeg, effnet-lite0)")
    assert found
    x = photo(1, 24)
    assert torch.equal(gradient(found[0].purify, x), gradient(made("jpeg").smooth_through, x))
    assert found[0].record()["mode"] == "smooth"
    with pytest.raises(UsageError, match=r"bit-red has no closer stand-in; use adaptive\(bit-red, effnet-lite0\)"):
        parse("smooth(bit-red, effnet-lite0)")


def test_another_size_is_refused() -> None:
    class Larger(Purifier):
        has_smooth = True

        def purify(self, x: Tensor, rng: Any) -> Tensor:
            return torch.cat([x, x], 3)

        def smooth(self, x: Tensor, rng: Any) -> Tensor:
            return x

    with pytest.raises(UsageError, match="has no stand-in of that size"):
        Larger().smooth_through(photo(1, 8), toy.image_rng(1))
