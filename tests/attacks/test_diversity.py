"""Input diversity against F.interpolate and F.pad, its draws, and its way through classifiers."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from rdp_bench.attacks import _loop
from rdp_bench.attacks._kernels.gather import gather_pixels
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.attacks.parts import Diversity
from rdp_bench.attacks.parts.base import look
from rdp_bench.errors import UsageError
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.settings import setting

EPS = 16 / 255


def outputs(attack: GradientSign, member: Any, x: Tensor, rng: ImageRng) -> tuple[Tensor, Tensor | None]:
    """What one member of a source says of `x` in one gradient of `attack`."""
    return look(_loop.begin(attack.parts, toy.source(member), x, None, 0.0, 0.0, rng), member, x)


@pytest.mark.parametrize("rest_share", [0.0, 0.5, 1.0])
def test_diversity_is_nearest_interpolation_and_grey_padding(rest_share: float) -> None:
    part = Diversity(1.0)
    x = toy.images(1, 299)
    for resized in range(299, 330):
        rest = 330 - resized
        top, left = int((rest - 1) * rest_share), int((rest - 1) * (1 - rest_share))
        rng = toy.Script(1, [resized, top, left])
        applied, rows, columns = part.sample(299, rng)
        assert bool(applied.all())
        # Upper ends exclusive, as in the authors' code.
        assert rng.bounds == [(299, 330), (0, rest), (0, rest)]
        wanted = interpolate(x, size=(resized, resized), mode="nearest")
        wanted = pad(wanted, (left, rest - left, top, rest - top), value=0.5)
        assert torch.equal(gather_pixels(x, rows, columns), wanted)


def test_diversity_and_back_is_two_nearest_interpolations() -> None:
    part = Diversity(1.0, 331 / 299, resize_back=True)
    x = toy.images(1, 299)
    for resized in range(299, 331):
        rest = 331 - resized
        top, left = rest - 1, (rest - 1) // 2
        rng = toy.Script(1, [resized, top, left])
        _, rows, columns = part.sample(299, rng)
        assert rng.bounds == [(299, 331), (0, rest), (0, rest)]
        there = interpolate(x, size=(resized, resized), mode="nearest")
        padded = pad(there, (left, rest - left, top, rest - top), value=0.5)
        back = interpolate(padded, size=(299, 299), mode="nearest")
        assert torch.equal(gather_pixels(x, rows, columns), back)


@pytest.mark.parametrize("size", [(299, 330), (32, 40), (8, 9)])
def test_diversity_draws_its_whole_range(size: tuple[int, int]) -> None:
    small, padded = size
    n = 3000
    part = Diversity(1.0, padded / small)
    _, rows, columns = part.sample(small, toy.image_rng(n))
    assert rows.shape == columns.shape == (n, padded)
    resized = (rows >= 0).sum(1)
    assert torch.equal(resized, (columns >= 0).sum(1))  # the image stays square
    assert sorted(set(resized.tolist())) == list(range(small, padded))
    for map_ in (rows, columns):
        offset = (map_ >= 0).int().argmax(1)
        assert (offset < padded - resized).all()
        for r in range(small, padded):
            if padded - r <= 5:  # few enough offsets that 3000 draws meet all of them
                assert set(offset[resized == r].tolist()) == set(range(padded - r))
        inside = map_[map_ >= 0]
        assert inside.min() == 0
        assert inside.max() == small - 1
    if padded > small + 2:
        top, left = (rows >= 0).int().argmax(1), (columns >= 0).int().argmax(1)
        assert (top != left).float().mean() > 0.4  # two draws, not one
        assert scipy.stats.chisquare(np.bincount(resized - small)).pvalue > 1e-4


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_diversity_is_applied_as_often_as_asked(probability: float) -> None:
    model = toy.conv()
    n = 600
    x = toy.images(n)
    setting(steps=1, diversity_prob=probability, diversity_size=1.5)(
        toy.source(model), x, torch.zeros(n, dtype=torch.long), EPS, toy.image_rng(n)
    )
    by_zoom = dict(zip(model.zooms, model.seen, strict=True))
    larger = by_zoom.pop(1.5, torch.zeros(0, 3, 12, 12))
    plain = by_zoom.pop(1.0, torch.zeros(0, 3, 8, 8))
    assert not by_zoom
    assert larger.shape[1:] == (3, 12, 12)
    assert len(larger) + len(plain) == n
    if probability in (0, 1):
        assert len(larger) == n * probability
    else:
        assert abs(len(larger) - n * probability) < 4 * math.sqrt(n * probability * (1 - probability))
        # What is not applied is the image itself, in order.
        at = [int((x == image).all(dim=(1, 2, 3)).nonzero()) for image in plain]
        assert at == sorted(at)


def test_diversity_passes_the_zoom_and_never_shrinks() -> None:
    model = toy.conv()
    x = 0.2 + toy.images(2, 299) / 5
    setting(steps=3, diversity_prob=1.0)(toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert model.zooms == [330 / 299] * 3
    assert all(seen.shape == (2, 3, 330, 330) for seen in model.seen)
    assert all((seen == 0.5).any() and not (seen < 0.1).any() for seen in model.seen)  # grey, not black


def test_a_padded_size_that_is_no_larger_is_refused() -> None:
    x, y = toy.images(1, 32), torch.tensor([0])
    attack = setting(steps=1, diversity_prob=1.0, diversity_size=1.015)  # 32.48 pixels
    with pytest.raises(UsageError, match=r"diversity_size=1.015 leaves images of 32 pixels as they are"):
        attack(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1))
    larger = setting(steps=1, diversity_prob=1.0, diversity_size=1.02)
    assert larger(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1)).shape == x.shape


def test_diversity_back_keeps_the_size() -> None:
    model = toy.conv()
    x = toy.images(40, 32)
    attack = setting(steps=1, diversity_prob=0.5, diversity_size=1.5, resize_back=True)
    attack(toy.source(model), x, torch.zeros(40, dtype=torch.long), EPS, toy.image_rng(40))
    assert model.zooms == [1.0]
    same = (model.seen[0] == x).all(dim=1).all(dim=1).all(dim=1)
    assert 8 < int(same.sum()) < 32


def test_diversity_is_drawn_for_each_image_gradient_and_copy() -> None:
    model = toy.conv()
    x = toy.images(1, 32).expand(6, -1, -1, -1)
    attack = setting(steps=2, alpha=1e-9, diversity_prob=1.0, diversity_size=2.0, scale_copies=2)
    attack(toy.source(model), x, torch.zeros(6, dtype=torch.long), EPS, toy.image_rng(6))
    maps = torch.cat([(seen == 0.5).all(1) for seen in model.seen])  # where the padding lies
    assert len(maps) == 24
    assert len({tuple(map_.flatten().tolist()) for map_ in maps}) == 24


def test_mixed_sizes_come_back_in_order() -> None:
    """Logits of enlarged and plain images must meet the labels of their own images."""
    x = toy.images(12, 16)
    attack = setting(steps=1, diversity_prob=0.5)
    together, _ = outputs(attack, toy.conv(), x, toy.image_rng(12))
    for i in range(12):
        alone, _ = outputs(attack, toy.conv(), x[i : i + 1], toy.image_rng(12).select(torch.tensor([i])))
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_gradient_through_diversity() -> None:
    """The whole step with scripted draws against autograd through F.interpolate and F.pad."""
    model = toy.conv()
    x, y = toy.images(2, 16), torch.tensor([0, 3])
    attack = setting(steps=1, diversity_prob=1.0, diversity_size=1.5)
    adv = attack(toy.source(model), x, y, EPS, toy.Script(2, [20, 1, 3]))
    leaf = x.clone().requires_grad_()
    seen = pad(interpolate(leaf, size=(20, 20), mode="nearest"), (3, 1, 1, 3), value=0.5)
    (grad,) = torch.autograd.grad(cross_entropy(model(seen), y, reduction="sum"), leaf)
    assert torch.allclose(adv, (x + EPS * grad.sign()).clamp(0, 1), atol=1e-7)


def test_each_member_of_an_ensemble_draws_its_own_diversity() -> None:
    one, two = toy.conv(), toy.conv(seed=50)
    x = toy.images(3, 32)
    attack = setting(steps=1, diversity_prob=1.0, diversity_size=2.0)
    attack(toy.source(one, two), x, torch.arange(3), EPS, toy.image_rng(3))
    for a, b in zip(one.seen[0], two.seen[0], strict=True):
        assert not torch.equal(a, b)


def test_auxiliary_heads_behind_diversity_keep_their_order() -> None:
    model = toy.TwoHeads(toy.conv(), toy.conv(seed=20), 5)
    x = toy.images(10, 16)
    attack = setting(steps=1, diversity_prob=0.5, aux_weight=0.4)
    main, aux = outputs(attack, model, x, toy.image_rng(10))
    assert aux is not None
    for i in range(10):
        main_i, aux_i = outputs(attack, model, x[i : i + 1], toy.image_rng(10).select(torch.tensor([i])))
        assert aux_i is not None
        assert torch.allclose(main[i], main_i[0], atol=1e-5)
        assert torch.allclose(aux[i], aux_i[0], atol=1e-5)
