"""Each statistic against hand-worked values and against another implementation of it."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binom, norm, permutation_test, sem, t
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rdp_bench.metrics.stats import binomial_tail, holm, mcnemar, mean_interval, sign_flip, student_interval, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (7, 20), (20, 20), (149, 1000), (999, 1000), (1, 1)])
def test_wilson_is_statsmodels(k: int, n: int) -> None:
    expected = np.clip(proportion_confint(k, n, method="wilson"), 0, 1)

    np.testing.assert_allclose(wilson(k, n), expected, atol=1e-12)


def test_wilson_at_the_ends_is_exact() -> None:
    assert wilson(0, 50)[0] == 0
    assert wilson(50, 50)[1] == 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {k} of {n}"):
        wilson(k, n)


@pytest.mark.parametrize(
    ("b", "c"),
    [
        (0, 0),
        (0, 5),
        (5, 0),
        (3, 9),
        (10, 10),
        (40, 61),
        (500, 400),
        (701, 300),
        (1001, 1000),
        (9_000, 8_700),
        (30_000, 30_400),
    ],
)
def test_mcnemar_is_statsmodels(b: int, c: int) -> None:
    expected = reference_mcnemar([[0, b], [c, 0]], exact=True).pvalue

    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [1, 12, 1000, 1030, 2000, 50_000])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.0, 0.0011, 0.1, 0.49, 0.51, 0.9, 1.0])
def test_a_binomial_tail_is_scipys(n: int, rate: float, share: float) -> None:
    """Also of more than 1029 images, where the middle coefficients are beyond the range of a float."""
    k = round(share * n)
    assert binomial_tail(k, n, rate) == pytest.approx(binom.sf(k - 1, n, rate), rel=1e-8, abs=1e-300)


def test_a_binomial_tail_at_the_ends() -> None:
    assert [binomial_tail(3, 5, rate) for rate in (0.0, 1.0)] == [0.0, 1.0]
    assert binomial_tail(6, 5, 0.5) == 0.0


def test_mcnemar_by_hand() -> None:
    # 1 against 3: (1 + 4) / 16 in each tail.
    assert mcnemar(1, 3) == mcnemar(3, 1) == 10 / 16


def test_mcnemar_of_a_large_table_neither_overflows_nor_crawls() -> None:
    assert mcnemar(0, 50_000) == 0
    assert 0 < mcnemar(24_000, 26_000) < 1e-15


def test_holm_is_statsmodels() -> None:
    p_values = [0.04, 0.001, 0.9, 0.012, 0.012, 0.3]

    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1])


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


def test_values_that_differ_by_rounding_alone_are_equal() -> None:
    """One draw of ten and two of ten are three of ten; an interval without width would be certainty of two images."""
    assert 0.1 + 0.2 != 0.3
    assert mean_interval(np.array([0.1 + 0.2, 0.3])) == pytest.approx(mean_interval(np.array([0.3, 0.3])))


def test_sign_flip_on_single_errors_is_mcnemar() -> None:
    differences = np.array([1] * 9 + [-1] * 3 + [0] * 8)

    assert sign_flip(differences) == pytest.approx(mcnemar(9, 3), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 21, 60])
def test_the_interval_over_repetitions_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(40, 3, n)
    expected = t.interval(0.95, n - 1, loc=values.mean(), scale=sem(values))

    assert student_interval(values.tolist()) == pytest.approx(expected, rel=1e-9)


def test_one_repetition_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        student_interval([3.0])


def test_sign_flip_counts_every_pattern() -> None:
    differences = np.array([3, -1, 2, 2, 0, 5, -4, 1])
    patterns = itertools.product([1, -1], repeat=len(differences))
    sums = [abs(int(np.dot(signs, differences))) for signs in patterns]
    expected = np.mean([s >= abs(differences.sum()) for s in sums])

    assert sign_flip(differences) == pytest.approx(expected, rel=1e-9)


def test_sign_flip_is_scipy() -> None:
    differences = np.array([3, -1, 2, 2, 5, -4, 1, 1, 1, 3])
    expected = permutation_test(
        (differences, np.zeros_like(differences)), lambda a, b: np.sum(a - b), permutation_type="samples"
    ).pvalue

    assert sign_flip(differences) == pytest.approx(expected, rel=1e-9)


def test_sign_flip_of_many_sizes_needs_little_memory() -> None:
    """Of many attacks and draws, nearly every image has a difference of its own size."""
    differences = np.arange(-70, 80)
    deviations = differences.sum() / np.sqrt((differences**2).sum())
    tracemalloc.start()
    try:
        assert sign_flip(differences) == pytest.approx(2 * norm.sf(deviations), rel=0.02)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_sign_flip_of_equals_and_of_extremes_is_a_probability() -> None:
    assert sign_flip(np.zeros(5, int)) == 1
    assert sign_flip(np.array([2, -2])) == 1
    assert sign_flip(np.full(40, 5)) == pytest.approx(2.0**-39)
    assert 0 <= sign_flip(np.full(2000, 5)) < 1e-300


@pytest.mark.parametrize("flipped", [0.01, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("top", [1, 5, 9])
def test_sign_flip_is_exact_far_out_in_the_tail(top: int, flipped: float) -> None:
    """Against every pattern counted in whole numbers: the coefficients of prod(1 + x^d), packed into one integer."""
    rng = np.random.default_rng(top)
    differences = rng.integers(1, top + 1, 300) * np.where(rng.random(300) < flipped, -1, 1)
    sizes, room = [int(size) for size in np.abs(differences)], 301  # bits, for counts up to 2^300
    patterns = 1
    for size in sizes:
        patterns += patterns << (size * room)
    patterns >>= (sum(sizes) + abs(int(differences.sum()))) // 2 * room
    at_least = 0
    while patterns:
        at_least, patterns = at_least + patterns % 2**room, patterns >> room
    assert sign_flip(differences) == pytest.approx(2 * at_least / 2**300, rel=1e-11, abs=0)


def test_interval_of_one_attack_is_near_wilson() -> None:
    wrong = np.arange(1000) < 150

    np.testing.assert_allclose(mean_interval(wrong.astype(float)), wilson(150, 1000), atol=0.004)


def test_interval_clusters_by_image() -> None:
    # The same 100 of 1000 images fail in all five attacks: one draw of 1000, not one of 5000.
    together = np.where(np.arange(1000) < 100, 1.0, 0.0)
    spread = np.where(np.arange(1000) < 500, 0.2, 0.0)
    low, high = mean_interval(together)

    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 1000) ** 0.5, rel=0.05)
    assert np.ptp(mean_interval(spread)) < (high - low) / 2


def test_interval_is_a_bootstrap_of_images() -> None:
    values = np.array([0, 0.2, 0.2, 0.4, 1.0] * 8)
    rng = np.random.default_rng(0).choice(values, (20_000, len(values))).mean(1)

    np.testing.assert_allclose(mean_interval(values), np.quantile(rng, [0.025, 0.975]), atol=0.01)


def test_interval_of_a_mean_by_every_resample() -> None:
    """All 4^4 resamples of four images, in thirds: the ends leave less than 2.5 % outside; one step more, and more."""
    values = np.array([0, 1 / 3, 1 / 3, 1])
    means = np.sort([np.mean(each) for each in itertools.product(values, repeat=4)])
    low, high = mean_interval(values)

    assert (means < low - 1e-9).mean() < 0.025 <= (means < low + 1e-9).mean()
    assert (means > high + 1e-9).mean() < 0.025 <= (means > high - 1e-9).mean()


def test_interval_turns_round_with_its_values() -> None:
    values = np.random.default_rng(0).integers(-10, 11, 500) / 10
    low, high = mean_interval(values, least=-1)

    assert mean_interval(values[::-1], least=-1) == (low, high)
    assert mean_interval(-values, least=-1) == pytest.approx((-high, -low), abs=1e-12)


def test_interval_of_what_is_no_share_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected shares"):
        mean_interval(np.array([0.1, np.pi / 4]))


def test_interval_of_equal_values_is_not_a_point() -> None:
    assert mean_interval(np.zeros(20)) == pytest.approx(wilson(0, 20))
    assert mean_interval(np.ones(20)) == pytest.approx(wilson(20, 20))
    assert mean_interval(np.zeros(20), least=-1) == pytest.approx((-wilson(0, 20)[1], wilson(0, 20)[1]))


def test_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        mean_interval(np.array([]))
