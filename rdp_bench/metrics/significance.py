"""Comparison of defenses on the same images: paired tests with Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.metrics import stats
from rdp_bench.specs import UNDEFENDED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

FEWEST = 10
"""Images from which defenses are judged: below, two defenses must differ on nearly all of them for a small p."""


@dataclass(frozen=True)
class Verdict:
    """Comparison of one defense with the others of its column.

    p-values are Holm-adjusted; None if there is nothing to compare with.
    """

    best: bool = False  # the lowest error of all defenses
    tied: bool = False  # not the lowest, but not significantly different from it
    higher_than_undefended: bool = False  # a higher error than no defense
    significantly_worse: bool = False  # ... and significantly so
    significantly_lower: bool = False  # a significantly lower error than no defense
    p_none: float | None = None
    p_best: float | None = None


def compare_defenses(columns: "Sequence[Mapping[str, Counts]]") -> list[dict[str, Verdict]]:
    """Verdicts for the columns of one table; a column holds, per defense, each image's errors `[n]`.

    Each defense meets no defense and the column's best defense, image by image: McNemar's exact test
    where a column is one attack, the exact sign-flip test of the sums where it is several attacks or draws. Holm runs
    over each of the two questions for all columns given. Fewer than `FEWEST` images give no verdict.
    """
    if any(len(errors) < FEWEST for column in columns for errors in column.values()):
        return [dict.fromkeys(column, Verdict()) for column in columns]
    against_none: dict[tuple[int, str], float] = {}
    against_best: dict[tuple[int, str], float] = {}
    leaders: list[set[str]] = []
    for i, column in enumerate(columns):
        rivals = {name: errors for name, errors in column.items() if name != UNDEFENDED}
        totals = {name: int(errors.sum()) for name, errors in rivals.items()}
        least = min(totals.values(), default=0)
        # One defense alone is neither best nor tied.
        leaders.append({name for name in totals if totals[name] == least} if len(totals) > 1 else set())
        for name, errors in rivals.items():
            if UNDEFENDED in column:
                against_none[i, name] = paired(errors, column[UNDEFENDED])
            if leaders[i] and name not in leaders[i]:
                # Of several leaders, the largest p: a tie with any of them is a tie.
                against_best[i, name] = max(paired(errors, rivals[leader]) for leader in leaders[i])
    p_none, p_best = _holm(against_none), _holm(against_best)
    verdicts: list[dict[str, Verdict]] = []
    for i, column in enumerate(columns):
        none = int(column[UNDEFENDED].sum()) if UNDEFENDED in column else None
        verdicts.append({})
        for name, errors in column.items():
            total = int(errors.sum())
            above, below = none is not None and total > none, none is not None and total < none
            verdicts[i][name] = Verdict(
                best=name in leaders[i],
                tied=p_best.get((i, name), 0.0) > 1 - stats.LEVEL,
                higher_than_undefended=above,
                significantly_worse=above and p_none[i, name] <= 1 - stats.LEVEL,
                significantly_lower=below and p_none[i, name] <= 1 - stats.LEVEL,
                p_none=p_none.get((i, name)),
                p_best=p_best.get((i, name)),
            )
    return verdicts


def paired(first: "Counts", second: "Counts") -> float:
    """Two-sided p of two defenses' errors on the same images `[n]`: McNemar's test, or the sign-flip test of sums."""
    import numpy as np

    difference = first.astype(int) - second.astype(int)
    difference //= max(1, np.gcd.reduce(np.abs(difference), initial=0))  # ten draws, all alike, are one
    if abs(difference).max(initial=0) <= 1:
        return stats.mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return stats.sign_flip(difference)


def _holm(p_values: dict[tuple[int, str], float]) -> dict[tuple[int, str], float]:
    return dict(zip(p_values, stats.holm(list(p_values.values())), strict=True))
