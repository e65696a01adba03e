"""Which class an attack leaves or approaches, and where it starts."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.helpers import toy
from tests.helpers.settings import setting

EPS = 16 / 255


def biased(weight: Tensor, bias: list[float]) -> toy.Toy:
    shift = torch.tensor(bias)
    return toy.Toy(lambda x: x.flatten(1) @ weight + shift, len(bias), "biased")


def test_own_label_is_the_first_prediction_and_stays() -> None:
    model = toy.linear(scale=0.3)
    x = toy.images(8)
    first = model(x).argmax(1)
    wrong = (first + 1) % 5
    attack = setting(steps=6, momentum=1.0)
    own = setting(steps=6, momentum=1.0, label="predicted")(toy.source(model), x, wrong, 0.2, toy.image_rng(8))
    assert torch.equal(own, attack(toy.source(model), x, first, 0.2, toy.image_rng(8)))
    assert not torch.equal(own, attack(toy.source(model), x, wrong, 0.2, toy.image_rng(8)))
    assert (model(own).argmax(1) != first).all()  # it did change on the way, and the label with it would have


def test_own_label_with_diversity_is_that_of_the_diverse_image() -> None:
    """DI-2-FGSM reads the label off the transformed image."""

    def logits(z: Tensor) -> Tensor:
        mean = z.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], 1) * (1.0 if z.shape[-1] == 8 else -1.0)

    model, x = toy.Toy(logits, 2), torch.full((1, 3, 8, 8), 0.45)
    assert model(x).argmax(1) == 1
    attack = setting(steps=1, diversity_prob=1.0, diversity_size=1.5, label="predicted")
    adv = attack(toy.source(model), x, torch.tensor([1]), EPS, toy.image_rng(1))
    assert model.seen[1].shape[-1] == 12
    assert logits(model.seen[1]).argmax(1) == 0
    # Leaving class 0 of the larger image, whose logit is -mean, means growing brighter; leaving 1, darker.
    assert (adv > x).all()


def test_own_label_of_an_ensemble_is_the_argmax_of_summed_softmaxes() -> None:
    """Mean softmax (.5, .37, .13) says class 0, mean logits (-5, .5, 0) say class 1."""
    one = biased(toy.random(192, 3) * 1e-3, [20.0, 0.0, 0.0])
    two = biased(toy.random(192, 3, seed=1) * 1e-3, [-30.0, 1.0, 0.0])
    x = toy.images(4)
    both = toy.source(one, two)
    own = setting(steps=1, label="predicted")(both, x, torch.full((4,), 2), EPS, toy.image_rng(4))
    labelled = [setting(steps=1)(both, x, torch.full((4,), k), EPS, toy.image_rng(4)) for k in range(3)]
    assert torch.equal(own, labelled[0])
    assert not torch.equal(own, labelled[1])


def regions(classes: int = 4) -> toy.Toy:
    """Logit k is the sum of rows 2k and 2k + 1: a step shows which class it went to."""
    return toy.Toy(lambda x: x.reshape(len(x), 3, classes, -1).sum((1, 3)), classes)


def test_targeted_goes_to_every_wrong_class_and_never_to_the_true_one() -> None:
    n = 400
    x, y = torch.full((n, 3, 8, 8), 0.5), torch.arange(n) % 4
    adv = setting(steps=1, targeted=True)(toy.source(regions()), x, y, EPS, toy.image_rng(n))
    moved = (adv - x).reshape(n, 3, 4, -1).mean((1, 3))  # [n, class]
    assert ((moved > 0).sum(1) == 1).all()  # up for the target, down for all others
    target = (moved > 0).int().argmax(1)
    assert (target != y).all()
    counts = np.bincount((target - y) % 4, minlength=4)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-4


def test_targeted_lowers_the_loss_of_its_target() -> None:
    model = toy.conv()
    x, y = toy.images(3), torch.tensor([0, 2, 4])
    rng = toy.Script(3, [3])
    adv = setting(steps=4, targeted=True)(toy.source(model), x, y, EPS, rng)
    assert rng.bounds == [(1, 5)]
    target = (y + 3) % 5
    before, after = (cross_entropy(model(z), target, reduction="none") for z in (x, adv))
    assert (after < before).all()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), target, reduction="sum"), leaf)
    one = setting(steps=1, targeted=True)(toy.source(model), x, y, EPS, toy.Script(3, [3]))
    assert torch.allclose(one, (x - EPS * grad.sign()).clamp(0, 1), atol=1e-7)


def test_targeted_look_ahead_looks_towards_the_target() -> None:
    model = toy.conv()
    x, y = toy.images(1), torch.tensor([0])
    setting(steps=2, momentum=1.0, nesterov=True, targeted=True)(toy.source(model), x, y, EPS, toy.Script(1, [2]))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), torch.tensor([2])), leaf)
    g1 = grad / grad.abs().mean()
    x1 = (x - EPS / 2 * grad.sign()).clamp(0, 1)
    assert torch.allclose(model.seen[1], x1 - EPS / 2 * g1, atol=1e-6)


@pytest.mark.parametrize("in_range", [True, False])
def test_a_random_start_under_l2_is_clipped_too(in_range: bool) -> None:
    """As foolbox's is: the network sees no pixel outside [0, 1], and the change stays within the ball."""
    model = toy.conv()
    x = torch.zeros(2, 3, 32, 32)
    attack = setting(steps=2, random_start=True, clip_start=in_range, norm="l2")
    attack(toy.source(model), x, torch.tensor([0, 1]), 3.0, toy.image_rng(2))
    start = model.seen[0] - x
    assert (start.min() < 0) == (not in_range)
    assert 0 < float(start.flatten(1).norm(dim=1).max()) <= 3 + 1e-5


@pytest.mark.parametrize("in_range", [True, False])
def test_random_start(in_range: bool) -> None:
    model = toy.conv()
    x = torch.cat([torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5), torch.ones(1, 3, 32, 32)])
    attack = setting(steps=1, random_start=True, clip_start=in_range)
    adv = attack(toy.source(model), x, torch.tensor([0, 1, 2]), EPS, toy.image_rng(3))
    start = model.seen[0] - x
    assert float(start.abs().max()) <= EPS + 1e-6
    middle = (start[1] / EPS).flatten().numpy()
    assert scipy.stats.kstest(middle, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4
    assert (start[0].min() < 0) == (not in_range)
    assert (start[2].max() > 0) == (not in_range)
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert float((adv - x).abs().max()) <= EPS + 1e-6
