"""Each part of the iteration against its equation, worked out here in numpy, scipy, autograd or F.interpolate."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from numpy.typing import NDArray
from rdp_bench.attacks._iterate import gather_pixels, gaussian, normalise, sample_diversity, smooth
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from rdp_bench.attacks import _iterate
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.errors import UsageError
from tests.helpers import toy

Array = NDArray[np.float64]
Gradient = Callable[[Array, Array], Array]

EPS = 16 / 255


def one_hot(y: Array, classes: int) -> Array:
    return np.asarray(np.eye(classes)[y.astype(int)])


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def linear_gradient(weight: Array) -> Gradient:
    """dJ/dx of softmax cross-entropy behind x W: W (p - onehot)."""

    def gradient(x: Array, y: Array) -> Array:
        flat = x.reshape(len(x), -1)
        return ((softmax(flat @ weight) - one_hot(y, weight.shape[1])) @ weight.T).reshape(x.shape)

    return gradient


def tanh_gradient(first: Array, second: Array) -> Gradient:
    """The same behind tanh(x A) B: A ((1 - h^2) * B (p - onehot))."""

    def gradient(x: Array, y: Array) -> Array:
        h = np.tanh(x.reshape(len(x), -1) @ first)
        inner = (softmax(h @ second) - one_hot(y, second.shape[1])) @ second.T
        return ((1 - h**2) * inner @ first.T).reshape(x.shape)

    return gradient


def by_hand(
    gradient: Gradient,
    x: Array,
    y: Array,
    *,
    eps: float = EPS,
    steps: int = 3,
    mu: float = 0.0,
    nesterov: bool = False,
    copies: int = 1,
    kernel: Array | None = None,
) -> Array:
    """The equations of Dong 2018 (6), Lin 2020 (6, 8) and Dong 2019 in float64, one after the other."""
    adv, g, alpha = x.copy(), np.zeros_like(x), eps / steps
    for _ in range(steps):
        at = adv + alpha * mu * g if nesterov else adv
        total = np.zeros_like(x)
        for i in range(copies):
            # d/dx J(.5 + (x - .5) / 2^i) = 2^-i J'
            total += gradient(0.5 + (at - 0.5) / 2**i, y) / 2**i
        if kernel is not None:
            total = scipy.ndimage.convolve(total, kernel[None, None], mode="constant")
        g = mu * g + total / np.abs(total).mean((1, 2, 3), keepdims=True)
        adv = np.clip(np.clip(adv + alpha * np.sign(g), x - eps, x + eps), 0, 1)
    return adv


def kernel_2d(length: int) -> Array:
    density = scipy.stats.norm.pdf(np.linspace(-3, 3, length))
    outer = np.outer(density, density)
    return np.asarray(outer / outer.sum())


A, B = toy.random(192, 16, seed=3) * 0.3, toy.random(16, 5, seed=4)
NETS: dict[str, tuple[toy.Toy, Gradient]] = {
    "linear": (toy.linear(scale=0.1), linear_gradient((toy.random(192, 5) * 0.1).double().numpy())),
    "tanh": (
        toy.Toy(lambda x: torch.tanh(x.flatten(1) @ A) @ B, 5, "tanh"),
        tanh_gradient(A.double().numpy(), B.double().numpy()),
    ),
}
EQUATIONS = {
    "FGSM": (GradientSign(steps=1), {"steps": 1}),
    "I": (GradientSign(steps=3), {}),
    "MI": (GradientSign(steps=3, momentum=1.0), {"mu": 1.0}),
    "MI, mu .6": (GradientSign(steps=7, momentum=0.6), {"mu": 0.6, "steps": 7}),
    "NI": (GradientSign(steps=6, momentum=1.0, nesterov=True), {"mu": 1.0, "nesterov": True, "steps": 6}),
    "SI": (GradientSign(steps=4, scale_copies=5), {"copies": 5, "steps": 4}),
    "SI-NI": (
        GradientSign(steps=6, momentum=0.8, nesterov=True, scale_copies=3),
        {"mu": 0.8, "nesterov": True, "copies": 3, "steps": 6},
    ),
    "TI": (GradientSign(steps=4, momentum=1.0, kernel_size=7), {"mu": 1.0, "kernel": kernel_2d(7), "steps": 4}),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equations_in_numpy(name: str, net: str) -> None:
    attack, setting = EQUATIONS[name]
    model, gradient = NETS[net]
    x, y = toy.images(6), torch.arange(6) % 5
    adv = attack(toy.source(model), x, y, EPS, toy.image_rng(6))
    expected = by_hand(gradient, x.double().numpy(), y.numpy().astype(float), **setting)  # type: ignore[arg-type]
    assert np.abs(adv.numpy() - expected).max() < 1e-6


def test_the_equations_tell_the_parts_apart() -> None:
    """The settings above would be no proof if they led to the same image."""
    x, y = toy.images(6).double().numpy(), np.arange(6.0) % 5
    gradient = NETS["tanh"][1]
    six = [
        by_hand(gradient, x, y, steps=6, **setting)  # type: ignore[arg-type]
        for setting in ({}, {"mu": 1.0}, {"mu": 0.8}, {"mu": 1.0, "nesterov": True}, {"mu": 1.0, "copies": 3})
    ]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(six) for b in six[:i])


def test_momentum_sums_gradients_of_mean_absolute_value_one() -> None:
    """With mu = 2 and the look-ahead, the points the network is asked at give g_1 and g_2 away."""
    model, gradient = NETS["tanh"]
    x, y = toy.images(2), torch.tensor([1, 4])
    model.seen.clear()
    GradientSign(steps=3, momentum=2.0, nesterov=True)(toy.source(model), x, y, EPS, toy.image_rng(2))
    alpha = EPS / 3
    first = gradient(x.double().numpy(), y.numpy().astype(float))
    g1 = first / np.abs(first).mean((1, 2, 3), keepdims=True)
    assert np.abs(g1).mean((1, 2, 3)) == pytest.approx([1, 1])
    x1 = np.clip(x.double().numpy() + alpha * np.sign(g1), 0, 1)
    assert np.abs(model.seen[1].numpy() - (x1 + 2 * alpha * g1)).max() < 1e-5
    second = gradient(model.seen[1].double().numpy(), y.numpy().astype(float))
    g2 = 2 * g1 + second / np.abs(second).mean((1, 2, 3), keepdims=True)
    x2 = np.clip(np.clip(x1 + alpha * np.sign(g2), x.numpy() - EPS, x.numpy() + EPS), 0, 1)
    assert np.abs(model.seen[2].numpy() - (x2 + 2 * alpha * g2)).max() < 1e-5


def test_look_ahead_is_not_clipped() -> None:
    model = toy.linear()
    x = toy.images(2).round()  # black and white: every second look-ahead leaves [0, 1]
    GradientSign(steps=2, momentum=1.0, nesterov=True)(
        toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2)
    )
    assert model.seen[1].min() < -0.01
    assert model.seen[1].max() > 1.01


def test_without_momentum_steps_ignore_the_size_of_earlier_gradients() -> None:
    model = toy.conv()
    x, y = toy.images(3), torch.arange(3)
    GradientSign(steps=2)(toy.source(model), x, y, EPS, toy.image_rng(3))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)
    assert torch.allclose(model.seen[1], (x + EPS / 2 * grad.sign()).clamp(0, 1), atol=1e-7)


def test_copies_lose_contrast_around_mid_grey() -> None:
    model = toy.conv()
    x = toy.images(2)
    GradientSign(steps=1, scale_copies=4)(toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert len(model.seen) == 4
    for i, seen in enumerate(model.seen):
        # In the authors' range [-1, 1] a copy is x / 2^i.
        assert torch.allclose(2 * seen - 1, (2 * x - 1) / 2**i, atol=1e-6)


def test_one_copy_is_no_copy() -> None:
    x, y = toy.images(4), torch.arange(4)
    plain = GradientSign(momentum=1.0)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4))
    assert torch.equal(
        GradientSign(momentum=1.0, scale_copies=1)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4)), plain
    )
    assert not torch.equal(
        GradientSign(momentum=1.0, scale_copies=2)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4)), plain
    )


def test_copies_weigh_two_to_the_minus_i() -> None:
    """g_1, read off the second point of a look-ahead, is sum_i 2^-i J'(copy i) over its mean absolute value."""
    model, gradient = NETS["tanh"]
    x, y = toy.images(2), torch.tensor([2, 3])
    model.seen.clear()
    GradientSign(steps=2, momentum=1.0, nesterov=True, scale_copies=3)(toy.source(model), x, y, EPS, toy.image_rng(2))
    labels, pixels = y.numpy().astype(float), x.double().numpy()
    total = sum(gradient(0.5 + (pixels - 0.5) / 2**i, labels) / 2**i for i in range(3))
    g1 = total / np.abs(total).mean((1, 2, 3), keepdims=True)
    x1 = np.clip(pixels + EPS / 2 * np.sign(g1), 0, 1)
    assert np.abs(model.seen[3].numpy() - (x1 + EPS / 2 * g1)).max() < 1e-6


