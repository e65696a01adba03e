"""Paired tests of the paper's claims on a run's predictions.

A verdict applies to the run's setting: its networks, images and weights, which may differ from the paper's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rdp_bench.budgets import LINF
from rdp_bench.metrics import stats
from rdp_bench.metrics.significance import FEWEST, paired
from rdp_bench.reports.claims.claims import (
    FAILS,
    HOLDS,
    OPEN,
    TIE,
    Claim,
    ClaimResult,
    Finding,
    Scope,
    claims,
    matching,
    scopes,
)
from rdp_bench.reports.claims.gain import Gain, gain, mode, plain, targets_of
from rdp_bench.reports.figures.ablation import training
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import UNDEFENDED, show
from rdp_bench.terminal import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SWAPS = 2000
_SEED = 20211015  # any constant


@dataclass(frozen=True)
class _Rival:
    """What the subject is compared with: a defense, or a baseline target without one."""

    name: str
    behind: Callable[[CellKey], CellKey]


@dataclass(frozen=True)
class _Comparison:
    """The numbers of subject and rival (lower is better), and the p-value of their difference."""

    rival: str
    mine: float
    theirs: float
    p: float


def evaluate_claims(run: Run) -> list[ClaimResult]:
    """Every claim about the run's grid; none for other grids, and none on fewer than `FEWEST` images."""
    if run.norm != LINF or int(run.record["dataset"]["n"]) < FEWEST:  # the paper's budgets are L-infinity
        return []
    return [ClaimResult(claim, _RULES[claim.rule](run, claim)) for claim in claims() if run.grid in claim.grids]


# --- best, worst, beats, steadiest -----------------------------------------------------------------------


