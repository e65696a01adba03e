"""Random defenses by several draws: the mean, the worst draw of each image, and the majority's vote."""

from dataclasses import replace

from rdp_bench.reports.tables.table import Exhibit, Group, clean_table, error_tables
from rdp_bench.results.rows import UNDEFENDED, Place, Run, percent, pretty


def tables(run: Run) -> list[Exhibit]:
    """The run's tables once more, of its random defenses alone, a row a way to judge them; none for single draws.

    Bold and marks stand as they would if every random defense were judged in that way.
    """
    drawn = {place.defense for place, _ in run.ways}
    found = []
    for each in zip(*([*error_tables(view), clean_table(view)] for view in _views(run)), strict=True):
        views = [table for table in each if table]
        lines = {line.defense for table in views for group in table.groups for line in group.lines}
        if views and drawn & lines:
            found.append(_merged(run, views, drawn))
    return found


def _views(run: Run) -> list[Run]:
    """The run as it is, then as if the worst draw and the vote were what its cells say."""
    return [run, *(_view(run, way) for way in ("worst", "vote"))] if run.ways else []


def _view(run: Run, way: str) -> Run:
    rows = []
    for row in run.rows:
        place = Place.of(row)
        if (place, way) in run.ways:
            value, low, high = percent(run.ways[place, way], row["metric"])
            row = {**row, "value": value, "ci_low": low, "ci_high": high, "paper": ""}
        rows.append(row)
    wrong = {place: run.ways.get((place, way), flags) for place, flags in run.wrong.items()}
    return replace(run, rows=rows, wrong=wrong)


def _merged(run: Run, views: list[Exhibit], drawn: set[str]) -> Exhibit:
    names = ("mean", f"worst of {run.draws}", "vote")
    groups = []
    for each in zip(*(table.groups for table in views), strict=True):
        lines = [line for line in each[0].lines if line.defense == UNDEFENDED]
        for same in zip(*(group.lines for group in each), strict=True):
            if same[0].defense in drawn:
                lines += [replace(line, way=name) for line, name in zip(same, names, strict=True)]
        groups.append(Group(each[0].source, lines))
    table = views[0]
    several = [name for name in sorted(drawn) if run.record["defenses"].get(name, {}).get("passes", 1) > 1]
    return Exhibit(
        f"{table.slug}_draws",
        f"Random defenses by {run.draws} draws, {table.title[0].lower()}{table.title[1:]}",
        f"{table.caption} Every image is judged on {run.draws} draws of the defense. Mean: over all of them. Worst: a "
        "draw that is wrong makes the image wrong. Vote: the class that most draws name, among equals the one that the "
        "earliest draw names.",
        f"{table.metric}-draws",
        table.columns,
        groups,
        [f"{pretty(name)} makes one prediction of several passes; that is one draw." for name in several],
    )
