"""Intervals of error rates, and paired tests of defenses on the same images.

Rates and interval ends are in [0, 1]. Nothing here draws from global randomness: the same predictions
give the same interval and the same p-value everywhere.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Interval = tuple[float, float]

LEVEL = 0.95
"""Coverage of every interval; differences are significant at 1 - LEVEL."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
FINEST = 10_000
"""Most parts of one that a share may be counted in: attacks times draws of a defense."""
_EXACT = 1000
"""Up to so many discordant images, McNemar's test counts in whole numbers, whose digits grow with the images."""


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion.

    >>> [round(end, 4) for end in wilson(0, 20)]
    [0.0, 0.1611]

    Raises:
        ValueError: `n` is 0 (a rate over nothing is no rate), or `successes` is not one of 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    rate, shrink = successes / n, 1 + _Z**2 / n
    middle = (rate + _Z**2 / (2 * n)) / shrink
    half = _Z * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2)) / shrink
    # Exact at the ends, where rounding would leave 1e-17 beside 0 or 1.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def binomial_tail(successes: int, n: int, rate: float) -> float:
    """Probability of at least `successes` in `n` independent trials of success probability `rate`.

    >>> round(binomial_tail(1, 20, 1 / 1000), 4), binomial_tail(0, 20, 0.5)
    (0.0198, 1.0)
    """
    if successes <= 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    if successes > n:
        return 0.0
    if successes <= n * rate:  # the other tail is the smaller one: its terms fall from the first
        return max(0.0, 1 - binomial_tail(n - successes + 1, n, 1 - rate))
    # The first term by its logarithm: of more than a thousand trials, the coefficient is beyond the range of a float.
    first = math.lgamma(n + 1) - math.lgamma(successes + 1) - math.lgamma(n - successes + 1)
    term = math.exp(first + successes * math.log(rate) + (n - successes) * math.log1p(-rate))
    total = 0.0
    for k in range(successes, n + 1):
        total += term
        term *= (n - k) / (k + 1) * rate / (1 - rate)
        if term < 1e-18 * total:
            break
    return min(1.0, total)


def mean_interval(values: "NDArray[np.floating]", least: float = 0.0) -> Interval:
    """Percentile bootstrap interval of the mean of values in [least, 1], `[n]`, one per image; resamples images.

    For an average over attacks, give each image's own average: its attacks are no independent draws.
    For a paired difference, give each image's difference and `least=-1`. Values are shares, multiples of
    one over a whole number, so the sum of n of them has a distribution that is computed, not drawn:
    the interval of -x is that of x, turned round, and has no digits of chance.

    Raises:
        ValueError: there are no values, or they are no shares.
    """
    import numpy as np

    if not len(values):
        raise ValueError("an interval needs at least one image")
    n = len(values)
    levels, counts = np.unique(values, return_counts=True)
    whole = math.lcm(*(Fraction(float(level)).limit_denominator(FINEST).denominator for level in levels))
    steps = np.rint((levels - levels[0]) * whole).astype(int)
    if whole > FINEST or np.abs(steps / whole - (levels - levels[0])).max() > 1e-9:
        raise ValueError(f"expected shares, multiples of one over at most {FINEST}, got {levels[:3].tolist()} ...")
    first = float(levels[0])
    if not steps.any():  # equal, up to the rounding of sums in another order
        # They leave nothing to resample, which is no certainty: as wide as Wilson's at 0 of n.
        slack = wilson(0, n)[1]
        return max(least, first - slack), min(1.0, first + slack)
    one = np.bincount(steps, counts / n)
    reach = n * len(one) - n
    size = 1 << reach.bit_length()
    chance = np.fft.irfft(np.fft.rfft(one, size) ** n, size)[: reach + 1]  # of the sums of n draws
    outside = (1 - LEVEL) / 2 - 1e-9  # the transform rounds
    low = int(np.searchsorted(np.cumsum(chance), outside))
    high = reach - int(np.searchsorted(np.cumsum(chance[::-1]), outside))
    return first + low / whole / n, first + high / whole / n


def student_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent values, such as one result per training.

    >>> [round(end, 3) for end in student_interval([1, 2, 3])]
    [-0.484, 4.484]

    Raises:
        ValueError: fewer than two values say nothing of how much they differ.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over repetitions needs at least two of them, got {n}")
    middle, low, high = fmean(values), 0.0, 1.0
    while _within_t(high, n - 1) < LEVEL:
        high *= 2
    for _ in range(60):
        half = (low + high) / 2
        low, high = (half, high) if _within_t(half, n - 1) < LEVEL else (low, half)
    reach = high * stdev(values) / math.sqrt(n)
    return middle - reach, middle + reach


def _within_t(t: float, freedom: int) -> float:
    """Probability that Student's t is within -`t`..`t`; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided McNemar: `b` images only the first gets wrong, `c` only the second.

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)

    Raises:
        ValueError: a negative count.
    """
    if min(b, c) < 0:
        raise ValueError(f"expected counts >= 0, got {b} and {c}")
    if b + c > _EXACT:
        return 1.0 if b == c else min(1.0, 2 * binomial_tail(max(b, c), b + c, 0.5))
    n, term, tail = b + c, 1, 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)  # n choose k + 1, exact
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def sign_flip(differences: "NDArray[np.integer]") -> float:
    """Exact two-sided p of a paired permutation test; `[n]` integers, one difference per image.

    Were the two defenses alike, each image's difference could as well have the other sign. All 2^m
    sign patterns of the m images that differ are counted. On -1, 0, 1 this is McNemar's test.
    Rounding leaves about 1e-12 of p, however small p is.
    """
    import numpy as np

    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    reach, seen = int(sizes @ counts), abs(int(differences.sum()))
    if not seen:
        return 1.0
    if seen == reach:
        return 2.0 ** (1 - int(counts.sum()))  # one pattern and its mirror
    # Far out in a tail a transform is all rounding. So each sign is weighted by exp(tilt x size), which puts the mean
    # where `seen` is, and the sums' weights are taken back afterwards (Esscher's transform).
    low, high = 0.0, 40.0  # tanh(40) is 1
    while high - low > 1e-9 * high:
        tilt = (low + high) / 2
        low, high = (tilt, high) if counts @ (sizes * np.tanh(tilt * sizes)) < seen else (low, tilt)
    # A weighted sign times d has the characteristic function cos(d t) + i tanh(d tilt) sin(d t); signs multiply.
    size = 1 << (2 * reach).bit_length()
    steps = 2 * np.pi / size * np.arange(size // 2 + 1)
    wave = np.ones(len(steps), complex)
    for one, count in zip(sizes, counts, strict=True):  # of hundreds of sizes, all at once would fill the memory
        angle = one * steps
        wave *= np.power(np.cos(angle) + 1j * np.tanh(tilt * one) * np.sin(angle), count)
    chance = np.fft.irfft(wave.conj(), size)[seen : reach + 1]
    tail = float(chance @ np.exp(-tilt * np.arange(reach - seen + 1)))
    # log cosh(z) without overflow.
    z = tilt * sizes
    log_mass = float(counts @ (z + np.log1p(np.exp(-2 * z)) - np.log(2))) - tilt * seen
    return min(1.0, 2 * tail * math.exp(log_mass))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; compare with 1 - LEVEL.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted
