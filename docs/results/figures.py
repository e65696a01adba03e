"""Draws the figures of the book from results folders; nothing is written into the folders.

python docs/results/figures.py docs/results/runs/NAME ... [--to docs/results]

Clean accuracy against mean error, one figure per target and kind of attacker; and transfer error against white-box
error, where the folders have both for a target on the same images. Each as SVG, PNG and PDF, and its points as CSV.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from rdp_bench.cache.store import write_atomic
from rdp_bench.reports.figures.attackers import attackers, pairs
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.tradeoff import tradeoff
from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.reports.tables.table import slug
from rdp_bench.results.rows import load_run, shown_names

HERE = Path(__file__).parent


def figures(folders: Iterable[Path]) -> Iterator[tuple[str, ReportFigure]]:
    """The name of each figure's files, and the figure. Numbers are from OUT/predictions alone."""
    runs = [
        (folder.resolve().name, load_run(path, None))
        for folder in folders
        for path in sorted((folder / "runs").glob("*.json"))
    ]
    with shown_names(*(run.names for _, run in runs)):
        boards = [(slug(name, run.grid), board) for name, run in runs for board in leaderboards(run)]
        drawn = [(name, tradeoff(board)) for name, board in boards]
        names = {id(board): name for name, board in boards}
        for transfer, white in pairs([board for _, board in boards]):
            ends = dict.fromkeys((names[id(transfer)], names[id(white)]))
            drawn.append((slug(*ends), attackers(transfer, white)))
    yield from ((f"{name}-{figure.name}", figure) for name, figure in drawn if figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="results folders")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write")
    asked = parser.parse_args()
    for name, figure in figures(asked.folders):
        for kind, content in figure.files.items():
            write_atomic(asked.to / f"{name}.{kind}", content)
        print(asked.to / name)