# Input diversity


@pytest.mark.parametrize("rest_share", [0.0, 0.5, 1.0])
def test_diversity_is_nearest_interpolation_and_grey_padding(rest_share: float) -> None:
    attack = GradientSign(diversity_prob=1.0)
    x = toy.images(1, 299)
    for resized in range(299, 330):
        rest = 330 - resized
        top, left = int((rest - 1) * rest_share), int((rest - 1) * (1 - rest_share))
        rng = toy.Script(1, [resized, top, left])
        applied, rows, columns = sample_diversity(attack, 299, rng)
        assert bool(applied.all())
        # Upper ends exclusive, as in the authors' code.
        assert rng.bounds == [(299, 330), (0, rest), (0, rest)]
        wanted = interpolate(x, size=(resized, resized), mode="nearest")
        wanted = pad(wanted, (left, rest - left, top, rest - top), value=0.5)
        assert torch.equal(gather_pixels(x, rows, columns), wanted)


def test_diversity_and_back_is_two_nearest_interpolations() -> None:
    attack = GradientSign(diversity_prob=1.0, diversity_size=331 / 299, resize_back=True)
    x = toy.images(1, 299)
    for resized in range(299, 331):
        rest = 331 - resized
        top, left = rest - 1, (rest - 1) // 2
        rng = toy.Script(1, [resized, top, left])
        _, rows, columns = sample_diversity(attack, 299, rng)
        assert rng.bounds == [(299, 331), (0, rest), (0, rest)]
        there = interpolate(x, size=(resized, resized), mode="nearest")
        padded = pad(there, (left, rest - left, top, rest - top), value=0.5)
        back = interpolate(padded, size=(299, 299), mode="nearest")
        assert torch.equal(gather_pixels(x, rows, columns), back)


