"""Whether the claims of a submission follow from the predictions of its runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.metrics import stats
from rdp_bench.metrics.significance import FEWEST, paired
from rdp_bench.results.rows import Run
from rdp_bench.results.submission import ALL, FILE, Cells, SubmittedClaim
from rdp_bench.specs import CLEAN, CellKey, plain, show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOLERANCE = 0.05 + 1e-9
"""Points by which an equal number may differ: half of the last digit that tables print."""

_NO_SOURCE = "-"  # of clean images


@dataclass(frozen=True)
class CheckedClaim:
    """What the predictions say to a claim.

    Attributes:
        claim: the claim.
        found: the numbers that were computed, in words; empty if there are none.
        problem: why the claim does not hold, or cannot be checked; empty if it holds.
    """

    claim: SubmittedClaim
    found: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ClaimsVerified:
    """All claims of a folder, or why its claims.json cannot be read."""

    claims: tuple[CheckedClaim, ...] = ()
    unread: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each claim that does not hold."""
        if self.unread:
            return (self.unread,)
        return tuple(
            f"claim {number}, \"{each.claim.says}\": {each.problem}"
            for number, each in enumerate(self.claims, 1) if each.problem
        )  # fmt: skip

    def __str__(self) -> str:
        if self.problems:
            return "\n".join(f"FAIL  {FILE}: {problem}" for problem in self.problems)
        many = len(self.claims)
        return f"pass  {FILE}: {many} of {many} claims follow from the predictions"


@dataclass(frozen=True)
class _Measured:
    """The errors of a claim's cells: of each image `[n]`, out of `looks` cells and draws."""

    errors: "NDArray[np.int64]"
    looks: int
    images: str  # `dataset.images` of the run

    @property
    def shares(self) -> "NDArray[np.float64]":
        return self.errors / self.looks

    def value(self, metric: str) -> float:
        """In percent."""
        error = 100 * float(self.shares.mean())
        return error if metric == "error" else 100 - error

    def words(self, metric: str) -> str:
        """Value and interval."""
        if self.looks == 1:
            low, high = stats.wilson(int(self.errors.sum()), len(self.errors))
        else:
            low, high = stats.mean_interval(self.shares)
        low, high = (low, high) if metric == "error" else (1 - high, 1 - low)
        return f"{self.value(metric):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def check_claims(claims: Sequence[SubmittedClaim], runs: Mapping[str, Run]) -> tuple[CheckedClaim, ...]:
    """Compute every claim from the predictions of `runs`, by grid.

    The p-values of all "lower" and "higher" claims are corrected together (Holm).
    """
    found: list[CheckedClaim] = []
    tested: dict[int, float] = {}
    for number, claim in enumerate(claims):
        try:
            mine = _measured(runs, claim.grid, claim.cells)
            if claim.than is None:
                found.append(_against_value(claim, mine))
                continue
            other = _rival(claim)
            theirs = _measured(runs, claim.than.grid or claim.grid, other)
            tested[number] = _p(mine, theirs)
            found.append(_against_rival(claim, mine, theirs))
        except UsageError as error:
            tested |= {number: 1.0} if claim.tests else {}
            found.append(CheckedClaim(claim, problem=str(error)))
    corrected = dict(zip(tested, stats.holm(list(tested.values())), strict=True))
    return tuple(
        _significant(each, corrected[number]) if number in corrected else each for number, each in enumerate(found)
    )


def _against_value(claim: SubmittedClaim, mine: _Measured) -> CheckedClaim:
    assert claim.value is not None
    value = mine.value(claim.metric)
    holds = {
        "equal": abs(value - claim.value) <= TOLERANCE,
        "at most": value <= claim.value + 1e-9,
        "at least": value >= claim.value - 1e-9,
    }[claim.compare]
    words = mine.words(claim.metric)
    return CheckedClaim(claim, words, "" if holds else f"claimed {claim.compare} {show(claim.value)}, found {words}")


def _against_rival(claim: SubmittedClaim, mine: _Measured, theirs: _Measured) -> CheckedClaim:
    """The comparison of the numbers; `_significant` adds that of the test."""
    difference = theirs.value(claim.metric) - mine.value(claim.metric)
    if claim.compare == "higher":
        difference = -difference
    words = f"{mine.words(claim.metric)} against {theirs.words(claim.metric)}"
    problem = ""
    if difference <= 1e-9:
        problem = f"claimed {claim.compare}, found {words}"
    elif claim.value is not None and abs(difference - claim.value) > TOLERANCE:
        problem = f"claimed {claim.compare} by {show(claim.value)}, found by {difference:.1f}: {words}"
    return CheckedClaim(claim, words, problem)


