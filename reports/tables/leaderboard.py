"""Which defense helps? Defenses by their mean error against one target, each compared with no defense.

A leaderboard is over the attacks and sources that the run has at its largest eps, the same cells for every defense.
White-box sources have a leaderboard of their own: an attacker who knows the defense is another question.
"""

from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from rdp_bench import csvtext
from rdp_bench.metrics import stats
from rdp_bench.metrics.significance import FEWEST, compare_defenses
from rdp_bench.reports.tables.table import Group, Row, Table, TableCell, eps_slug, percent, setting, slug
from rdp_bench.results.rows import CellKey, Run, display_name, given_name
from rdp_bench.specs import CLEAN, UNDEFENDED
from rdp_bench.terminal import counted, listed

LOWER, HIGHER, NO_DIFFERENCE, UNTESTED = "lower", "higher", "no difference shown", "not tested"
COLUMNS = (
    "grid", "target", "eps", "white_box", "defense", "mean_error", "ci_low", "ci_high", "worst_attack",
    "worst_attack_error", "clean_accuracy", "change", "change_low", "change_high", "p_none", "test", "ms_per_image",
    "cells_done", "cells",
)  # fmt: skip
_NAMED = 3
"""Most attacks, or sources, that a caption lists."""


@dataclass(frozen=True)
class Standing:
    """A defense's line of a leaderboard, in percent."""

    defense: str
    done: int
    """How many of the leaderboard's cells are done: without all of them there is no error."""
    clean: float | None = None
    ms: float | None = None
    """Time of one prediction behind the defense, one image and draw."""
    mean: TableCell = field(default_factory=TableCell)
    """Mean error. Its `change` is to no defense, its verdict that of paired tests within the leaderboard."""
    worst: float | None = None
    """Error of the attack with the highest one, averaged over the sources."""
    worst_attack: str = ""
    test: str = ""
    """How the mean error compares with that of no defense by the paired test."""

    @property
    def name(self) -> str:
        return display_name(self.defense)

    @property
    def label(self) -> str:
        """For CSV files: the label, or the name that the run gives it."""
        return given_name(self.defense)

    @property
    def time(self) -> str:
        """`ms`, with a decimal below ten."""
        return "" if self.ms is None else f"{self.ms:.1f}" if self.ms < 10 else f"{self.ms:.0f}"


@dataclass(frozen=True)
class Leaderboard:
    """The defenses against one target at one eps: lowest mean error first, those without one last."""

    run: Run
    target: str
    eps: float
    white_box: bool
    cells: list[tuple[str, str]]
    """Source and attack of the cells that its errors are over."""
    standings: list[Standing]

    @property
    def name(self) -> str:
        """What tells it from the run's others."""
        return slug(*["white-box"] * self.white_box, self.target, eps_slug(self.run, self.eps))

    @property
    def slug(self) -> str:
        return f"{slug(self.run.grid, 'leaderboard')}_{self.name}"

    @property
    def through(self) -> bool:
        """Whether some of its attacks go through a defense, which may be the one that is evaluated."""
        about = self.run.record["sources"]
        return not self.white_box and any((about.get(source) or {}).get("attacked_defense") for source, _ in self.cells)

    @property
    def where(self) -> str:
        """Target, eps and kind of attacker in words."""
        return setting(self.run, self.target, self.eps) + ", white-box attacks" * self.white_box

    @property
    def over(self) -> str:
        """The attacks and sources that its errors are over, in words."""
        sources, attacks = (list(dict.fromkeys(cell[i] for cell in self.cells)) for i in (0, 1))
        crafted = "crafted elsewhere" if sources == ["elsewhere"] else f"crafted on {_few(sources, 'sources')}"
        return f"{_few(attacks, 'attacks')} {crafted}"

    @property
    def what(self) -> str:
        """What its mean errors are over, in a sentence."""
        about, draws, count = self.run.record["dataset"], self.run.defense_samples, len(self.cells)
        mean = f", the mean of the same {count} cells for every defense" * (count > 1)
        random = f" and of {draws} draws of each random defense" * (draws > 1)
        largest = ", the largest of the run" * (len({c.eps for c in self.run.cells if c.attack != CLEAN}) > 1)
        return (
            f"Error in percent over {counted(about['n'], 'image')} of {about['name']}, under {self.over}, ε = "
            f"{self.run.eps(self.eps)}{largest}{mean}{random}. Lower is better."
        )

    @property
    def key(self) -> str:
        """What its other columns are, in sentences."""
        few = int(self.run.record["dataset"]["n"]) < FEWEST
        test = "" if few else " Test: the paired sign-flip test of that difference, with Holm's correction."
        return (
            f"Against none: mean error minus that of no defense, in points.{test} Intervals cover "
            f"{100 * stats.LEVEL:.0f} %, over images. Worst attack: the highest error of one attack, averaged over "
            "the sources. ms: time to purify and classify one image."
        )


def leaderboards(run: Run) -> list[Leaderboard]:
    """One per target that defenses are compared on, at the largest eps; white-box sources apart."""
    attacked = [cell.key for cell in run.cells if cell.attack != CLEAN]
    if not attacked:
        return []
    eps = max(cell.eps for cell in attacked)
    found = []
    defended = {cell.target for cell in attacked if cell.defense != UNDEFENDED}  # others are baselines, in a column
    for target in run.axis("targets"):
        for white_box in (False, True):
            here = [c for c in attacked if (c.target, c.eps, _white_box(c.source)) == (target, eps, white_box)]
            if here and (target in defended or not defended):
                found.append(_leaderboard(run, here, white_box))
    return found


def _white_box(source: str) -> bool:
    return source.startswith("white-box")


