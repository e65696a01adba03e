"""What the paper concludes, as data; where in a run each conclusion is asked; and verdicts as a sheet."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from rdp_bench import csvtext
from rdp_bench.reports.claims.gain import mode
from rdp_bench.results.rows import CellKey, Run, display_name
from rdp_bench.specs import CLEAN, show, show_level

HOLDS, TIE, FAILS, OPEN = "holds", "tie", "does not hold", "cannot be said"
VERDICTS = (HOLDS, TIE, FAILS, OPEN)
AXES = ("source", "attack", "eps", "target")
COLUMNS = (
    "claim", "where", "says", *AXES, "verdict", "metric", "subject", "value", "rival", "other", "difference", "test",
    "p", "n", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper; data/paper/claims.toml explains the fields."""

    id: str
    where: str
    says: str
    grids: tuple[str, ...]
    rule: str
    subject: str
    against: tuple[str, ...] = ()
    beside: bool = False
    attacks: tuple[str, ...] = ("*",)
    sources: tuple[str, ...] = ("plain",)
    over: tuple[str, ...] = ("attack",)
    metric: str = "error"
    margin: float = 0.0
    percent: float = 0.0

    @property
    def clean(self) -> bool:
        return self.attacks == ("clean",)


@dataclass(frozen=True)
class Finding:
    """A verdict in one setting; `where` holds the axes that have a single value there.

    `value` and `other` are in percent, in the claim's metric: of the subject, and of the rival that decides.
    """

    verdict: str
    where: Mapping[str, str]
    setting: str
    subject: str = ""
    value: float | None = None
    rival: str = ""
    other: float | None = None
    test: str = ""
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """What a run says to one claim."""

    claim: Claim
    findings: list[Finding]

    @property
    def count(self) -> dict[str, int]:
        """How often each verdict was found, without those that were not."""
        found = [finding.verdict for finding in self.findings]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


@dataclass(frozen=True)
class Scope:
    """Cells that are counted together; their defense is the claim's subject."""

    where: Mapping[str, str]
    setting: str
    cells: list[CellKey]


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the paper's order."""
    text = files("rdp_bench.data").joinpath("paper", "claims.toml").read_text("utf-8")
    return tuple(
        Claim(**{name: _frozen(value) for name, value in entry.items()}) for entry in tomllib.loads(text)["claim"]
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def matching(run: Run, patterns: Iterable[str]) -> list[str]:
    """The run's defenses that fit a pattern, in the patterns' order."""
    here = run.axis("defenses")
    return list(dict.fromkeys(name for pattern in patterns for name in here if fnmatchcase(name, pattern)))


def scopes(run: Run, claim: Claim, subject: str) -> list[Scope]:
    """The settings in which a claim is asked, in the run's order: one a value of every axis not in `over`."""
    places = [cell.key for cell in run.cells if cell.defense == subject]
    cells = [
        cell_key
        for cell_key in places
        if (cell_key.attack == CLEAN) == claim.clean
        and any(fnmatchcase(cell_key.attack, attack) for attack in claim.attacks)
        and (claim.clean or mode(run, cell_key.source) in claim.sources)
    ]
    seen = {axis: list(dict.fromkeys(getattr(cell, axis) for cell in cells)) for axis in AXES}
    apart = [axis for axis in AXES if axis not in claim.over]
    groups: dict[tuple[Any, ...], list[CellKey]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, axis) for axis in apart), []).append(cell)

    def order(values: tuple[Any, ...]) -> list[int]:
        return [seen[axis].index(value) for axis, value in zip(apart, values, strict=True)][::-1]

    found = []
    for values in sorted(groups, key=order):
        where = {axis: show(value) for axis, value in zip(apart, values, strict=True)}
        found.append(Scope(where, _setting(where, seen), groups[values]))
    return found


def _setting(where: Mapping[str, str], seen: Mapping[str, list[Any]]) -> str:
    """Target and source, and what else tells the setting from the claim's others."""
    parts = [display_name(where["target"])]
    if where.get("source", "-") != "-":
        parts.append(("" if where["source"].startswith("white-box") else "from ") + display_name(where["source"]))
    elif len(seen["source"]) > 1:
        parts.append(f"all {len(seen['source'])} sources")
    if len(seen["eps"]) > 1:
        parts.append(f"ε = {show_level(float(where['eps']))}" if "eps" in where else f"{len(seen['eps'])} ε")
    if "attack" in where and len(seen["attack"]) > 1:
        parts.append(display_name(where["attack"]))
    return ", ".join(parts)


def claims_csv(run: Run, answers: Iterable[ClaimResult]) -> str:
    """The verdicts as CSV, a line each; an axis over which cells are counted together says "all"."""
    lines: list[Sequence[object]] = []
    for claim, found in ((answer.claim, finding) for answer in answers for finding in answer.findings):
        both = found.value is not None and found.other is not None
        difference = found.value - found.other if both else None  # type: ignore[operator]
        lines.append(
            [
                claim.id, claim.where, claim.says, *(found.where.get(axis, "all") for axis in AXES), found.verdict,
                claim.metric, found.subject, _number(found.value), found.rival, _number(found.other),
                _number(difference), found.test, "" if found.p is None else f"{found.p:.6g}",
                run.record["dataset"]["n"], found.note,
            ]
        )  # fmt: skip
    return csvtext.rows(COLUMNS, lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
