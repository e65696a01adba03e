"""Score-based purifiers against plain loops over their papers' equations, and their gradients."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from rdp_bench.defenses._networks import schedule
from rdp_bench.defenses.gdmp import ssim
from rdp_bench.errors import UsageError
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.learned import image_rng, made
from tests.helpers.score import Learned, Smooth, entry, images, slope

ABAR = schedule.abars()  # tested by itself


def drawn(rng: ImageRng, x: Tensor) -> Iterator[Tensor]:
    """The noise of a chain, in its order."""
    while True:
        yield rng.normal(*x.shape[1:]).double()


def eps(net: Any, x: Tensor, abar: float) -> Tensor:
    """The noise in a state, by the definition of a denoiser."""
    sigma = math.sqrt((1 - abar) / abar) / 2  # of images in [0, 1]
    seen = (x / math.sqrt(abar) + 1) / 2
    return (seen - net.denoise(seen, torch.full((len(x),), sigma).double())) / sigma


# --- each method, by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["sde", "ode"])
def test_diffpure_solves_the_reverse_equation(variant: str) -> None:
    """dx = -beta (x / 2 + score) dt + sqrt(beta) dw backwards; the ODE takes half the score, and no noise."""
    net, x, rng = Smooth(), images(), image_rng(2)
    noise = drawn(rng, x)
    state = math.sqrt(ABAR[49]) * (2 * x - 1) + math.sqrt(1 - ABAR[49]) * next(noise)
    t = 0.05
    for i in range(5):
        h = 0.01 if i < 4 else 0.01 - 1e-5
        beta = 0.1 + 19.9 * t
        abar = math.exp(-9.95 * t**2 - 0.1 * t)
        score = -eps(net, state, abar) / math.sqrt(1 - abar)
        if variant == "sde":
            state = state + (beta * state / 2 + beta * score) * h + math.sqrt(beta * h) * next(noise)
        else:
            state = state + (beta * state / 2 + beta * score / 2) * h
        t -= h
    found = entry(f"diffpure(t=50, stride=10, variant={variant})", net).purify(x, image_rng(2))
    assert torch.allclose(found, ((state + 1) / 2).clamp(0, 1), atol=2e-5)
    assert (found - x).abs().mean() > 0.01


def posterior(x0: Tensor, x: Tensor, abar: float, before: float) -> tuple[Tensor, float]:
    """Bayes' rule: x_i says of x_(i-1) with precision alpha / beta, x0 with 1 / (1 - abar before)."""
    alpha = abar / before
    precision = alpha / (1 - alpha) + 1 / (1 - before)
    mean = (math.sqrt(alpha) / (1 - alpha) * x + math.sqrt(before) / (1 - before) * x0) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("learned", [False, True])
def test_diffpure_as_ddpm_samples_the_posterior(learned: bool) -> None:
    net, x, rng = Learned() if learned else Smooth(), images(), image_rng(2)
    noise = drawn(rng, x)
    state = math.sqrt(ABAR[49]) * (2 * x - 1) + math.sqrt(1 - ABAR[49]) * next(noise)
    for i in reversed(range(50)):
        x0 = ((state - math.sqrt(1 - ABAR[i]) * eps(net, state, ABAR[i])) / math.sqrt(ABAR[i])).clamp(-1, 1)
        if i == 0:
            state = x0
            continue
        mean, variance = posterior(x0, state, ABAR[i], ABAR[i - 1])
        log = torch.tensor(math.log(variance)).double()
        if learned:
            place = (torch.tanh(state.roll(1, 3)) + 1) / 2
            log = place * math.log(1 - ABAR[i] / ABAR[i - 1]) + (1 - place) * math.log(variance)
        state = mean + (log / 2).exp() * next(noise)
    found = entry("diffpure(t=50, variant=ddpm)", net).purify(x, image_rng(2))
    assert torch.allclose(found, ((state + 1) / 2).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "noisy"), [("mse", False), ("mse", True), ("ssim", False), ("ssim", True), ("none", False)]
)
def test_gdmp_is_pulled_towards_its_input(distance: str, noisy: bool) -> None:
    net, x = Smooth(), images(1, 12)
    steps = [round(999 / 249 * i) for i in range(6)]
    plain = state = 2 * x - 1
    noise = drawn(image_rng(1), x)
    for _ in range(2):
        state = math.sqrt(ABAR[steps[5]]) * state + math.sqrt(1 - ABAR[steps[5]]) * next(noise)
        for i in reversed(range(6)):
            abar = ABAR[steps[i]]
            x0 = ((state - math.sqrt(1 - abar) * eps(net, state, abar)) / math.sqrt(abar)).clamp(-1, 1)
            mean, variance = posterior(x0, state, abar, ABAR[steps[i - 1]]) if i else (x0, 0.0)
            if i == 0:  # guided-diffusion gives the first step the second one's variance
                variance = posterior(x0, x0, ABAR[steps[1]], ABAR[steps[0]])[1]
            leaf = state.clone().requires_grad_()
            aim = math.sqrt(abar) * plain + math.sqrt(1 - abar) * next(noise) if noisy else plain
            near = {"mse": -mse_loss(leaf, aim), "ssim": windowed_ssim(leaf, aim), "none": 0 * leaf.sum()}[distance]
            (gradient,) = torch.autograd.grad(near, leaf)
            scale = math.sqrt(1 - abar) / math.sqrt(abar) / (2 * 8 / 255 / 3 / 500)
            state = mean + variance * scale * gradient
            if i:
                state = state + math.sqrt(variance) * next(noise)
    guide = "" if distance == "none" else f", ptb=8, scale_of_guide=500, guide_noise={str(noisy).lower()}"
    found = entry(f"gdmp(steps=6, rounds=2, guide={distance}{guide})", net).purify(x, image_rng(1))
    assert torch.allclose(found, ((state + 1) / 2).clamp(0, 1), atol=1e-6)


