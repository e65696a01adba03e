"""Noise schedules against the published numbers and against probability: abar, steps, step counts, posteriors."""

import math
from decimal import Decimal
from itertools import pairwise

import pytest

from rdp_bench.api import load_defense
from rdp_bench.defenses._networks import schedule
from rdp_bench.errors import UsageError


@pytest.mark.parametrize(
    ("t", "abar", "ratio"), [(100, 0.8970, 0.169), (150, 0.7883, 0.259), (200, 0.6590, 0.360), (500, 0.0786, 1.71)]
)
def test_abar_of_published_times(t: int, abar: float, ratio: float) -> None:
    found = schedule.abars()[t - 1]
    assert found == pytest.approx(abar, abs=5e-5)
    assert schedule.noise_to_signal(found) == pytest.approx(ratio, abs=5e-3)


def test_abar_by_hand() -> None:
    betas = [Decimal("0.0001") + Decimal("0.0199") * i / 999 for i in range(1000)]
    product = Decimal(1)
    for i, beta in enumerate(betas):
        product *= 1 - beta
        assert schedule.abars()[i] == pytest.approx(float(product), rel=1e-12)


def test_the_continuous_abar_integrates_beta() -> None:
    for t in (0.001, 0.1, 0.15, 0.5):
        n = 20_000
        integral = sum(schedule.beta((i + 0.5) * t / n) for i in range(n)) * t / n
        assert schedule.abar(t) == pytest.approx(math.exp(-integral), rel=1e-9)
        assert schedule.abar(t) == pytest.approx(math.exp(-9.95 * t**2 - 0.1 * t))


@pytest.mark.parametrize("steps", [100, 150])
def test_euler_takes_as_many_steps_as_the_noise_has(steps: int) -> None:
    found = schedule.euler_steps(steps)
    assert len(found) == steps
    assert found[0].t == pytest.approx(steps / 1000, abs=1e-7)
    assert all(each.h == pytest.approx(1e-3, abs=2e-7) for each in found[:-1])
    assert found[-1].h == pytest.approx(0.99e-3, abs=3e-6)
    assert found[-1].t - found[-1].h == pytest.approx(1e-5, abs=1e-7)


def test_what_the_network_is_told_in_diffpure() -> None:
    """float32 rounding makes the first steps of T = 150 skip none and repeat one, as in the authors' code."""
    told = [each.step for each in schedule.euler_steps(150)]
    assert told[:4] == [149, 148, 148, 147]
    assert told[-1] == 1
    assert all(0 <= a - b <= 2 for a, b in pairwise(told))


def test_a_stride_divides_the_calls_and_not_the_noise() -> None:
    found = schedule.euler_steps(150, 15)
    assert len(found) == 10
    assert found[0].t == pytest.approx(0.15, abs=1e-7)
    assert found[0].h == pytest.approx(0.015, abs=1e-6)


def test_respacing() -> None:
    """guided-diffusion's rule for "250": fractions of 999 / 249, rounded."""
    found = schedule.respaced(250).steps
    assert (found[:6], found[-2:]) == ((0, 4, 8, 12, 16, 20), (995, 999))
    assert found[44] == 177  # where GDMP starts on ImageNet
    assert schedule.respaced(1000).steps == tuple(range(1000))


def test_strided_steps() -> None:
    assert schedule.strided(30, 5).steps == (4, 9, 14, 19, 24, 29)
    assert schedule.strided(30, 1).steps == tuple(range(30))
    # The surrogate of the authors for ImageNet: 1, 1 and 5 calls.
    assert [len(schedule.strided(last, 40).steps) for last in (30, 50, 200)] == [1, 1, 5]
    assert all(schedule.strided(last, 40).steps[-1] == last - 1 for last in (30, 50, 200))


@pytest.mark.parametrize("stride", [-1, 0, 201])
def test_a_stride_is_within_the_longest_round(stride: int) -> None:
    with pytest.raises(UsageError, match=f"stride is 1 to 200, the longest round, found {stride}"):
        load_defense(f"gradual(stride={stride})")


@pytest.mark.parametrize("spaced", [schedule.all_steps(), schedule.respaced(250), schedule.strided(200, 25)])
def test_the_posterior_is_bayes_rule(spaced: schedule.Spaced) -> None:
    """The product of two Gaussians in x_(i-1): what x_i says of it, and what x0 says of it."""
    for i in (1, 2, len(spaced.steps) // 2, len(spaced.steps) - 1):
        alpha = spaced.abar[i] / spaced.abar[i - 1]
        of_noisy, of_clean = alpha / (1 - alpha), 1 / (1 - spaced.abar[i - 1])
        variance = 1 / (of_noisy + of_clean)
        expected = (
            variance * of_clean * math.sqrt(spaced.abar[i - 1]),
            variance * of_noisy / math.sqrt(alpha),
            variance,
        )
        assert spaced.posterior(i) == pytest.approx(expected, rel=1e-9)
        assert spaced.log_variances(i) == pytest.approx((math.log(variance), math.log(1 - alpha)), rel=1e-9)
    assert spaced.posterior(0) == pytest.approx((1, 0, 0))
    assert spaced.log_variances(0)[0] == spaced.log_variances(1)[0]


def test_one_shot_takes_the_first_step_that_is_noisy_enough() -> None:
    table = schedule.abars()
    for sigma in (0.12, 0.25, 0.5, 1.0):
        step = schedule.first_with_noise(2 * sigma, table)
        assert step is not None
        assert schedule.noise_to_signal(table[step - 1]) < sigma <= schedule.noise_to_signal(table[step])
    assert schedule.first_with_noise(1e9, table) is None