def _compare_all(run: Run, claim: Claim, *, sign: int = 1, each: bool = False, steady: bool = False) -> list[Finding]:
    """The subject against its rivals in every scope: theirs must be the higher (`sign` 1) or the lower number (-1).

    With `each`, every rival has a finding; else one stands for all, that of whom decides. Holm over all of them.
    """
    subject = next(iter(matching(run, [claim.subject])), claim.subject)
    rivals = _rivals(run, claim, subject)
    names = matching(run, claim.against)
    left_out = [pattern for pattern in claim.against if "*" not in pattern and pattern not in names]
    where = scopes(run, claim, subject)
    if not where or not rivals:
        behind = (
            f" with {_called(subject)}"
            if not where
            else f" with {_names(map(display_name, left_out))}"
            if left_out
            else " to compare"
        )
        return [Finding(OPEN, {}, "", note=f"this run has no cells{behind}")]
    comparisons: dict[tuple[int, str], _Comparison] = {}
    gaps: dict[tuple[int, str], str] = {}
    for i, scope in enumerate(where):
        for rival in rivals:
            theirs = [rival.behind(cell_key) for cell_key in scope.cells]
            if gap := _lacking(run, scope.cells) or _lacking(run, theirs):
                gaps[i, rival.name] = gap
            else:
                comparisons[i, rival.name] = (_by_deviation if steady else _by_errors)(
                    run, rival.name, scope.cells, theirs
                )
    adjusted = stats.holm([comparison.p for comparison in comparisons.values()])
    comparisons = {
        key: replace(comparison, p=p) for (key, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }
    findings = []
    for i, scope in enumerate(where):
        for group in [[rival] for rival in rivals] if each else [rivals]:
            fought = [comparisons[i, rival.name] for rival in group if (i, rival.name) in comparisons]
            missing = list(dict.fromkeys(gaps[i, rival.name] for rival in group if (i, rival.name) in gaps))
            findings.append(_decide(run, claim, scope, fought, missing, left_out, sign))
    return findings + [
        Finding(OPEN, {}, "", note=f"{display_name(name)} is not in this run") for name in left_out if each
    ]


def _rivals(run: Run, claim: Claim, subject: str) -> list[_Rival]:
    def behind(cell_key: CellKey, defense: str, target: str = "") -> CellKey:
        return replace(cell_key, defense=defense, target=target or cell_key.target)

    names = [name for name in matching(run, claim.against) if name != subject]
    rivals = [_Rival(_called(name), partial(behind, defense=name)) for name in names]
    if claim.beside:
        defended = {cell.target for cell in run.cells if cell.defense != UNDEFENDED}
        for target in (name for name in run.axis("targets") if name not in defended):
            rivals += [_Rival(display_name(target), partial(behind, defense=UNDEFENDED, target=target))]
    return rivals


def _by_errors(run: Run, rival: str, mine: list[CellKey], theirs: list[CellKey]) -> _Comparison:
    """Error rates over all cells."""
    first, second = _errors(run, mine), _errors(run, theirs)
    looks = len(mine) * run.defense_samples
    return _Comparison(rival, _percent(first / looks), _percent(second / looks), paired(first, second))


def _by_deviation(run: Run, rival: str, mine: list[CellKey], theirs: list[CellKey]) -> _Comparison:
    """Population standard deviations over the cells.

    Were the two alike, every image's answers could as well be the other's: p is by random patterns of such swaps.
    """
    first, second = (np.array([run.wrong[cell_key] for cell_key in places], float) for places in (mine, theirs))
    n = first.shape[1]
    swap = np.random.default_rng(_SEED).integers(0, 2, (_SWAPS, n)).astype(float)
    moved = swap @ (second - first).T  # errors that change sides, [swap, cell]
    chance = (first.sum(1) + moved).std(1) - (second.sum(1) - moved).std(1)
    seen = abs(first.sum(1).std() - second.sum(1).std())
    beyond = int((np.abs(chance) >= seen - 1e-9).sum())
    mean = first.mean(1), second.mean(1)
    return _Comparison(rival, 100 * float(mean[0].std()), 100 * float(mean[1].std()), (1 + beyond) / (1 + _SWAPS))


def _decide(
    run: Run,
    claim: Claim,
    scope: Scope,
    comparisons: list[_Comparison],
    missing: list[str],
    left_out: list[str],
    sign: int,
) -> Finding:
    """Holds if every rival is significantly worse, fails if one is significantly better, else a tie."""
    subject = _called(scope.cells[0].defense)
    if not comparisons:
        return Finding(OPEN, scope.where, scope.setting, subject, note="; ".join(missing))

    def ahead(comparison: _Comparison) -> float:
        return sign * (comparison.theirs - comparison.mine)

    lost = [comparison for comparison in comparisons if comparison.p <= 1 - stats.LEVEL and ahead(comparison) < 0]
    near = [comparison for comparison in comparisons if comparison.p > 1 - stats.LEVEL or ahead(comparison) == 0]
    verdict = FAILS if lost else OPEN if missing else TIE if near else HOLDS
    decisive = min(lost or near or comparisons, key=ahead)
    notes = list(missing)
    if len(comparisons) > 1:
        if lost:
            how = "worse" if sign > 0 else "better"
            notes.append(f"significantly {how} than {_names(comparison.rival for comparison in lost)}")
        if near:
            all_of_them = len(near) == len(comparisons)
            which = f"any of {len(comparisons)}" if all_of_them else _names(comparison.rival for comparison in near)
            notes.append(f"no significant difference from {which}")
    if left_out and claim.rule != "beats":  # whose rivals that are missing have findings of their own
        notes.append(f"not in this run: {_names(map(display_name, left_out))}")
    shown = [100 - value if claim.metric == "accuracy" else value for value in (decisive.mine, decisive.theirs)]
    test = f"{_SWAPS} swaps" if claim.metric == "deviation" else _test(run, scope.cells)
    return Finding(
        verdict, scope.where, scope.setting, subject, shown[0], decisive.rival, shown[1], test, decisive.p,
        "; ".join(notes),
    )  # fmt: skip


# --- keeps, gain -----------------------------------------------------------------------------------------


def _keeps(run: Run, claim: Claim) -> list[Finding]:
    """At most `margin` points lost: holds or fails where the whole interval says so, a tie where it holds `margin`."""
    findings = []
    for scope in scopes(run, claim, claim.subject):
        base = plain(run, scope.cells[0].source)
        if claim.against:
            rival, theirs = (
                display_name(claim.against[0]),
                [replace(cell_key, defense=claim.against[0]) for cell_key in scope.cells],
            )
        else:
            rival = "crafted without a defense"
            theirs = [replace(cell_key, source=base) for cell_key in scope.cells if base]
        gap = "this run has no cells crafted without a defense" if not theirs else ""
        if gap := gap or _lacking(run, scope.cells) or _lacking(run, theirs):
            findings.append(Finding(OPEN, scope.where, scope.setting, display_name(claim.subject), note=gap))
            continue
        comparison = _by_errors(run, rival, scope.cells, theirs)
        losses = (_errors(run, scope.cells) - _errors(run, theirs)) / (len(theirs) * run.defense_samples)
        lost, (low, high) = (
            comparison.mine - comparison.theirs,
            (100 * end for end in stats.mean_interval(losses, least=-1)),
        )
        verdict = HOLDS if high <= claim.margin else FAILS if low > claim.margin else TIE
        note = f"loss {lost:.1f} ({low:.1f} to {high:.1f}), allowed {show(claim.margin)}".replace("-", "−")
        findings.append(
            Finding(
                verdict, scope.where, scope.setting, display_name(claim.subject), 100 - comparison.mine, rival,
                100 - comparison.theirs,
                _test(run, theirs), comparison.p, note,
            )
        )  # fmt: skip
    return findings or [Finding(OPEN, {}, "", note=f"this run has no cells with {display_name(claim.subject)}")]


def _gain(run: Run, claim: Claim) -> list[Finding]:
    """At least `percent`: a tie where the interval holds it."""
    crafted = {(scope.cells[0].attack, scope.cells[0].eps) for scope in scopes(run, claim, claim.subject)}
    sources = [name for name in run.axis("sources") if name != "-" and mode(run, name) in claim.sources]
    findings = []
    for attack, eps in sorted(crafted):
        found = gain(run, attack, eps, claim.subject, sources)
        setting = (
            f"{counted(len(targets_of(run, claim.subject)), 'target')}, {counted(len(sources), 'way')} of crafting"
        )
        finding = Finding(OPEN, {"attack": attack, "eps": show(eps)}, setting, display_name(claim.subject))
        if isinstance(found, Gain):
            verdict = HOLDS if found.low >= claim.percent else FAILS if found.high < claim.percent else TIE
            note = f"interval {found.interval}"
            finding = replace(
                finding, verdict=verdict, value=found.mean, rival="printed", other=claim.percent,
                test="bootstrap over images", note=note,
            )  # fmt: skip
        else:
            finding = replace(finding, note=found)
        findings.append(finding)
    return findings or [Finding(OPEN, {}, "", note=f"this run has no cells with {display_name(claim.subject)}")]


_RULES: dict[str, Callable[[Run, Claim], list[Finding]]] = {
    "best": _compare_all,
    "worst": partial(_compare_all, sign=-1),
    "beats": partial(_compare_all, each=True),
    "steadiest": partial(_compare_all, steady=True),
    "keeps": _keeps,
    "gain": _gain,
}


def _errors(run: Run, places: list[CellKey]) -> "NDArray[np.int64]":
    """Each image's errors over the cells and draws, `[n]`."""
    total: NDArray[np.int64] = np.sum([run.errors(cell_key) for cell_key in places], axis=0)
    return total


def _percent(rates: "NDArray[np.float64]") -> float:
    return round(100 * float(rates.mean()), 10)  # 41, not 40.99999999999999


def _lacking(run: Run, places: list[CellKey]) -> str:
    """Why there is no number over these cells; empty if there is one."""
    done = sum(cell_key in run.wrong for cell_key in places)
    if done == len(places):
        return ""
    name = _called(places[0].defense)
    return f"{name}: {done} of {len(places)} cells are done" if len(places) > 1 else f"{name} is not done"


def _test(run: Run, cells: list[CellKey]) -> str:
    return "McNemar" if len(cells) == run.defense_samples == 1 else "sign-flip"


def _called(defense: str) -> str:
    return training(defense) if "rdp-ablation-" in defense else display_name(defense)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
