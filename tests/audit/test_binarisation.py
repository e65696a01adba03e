"""The binarisation test on networks whose features are known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rdp_bench.audits import binarisation
from rdp_bench.audits.binarisation import _fit, binarisation_test, features
from tests.helpers import toy

EPS = 4 / 255


class Pixels:
    """Features are the pixels, seen through a function; logits are five of them."""

    name, classes = "pixels", 5

    def __init__(self, see: Any = lambda x: x) -> None:
        self.see = see

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        return self.see(x).flatten(1)[:, :5]

    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        return [x, self.see(x).flatten(1)[..., None, None]]

    def record(self) -> dict[str, Any]:
        return {}


class Backwards(torch.autograd.Function):
    """The identity with a gradient of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def result_of(member: Any, n: int = 3, inner: int = 50) -> dict[str, Any]:
    x = toy.images(n, 16)
    return binarisation_test(toy.source(member), x, EPS, 10, inner, toy.image_rng(n), random=False)


def test_an_attack_with_the_true_gradient_passes_and_random_search_does_not() -> None:
    found = result_of(Pixels())
    assert (found["n"], found["found"], found["fixed"]) == (3, 3, 0)
    assert found["random"] < 0.2


@pytest.mark.parametrize(
    "see", [Backwards.apply, lambda x: x.detach() + 0 * x, lambda x: (x * 255).round() / 255 + 0 * x]
)
def test_an_attack_with_a_wrong_gradient_or_none_fails(see: Any) -> None:
    found = result_of(Pixels(see))
    assert (found["n"], found["found"]) == (3, 0)


def test_what_cannot_be_tested_says_why() -> None:
    assert (
        result_of(Pixels(lambda x: 0 * x))["reason"] == "no linear read-out separates the planted point from the others"
    )
    assert "no gradient" in result_of(Pixels(lambda x: x.detach()))["reason"]
    two = binarisation_test(
        toy.source(Pixels(), Pixels()), toy.images(1, 16), EPS, 5, 9, toy.image_rng(1), random=False
    )
    assert two == {"reason": "the target is an ensemble"}


def test_the_regression_separates_the_planted_point_from_all_others() -> None:
    near, far = toy.random(40, 60), toy.random(2, 60, seed=1) + 0.2
    fitted = _fit(near, far)
    assert fitted is not None
    weight, bias = fitted
    assert (near @ weight + bias < 0).all()
    assert (far @ weight + bias > 0).all()
    # Two logits, a score and its negative, within a range of 1.
    assert float((torch.cat([near, far]) @ weight + bias).abs().max()) == pytest.approx(0.5, abs=1e-3)
    assert _fit(near, near[:1]) is None
    assert _fit(near[:, :2], far[:, :2].mean(0, keepdim=True) - 0.2) is None  # inside the others, in the plane


def test_the_planted_point_is_a_stored_image_at_the_border_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noted(near: Tensor, far: Tensor) -> None:
        seen.extend((near, far))

    monkeypatch.setattr(binarisation, "_fit", noted)
    x = (toy.images(1, 16) * 100 + 60).round() / 255  # far from black and white
    binarisation_test(toy.source(Pixels()), x, EPS, 5, 30, toy.image_rng(1), random=False)
    inner, planted = ((each - x.flatten(1)).abs().amax(1) * 255 for each in seen)
    assert planted.tolist() == pytest.approx([4.0], abs=1e-3)
    assert len(inner) == 30
    assert float(inner[0]) == 0  # the clean image
    assert inner[1:].tolist() == pytest.approx([3.8] * 29, abs=1e-3)


def test_features_are_the_pooled_last_map_or_the_logits() -> None:
    x, rng = toy.images(2, 8), toy.image_rng(2)

    class Maps(Pixels):
        def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
            return x.flatten(1)[:, :5]

        def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> Any:
            return self.see(x)

    assert torch.equal(features(Maps(lambda x: [x]), x, rng), x.mean((2, 3)))
    assert torch.equal(features(Maps(lambda x: [x.flatten(2)]), x, rng), x.flatten(2).mean(1))
    for broken in (lambda x: {}[0], lambda x: [None], lambda x: [x[:1]], lambda x: x.sum()):
        assert torch.equal(features(Maps(broken), x, rng), x.flatten(1)[:, :5])