@pytest.mark.parametrize("size", [(299, 330), (32, 40), (8, 9)])
def test_diversity_draws_its_whole_range(size: tuple[int, int]) -> None:
    small, padded = size
    n = 3000
    attack = GradientSign(diversity_prob=1.0, diversity_size=padded / small)
    _, rows, columns = sample_diversity(attack, small, toy.image_rng(n))
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
    GradientSign(steps=1, diversity_prob=probability, diversity_size=1.5)(
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
    GradientSign(steps=3, diversity_prob=1.0)(toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert model.zooms == [330 / 299] * 3
    assert all(seen.shape == (2, 3, 330, 330) for seen in model.seen)
    assert all((seen == 0.5).any() and not (seen < 0.1).any() for seen in model.seen)  # grey, not black


def test_diversity_back_keeps_the_size() -> None:
    model = toy.conv()
    x = toy.images(40, 32)
    attack = GradientSign(steps=1, diversity_prob=0.5, diversity_size=1.5, resize_back=True)
    attack(toy.source(model), x, torch.zeros(40, dtype=torch.long), EPS, toy.image_rng(40))
    assert model.zooms == [1.0]
    same = (model.seen[0] == x).all(dim=1).all(dim=1).all(dim=1)
    assert 8 < int(same.sum()) < 32


def test_diversity_is_drawn_for_each_image_gradient_and_copy() -> None:
    model = toy.conv()
    x = toy.images(1, 32).expand(6, -1, -1, -1)
    attack = GradientSign(steps=2, alpha=1e-9, diversity_prob=1.0, diversity_size=2.0, scale_copies=2)
    attack(toy.source(model), x, torch.zeros(6, dtype=torch.long), EPS, toy.image_rng(6))
    maps = torch.cat([(seen == 0.5).all(1) for seen in model.seen])  # where the padding lies
    assert len(maps) == 24
    assert len({tuple(map_.flatten().tolist()) for map_ in maps}) == 24


def test_mixed_sizes_come_back_in_order() -> None:
    """Logits of enlarged and plain images must meet the labels of their own images."""
    x = toy.images(12, 16)
    attack = GradientSign(steps=1, diversity_prob=0.5)
    together, _ = _iterate._logits(attack, toy.conv(), x, toy.image_rng(12))
    for i in range(12):
        alone, _ = _iterate._logits(attack, toy.conv(), x[i : i + 1], toy.image_rng(12).select(torch.tensor([i])))
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_gradient_through_diversity() -> None:
    """The whole step with scripted draws against autograd through F.interpolate and F.pad."""
    model = toy.conv()
    x, y = toy.images(2, 16), torch.tensor([0, 3])
    attack = GradientSign(steps=1, diversity_prob=1.0, diversity_size=1.5)
    adv = attack(toy.source(model), x, y, EPS, toy.Script(2, [20, 1, 3]))
    leaf = x.clone().requires_grad_()
    seen = pad(interpolate(leaf, size=(20, 20), mode="nearest"), (3, 1, 1, 3), value=0.5)
    (grad,) = torch.autograd.grad(cross_entropy(model(seen), y, reduction="sum"), leaf)
    assert torch.allclose(adv, (x + EPS * grad.sign()).clamp(0, 1), atol=1e-7)


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


# Labels, targets, starts


def biased(weight: Tensor, bias: list[float]) -> toy.Toy:
    shift = torch.tensor(bias)
    return toy.Toy(lambda x: x.flatten(1) @ weight + shift, len(bias), "biased")


def test_own_label_is_the_first_prediction_and_stays() -> None:
    model = toy.linear(scale=0.3)
    x = toy.images(8)
    first = model(x).argmax(1)
    wrong = (first + 1) % 5
    attack = GradientSign(steps=6, momentum=1.0)
    own = GradientSign(steps=6, momentum=1.0, label="predicted")(toy.source(model), x, wrong, 0.2, toy.image_rng(8))
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
    attack = GradientSign(steps=1, diversity_prob=1.0, diversity_size=1.5, label="predicted")
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
    own = GradientSign(steps=1, label="predicted")(both, x, torch.full((4,), 2), EPS, toy.image_rng(4))
    labelled = [GradientSign(steps=1)(both, x, torch.full((4,), k), EPS, toy.image_rng(4)) for k in range(3)]
    assert torch.equal(own, labelled[0])
    assert not torch.equal(own, labelled[1])


def regions(classes: int = 4) -> toy.Toy:
    """Logit k is the sum of rows 2k and 2k + 1: a step shows which class it went to."""
    return toy.Toy(lambda x: x.reshape(len(x), 3, classes, -1).sum((1, 3)), classes)


def test_targeted_goes_to_every_wrong_class_and_never_to_the_true_one() -> None:
    n = 400
    x, y = torch.full((n, 3, 8, 8), 0.5), torch.arange(n) % 4
    adv = GradientSign(steps=1, targeted=True)(toy.source(regions()), x, y, EPS, toy.image_rng(n))
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
    adv = GradientSign(steps=4, targeted=True)(toy.source(model), x, y, EPS, rng)
    assert rng.bounds == [(1, 5)]
    target = (y + 3) % 5
    before, after = (cross_entropy(model(z), target, reduction="none") for z in (x, adv))
    assert (after < before).all()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), target, reduction="sum"), leaf)
    one = GradientSign(steps=1, targeted=True)(toy.source(model), x, y, EPS, toy.Script(3, [3]))
    assert torch.allclose(one, (x - EPS * grad.sign()).clamp(0, 1), atol=1e-7)


