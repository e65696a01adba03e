"""Resizing in bands, against dense matrices in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench.attacks._kernels.gather import gather_pixels
from rdp_bench.attacks.parts import Diversity
from rdp_bench.numerics.resizing import BAND, resize, resize_gathered
from rdp_bench.rng import ImageRng
from tests.helpers import toy


def with_gradient(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    weight = toy.random(*out.shape, seed=3).to(out.dtype)
    return out.detach(), torch.autograd.grad((out * weight).sum(), x)[0]


@pytest.mark.parametrize(("old", "new"), [(64, 40), (40, 64), (50, BAND), (50, BAND + 1), (3, 50), (50, 1)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_bands_are_interpolation(old: int, new: int, mode: str) -> None:
    x = toy.images(2, old).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = interpolate(wide, size=(new, new), mode=mode, align_corners=False)
    for ours, theirs in zip(with_gradient(x, resize(x, new, mode)), with_gradient(wide, expected), strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize("resize_back", [False, True])
def test_bands_of_gathered_pixels(resize_back: bool) -> None:
    rng = ImageRng([str(i) for i in range(4)])
    _, rows, columns = Diversity(0.7, 1.2, resize_back).sample(50, rng)
    x = toy.images(4, 50).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = interpolate(gather_pixels(wide, rows, columns), size=(37, 37), mode="bicubic", align_corners=False)
    found = with_gradient(x, resize_gathered(x, rows, columns, 37, "bicubic"))
    for ours, theirs in zip(found, with_gradient(wide, expected), strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=0, atol=3e-5)


def test_one_image_is_resized_as_in_a_batch() -> None:
    x = toy.images(5, 61)
    for count in (1, 2, 4):
        assert torch.equal(resize(x[:count], 43), resize(x, 43)[:count])


def test_autocast() -> None:
    x = toy.images(1, 20)
    with torch.autocast("cpu", torch.bfloat16):
        low = resize(x, 12)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), resize(x, 12), atol=0.05)