def _significant(checked: CheckedClaim, p: float) -> CheckedClaim:
    """With the corrected p-value of its test."""
    if not checked.found:
        return checked
    words = f"{checked.found}, p {p:.2g}"
    problem = checked.problem
    if not problem and p > 1 - stats.LEVEL:
        problem = f"the difference is not significant: {words} after Holm's correction over the claims"
    return replace(checked, found=words, problem=problem)


def _p(mine: _Measured, theirs: _Measured) -> float:
    """Of the paired test of two means on the same images.

    Raises:
        UsageError: they are not of the same images, or of too few.
    """
    if mine.images != theirs.images:
        raise UsageError("the two runs have different images, so no paired test can compare them")
    if len(mine.errors) < FEWEST:
        raise UsageError(f"a test needs {FEWEST} images, the run has {len(mine.errors)}")
    return paired(mine.errors * theirs.looks, theirs.errors * mine.looks)


def _rival(claim: SubmittedClaim) -> Cells:
    assert claim.than is not None
    axes = ("source", "attack", "eps", "target", "defense")
    changes = {name: value for name in axes if (value := getattr(claim.than, name)) is not None}
    if not changes and claim.than.grid in (None, claim.grid):
        raise UsageError("'than' names the same cells")
    return replace(claim.cells, **changes)


def _measured(runs: Mapping[str, Run], grid: str, cells: Cells) -> _Measured:
    """The errors over the cells that a claim names.

    Raises:
        UsageError: there is no such run or cell, or its predictions cannot be read.
    """
    import numpy as np

    if grid not in runs:
        raise unknown_name("run", grid, runs)
    run = runs[grid]
    keys = list(_selected(run, cells))
    for key in keys:
        if key not in run.wrong:
            raise UsageError(f"{key}: {run.unread.get(key, 'the run has no result')}")
    images = str(run.record["dataset"]["images"])
    if len(keys) == 1 and (keys[0], "first") not in run.by_aggregation:  # drawn once: a cell has Wilson's interval
        return _Measured(run.wrong[keys[0]].astype(np.int64), 1, images)
    errors = np.sum([run.errors(key) for key in keys], axis=0)
    return _Measured(errors, len(keys) * run.defense_samples, images)


def _selected(run: Run, cells: Cells) -> Iterator[CellKey]:
    """Every combination of the values that `cells` names.

    Raises:
        UsageError: a value that the run does not have, one that is left out though the run has several, or a
            combination that is no cell of the run.
    """
    known = {_plain(cell.key): cell.key for cell in run.cells}
    attacks = _values("attack", cells.attack, [key.attack for key in known if key.attack != CLEAN], [CLEAN])
    if CLEAN in attacks and len(attacks) > 1:
        raise UsageError("clean images and attacks have no common mean; name them in two claims")
    pool = [key for key in known if key.attack in attacks]
    sources: list[Any] = [_NO_SOURCE]
    eps: list[Any] = [0.0]
    if attacks != [CLEAN]:
        sources = _values("source", cells.source, [key.source for key in pool])
        eps = _values("eps", cells.eps, [key.eps for key in pool])
    elif cells.source not in (None, _NO_SOURCE) or cells.eps not in (None, 0):
        raise UsageError("clean images have no source and no eps; leave them out")
    targets = _values("target", cells.target, [key.target for key in pool])
    defenses = _values("defense", cells.defense, [key.defense for key in pool])
    for combination in product(sources, attacks, eps, targets, defenses):
        key = CellKey(*combination)
        if key not in known:
            raise UsageError(f"the run {run.grid} has no cell {key}")
        yield known[key]


def _values(axis: str, wanted: Any, have: Sequence[Any], more: Sequence[Any] = ()) -> list[Any]:
    """The values of an axis that are meant, of those that the run has; `more` are not part of "*"."""
    here = list(dict.fromkeys(have))
    if wanted is None:
        if len(here) != 1:
            names = ", ".join(map(show, here[:5]))
            raise UsageError(f"'{axis}' is left out, and the run has {len(here)} ({names}); name one, a list or \"*\"")
        return here
    if wanted == ALL:
        return here
    named = [value if axis == "eps" else plain(value) for value in (wanted if isinstance(wanted, tuple) else (wanted,))]
    if len(set(named)) < len(named):
        raise UsageError(f"'{axis}' names a value twice")
    for value in named:
        if value not in (*here, *more):
            raise unknown_name(f"{axis} of the run", show(value), map(show, here))
    return named


def _plain(key: CellKey) -> CellKey:
    return CellKey(plain(key.source), plain(key.attack), key.eps, plain(key.target), plain(key.defense))
