"""Auto-PGD: schedule, rules of the step size and losses, against values worked out by hand."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive import apgd
from rdp_bench.attacks._adaptive.cascade import likely_class
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels import losses
from rdp_bench.budgets import Norm
from rdp_bench.errors import UsageError
from tests.helpers import toy

plugins.load()


def victim(net: toy.Toy, x: Tensor, y: Tensor, eps: float, norm: Norm = "linf") -> Victim:
    return Victim.of(toy.source(net), x, y, eps, norm, toy.image_rng(len(x)))


# --- losses ---


def test_losses_are_those_of_the_papers() -> None:
    z = torch.tensor([[1.0, 4.0, 2.0, 3.0, -1.0]])
    y = torch.tensor([1])
    # The label is first: z_y = 4, the best other 3, z_(1) = 4, z_(3) = 2.
    assert losses.margin(z, y).item() == -1
    assert losses.dlr(z, y).item() == pytest.approx(-(4 - 3) / (4 - 2))
    # Towards class 0: -(4 - 1) / (4 - (z_(3) + z_(4)) / 2) = -3 / (4 - 1.5).
    assert losses.targeted_dlr(torch.tensor([0]))(z, y).item() == pytest.approx(-3 / 2.5)
    assert losses.towards(torch.tensor([3]))(z, y).item() == -1
    # The label is third: misclassified, so both are positive.
    y = torch.tensor([2])
    assert losses.margin(z, y).item() == 2
    assert losses.dlr(z, y).item() == pytest.approx(-(2 - 4) / (4 - 2))
    assert losses.cross_entropy(z, y).item() == pytest.approx((z.exp().sum().log() - 2).item())


def test_the_ratio_is_blind_to_the_scale_and_offset_of_the_logits() -> None:
    z, y = toy.random(6, 7), torch.arange(6)
    for loss in (losses.dlr, losses.targeted_dlr(torch.arange(1, 7))):
        assert torch.allclose(loss(100 * z + 3, y), loss(z, y), atol=1e-5)


def test_cw_stops_at_its_confidence() -> None:
    z = torch.tensor([[0.0, 60.0], [0.0, 40.0]])
    assert losses.cw(z, torch.tensor([0, 0])).tolist() == [50, 40]


# --- schedule and step size ---


def test_checkpoints() -> None:
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    # 10 steps: periods of 2, then one shorter each, at least 1.
    assert apgd.checkpoints(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_hundred_steps_take_a_hundred_and_one_gradients() -> None:
    net = toy.conv()
    x = toy.images(2)
    target = victim(net, x, net(x).argmax(1), 0.01)
    net.seen.clear()
    apgd.ascend(target, x.clone(), losses.cross_entropy, 100)
    assert len(net.seen) == 101
    attack = registry.attack.resolve("apgd-ce").value
    assert attack.gradients(4.0) == 101


def steps_of(monkeypatch: pytest.MonkeyPatch, script: Tensor) -> Tensor:
    """Step sizes over eps before each step, `[steps, n]`, where evaluation i of image j has the loss `script[i, j]`."""
    calls = iter(script)
    net = toy.Toy(lambda x: next(calls)[: len(x), None] + (x - x.detach()).sum((1, 2, 3))[:, None] * torch.ones(2), 2)
    sizes: list[Tensor] = []
    move = apgd._move

    def spy(target: Victim, state: apgd._State, weight: float) -> Tensor:
        sizes.append(state.step.flatten() / target.eps)
        return move(target, state, weight)

    monkeypatch.setattr(apgd, "_move", spy)
    x = torch.full((script.shape[1], 3, 4, 4), 0.5)
    target = victim(net, x, torch.zeros(len(x), dtype=torch.long), 0.1)
    apgd.ascend(target, x.clone(), lambda z, _: z[:, 0], len(script) - 1)
    return torch.stack(sizes)


def losses_that_rise(*periods: Sequence[bool], first: float, up: float = 1.0, down: float = 1.5) -> list[float]:
    """Losses of steps that rise or fall as said; the first is `first`."""
    found = [first]
    for rises in [each for period in periods for each in period][1:]:
        found.append(found[-1] + (up if rises else -down))
    return found


def test_steps_are_halved_by_the_share_of_steps_that_rose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 22 steps, 16 rises (.727) halve the step and 17 (.773) do not; the first counts against a row of zeros."""
    always = losses_that_rise([True] * 100, first=1.0)
    sixteen = losses_that_rise([True] * 16 + [False] * 6, [True] * 78, first=1.0)
    seventeen = losses_that_rise([True] * 17 + [False] * 5, [True] * 78, first=1.0)
    # 17 rises after a negative first loss: that one does not count, so 16.
    negative = losses_that_rise([True] * 17 + [False] * 5, [True] * 78, first=-1.0)
    script = torch.tensor([[-5.0] * 4, *zip(always, sixteen, seventeen, negative, strict=True)])
    sizes = steps_of(monkeypatch, script)
    assert len(sizes) == 100
    assert sizes[:22].tolist() == [[2.0] * 4] * 22
    assert sizes[22].tolist() == pytest.approx([2.0, 1.0, 2.0, 1.0])
    assert sizes[99, 0].item() == 2.0  # every step rose: never halved


