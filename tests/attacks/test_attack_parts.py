"""The iteration against the equations of the papers, worked out here in numpy and autograd; steps and ensembles."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.errors import UsageError
from tests.helpers import toy
from tests.helpers.settings import setting

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
    "FGSM": (setting(steps=1), {"steps": 1}),
    "I": (setting(steps=3), {}),
    "MI": (setting(steps=3, momentum=1.0), {"mu": 1.0}),
    "MI, mu .6": (setting(steps=7, momentum=0.6), {"mu": 0.6, "steps": 7}),
    "NI": (setting(steps=6, momentum=1.0, nesterov=True), {"mu": 1.0, "nesterov": True, "steps": 6}),
    "SI": (setting(steps=4, scale_copies=5), {"copies": 5, "steps": 4}),
    "SI-NI": (
        setting(steps=6, momentum=0.8, nesterov=True, scale_copies=3),
        {"mu": 0.8, "nesterov": True, "copies": 3, "steps": 6},
    ),
    "TI": (setting(steps=4, momentum=1.0, kernel_size=7), {"mu": 1.0, "kernel": kernel_2d(7), "steps": 4}),
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
    setting(steps=3, momentum=2.0, nesterov=True)(toy.source(model), x, y, EPS, toy.image_rng(2))
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
    setting(steps=2, momentum=1.0, nesterov=True)(toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert model.seen[1].min() < -0.01
    assert model.seen[1].max() > 1.01


def test_without_momentum_steps_ignore_the_size_of_earlier_gradients() -> None:
    model = toy.conv()
    x, y = toy.images(3), torch.arange(3)
    setting(steps=2)(toy.source(model), x, y, EPS, toy.image_rng(3))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)
    assert torch.allclose(model.seen[1], (x + EPS / 2 * grad.sign()).clamp(0, 1), atol=1e-7)


def test_copies_lose_contrast_around_mid_grey() -> None:
    model = toy.conv()
    x = toy.images(2)
    setting(steps=1, scale_copies=4)(toy.source(model), x, torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert len(model.seen) == 4
    for i, seen in enumerate(model.seen):
        # In the authors' range [-1, 1] a copy is x / 2^i.
        assert torch.allclose(2 * seen - 1, (2 * x - 1) / 2**i, atol=1e-6)


def test_one_copy_is_no_copy() -> None:
    x, y = toy.images(4), torch.arange(4)
    plain = setting(momentum=1.0)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4))
    assert torch.equal(
        setting(momentum=1.0, scale_copies=1)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4)), plain
    )
    assert not torch.equal(
        setting(momentum=1.0, scale_copies=2)(toy.source(toy.conv()), x, y, EPS, toy.image_rng(4)), plain
    )


def test_copies_weigh_two_to_the_minus_i() -> None:
    """g_1, read off the second point of a look-ahead, is sum_i 2^-i J'(copy i) over its mean absolute value."""
    model, gradient = NETS["tanh"]
    x, y = toy.images(2), torch.tensor([2, 3])
    model.seen.clear()
    setting(steps=2, momentum=1.0, nesterov=True, scale_copies=3)(toy.source(model), x, y, EPS, toy.image_rng(2))
    labels, pixels = y.numpy().astype(float), x.double().numpy()
    total = sum(gradient(0.5 + (pixels - 0.5) / 2**i, labels) / 2**i for i in range(3))
    g1 = total / np.abs(total).mean((1, 2, 3), keepdims=True)
    x1 = np.clip(pixels + EPS / 2 * np.sign(g1), 0, 1)
    assert np.abs(model.seen[3].numpy() - (x1 + EPS / 2 * g1)).max() < 1e-6


# Steps


@pytest.mark.parametrize(("eps", "count"), [(16, 20), (8, 10), (4, 5), (1, 1), (12, 15), (0, 1), (2, 2)])
def test_automatic_steps_follow_kurakin(eps: float, count: int) -> None:
    """min(eps + 4, 1.25 eps), rounded down."""
    assert setting(steps=None).count(eps) == count
    assert setting(steps=7).count(eps) == 7


@pytest.mark.parametrize(
    ("attack", "eps", "alpha"),
    [
        (setting(), 16, 1.6),
        (setting(steps=1), 16, 16),
        (setting(steps=None), 16, 0.8),
        (setting(steps=None, alpha=1.0), 16, 1),
        (setting(alpha=1.0), 4, 1),
        (setting(step_ratio=2.5), 8, 2),
        (setting(alpha_floor=1.0), 16, 1.6),  # AT-FD's max(1, eps / steps)
        (setting(alpha_floor=1.0), 8, 1),
        (setting(alpha_floor=1.0, steps=30), 16, 1),
    ],
)
def test_step_size(attack: GradientSign, eps: float, alpha: float) -> None:
    assert attack.step(eps) == pytest.approx(alpha)
    assert attack.resolved(eps) | {"steps": attack.count(eps), "alpha": attack.step(eps)} == attack.resolved(eps)
    one = attack.with_part(replace(attack.schedule, steps=1, alpha=attack.step(eps)))
    grey = torch.full((1, 3, 8, 8), 0.5)
    adv_after_one = one(toy.source(toy.conv()), grey, torch.tensor([0]), eps / 255, toy.image_rng(1))
    assert float((adv_after_one - 0.5).abs().max()) * 255 == pytest.approx(min(alpha, eps), abs=1e-3)


def test_gradients_count_steps_and_copies() -> None:
    model = toy.conv()
    attack = setting(steps=None, scale_copies=3, momentum=1.0)
    attack(toy.source(model), toy.images(2), torch.tensor([0, 1]), EPS, toy.image_rng(2))
    assert len(model.seen) == attack.gradients(16) == 60


# Ensembles


def test_an_ensemble_averages_logits() -> None:
    one, two = toy.linear(scale=0.5), toy.linear(seed=1, scale=0.05)
    x, y = toy.images(4), torch.arange(4)
    adv = setting(steps=1)(toy.source(one, two), x, y, EPS, toy.image_rng(4))
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


def test_auxiliary_heads() -> None:
    main, side, plain = toy.linear(scale=0.2), toy.linear(seed=1), toy.linear(seed=2, scale=0.2)
    model = toy.TwoHeads(main, side, 5)
    x, y = toy.images(3), torch.arange(3)
    attack = setting(steps=1, aux_weight=0.4)

    def by_autograd(loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        return (x + EPS * grad.sign()).clamp(0, 1)

    def ce(logits: Tensor) -> Tensor:
        return cross_entropy(logits, y, reduction="sum")

    alone = attack(toy.source(model), x, y, EPS, toy.image_rng(3))
    assert torch.allclose(alone, by_autograd(lambda z: ce(main(z)) + 0.4 * ce(side(z))), atol=1e-7)
    without = setting(steps=1)(toy.source(model), x, y, EPS, toy.image_rng(3))
    assert torch.allclose(without, by_autograd(lambda z: ce(main(z))), atol=1e-7)
    assert not torch.equal(alone, without)
    # Of two members only one has the head: its auxiliary loss is not halved.
    both = attack(toy.source(model, plain), x, y, EPS, toy.image_rng(3))
    wanted = by_autograd(lambda z: ce((main(z) + plain(z)) / 2) + 0.4 * ce(side(z)))
    assert torch.allclose(both, wanted, atol=1e-7)
    with pytest.raises(UsageError, match=r"'linear-2' has no auxiliary head.*aux_weight"):
        attack(toy.source(plain), x, y, EPS, toy.image_rng(3))
