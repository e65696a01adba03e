"""Whether a results folder is in agreement with itself: results.csv, run records and predictions, without a cache.

And whether what its claims.json says follows from the predictions.
"""

import csv
import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rdp_bench import csvtext
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.results import crosscheck
from rdp_bench.results.keyed import source_of
from rdp_bench.results.lines import every_row
from rdp_bench.results.naming import misnamed
from rdp_bench.results.prediction_file import FOLDER, path_of
from rdp_bench.results.rows import COLUMNS, UNDEFENDED, CellKey, Row, Run, load_run
from rdp_bench.results.submission import FILE, read_submission
from rdp_bench.results.submission_check import ClaimsVerified, check_claims
from rdp_bench.specs import CLEAN, WHITE_BOX, show, show_level
from rdp_bench.terminal import counted

MOST = 5
"""Problems of a run that are listed; the others are counted."""

_STORED = {"eval": "the predictions", "image_quality": "the image quality", "adv": "the facts on the sets"}

_IDENTITY = ("source", "attack", "eps", "defense", "target", "metric")


@dataclass(frozen=True)
class Verified:
    """What was found about one run.

    Attributes:
        grid: its grid, or the name of its record.
        problems: one line each; empty if all agrees.
        cells: how many cells have predictions that agree with the record.
        numbers: how many values of results.csv were computed again and are equal.
        open: cells that the record calls failed or pending.
        lost_checks: lines of the cross-check whose predictions only the cache has.
        run: the run as it was read; None if it could not be.
    """

    grid: str
    problems: tuple[str, ...]
    cells: int = 0
    numbers: int = 0
    open: int = 0
    lost_checks: int = 0
    run: Run | None = None

    def __str__(self) -> str:
        if not self.problems:
            rest = f"; {self.open} cells have no result" if self.open else ""
            if self.lost_checks:
                rest += f"; predictions of {counted(self.lost_checks, 'line')} of the cross-check are not here"
            return f"pass  {self.grid}: {self.numbers} numbers of results.csv follow from {self.cells} cells{rest}"
        shown = [*self.problems[:MOST]]
        if len(self.problems) > MOST:
            shown.append(f"and {len(self.problems) - MOST} more")
        return "\n".join(f"FAIL  {self.grid}: {problem}" for problem in shown)


def verify(out: Path) -> Iterator[Verified]:
    """Compute every row of OUT/results.csv again from OUT/predictions and compare; one result per run.

    Raises:
        UsageError: there is no run in `out`.
    """
    records = sorted((out / "runs").glob("*.json"))
    if not records:
        raise UsageError(f"{out} holds no run; name a folder that rdp-bench run wrote")
    try:
        columns, lines = csvtext.read((out / "results.csv").read_text("utf-8"))
        unread = "" if columns == COLUMNS else f"{out / 'results.csv'} has other columns than this version writes"
        lines = [] if unread else lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        lines, unread = [], f"{out / 'results.csv'} cannot be read ({error})"
    known: set[str] = set()
    kept: set[Path] = set()
    for path in records:
        try:
            run = load_run(path, None)
        except RdpBenchError as error:
            known.add(path.stem)
            kept |= set((out / FOLDER).glob(f"{glob.escape(path.stem)}.*"))
            yield Verified(path.stem, (str(error),))
            continue
        known.add(run.grid)
        found = [unread] if unread else list(_differences(run, [line for line in lines if line["grid"] == run.grid]))
        yield Verified(
            run.grid,
            (*(f"{key}: {why}" for key, why in run.unread.items()), *found),
            cells=len(run.wrong),
            numbers=sum(bool(line["value"]) for line in lines if line["grid"] == run.grid),
            open=sum(cell.status != "done" for cell in run.cells),
            lost_checks=sum(not again.kept for again in crosscheck.again(run)) if run.record.get("checks") else 0,
            run=run,
        )
        kept |= _named_file(out, run)
    for path in sorted((out / FOLDER).glob("*")):
        if path not in kept and not path.name.startswith("."):  # a run that is being written
            yield Verified(path.name, (f"no record names {path}; move it away",))
    for grid in sorted({line["grid"] for line in lines} - known):
        yield Verified(grid, (f"results.csv has rows of it, and {out / 'runs'} has no record",))


def _named_file(out: Path, run: Run) -> set[Path]:
    """The file of predictions that a record names."""
    named = run.record.get("predictions")
    return {path_of(out, run.grid, named["sha256"])} if named else set()


def verify_claims(out: Path, verified: Iterable[Verified]) -> ClaimsVerified | None:
    """Compute the claims of OUT/claims.json again; None if there is no such file.

    Args:
        out: the results folder.
        verified: what `verify` found about its runs.
    """
    path = out / FILE
    if not path.exists() and not path.is_symlink():
        return None
    try:
        claims = read_submission(path).claims
    except UsageError as error:
        return ClaimsVerified(unread=str(error))
    return ClaimsVerified(check_claims(claims, {each.grid: each.run for each in verified if each.run}))


def _differences(run: Run, lines: list[dict[str, str]]) -> Iterator[str]:
    """How the rows of results.csv differ from those that the predictions give."""
    wanted = {_place(row): row for row in every_row(run)}
    found = {_place(line): line for line in lines}
    if len(found) < len(lines):
        yield f"results.csv has {len(lines) - len(found)} rows twice"
    for place, row in wanted.items():
        if CellKey.of(row) in run.unread:
            continue  # said already
        if place not in found:
            yield f"{_words(row)}: the row is missing in results.csv"
            continue
        for name in COLUMNS:
            computed, stored = str(row[name]), found[place][name]
            if computed != stored:
                yield f"{_words(row)}: {name} is {stored or 'empty'} in results.csv, {computed or 'empty'} by the run"
                break
    yield from _inconsistent(run)
    for place in found.keys() - wanted.keys():
        yield f"{_words(found[place])}: the row is in results.csv and not in the run"