def test_targeted_look_ahead_looks_towards_the_target() -> None:
    model = toy.conv()
    x, y = toy.images(1), torch.tensor([0])
    GradientSign(steps=2, momentum=1.0, nesterov=True, targeted=True)(toy.source(model), x, y, EPS, toy.Script(1, [2]))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), torch.tensor([2])), leaf)
    g1 = grad / grad.abs().mean()
    x1 = (x - EPS / 2 * grad.sign()).clamp(0, 1)
    assert torch.allclose(model.seen[1], x1 - EPS / 2 * g1, atol=1e-6)


@pytest.mark.parametrize("in_range", [True, False])
def test_random_start(in_range: bool) -> None:
    model = toy.conv()
    x = torch.cat([torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5), torch.ones(1, 3, 32, 32)])
    attack = GradientSign(steps=1, random_start=True, clip_start=in_range)
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


# Steps


@pytest.mark.parametrize(("eps", "count"), [(16, 20), (8, 10), (4, 5), (1, 1), (12, 15), (0, 1), (2, 2)])
def test_automatic_steps_follow_kurakin(eps: float, count: int) -> None:
    """min(eps + 4, 1.25 eps), rounded down."""
    assert GradientSign(steps=None).count(eps) == count
    assert GradientSign(steps=7).count(eps) == 7


