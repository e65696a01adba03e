"""Deep image prior: what a fit gives, and on what it depends."""

import pytest
import torch
from torch.nn.functional import interpolate

from rdp_bench.defenses._networks.prior import Hourglass
from rdp_bench.errors import UsageError
from tests.helpers.learned import image_rng, made, photo


def test_the_fit_comes_closer_to_the_clean_image_than_its_noisy_input() -> None:
    clean = interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 32, mode="bilinear")
    noisy = (clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    with torch.no_grad():
        fitted = made("dip(steps=80, width=8, levels=3, average=.9)").purify(noisy, image_rng(1))
    before, after = ((each - clean).square().mean() for each in (noisy, fitted))
    assert after < before / 2


def test_an_image_depends_on_itself_and_on_its_stream_alone() -> None:
    dip, x = made("dip(steps=2, width=4, levels=2)"), photo(2, 17)
    both = dip.purify(x, image_rng(2))
    assert both.shape == x.shape
    assert torch.equal(both[1:], dip.purify(x[1:], image_rng(2).select(torch.tensor([1]))))
    assert torch.equal(both, dip.purify(x, image_rng(2)))
    assert not torch.equal(both, dip.purify(x, image_rng(2, "other")))
    streams = image_rng(2)
    assert not torch.equal(dip.purify(x, streams), dip.purify(x, streams))
    state = torch.random.get_rng_state()
    dip.purify(x, image_rng(2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_outputs_are_averaged_exponentially() -> None:
    x = photo(1, 16)
    one, two, mixed = (
        made(f"dip(steps={steps}, width=4, levels=2, average={average})").purify(x, image_rng(1))
        for steps, average in ((1, 0.9), (2, 0), (2, 0.9))
    )
    assert torch.allclose(mixed, 0.9 * one + 0.1 * two, atol=1e-6)
    assert not torch.allclose(one, two, atol=1e-4)


def test_the_authors_network() -> None:
    """Five scales of 128 channels with skips of 4, from 32 channels of noise."""
    with torch.device("meta"):
        net = Hourglass()
    down = sum(9 * (old * 128 + 128 * 128) + 2 * 128 + 4 * 128 for old in (32, 128, 128, 128, 128))
    side = sum(old * 4 + 4 + 2 * 4 for old in (32, 128, 128, 128, 128))
    up = 5 * (2 * 132 + 9 * 132 * 128 + 128 + 2 * 128 + 128 * 128 + 128 + 2 * 128)
    assert sum(p.numel() for p in net.parameters()) == down + side + up + 3 * 128 + 3


def test_bpda_passes_it_by_the_identity() -> None:
    dip, x = made("dip(steps=1, width=4, levels=2)"), photo(1, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(dip.bpda(x, image_rng(1)).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    assert dip.random
    assert not dip.differentiable


def test_images_too_small_for_the_levels_are_refused() -> None:
    fit = "steps=1, width=2"
    with pytest.raises(
        UsageError, match=r"levels=5 needs images of more than 32 pixels a side, found 32 x 40; set lev.*=4"
    ):
        made(f"dip({fit})").purify(torch.zeros(1, 3, 32, 40), image_rng(1))
    for size, levels in ((32, 4), (33, 5), (3, 1)):
        x = torch.zeros(1, 3, size, size)
        assert made(f"dip({fit}, levels={levels})").purify(x, image_rng(1)).shape == x.shape
    with pytest.raises(UsageError, match=r"more than 2 pixels a side, found 2 x 2$"):
        made(f"dip({fit}, levels=1)").purify(torch.zeros(1, 3, 2, 2), image_rng(1))


@pytest.mark.parametrize("label", ["dip(steps=0)", "dip(levels=9)", "dip(rate=2)", "dip(average=1)"])
def test_impossible_fits_are_refused(label: str) -> None:
    with pytest.raises(UsageError):
        made(label)
