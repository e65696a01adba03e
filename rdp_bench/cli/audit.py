"""`rdp-bench audit`: the adaptive evaluation of defenses."""

import sys
from pathlib import Path
from typing import Any

import click

from rdp_bench.cli import common, complete, where
from rdp_bench.cli.perform import run_options


@click.command()
@click.argument("defenses", shell_complete=complete.of_kind("defense"))
@click.option("--target", multiple=True, help="Model behind the defense; repeatable.  [default: effnet-lite2]")
@click.option(
    "--source",
    multiple=True,
    metavar="NAME",
    help="Source of the transfer attacks; repeatable.  [default: effnet-lite0; from standard on, also effnet-lite1]",
)
@click.option("--dataset", metavar="NAME|FOLDER|CSV", help="Images.  [default: photos20]")
@click.option("--limit", type=int, help="Use only the first N images.  [default: 20 for quick, else all]")
@click.option("--image-size", type=int, metavar="PIXELS", help="Resize images when they are read.")
@click.option("--eps", multiple=True, help="L-infinity budget in /255; repeatable.  [default: 4]")
@click.option("--budget", default="quick", show_default=True, metavar="quick|standard|full", help="Computing budget.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option("--batch-size", default="auto", show_default=True, help="Images per batch.")
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@common.out
@common.cache
@common.plugins
@where.options
@click.option("--dry-run", is_flag=True, help="Print the parts, what is cached, and an estimate of the remaining time.")
@click.option("--measure", is_flag=True, help="With --dry-run: time each part on two images first.")
@click.option("--fresh", is_flag=True, help="Compute everything again; the cached results are deleted.")
@click.option("--progress/--no-progress", default=None, help="Turn the progress bar on or off.")
def audit(defenses: str, budget: str, **flags: Any) -> None:
    """Audit defenses: the accuracy that each attacker leaves, and whether the attacks can be trusted.

    DEFENSES is a defense (rdp-bench list defenses), a chain, one of a plugin (--plugin mine.py mine/net), or several,
    separated by commas. Results are cached; the same command continues an audit that was stopped. The cards are in
    OUT/audit and on the page that rdp-bench report writes.

    A grid file with a table [audit] states the same audits: rdp-bench run GRID.
    """
    from rdp_bench.audits import grid
    from rdp_bench.cli import audited
    from rdp_bench.errors import UsageError
    from rdp_bench.results.cards import FOLDER

    if defenses.endswith(".toml"):
        raise UsageError(f"{defenses} is a grid; run its audits with: rdp-bench run {defenses}")
    unused: dict[str, Any] = {
        "attack": (), "names": (), "norm": None, "success": None, "defense_samples": None, "profile": "embedded",
        "precision": "float32",
    }  # fmt: skip
    options = run_options({**unused, **flags, "defense": (defenses,)})
    axes = grid.changed(grid.AuditAxes(budget=budget), options.changes)
    sys.exit(audited.run_all(grid.AuditGrid(FOLDER, axes), options))