def test_a_period_without_a_new_best_halves_unless_the_last_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image 0: period 1 keeps the step, in period 2 enough steps rise and none beats the best: halved.

    Image 1: period 1 halves, so the same period 2 does not.
    """
    kept = losses_that_rise([True] * 20 + [False] * 2, first=10.0)
    halved = losses_that_rise([True] * 16 + [False] * 6, first=10.0)
    second = [-100.0 + i for i in range(19)]  # rises 18 times of 19, far below the best
    script = torch.tensor([[0.0, 0.0], *zip(kept + second, halved + second, strict=True)] + [[-200.0, -200.0]] * 59)
    sizes = steps_of(monkeypatch, script)
    assert sizes[22].tolist() == [2.0, 1.0]
    assert sizes[41].tolist() == [1.0, 1.0]


def test_a_halved_image_goes_back_to_its_best_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation 1 has the best loss; after the first check, the step begins there with the gradient of there."""
    script, slopes = iter([0.0, 9.0] + [1.0] * 30), iter([1.0, -1.0] + [1.0] * 30)
    begins: list[tuple[float, float]] = []
    move = apgd._move

    def spy(target: Victim, state: apgd._State, weight: float) -> Tensor:
        begins.append((float(state.adv.flatten()[0]), float(state.gradient.flatten()[0])))
        return move(target, state, weight)

    def logits(x: Tensor) -> Tensor:
        return next(script) + next(slopes) * (x - x.detach()).sum((1, 2, 3))[:, None] * torch.ones(2)

    monkeypatch.setattr(apgd, "_move", spy)
    x = torch.full((1, 1, 1, 1), 0.5)
    apgd.ascend(victim(toy.Toy(logits, 2), x, torch.tensor([0]), 0.1), x.clone(), lambda z, _: z[:, 0], 23)
    (check, *_) = apgd.checkpoints(23)
    assert begins[1] == pytest.approx((0.6, -1.0))  # the point of evaluation 1
    assert begins[check] == pytest.approx(begins[1])
    assert begins[check - 1] != pytest.approx(begins[1])


def test_the_first_step_has_no_momentum_and_the_next_have_a_quarter() -> None:
    """By hand, one pixel: eps .1, x .5, gradient 1 everywhere, then -1."""
    signs = iter([1.0, -1.0] + [1.0] * 9)
    seen: list[float] = []

    def logits(x: Tensor) -> Tensor:
        seen.append(float(x.detach().flatten()[0]))
        return (next(signs) * x.sum((1, 2, 3)))[:, None] * torch.tensor([1.0, 0.0])

    x = torch.full((1, 1, 1, 1), 0.5)
    apgd.ascend(victim(toy.Toy(logits, 2), x, torch.tensor([0]), 0.1), x.clone(), lambda z, _: z[:, 0], 10)
    # .5 -> .5 + .2 clipped to .6; then z = .6 - .2 clipped to .4: .6 + .75 (-.2) + .25 (.1) = .475.
    assert seen[:3] == pytest.approx([0.5, 0.6, 0.475])


def test_the_first_step_under_l2() -> None:
    """2 eps along the gradient's direction, pulled back to eps: (.6, .8) from (3, 4)."""
    net = toy.Toy(lambda x: (x.flatten(1) @ torch.tensor([3.0, 4.0, 0.0]))[:, None] * torch.tensor([1.0, 0.0]), 2)
    x = torch.full((1, 3, 1, 1), 0.1)
    adv = apgd.ascend(victim(net, x, torch.tensor([1]), 0.5, "l2"), x.clone(), lambda z, _: z[:, 0], 1)
    assert (adv - x).flatten().tolist() == pytest.approx([0.3, 0.4, 0.0], abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_start_is_on_the_border_of_the_budget(norm: Norm) -> None:
    x = torch.full((3, 3, 5, 5), 0.5)
    target = victim(toy.conv(), x, torch.zeros(3, dtype=torch.long), 0.25, norm)
    first = apgd.start(target)
    assert target.distance(first).tolist() == pytest.approx([0.25] * 3)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(apgd.start(target), first)  # of a restart


def test_restarts_go_to_survivors_only() -> None:
    """Dark images follow their pixels and fall in the first run; bright ones have constant logits and survive."""
    seen: list[int] = []
    weight = toy.random(3 * 4 * 4)

    def logits(x: Tensor) -> Tensor:
        seen.append(len(x))
        dark = (x.mean((1, 2, 3)) < 0.7).float()
        score = dark * ((x - 0.5).flatten(1) @ weight - 0.01) - (1 - dark)
        return torch.stack([torch.zeros_like(score), score], 1)

    x = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.9)])
    net, y = toy.Toy(logits, 2), torch.tensor([0, 0])
    attack = registry.attack.resolve("apgd-ce(steps=5, restarts=3)").value
    adv = attack(toy.source(net), x, y, 8 / 255, toy.image_rng(2))
    # Judged when clean; the start, five steps and the judgement of each run.
    assert seen == [2] + [2] * 7 + [1] * 7 * 2
    assert net(adv).argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("apgd-dlr", 2),
        ("apgd-t", 3),
        ("pgd(loss_function=dlr)", 2),
        ("autoattack(steps=2, queries=2)", 3),
        ("apgd-t(steps=2, targets=10)", 10),
        ("fab-t(steps=2, targets=12)", 12),
    ],
)
def test_too_few_classes_are_refused(label: str, classes: int) -> None:
    attack = registry.attack.resolve(label).value
    x = toy.images(1)
    with pytest.raises(UsageError, match=f"it needs at least {classes + 1} classes, and source 'conv-0' has"):
        attack(toy.source(toy.conv(classes)), x, torch.tensor([0]), 8 / 255, toy.image_rng(1))
    attack(toy.source(toy.conv(classes + 1)), x, torch.tensor([0]), 8 / 255, toy.image_rng(1))


def test_targets_are_the_likeliest_wrong_classes() -> None:
    net = toy.Toy(lambda x: torch.tensor([[3.0, 9.0, 5.0, 7.0]]) + 0 * x.sum(), 4)
    x = toy.images(1)
    target = victim(net, x, torch.tensor([1]), 0.1)
    assert [likely_class(target, rank).item() for rank in (1, 2, 3)] == [3, 2, 0]
