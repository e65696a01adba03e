"""FAB: the projection to a plane within [0, 1], against bisection, and the attack where the boundary is known."""

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive import fab
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.budgets import Norm
from tests.helpers import toy

plugins.load()


def by_bisection(x: Tensor, w: Tensor, c: float, norm: Norm) -> Tensor:
    """The change with w . d = c: along the sign of w (L-infinity) or w itself (L2), clipped to [0, 1]."""
    x, w = x.double(), w.double()
    direction = (w.sign() if norm == "linf" else w) * (1 if c >= 0 else -1)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        change = (x + middle * direction).clamp(0, 1) - x
        low, high = (middle, high) if abs(float(w @ change)) < abs(c) else (low, middle)
    found: Tensor = (x + high * direction).clamp(0, 1) - x
    return found


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_to_a_plane_equals_bisection(norm: Norm) -> None:
    x, w = toy.images(40).flatten(1), toy.random(40, 192)
    x[:5] = x[:5].round()  # pixels at their bounds
    w[5:8, :100] = 0
    # From changes that few pixels bound to ones that most do.
    c = torch.linspace(-1, 1, 40) * w.abs().sum(1) * 0.45
    found = fab.to_plane(x, w, c, norm)
    for one in range(40):
        assert torch.allclose(found[one].double(), by_bisection(x[one], w[one], float(c[one]), norm), atol=1e-4)
    assert float((x + found).min()) >= 0
    assert float((x + found).max()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_out_of_reach_gives_the_nearest_corner(norm: Norm) -> None:
    x, w = torch.full((1, 4), 0.25), torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    assert fab.to_plane(x, w, torch.tensor([100.0]), norm)[0].tolist() == [0.75, -0.25, 0.75, 0]
    assert fab.to_plane(x, w * 0, torch.tensor([1.0]), norm)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("norm", "least"), [("linf", 0.06), ("l2", 0.3 / 5**0.5)])
def test_it_finds_the_nearest_point_of_a_linear_classifier(norm: Norm, least: float) -> None:
    """Logits 0 and w . (x - .5) - .3: the boundary is .3 / |w|_1 or .3 / |w|_2 away, with w of four 1 and a 1."""
    w = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 0.0] + [0.0] * 6)
    net = toy.Toy(lambda x: torch.stack([0 * x.sum((1, 2, 3)), (x - 0.5).flatten(1) @ w - 0.3], 1), 2)
    x, y = torch.full((1, 3, 2, 2), 0.5), torch.tensor([0])
    target = Victim.of(toy.source(net), x, y, 0.2, norm, toy.image_rng(1))
    adv = fab.boundary(target, x.clone(), torch.tensor([1]), 20, fab.Constants(), stop=False)
    assert net(adv).argmax(1).item() == 1
    assert least < float(target.distance(adv)) < least * 1.06


def test_points_beyond_the_budget_do_not_count() -> None:
    net = toy.linear(scale=0.01)  # far from every boundary
    x = toy.images(3)
    y = net(x).argmax(1)
    adv = registry.attack.resolve("fab-t(steps=10, targets=2)").value(toy.source(net), x, y, 1 / 255, toy.image_rng(3))
    assert float((adv - x).abs().max()) <= 1 / 255 + 1e-6


def test_images_leave_with_their_own_result() -> None:
    """Images that finish at other times give what each gives alone."""
    net = toy.conv()
    x = toy.images(6)
    y = net(x).argmax(1)
    attack = registry.attack.resolve("fab-t(steps=15, targets=2, stop=true, restarts=2)").value
    together = attack(toy.source(net), x, y, 6 / 255, toy.image_rng(6))
    for one in range(6):
        alone = attack(
            toy.source(net), x[one : one + 1], y[one : one + 1], 6 / 255, toy.image_rng(6).select(torch.tensor([one]))
        )
        assert torch.allclose(together[one], alone[0], atol=1e-5)