def _leaderboard(run: Run, here: list[CellKey], white_box: bool) -> Leaderboard:
    target, eps = here[0].target, here[0].eps
    cells = list(dict.fromkeys((cell.source, cell.attack) for cell in here))
    defenses = [name for name in run.axis("defenses") if any(cell.defense == name for cell in here)]
    places = {name: [CellKey(source, attack, eps, target, name) for source, attack in cells] for name in defenses}
    complete = {name: cells for name, cells in places.items() if all(cell in run.wrong for cell in cells)}
    errors = {name: np.sum([run.errors(cell) for cell in cells], axis=0) for name, cells in complete.items()}
    (verdicts,) = compare_defenses([errors])
    parts = len(cells) * run.defense_samples
    standings = []
    for name in defenses:
        done, clean = [cell for cell in places[name] if cell in run.wrong], CellKey.clean(target, name)
        accuracy = percent(1 - run.wrong[clean].mean()) if clean in run.wrong else None
        standing = Standing(name, len(done), accuracy, _milliseconds(run, done))
        if name in errors:
            share = errors[name] / parts
            low, high = stats.mean_interval(share)
            change, test = None, ""
            if name != UNDEFENDED and UNDEFENDED in errors:
                difference = (errors[name] - errors[UNDEFENDED]) / parts
                ends = stats.mean_interval(difference, least=-1)
                change = (percent(difference.mean()), 100 * ends[0], 100 * ends[1])
                verdict = verdicts[name]
                test = (
                    UNTESTED if len(share) < FEWEST
                    else LOWER if verdict.significantly_lower
                    else HIGHER if verdict.significantly_worse
                    else NO_DIFFERENCE
                )  # fmt: skip
            mean = TableCell(
                "done", "", percent(share.mean()), 100 * low, 100 * high, change=change, verdict=verdicts[name]
            )
            worst = _by_attack(run, places[name])
            hardest = max(worst, key=lambda attack: worst[attack])
            standing = replace(standing, mean=mean, worst=worst[hardest], worst_attack=hardest, test=test)
        standings.append(standing)
    standings.sort(key=lambda each: (each.mean.value is None, each.mean.value or 0.0))
    return Leaderboard(run, target, eps, white_box, cells, standings)


def _by_attack(run: Run, places: list[CellKey]) -> dict[str, float]:
    """Error in percent by attack, over the cells of each."""
    attacks = dict.fromkeys(cell.attack for cell in places)
    return {
        attack: percent(np.mean([run.wrong[cell] for cell in places if cell.attack == attack])) for attack in attacks
    }


def _milliseconds(run: Run, done: list[CellKey]) -> float | None:
    """Time of one prediction: as the run measured it where the grid asks for cost, or else the median of the cells."""
    if not done:
        return None
    cost = run.record.get("cost") or {}
    ratio = cost.get("defenses", {}).get(done[0].defense, {}).get("ratio")
    if ratio is not None and cost["target"] == done[0].target:
        return float(ratio * cost["forward_ms"])
    here = set(done)
    n = int(run.record["dataset"]["n"])  # a deterministic defense is drawn once
    spent = [1000 * c.seconds / (n * c.defense_samples) for c in run.cells if c.key in here and c.seconds > 0]
    return median(spent) if spent else None


def _few(names: list[str], what: str) -> str:
    """A few names, or how many there are."""
    if len(names) > _NAMED:
        return f"{len(names)} {what}"
    return listed(map(display_name, names))


def as_table(board: Leaderboard) -> Table:
    """A leaderboard for LaTeX, Markdown and PDF."""
    rows = [Row(each.defense, _cells(board, each)) for each in board.standings]
    columns = ["Mean error", "interval", "Against none", "interval", "Test", "Worst attack", "Clean accuracy", "ms"]
    title = f"Defenses by mean error: {board.where}"
    return Table(board.slug, title, f"{board.what} {board.key}", "leaderboard", columns, [Group("-", rows)], [])


def _cells(board: Leaderboard, each: Standing) -> list[TableCell]:
    clean = TableCell("done", "", each.clean) if each.clean is not None else TableCell()
    time = TableCell("done", "", each.ms, text=each.time) if each.ms is not None else TableCell()
    none = TableCell()
    if each.mean.value is None:
        return [TableCell(text=f"{each.done} of {len(board.cells)} cells"), none, none, none, none, none, clean, time]
    change = [none, none, none]
    if each.mean.change:
        value, low, high = each.mean.change
        interval = TableCell(text=f"{signed(low)} to {signed(high)}")
        change = [TableCell("done", "", value, text=signed(value)), interval, TableCell(text=each.test)]
    mean, interval = each.mean, TableCell(text=f"{each.mean.low:.1f}–{each.mean.high:.1f}")
    return [mean, interval, *change, TableCell("done", "", each.worst), clean, time]


def signed(value: float) -> str:
    """A change in points.

    >>> signed(-12.345), signed(0.01)
    ('−12.3', '±0.0')
    """
    return "±0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")


def sheet(board: Leaderboard) -> str:
    """A leaderboard as CSV, a line a defense."""
    lines = []
    for each in board.standings:
        mean, change = each.mean, each.mean.change or (None, None, None)
        lines.append(
            [
                board.run.grid, given_name(board.target), board.run.eps(board.eps), str(board.white_box).lower(),
                each.label, *map(_number, (mean.value, mean.low, mean.high)), given_name(each.worst_attack),
                _number(each.worst),
                _number(each.clean), *map(_number, change),
                "" if mean.verdict.p_none is None else f"{mean.verdict.p_none:.6g}", each.test,
                "" if each.ms is None else f"{each.ms:.3f}", each.done, len(board.cells),
            ]
        )  # fmt: skip
    return csvtext.rows(COLUMNS, lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
