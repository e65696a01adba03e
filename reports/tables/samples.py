"""Random defenses over several draws: the mean, the worst draw of each image, and the majority vote."""

from dataclasses import replace

from rdp_bench.reports.tables.table import Group, Table, clean_tables, error_tables
from rdp_bench.results.rows import CellKey, Run, display_name, percent
from rdp_bench.specs import UNDEFENDED


def tables(run: Run) -> list[Table]:
    """The run's tables restricted to its random defenses, one row per aggregation of the draws; none for single draws.

    Bold numbers and symbols are those of a table in which every random defense has that aggregation.
    """
    drawn = {cell_key.defense for cell_key, _ in run.by_aggregation}
    found = []
    for each in zip(*([*error_tables(view), *clean_tables(view)] for view in _views(run)), strict=True):
        views = list(each)
        lines = {line.defense for table in views for group in table.groups for line in group.rows}
        if views and drawn & lines:
            found.append(_merged(run, views, drawn))
    return found


def _views(run: Run) -> list[Run]:
    """The run, then the run with its cells aggregated by the worst draw and by vote."""
    return [run, *(_view(run, aggregation) for aggregation in ("worst", "vote"))] if run.by_aggregation else []


def _view(run: Run, aggregation: str) -> Run:
    rows = []
    for row in run.rows:
        cell_key = CellKey.of(row)
        if (cell_key, aggregation) in run.by_aggregation:
            value, low, high = percent(run.by_aggregation[cell_key, aggregation], row["metric"])
            row = {**row, "value": value, "ci_low": low, "ci_high": high, "paper": ""}
        rows.append(row)
    wrong = {cell_key: run.by_aggregation.get((cell_key, aggregation), flags) for cell_key, flags in run.wrong.items()}
    return replace(run, rows=rows, wrong=wrong)


def _merged(run: Run, views: list[Table], drawn: set[str]) -> Table:
    names = ("mean", f"worst of {run.defense_samples}", "vote")
    groups = []
    for each in zip(*(table.groups for table in views), strict=True):
        lines = [line for line in each[0].rows if line.defense == UNDEFENDED]
        for same in zip(*(group.rows for group in each), strict=True):
            if same[0].defense in drawn:
                lines += [replace(line, aggregation=name) for line, name in zip(same, names, strict=True)]
        groups.append(Group(each[0].source, lines))
    table = views[0]
    several = [name for name in sorted(drawn) if run.record["defenses"].get(name, {}).get("passes", 1) > 1]
    return Table(
        f"{table.slug}_draws",
        f"Random defenses over {run.defense_samples} draws, {table.title[0].lower()}{table.title[1:]}",
        f"{table.caption} Each image is evaluated on {run.defense_samples} draws of the defense. Mean: average over "
        f"the "
        "draws. Worst: an image counts as wrong if any draw is wrong. Vote: the majority class of the draws; ties "
        "go to "
        "the earliest draw.",
        f"{table.metric}-draws",
        table.columns,
        groups,
        [
            "Marks compare each row with all defenses of the run under the same aggregation, shown here or not.",
            *(f"One draw of {display_name(name)} averages several passes." for name in several),
        ],
        measure=table.measure and f"{table.measure}-draws",
        keys=table.keys,
    )