def windowed_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Wang et al. 2004, window by window over zeros around the image."""
    line = torch.tensor([math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)]).double()
    window = torch.outer(line, line) / line.sum() ** 2
    total = []
    padded = [torch.nn.functional.pad(x, (5, 5, 5, 5)) for x in (a, b)]
    for row in range(a.shape[2]):
        for column in range(a.shape[3]):
            p, q = (x[:, :, row : row + 11, column : column + 11] for x in padded)
            mean_p, mean_q = (p * window).sum((2, 3)), (q * window).sum((2, 3))
            var_p, var_q = ((s * s * window).sum((2, 3)) - m**2 for s, m in ((p, mean_p), (q, mean_q)))
            both = (p * q * window).sum((2, 3)) - mean_p * mean_q
            light = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
            total.append(light * (2 * both + 9e-4) / (var_p + var_q + 9e-4))
    return torch.stack(total).mean()


def test_ssim_by_windows() -> None:
    a, b = images(1, 8), toy.images(1, 8).double().flip(3)
    assert ssim(a, b).item() == pytest.approx(windowed_ssim(a, b).item(), abs=1e-9)
    assert ssim(a, a).item() == pytest.approx(1)


def test_gradual_adds_more_noise_from_round_to_round() -> None:
    net, x = Smooth(), images(1)
    state = 2 * x - 1
    noise = drawn(image_rng(1), x)
    for last in (30, 30, 30, 30, 50, 50, 200, 200):
        state = math.sqrt(ABAR[last - 1]) * state + math.sqrt(1 - ABAR[last - 1]) * next(noise)
        for step in range(last - 1, -1, -10):
            abar, before = ABAR[step], ABAR[step - 10] if step > 10 else 1.0
            x0 = (state - math.sqrt(1 - abar) * eps(net, state, abar)) / math.sqrt(abar)
            if before == 1:
                state = x0
                continue
            mean, variance = posterior(x0, state, abar, before)
            state = mean + math.sqrt(variance) * next(noise)
    found = entry("gradual(stride=10)", net).purify(x, image_rng(1))
    assert torch.allclose(found, ((state + 1) / 2).clamp(0, 1), atol=1e-6)


def test_dds_predicts_the_image_once() -> None:
    net, x = Smooth(), images()
    step = next(i for i, abar in enumerate(ABAR) if (1 - abar) / abar >= 0.2**2)
    state = math.sqrt(ABAR[step]) * (2 * x - 1) + math.sqrt(1 - ABAR[step]) * next(drawn(image_rng(2), x))
    x0 = (state - math.sqrt(1 - ABAR[step]) * eps(net, state, ABAR[step])) / math.sqrt(ABAR[step])
    defense = entry("dds(sigma=.1)", net)
    assert torch.allclose(defense.purify(x, image_rng(2)), ((x0.clamp(-1, 1) + 1) / 2), atol=1e-6)
    assert net.calls == 2


def test_lm_is_adam_on_the_denoising_error() -> None:
    net, x, rng = Smooth(), images(1), image_rng(1)
    levels = rng.uniform(5, low=0.4, high=0.6)[0].double()
    noise = drawn(rng, x)
    leaf = (2 * x - 1).requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.1)
    for level in levels:
        noisy = leaf + level * next(noise)
        denoised = 2 * net.denoise((noisy + 1) / 2, level[None] / 2) - 1
        adam.zero_grad()
        mse_loss(denoised, leaf).backward()
        adam.step()
    found = entry("lm", net).purify(x, image_rng(1))
    assert torch.allclose(found, ((leaf + 1) / 2).clamp(0, 1).detach(), atol=1e-7)
    assert (found - x).abs().max() > 0.1


def test_adp_follows_the_score_in_adaptive_steps() -> None:
    net, x, rng = Smooth(), images(3), image_rng(3)
    expected, lengths = [], []
    for i, image in enumerate(x):
        now = (image[None] + 0.1 * rng.select(torch.tensor([i])).normal(3, 6, 6).double()).clamp(0, 1)
        for _ in range(10):
            level = torch.tensor([0.2]).double()
            f = (net.denoise(now, level) - now) / 0.2
            ahead = now + 1e-3 * f
            f_ahead = (net.denoise(ahead, level) - ahead) / 0.2
            z = (f * f_ahead).sum() / (f * f).sum()
            length = min(max(0.05 * 1e-3 / (1 - z).item(), 1e-5), 0.1)
            lengths.append(length)
            if length <= 0.01:
                break
            now = (now + length * f).clamp(0, 1)
        expected.append(now)
    found = entry("adp(noise=.1, level=.2, factor=.05, stop=.01)", net).purify(x, image_rng(3))
    assert torch.allclose(found, torch.cat(expected), atol=1e-9)
    assert len(set(lengths)) > 3


def test_denoised_smoothing_and_noise() -> None:
    net, x = Smooth(), images()
    noisy = x + 0.1 * image_rng(2).normal(3, 6, 6).double()
    wanted = net.denoise(noisy, torch.tensor([0.1, 0.1]).double()).clamp(0, 1)
    assert torch.allclose(entry("denoised-smoothing(sigma=.1)", net).purify(x, image_rng(2)), wanted, atol=1e-9)
    assert torch.allclose(made("noise(sigma=.1)").purify(x, image_rng(2)), noisy.clamp(0, 1), atol=1e-9)
    assert torch.equal(made("noise-vote(n=3, sigma=.1)").purify(x, image_rng(2)), noisy.clamp(0, 1))
    assert (made("noise-vote(n=3)").passes, made("noise").passes, made("adp").passes) == (3, 1, 10)
    control = entry("denoiser(sigma=.1)", net)
    assert torch.allclose(
        control.purify(x, image_rng(2)), net.denoise(x, torch.tensor([0.1, 0.1]).double()).clamp(0, 1)
    )


# --- gradients --------------------------------------------------------------------------------------------

CHAINS = (
    "diffpure(t=50, stride=10)", "diffpure(t=50, stride=10, variant=ode)", "gdmp(steps=4)", "gdmp(steps=4, rounds=2)",
    "gdmp(steps=3, guide=ssim)", "gdmp(steps=3, guide_noise=true)", "gradual(stride=10)", "dds(sigma=.1)",
    "lm(steps=3, rate=.02)", "adp(noise=.1, level=.2, factor=.5, stop=.001, runs=1)", "denoised-smoothing(sigma=.1)",
    "diffpure(t=50, variant=ddpm)",
)  # fmt: skip


@pytest.mark.parametrize("label", CHAINS)
def test_gradients_are_those_of_finite_differences(label: str) -> None:
    net, x = Smooth(), images(2)
    weight, direction = toy.random(2, 3, 6, 6, seed=5).double(), toy.random(2, 3, 6, 6, seed=6).double()
    defense = entry(label, net)

    def value(at: Tensor) -> Tensor:
        # Without the last clamp, at which finite differences would stumble.
        return (weight * defense.run(net, at, image_rng(2))).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        assert float((gradient * direction).sum()) == pytest.approx(slope(value, x, direction), rel=2e-4)
    assert gradient.abs().max() > 1e-3
    assert torch.allclose(value(leaf), value(x))


@pytest.mark.parametrize("label", CHAINS)
def test_a_gradient_of_an_image_does_not_depend_on_its_neighbours(label: str) -> None:
    net, x = Smooth(), images(3)
    defense = entry(label, net)

    def gradient(of: Tensor, rng: ImageRng) -> Tensor:
        leaf = of.clone().requires_grad_()
        out = defense.purify(leaf, rng)
        (found,) = torch.autograd.grad((out**2).sum(), leaf)
        return torch.cat([out.detach(), found])

    together = gradient(x, image_rng(3))
    alone = gradient(x[1:2], image_rng(3).select(torch.tensor([1])))
    assert torch.allclose(together[[1, 4]], alone, atol=1e-9)


@pytest.mark.parametrize("label", [*CHAINS, "noise"])
def test_noise_is_new_unless_it_is_fixed(label: str) -> None:
    net, x = Smooth(), images(1).repeat(2, 1, 1, 1)
    random = entry(label, net)
    fixed = entry(label[:-1] + ", fixed=true)" if "(" in label else label + "(fixed=true)", net)
    rng = image_rng(2)
    assert random.random
    assert not fixed.random
    assert not torch.equal(random.purify(x, rng), random.purify(x, rng))
    assert not torch.equal(*random.purify(x, rng))
    assert torch.equal(random.purify(x, image_rng(2)), random.purify(x, image_rng(2)))
    once = fixed.purify(x, image_rng(2))
    assert torch.equal(once, fixed.purify(x, image_rng(2, "other")))
    assert torch.equal(once[0], once[1])


def test_bpda_takes_the_identity() -> None:
    net, x = Smooth(), images()
    leaf = x.clone().requires_grad_()
    out = entry("diffpure(t=50, stride=10)", net).straight_through(leaf, image_rng(2))
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(x))


def test_calls_of_the_network_forward_and_backward() -> None:
    """Every step once forward, and once more for the backward pass."""
    net, x = Smooth(), images()
    defense = entry("diffpure(t=50, stride=10)", net)
    with torch.no_grad():
        defense.purify(x, image_rng(2))
    assert net.calls == 5
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(defense.purify(leaf, image_rng(2)).sum(), leaf)
    assert net.calls == 5 + 10


# --- what is refused, and what is printed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("diffpure(t=10)", "t is 50 to 999 of the 1000 noise steps"),
        ("diffpure(t=.15)", "expected a whole number"),
        ("diffpure(variant=ddpm, stride=5)", "variant=ddpm takes every step"),
        ("diffpure(variant=ddim)", "expected 'sde' or 'ode' or 'ddpm'"),
        ("diffpure(stride=151)", "stride is 1 to t = 150"),
        ("gdmp(steps=251)", "steps is 1 to respacing = 250"),
        ("gdmp(scale_of_guide=0)", "guide=none switches the guidance off"),
        ("gdmp(guide=none, scale_of_guide=500)", "scale_of_guide has no effect with guide=none"),
        ("gdmp(guide=none, ptb=8)", "ptb has no effect with guide=none"),
        ("gdmp(guide=none, guide_noise=true)", "guide_noise has no effect with guide=none"),
        ("gradual(stride=201)", "stride is 1 to 200"),
        ("dds(sigma=0)", "sigma is above 0"),
        ("lm(low=.6, high=.4)", "0 < low <= high"),
        ("adp(level=0)", "level and factor above 0"),
        ("adp(stop=.1)", "stop is below 0.1, the longest step"),
        ("adp(fixed=true)", "runs with the same noise are one"),
        ("adp(noise=0, runs=1, fixed=true)", "fixed has no effect with noise=0"),
        ("noise(sigma=0, fixed=true)", "fixed has no effect with sigma=0"),
        ("nrp(sigma=.1)", "sigma has no effect with dynamic=false"),
        ("rdp(clip=false)", "clip has no effect with dynamic=false"),
        ("noise(sigma=-1)", "sigma is 0 to 100"),
        ("noise-vote(fixed=true)", "copies with the same noise are one"),
        ("denoiser(sigma=.6)", "at most 0.5"),
    ],
)
def test_what_cannot_be_meant_is_refused(label: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(label)


Facts = Callable[[str], dict[str, Any]]


@pytest.fixture
def facts() -> Facts:
    def resolved(label: str) -> dict[str, Any]:
        found: dict[str, Any] = made(label).resolved()
        return found

    return resolved


def test_constants_are_printed(facts: Facts) -> None:
    about = facts("diffpure")
    assert (about["t"], about["abar"], about["calls"], about["noise_to_signal"]) == (150, 0.7883, 150, 0.2591)
    about = facts("diffpure(t=100, stride=10)")
    assert (about["abar"], about["calls"], about["noise_to_signal"]) == (0.897, 10, 0.1694)
    about = facts("gdmp")
    assert (about["t"], about["calls"]) == (178, 45)
    # sqrt(1 - abar) / (m sqrt(abar)), m = 2 * 4 / (255 * 3 * 1000), abar .7175
    assert about["guidance"] == pytest.approx(60_000, rel=1e-3)
    about = facts("gradual")
    assert (about["t"], about["calls"]) == ([30, 30, 30, 30, 50, 50, 200, 200], 620)
    assert facts("gradual(rounds=cifar10)")["calls"] == 470
    assert facts("gradual(stride=40)")["calls"] == 4 * 1 + 2 * 1 + 2 * 5
    about = facts("dds")
    assert (about["t"], about["noise_to_signal"]) == (146, 0.2516)
    assert facts("lm")["noise_to_signal"] == 0.3


@pytest.mark.parametrize("label", ["diffpure(t=500)", "dds(sigma=1)", "lm(high=1.2)", "denoised-smoothing(sigma=1)"])
def test_more_noise_than_our_denoiser_knows_is_refused(facts: Facts, label: str) -> None:
    with pytest.raises(UsageError, match=r"our denoiser is trained up to 0\.5"):
        facts(label)
