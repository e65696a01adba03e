"""Each kernel of the attack engine against a plain, slow version in numpy, scipy or plain indexing."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdp_bench.attacks._kernels.gather import gather_pixels, split_batch
from rdp_bench.attacks._kernels.norms import norm_l2, normalise, project_l2, unit_l2
from rdp_bench.attacks._kernels.smoothing import gaussian, smooth
from rdp_bench.attacks.parts.ball import sign_stepper
from rdp_bench.errors import UsageError
from tests.helpers import toy
from tests.helpers.settings import setting

Array = NDArray[np.float64]
EPS = 16 / 255


def kernel_2d(length: int) -> Array:
    density = scipy.stats.norm.pdf(np.linspace(-3, 3, length))
    outer = np.outer(density, density)
    return np.asarray(outer / outer.sum())


# Gathering pixels


def by_index(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`gather_pixels`, one image at a time with plain indexing."""
    outs = []
    for image, r, c in zip(x, rows, columns, strict=True):
        out = image[:, r.clamp(min=0)][:, :, c.clamp(min=0)]
        outs.append(torch.where((r >= 0)[:, None] & (c >= 0)[None, :], out, 0.5))
    return torch.stack(outs)


def growing(n: int, length: int, size: int, seed: int) -> Tensor:
    """Growing indices with repeats and gaps, and padding on either side."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, size, (n, length), generator=generator).sort(1).values
    for k in range(n):
        left, right = torch.randint(0, 3, (2,), generator=generator).tolist()
        maps[k, :left] = -1
        maps[k, length - right :] = -1
    return maps


@pytest.mark.parametrize(("length", "size"), [(9, 8), (12, 8), (8, 8), (5, 8), (30, 6), (1, 8)])
def test_take_pixels_and_its_gradient(length: int, size: int) -> None:
    x = toy.images(5, size).double()
    rows, columns = growing(5, length, size, 0), growing(5, length + 1, size, 1)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = gather_pixels(one, rows, columns), by_index(two, rows, columns)
    assert torch.equal(out, expected)
    weight = toy.random(*out.shape, seed=2).double()
    (grad,) = torch.autograd.grad((out * weight).sum(), one)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), two)
    assert torch.allclose(grad, wanted, atol=1e-12)


def test_take_pixels_leaves_its_inputs_alone() -> None:
    x, rows, columns = toy.images(3), growing(3, 10, 8, 0), growing(3, 10, 8, 1)
    before = x.clone(), rows.clone(), columns.clone()
    leaf = x.requires_grad_()
    torch.autograd.grad(gather_pixels(leaf, rows, columns).sum(), leaf)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, rows, columns), strict=True))


def test_an_all_padding_map_is_grey_and_has_no_gradient() -> None:
    x = toy.images(2).requires_grad_()
    nothing = torch.full((2, 9), -1)
    out = gather_pixels(x, nothing, nothing)
    assert (out == 0.5).all()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad == 0).all()


# Smoothing and normalising


@pytest.mark.parametrize(("length", "centre", "corner"), [(15, 0.029303, 3.616e-6), (7, 0.159241, 1.965e-5)])
def test_kernel_values(length: int, centre: float, corner: float) -> None:
    """The values of the authors' kernels."""
    kernel = torch.outer(gaussian(length), gaussian(length))
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float(kernel[length // 2, length // 2]) == pytest.approx(centre, abs=5e-7)
    assert float(kernel[0, 0]) == pytest.approx(corner, rel=2e-4)
    assert np.abs(kernel.numpy() - kernel_2d(length)).max() < 5e-8
    spread = float((gaussian(length) * (torch.arange(length) - length // 2) ** 2).sum().sqrt())
    assert spread == pytest.approx((length - 1) / 6, rel=0.05)


@pytest.mark.parametrize("size", [6, 8, 31, 32, 33, 64, 100, 299])
@pytest.mark.parametrize("length", [3, 7, 15])
def test_smoothing_is_a_convolution_with_zero_padding(length: int, size: int) -> None:
    grad = toy.random(2, 3, size, size)
    out = smooth(grad.clone(), length)
    expected = scipy.ndimage.convolve(grad.double().numpy(), kernel_2d(length)[None, None], mode="constant", cval=0)
    assert out.shape == grad.shape
    assert np.abs(out.double().numpy() - expected).max() < 2e-6


def test_smoothing_does_not_renormalise_the_border() -> None:
    out = smooth(torch.ones(1, 3, 32, 32), 15)
    assert float(out[0, 0, 16, 16]) == pytest.approx(1, abs=1e-6)
    assert float(out[0, 0, 0, 0]) == pytest.approx(float(gaussian(15)[7:].sum()) ** 2, abs=1e-6)  # about a quarter


def test_smoothing_of_a_kernel_of_one_is_the_identity() -> None:
    grad = toy.random(2, 3, 9, 9)
    assert torch.equal(smooth(grad, 1), grad)


def test_smoothing_keeps_channels_and_images_apart() -> None:
    grad = torch.zeros(3, 3, 40, 40)
    grad[1, 2, 20, 20] = 1
    out = smooth(grad, 15)
    assert np.abs(out[1, 2, 13:28, 13:28].numpy() - kernel_2d(15)).max() < 1e-8
    out[1, 2, 13:28, 13:28] = 0
    assert (out == 0).all()


def test_normalising() -> None:
    grad = toy.random(3, 3, 8, 8) * torch.tensor([1e-12, 1.0, 1e12]).view(3, 1, 1, 1)
    grad = torch.cat([grad, torch.zeros(1, 3, 8, 8)])
    out = normalise(grad.clone())
    assert out.abs().mean((1, 2, 3)).tolist() == pytest.approx([1, 1, 1, 0], rel=1e-5)
    expected = grad[:3].double() / grad[:3].double().abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(out[:3].double(), expected, rtol=1e-5)


def test_a_kernel_longer_than_twice_the_image_is_refused() -> None:
    attack = setting(kernel_size=19)
    x, y = toy.images(1, 8), torch.tensor([0])
    with pytest.raises(UsageError, match="kernel_size 19 is more than twice the size of the images, 8 x 8 pixels"):
        attack(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1))
    assert setting(kernel_size=17)(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1)).shape == x.shape


# Norms, steps, batches


@pytest.mark.parametrize("eps", [0.1, 1.0, 50.0])
def test_norms_and_projection_in_numpy(eps: float) -> None:
    """One image after the other, in float64."""
    x, adv = toy.images(4), toy.images(4, seed=1)
    adv[2] = x[2]  # no change: nothing to divide by
    found = norm_l2(adv - x), unit_l2(adv - x), project_l2(adv, x, eps)
    for i in range(4):
        delta = (adv[i] - x[i]).double().numpy()
        norm = np.sqrt((delta**2).sum())
        unit = delta / norm if norm else delta
        assert float(found[0][i]) == pytest.approx(norm, abs=1e-5)
        assert np.abs(found[1][i].numpy() - unit).max() < 1e-6
        assert np.abs(found[2][i].numpy() - (x[i].double().numpy() + unit * min(norm, eps))).max() < 1e-6


@pytest.mark.parametrize("each", [False, True])
def test_sign_steps_in_numpy(each: bool) -> None:
    x, g = toy.images(3), toy.random(3, 3, 8, 8)
    g[:, :, 0] = 0
    alpha = torch.tensor([0.01, 0.05, 0.3]).view(3, 1, 1, 1) if each else torch.tensor(0.05)
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    size = alpha if each else 0.05
    found = sign_stepper(low, high, size)(x.clone(), g)
    expected = np.clip(x.numpy() + alpha.numpy() * np.sign(g.numpy()), low.numpy(), high.numpy())
    assert np.abs(found.numpy() - expected).max() < 1e-7


def test_splitting_a_batch_is_indexing() -> None:
    z = toy.images(5).requires_grad_()
    one, two = torch.tensor([3, 0]), torch.tensor([1, 2, 4])
    weight = toy.random(5, 3, 8, 8)
    a, b = split_batch(z, one, two)
    assert torch.equal(a, z[one])
    assert torch.equal(b, z[two])
    (found,) = torch.autograd.grad((torch.cat([a, b]) * weight).sum(), z)
    (wanted,) = torch.autograd.grad((torch.cat([z[one], z[two]]) * weight).sum(), z)
    assert torch.equal(found, wanted)