@pytest.mark.parametrize(
    ("attack", "eps", "alpha"),
    [
        (GradientSign(), 16, 1.6),
        (GradientSign(steps=1), 16, 16),
        (GradientSign(steps=None), 16, 0.8),
        (GradientSign(steps=None, alpha=1.0), 16, 1),
        (GradientSign(alpha=1.0), 4, 1),
        (GradientSign(step_ratio=2.5), 8, 2),
        (GradientSign(alpha_floor=1.0), 16, 1.6),  # AT-FD's max(1, eps / steps)
        (GradientSign(alpha_floor=1.0), 8, 1),
        (GradientSign(alpha_floor=1.0, steps=30), 16, 1),
    ],
)
def test_step_size(attack: GradientSign, eps: float, alpha: float) -> None:
    assert attack.step(eps) == pytest.approx(alpha)
    assert attack.resolved(eps) | {"steps": attack.count(eps), "alpha": attack.step(eps)} == attack.resolved(eps)
    adv_after_one = GradientSign(
        steps=1, alpha=attack.step(eps), alpha_floor=attack.alpha_floor, step_ratio=attack.step_ratio
    )(toy.source(toy.conv()), torch.full((1, 3, 8, 8), 0.5), torch.tensor([0]), eps / 255, toy.image_rng(1))
    assert float((adv_after_one - 0.5).abs().max()) * 255 == pytest.approx(min(alpha, eps), abs=1e-3)


