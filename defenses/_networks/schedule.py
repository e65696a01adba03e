"""Noise schedules and step rules of diffusion purifiers, as plain numbers; no network, no image.

Ho et al. 2020 (DDPM), Song et al. 2021 (VP-SDE), Nichol & Dhariwal 2021 (respacing, learned variance).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

STEPS = 1000
BETA = (1e-4, 0.02)
"""The linear schedule of Ho et al. 2020, on which every released network for these purifiers was trained."""


@cache
def abars() -> tuple[float, ...]:
    """The values of abar after noise step 1 to `STEPS`: the cumulative product of 1 - beta, in float64."""
    low, high = BETA
    found, product = [], 1.0
    for i in range(STEPS):
        product *= 1 - (low + (high - low) * i / (STEPS - 1))
        found.append(product)
    return tuple(found)


def noise_to_signal(abar: float) -> float:
    """Standard deviation of the noise in a VP state, relative to an image in [0, 1]."""
    return math.sqrt((1 - abar) / abar) / 2


BETA_MIN, BETA_MAX = 0.1, 20.0
END = 1e-5
"""Time at which the reverse VP-SDE stops (DiffPure's code)."""


def beta(t: float) -> float:
    """The VP-SDE's beta at time t (Song et al. 2021, Eq. 32)."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def abar(t: float) -> float:
    """The VP-SDE's abar at time t (Song et al. 2021, Eq. 33)."""
    return math.exp(-0.5 * (BETA_MAX - BETA_MIN) * t**2 - BETA_MIN * t)


@dataclass(frozen=True)
class EulerStep:
    """One step of the reverse VP-SDE: it begins at time `t` and is `h` long; `step` is what the network is told."""

    t: float
    h: float
    step: int


@cache
def euler_steps(steps: int, stride: int = 1) -> tuple[EulerStep, ...]:
    """The Euler-Maruyama steps from time steps/1000 to `END`, each `stride`/1000 long but the last.

    Times are float32 and run forwards from 1 - steps/1000, as torchsde's do in DiffPure's code: its rounding decides
    which step the network is told.
    """
    now, end, length = _single(1 - steps / STEPS), _single(1 - END), _single(stride / STEPS)
    found = []
    while now < end:
        after = min(_single(now + length), end)
        t = _single(1 - now)
        found.append(EulerStep(t, _single(after - now), int(_single(t * STEPS))))
        now = after
    return tuple(found)


def _single(x: float) -> float:
    """`x` rounded to float32; of a sum or product of two float32, what float32 arithmetic gives."""
    rounded: float = struct.unpack("f", struct.pack("f", x))[0]
    return rounded


@dataclass(frozen=True)
class Spaced:
    """A DDPM that uses some of the noise steps, in increasing order, numbered from 0; -1 is the clean image."""

    steps: tuple[int, ...]

    @cached_property
    def abar(self) -> tuple[float, ...]:
        """The values of abar after each of the steps."""
        table = abars()
        return tuple(table[step] for step in self.steps)

    def before(self, i: int) -> float:
        """The abar one step nearer to the clean image."""
        return self.abar[i - 1] if i else 1.0

    def beta(self, i: int) -> float:
        """The variance that step `i` adds, of those it leaves out too."""
        return 1 - self.abar[i] / self.before(i)

    def posterior(self, i: int) -> tuple[float, float, float]:
        """Weights of x0 and x_i in the posterior mean of x_(i-1), and its variance (Ho et al. 2020, Eq. 7)."""
        now, before, beta = self.abar[i], self.before(i), self.beta(i)
        return (
            math.sqrt(before) * beta / (1 - now),
            math.sqrt(1 - beta) * (1 - before) / (1 - now),
            beta * (1 - before) / (1 - now),
        )

    def log_variances(self, i: int) -> tuple[float, float]:
        """Logarithms of the smallest and the largest variance of step `i`; the first step takes the second one's."""
        least = self.posterior(i)[2] if i else self.posterior(1)[2] if len(self.steps) > 1 else self.beta(0)
        return math.log(least), math.log(self.beta(i))


@cache
def all_steps() -> Spaced:
    """Every noise step."""
    return Spaced(tuple(range(STEPS)))


@cache
def respaced(count: int) -> Spaced:
    """`count` evenly spaced noise steps from the first to the last (guided-diffusion's `timestep_respacing`).

    guided-diffusion adds up the stride in floating point, so that some steps differ by 1 for some counts, such as 21
    and 45; for 50, 100, 250, 500 and 1000, all are equal.
    """
    stride = (STEPS - 1) / (count - 1) if count > 1 else 1.0
    return Spaced(tuple(round(stride * i) for i in range(count)))


@cache
def strided(last: int, stride: int) -> Spaced:
    """`last // stride` noise steps, at least one, evenly spaced up to `last` - 1 (Lee & Kim 2023).

    >>> strided(30, 10).steps, strided(30, 40).steps, strided(50, 20).steps
    ((9, 19, 29), (29,), (24, 49))
    """
    calls = max(1, last // stride)
    return Spaced(tuple((i + 1) * last // calls - 1 for i in range(calls)))


def first_with_noise(ratio: float, table: Sequence[float]) -> int | None:
    """The first step whose noise is at least `ratio` times the signal: sqrt(1 - abar) / sqrt(abar); None: no step."""
    return next((i for i, value in enumerate(table) if math.sqrt((1 - value) / value) >= ratio), None)
