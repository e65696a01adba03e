"""Combinations of parts: those that would silently do something else are refused, the others do what each says."""

import pytest
import torch

from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.engine.levels import add_delta, to_delta, to_uint8
from tests.helpers import toy

plugins.load()


@pytest.mark.parametrize("part", ["ADMIX", "SSA(2)", "BSR(2)", "SIA(2)", "PGN(2)", "ILPD(layer=1)", "PGD"])
def test_the_own_prediction_is_not_that_of_a_changed_image(part: str) -> None:
    """The first forward pass of these parts sees a mixed, shuffled or noisy image, whose class is not the image's."""
    with pytest.raises(ValueError, match="label=predicted"):
        compose(f"MI|{part}|OWN")
    assert compose(f"MI|{part}").parts


@pytest.mark.parametrize("text", ["VT", "PGN", "MI|VT(3)"])
def test_neighbourhoods_of_eps_per_pixel_are_refused_under_l2(text: str) -> None:
    """An L2 norm of 3 as a range of pixels in [0, 1] would make every neighbour pure noise."""
    made = compose(text)
    with pytest.raises(ValueError, match="is defined for L-infinity"):
        made.with_norm("l2")


def test_variance_of_the_previous_step_needs_one_gradient_a_step() -> None:
    """SVRE asks VT for gradients of single members inside a step; the variance would be theirs."""
    with pytest.raises(ValueError, match="SVRE"):
        compose("MI|SVRE|VT(2)")


def test_ilpd_with_variance_reduction_hooks_into_the_members_that_are_asked() -> None:
    x = toy.images(2, 12)
    nets = [toy.Wrapped(toy.network(seed=seed), 5, f"net{seed}") for seed in (1, 2)]
    both = toy.source(*nets)
    attack: GradientSign = compose("I(2)|SVRE(1)|ILPD(layer=1)")
    adv = attack(both, x, torch.zeros(2, dtype=torch.long), 8 / 255, toy.image_rng(2))
    assert (adv != x).any()


def test_a_fractional_budget_is_judged_as_it_is_stored() -> None:
    """Of 2.5 levels, two are stored: an image that is wrong at three has survived."""
    x = (toy.images(1, 4) * 255).round() / 255 * 0.9
    x = (x * 255).round() / 255
    eps = 2.5
    adv = (x + eps / 255 * torch.sign(toy.random(*x.shape))).clamp(0, 1)
    victim = Victim.of(toy.source(toy.conv()), x, torch.tensor([0]), eps / 255, "linf", toy.image_rng(1))
    clean = to_uint8(x)
    stored = add_delta(clean, to_delta(adv, x, clean, eps, "test"))
    assert (to_uint8(victim.stored(adv)) == stored).all()
    for levels in (1, 2, 8, 16):  # whole budgets: nothing but rounding
        moved = (x + levels / 255 * torch.sign(toy.random(*x.shape))).clamp(0, 1)
        whole = Victim.of(toy.source(toy.conv()), x, torch.tensor([0]), levels / 255, "linf", toy.image_rng(1))
        assert torch.equal(whole.stored(moved), (moved * 255).round() / 255)


@pytest.mark.parametrize("label", ["autoattack(steps=10, targets=2, queries=20)", "apgd-t(steps=10, stop=true)"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targets_follow_the_images_that_are_left(label: str, norm: str) -> None:
    """Images that the targeted run breaks on its way leave it; the others keep their own target classes."""
    # In float64, where a sign does not depend on the batch size of torch's convolutions.
    x, net = ((toy.images(48, 32) * 255).round() / 255).double(), toy.Toy(toy.network().double(), 5)
    y = net(x).argmax(1)
    eps = 0.05 if norm == "l2" else 1 / 255
    attack = registry.attack.resolve(label).value.with_norm(norm)
    together = attack(toy.source(net), x, y, eps, toy.image_rng(48))
    for i in range(0, 48, 12):
        rows = torch.tensor([i])
        alone = attack(toy.source(net), x[rows], y[rows], eps, toy.image_rng(48).select(rows))
        assert torch.allclose(alone, together[rows], atol=1e-5)


def test_an_l2_budget_is_judged_as_it_is_stored() -> None:
    """Rounding takes images out of a small L2 ball, and what is moved back into it may be right again."""
    x, net = (toy.images(48, 32) * 255).round() / 255, toy.conv()
    y, eps = net(x).argmax(1), 0.1
    attack = registry.attack.resolve("apgd-ce(steps=10, stop=true)").value.with_norm("l2")
    adv, clean = attack(toy.source(net), x, y, eps, toy.image_rng(48)), to_uint8(x)
    stored = add_delta(clean, to_delta(adv, x, clean, eps, "test", "l2"))
    victim = Victim.of(toy.source(net), x, y, eps, "l2", toy.image_rng(48))
    assert (to_uint8(victim.stored(adv)) == stored).all()
    assert (to_uint8((adv * 255).round() / 255) != stored).any()
