"""Square: the schedule and patterns of the paper, what a query changes, and when a change is kept."""

from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive import square
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import margin
from rdp_bench.budgets import Norm
from tests.helpers import toy

plugins.load()

GREY = torch.full((2, 3, 10, 10), 0.5)
ZEROS = torch.zeros(2, dtype=torch.long)


def victim(net: toy.Toy, x: Tensor = GREY, y: Tensor = ZEROS, eps: float = 0.1, norm: Norm = "linf") -> Victim:
    return Victim.of(toy.source(net), x, y, eps, norm, toy.image_rng(len(x)))


def falling(start: float = -1.0, step: float = 0.0) -> toy.Toy:
    """Label 0 leads class 1 by -`start`; each evaluation adds `step` to class 1."""
    calls = iter(range(10_000))

    def logits(x: Tensor) -> Tensor:
        return torch.tensor([[0.0, start + step * next(calls), -9.0]]) + 0 * x.sum((1, 2, 3))[:, None]

    return toy.Toy(logits, 3)


def test_the_share_is_halved_after_the_queries_of_the_paper() -> None:
    expected = {
        0: 0.8, 10: 0.8, 11: 0.4, 50: 0.4, 51: 0.2, 200: 0.2, 201: 0.1, 500: 0.1, 501: 0.05, 1000: 0.05,
        1001: 0.025, 2000: 0.025, 2001: 0.0125, 4000: 0.0125, 4001: 0.00625, 6000: 0.00625, 6001: 0.003125,
        8000: 0.003125, 8001: 0.0015625,
    }  # fmt: skip
    assert {query: square.share(query, 0.8) for query in expected} == pytest.approx(expected)


def test_sides_of_squares() -> None:
    # sqrt(.8) 299 = 267.4; sqrt(.00625) 224 = 17.7; sqrt(.8) 8 = 7.2; a pixel at least.
    assert [square.side(0.8, 299, 299), square.side(0.00625, 224, 224), square.side(1e-9, 8, 8)] == [267, 18, 1]
    # Under L2 the next odd side, 3 at least, and no more than the image.
    assert [square.side(p, 299, 299, l2=True) for p in (0.8, 0.00625, 1e-9)] == [267, 25, 3]
    assert square.side(1.0, 8, 8, l2=True) == 8


def test_it_starts_with_vertical_stripes() -> None:
    change = square._stripes(victim(falling())) - GREY
    assert torch.allclose(change.abs(), torch.full_like(change, 0.1))
    assert torch.equal(change[:, :, :1].expand_as(change), change)  # rows are alike
    signs = (change[:, :, 0] > 0).float()
    assert not torch.equal(signs[0], signs[1])
    assert 0 < signs.mean() < 1


def test_a_query_moves_one_square_to_other_corners_of_the_budget() -> None:
    net = falling(step=1e-3)  # every change is kept
    target = victim(net)
    square.search(target, 40, 0.8)
    images = net.seen
    assert len(images) == 1 + 40
    for number, (before, after) in enumerate(pairwise(images)):
        size = square.side(square.share(number, 0.8), 10, 10)
        for one in range(2):
            rows, columns = torch.nonzero((before[one] != after[one]).any(0), as_tuple=True)
            if len(rows):
                assert int(rows.max() - rows.min()) < size
                assert int(columns.max() - columns.min()) < size
    final = images[-1] - GREY
    assert torch.allclose(final.abs(), torch.full_like(final, 0.1), atol=1e-6)


def test_squares_are_anywhere_but_at_the_far_edge() -> None:
    """floor(U (h - s)): 0 to h - s - 1, as in the authors' code."""
    unit = torch.tensor([0.0, 0.5, 0.999])
    assert square._corner(unit, 8).tolist() == [0, 4, 7]
    assert square._corner(unit, 0).tolist() == [0, 0, 0]


def test_changes_that_do_not_help_are_undone() -> None:
    net = falling(step=-1e-3)  # every change is worse
    last = square.search(victim(net), 30, 0.8)
    assert torch.equal(last, net.seen[0])


def test_the_margin_never_grows_and_only_better_points_are_kept() -> None:
    net = toy.conv(seed=3)
    x = toy.images(4, 16)
    y = net(x).argmax(1)
    target = victim(net, x, y, 2 / 255)
    values = [margin(net(square.search(victim(net, x, y, 2 / 255), queries, 0.8)), y) for queries in (1, 20, 200)]
    assert all(torch.all(after >= before) for before, after in pairwise(values))
    assert torch.all(values[2] > values[0])
    assert target.distance(square.search(target, 50, 0.8)).max() <= 2 / 255 + 1e-6


def test_an_image_stops_at_its_first_misclassified_point() -> None:
    net = falling(start=-1.0, step=0.1)
    adv = square.search(victim(net), 1000, 0.8)
    # -1 + .1 k: from evaluation 10 on not below the label's 0; then one look at the stored image.
    assert len(net.seen) == 12
    assert torch.equal(adv, net.seen[10])


# --- L2 ---


def test_the_pattern_of_side_three() -> None:
    """One row above and two below: rings of 1 + 1/4 in the middle and 1/4 around it, each part of norm 1."""
    upper = torch.tensor([[0.25, 1.25, 0.25]])
    lower = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = torch.cat([upper / upper.norm(), -lower / lower.norm()]) / sqrt(2)
    assert torch.allclose(square.pattern(3), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 31])
def test_patterns_have_norm_one(size: int) -> None:
    assert float(square.pattern(size).norm()) == pytest.approx(1)


def test_l2_points_are_on_the_border_of_the_budget() -> None:
    net = falling(step=1e-3)
    square.search(victim(net, norm="l2", eps=1.5), 30, 0.8)
    for images in net.seen:
        assert (images - GREY).flatten(1).norm(dim=1).tolist() == pytest.approx([1.5, 1.5], abs=1e-3)
    assert not torch.equal(net.seen[0], net.seen[-1])


def test_draws_of_an_image_do_not_depend_on_its_neighbours() -> None:
    net = toy.conv()
    x = toy.images(5, 16)
    y = net(x).argmax(1)
    for norm, eps in (("linf", 6 / 255), ("l2", 0.8)):
        attack = registry.attack.resolve("square(queries=150)").value.with_norm(norm)
        together = attack(toy.source(net), x, y, eps, toy.image_rng(5))
        for one in range(5):
            rng = toy.image_rng(5).select(torch.tensor([one]))
            alone = attack(toy.source(net), x[one : one + 1], y[one : one + 1], eps, rng)
            assert torch.allclose(together[one], alone[0], atol=1e-6)