def test_gradients_count_steps_and_copies() -> None:
    model = toy.conv()
    attack = GradientSign(steps=None, scale_copies=3, momentum=1.0)
    attack(toy.source(model), toy.images(2), torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert len(model.seen) == attack.gradients(16) == 60


# Ensembles


def test_an_ensemble_averages_logits() -> None:
    one, two = toy.linear(scale=0.5), toy.linear(seed=1, scale=0.05)
    x, y = toy.images(4), torch.arange(4)
    adv = GradientSign(steps=1)(toy.source(one, two), x, y, EPS, toy.image_rng(4))
    leaf = x.clone().requires_grad_()
    (logits,) = torch.autograd.grad(cross_entropy((one(leaf) + two(leaf)) / 2, y, reduction="sum"), leaf)
    assert torch.allclose(adv, (x + EPS * logits.sign()).clamp(0, 1), atol=1e-7)
    # Neither averaged probabilities, nor averaged losses, nor summed logits lead there.
    loss = -((one(leaf).softmax(1) + two(leaf).softmax(1)) / 2).gather(1, y[:, None]).log().sum()
    (probabilities,) = torch.autograd.grad(loss, leaf)
    sums = cross_entropy(one(leaf) + two(leaf), y, reduction="sum")
    (losses,) = torch.autograd.grad(cross_entropy(one(leaf), y) + cross_entropy(two(leaf), y), leaf)
    (summed,) = torch.autograd.grad(sums, leaf)
    for other in (probabilities, losses, summed):
        assert (other.sign() != logits.sign()).any()


def test_each_member_of_an_ensemble_draws_its_own_diversity() -> None:
    one, two = toy.conv(), toy.conv(seed=50)
    x = toy.images(3, 32)
    attack = GradientSign(steps=1, diversity_prob=1.0, diversity_size=2.0)
    attack(toy.source(one, two), x, torch.arange(3), EPS, toy.image_rng(3))
    for a, b in zip(one.seen[0], two.seen[0], strict=True):
        assert not torch.equal(a, b)


def test_auxiliary_heads() -> None:
    main, side, plain = toy.linear(scale=0.2), toy.linear(seed=1), toy.linear(seed=2, scale=0.2)
    model = toy.TwoHeads(main, side, 5)
    x, y = toy.images(3), torch.arange(3)
    attack = GradientSign(steps=1, aux_weight=0.4)

    def by_autograd(loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        return (x + EPS * grad.sign()).clamp(0, 1)

    def ce(logits: Tensor) -> Tensor:
        return cross_entropy(logits, y, reduction="sum")

    alone = attack(toy.source(model), x, y, EPS, toy.image_rng(3))
    assert torch.allclose(alone, by_autograd(lambda z: ce(main(z)) + 0.4 * ce(side(z))), atol=1e-7)
    without = GradientSign(steps=1)(toy.source(model), x, y, EPS, toy.image_rng(3))
    assert torch.allclose(without, by_autograd(lambda z: ce(main(z))), atol=1e-7)
    assert not torch.equal(alone, without)
    # Of two members only one has the head: its auxiliary loss is not halved.
    both = attack(toy.source(model, plain), x, y, EPS, toy.image_rng(3))
    wanted = by_autograd(lambda z: ce((main(z) + plain(z)) / 2) + 0.4 * ce(side(z)))
    assert torch.allclose(both, wanted, atol=1e-7)
    with pytest.raises(UsageError, match=r"'linear-2' has no auxiliary head.*aux_weight"):
        attack(toy.source(plain), x, y, EPS, toy.image_rng(3))


def test_auxiliary_heads_behind_diversity_keep_their_order() -> None:
    model = toy.TwoHeads(toy.conv(), toy.conv(seed=20), 5)
    x = toy.images(10, 16)
    attack = GradientSign(steps=1, diversity_prob=0.5, aux_weight=0.4)
    main, aux = _iterate._logits(attack, model, x, toy.image_rng(10))
    assert aux is not None
    for i in range(10):
        main_i, aux_i = _iterate._logits(attack, model, x[i : i + 1], toy.image_rng(10).select(torch.tensor([i])))
        assert aux_i is not None
        assert torch.allclose(main[i], main_i[0], atol=1e-5)
        assert torch.allclose(aux[i], aux_i[0], atol=1e-5)


def test_a_kernel_longer_than_twice_the_image_is_refused() -> None:
    attack = GradientSign(kernel_size=19)
    x, y = toy.images(1, 8), torch.tensor([0])
    with pytest.raises(UsageError, match="kernel 19 is longer than twice the images, 8 x 8 pixels"):
        attack(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1))
    assert GradientSign(kernel_size=17)(toy.source(toy.conv()), x, y, 8 / 255, toy.image_rng(1)).shape == x.shape
