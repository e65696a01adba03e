"""Copies the figures of the book from the reports of results folders; nothing is written into the folders.

python docs/results/figures.py docs/results/runs/NAME ... [--to docs/results]

Clean accuracy against error (one figure per target and kind of attacker), and, of folders with audits, transfer error
against white-box error. Each as SVG, PNG and PDF, and its points as CSV.
"""

import argparse
import tempfile
from pathlib import Path

from rdp_bench import reports
from rdp_bench.cache.store import Store, write_atomic

HERE = Path(__file__).parent
WANTED = ("tradeoff", "illusion")
"""Figures of the report, by what their names contain."""


def figures(out: Path, to: Path) -> list[Path]:
    """Write the figures of one results folder into `to`, with the folder's name before theirs."""
    written = []
    with tempfile.TemporaryDirectory() as folder:
        reports.render(out, Store(), to=Path(folder))
        for path in sorted((Path(folder) / "figures").iterdir()):
            if any(name in path.name for name in WANTED):
                written.append(to / f"{out.resolve().name}-{path.name}")
                write_atomic(written[-1], path.read_bytes())
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="results folders")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write")
    asked = parser.parse_args()
    for each in asked.folders:
        for path in figures(each, asked.to):
            print(path)
