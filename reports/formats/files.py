"""Every file that a report writes of a table."""

from rdp_bench.reports.formats import csv_table, latex, markdown, pdf
from rdp_bench.reports.tables import leaderboard
from rdp_bench.reports.tables.leaderboard import Leaderboard
from rdp_bench.reports.tables.table import Table


def of_table(table: Table) -> dict[str, bytes]:
    """File contents by ending."""
    texts = {".csv": csv_table.shape(table)}
    if any(entry.value is not None for entry in table.cells):
        texts[".tests.csv"] = csv_table.tests(table)
    texts[".tex"] = latex.render(table)
    if averages := latex.averages(table):
        texts[".averages.tex"] = averages
    texts[".md"] = markdown.render(table)
    return {**{ending: text.encode() for ending, text in texts.items()}, ".pdf": pdf.render(table)}


def of_leaderboard(board: Leaderboard) -> dict[str, bytes]:
    """File contents by ending; its CSV has every number and test already."""
    files = of_table(leaderboard.as_table(board))
    files.pop(".tests.csv", None)
    return {**files, ".csv": leaderboard.sheet(board).encode()}