def _inconsistent(run: Run) -> Iterator[str]:
    """What cells contradict each other in, what the record says of them all, and stored facts that no cell names."""
    sets: dict[tuple[str, str, float], set[str | None]] = {}
    for cell in run.cells:
        if cell.status == "done" and not cell.source.startswith(WHITE_BOX):
            sets.setdefault((cell.source, cell.attack, cell.eps), set()).add(cell.adv_key)
    for (source, attack, eps), keys in sets.items():
        if len(keys) > 1:
            yield f"{source} {attack} {show_level(eps)}: its cells are of {len(keys)} adversarial sets"
    for cell in run.cells:
        said = run.record["defenses"].get(cell.defense, {})
        if cell.status == "done" and cell.defense_samples != (run.defense_samples if said.get("random") else 1):
            yield f"{cell.key}: {cell.defense_samples} defense samples, {run.defense_samples} by the axes of the record"
    yield from _other_accuracies(run)
    yield from _other_axes(run)
    yield from _without_cells(run)
    yield from _other_checks(run)
    if not run.stored or not run.stored.file:
        return
    held = run.stored.file.about["records"]
    yield from misnamed(run.record, run.cells, held)
    done = [cell for cell in run.cells if cell.status == "done"]
    for kind, named in (
        ("eval", {cell.eval_key for cell in done}),
        ("image_quality", {cell.image_quality_key for cell in run.cells}),
        ("adv", {cell.adv_key for cell in done}),
    ):
        if lost := sum(facts.get("kind") == kind and key not in named for key, facts in held.items()):
            yield f"{_STORED[kind]} of {lost} cells are there, and the record has no such cells"


def _other_axes(run: Run) -> Iterator[str]:
    """Axes that are not those of the cells, or not those with which `run --from` repeats the run."""
    axes, dataset = run.record["axes"], run.record["dataset"]
    baselines = run.record.get("request", {}).get("axes", {}).get("baselines", [])
    many = {"source": "sources", "target": "targets", "attack": "attacks", "defense": "defenses"}
    seen = {one: {getattr(cell, one) for cell in run.cells} for one in many}
    seen["target"] = {cell.target for cell in run.cells if cell.defense != UNDEFENDED or cell.target not in baselines}
    for one, labels in seen.items():
        if extra := labels - {*axes[many[one]], CLEAN, "-"}:
            yield f"its cells have the {one} {min(extra)}, and its axes do not"
    if "request" not in run.record:
        return
    said = {**axes, "dataset": dataset.get("label", ""), "image_size": dataset.get("image_size")}
    asked = run.record["request"]["axes"]
    for name in sorted(said.keys() & asked.keys()):
        if said[name] != asked[name]:
            yield f"{name} is {said[name]}, and {asked[name]} in what `run --from` repeats"


def _without_cells(run: Run) -> Iterator[str]:
    """What a record describes and no cell is of: a report lists it."""
    record, asked = run.record, run.record.get("request", {}).get("axes", {})
    sources = {source_of(record, cell) for cell in run.cells if cell.attack != CLEAN}
    members = {member for source in record["sources"].values() for member in source["members"]}
    known = {
        "attacks": {cell.attack for cell in run.cells},
        "defenses": {cell.defense for cell in run.cells} | {UNDEFENDED},
        "sources": sources,
        "models": {cell.target for cell in run.cells} | members | set(asked.get("checks", ())),
    }
    for kind, labels in known.items():
        if extra := record[kind].keys() - labels:
            yield f"the record describes the {kind.removesuffix('s')} {min(extra)}, and no cell is of it"
    levels = {show(eps) for eps in record["axes"]["eps"]}
    for label, said in record["attacks"].items():
        if extra := said.get("resolved", {}).keys() - levels:
            yield f"the record describes the attack {label} at eps {min(extra)}, and no cell is of it"


def _other_accuracies(run: Run) -> Iterator[str]:
    """Models whose measured accuracy is not that of their clean cell without a defense."""
    for label, said in run.record["models"].items():
        wrong = run.wrong.get(CellKey.clean(label, UNDEFENDED))
        stated = said.get("measured_accuracy")
        if wrong is not None and stated is not None and abs(stated - 100 * (1 - float(wrong.mean()))) > 0.05:
            yield f"measured_accuracy of the model {label} is {stated}, {100 * (1 - wrong.mean()):.1f} by its cell"


def _other_checks(run: Run) -> Iterator[str]:
    """Lines of the cross-check with published numbers that do not follow from the cells; a run may have none yet."""
    said, wanted = run.record.get("checks", ()), crosscheck.again(run)
    if said and len(said) != len(wanted):
        yield f"its cross-check has {len(said)} lines, {len(wanted)} by its models and attacks"
        return
    for line, again in zip(said, wanted, strict=False):
        if not again.agrees(line["text"], line["passed"]):
            yield f"its cross-check says '{line['text']}', where its cells give '{again.check.text}'"


def _place(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _IDENTITY)


def _words(row: Row) -> str:
    return " ".join(str(row[name]) for name in _IDENTITY)
