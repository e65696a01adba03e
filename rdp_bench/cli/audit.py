"""`rdp-bench audit`: the adaptive evaluation of one defense."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.budgets import parse_eps
from rdp_bench.cli import cache as cli_cache
from rdp_bench.cli import complete
from rdp_bench.cli.perform import perform, plan_of, run_options
from rdp_bench.cli.run import out_option, plugin_option

if TYPE_CHECKING:
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run


@click.command()
@click.argument("defense", shell_complete=complete.of_kind("defense"))
@click.option("--target", default="effnet-lite2", show_default=True, help="Model behind the defense.")
@click.option("--source", multiple=True, metavar="NAME", help="Source of the transfer attacks; repeatable.")
@click.option("--dataset", default="photos20", show_default=True, metavar="NAME|FOLDER|CSV", help="Images.")
@click.option("--limit", type=int, help="Use only the first N images.  [default: 20 for quick, else all]")
@click.option("--image-size", type=int, metavar="PIXELS", help="Resize images when they are read.")
@click.option("--eps", default="4", show_default=True, help="L-infinity budget in /255.")
@click.option(
    "--budget", default="quick", show_default=True, metavar="quick|standard|full", help="How much is computed."
)
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<number>.")
@click.option("--batch-size", default="auto", show_default=True, help="Images per batch.")
@click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
@out_option
@cli_cache.option
@plugin_option
@click.option("--dry-run", is_flag=True, help="Print the parts and how many cells each has.")
@click.option("--progress/--no-progress", default=None, help="Turn the progress bar on or off.")
def audit(defense: str, target: str, source: tuple[str, ...], eps: str, budget: str, **flags: Any) -> None:
    """Audit a defense: how much accuracy is left to which attacker, and how far the attacks can be believed.

    DEFENSE is a defense (rdp-bench list defenses), a chain, or one of a plugin (--plugin mine.py mine/net). What is
    computed is cached; the same command continues an audit that was stopped. The card is in OUT/audit.
    """
    import shlex

    from rdp_bench import plugins
    from rdp_bench.audits import formats
    from rdp_bench.audits.parts import Subject
    from rdp_bench.audits.run import audit as run_audit
    from rdp_bench.audits.run import planned

    image_size = flags.pop("image_size")
    subject = Subject(
        defense, target, flags["dataset"], parse_eps(eps), budget, source, flags["models_dir"], image_size
    )
    unused: dict[str, Any] = {
        "source": (), "target": (), "attack": (), "defense": (), "eps": (), "names": (), "norm": None, "success": None,
        "defense_samples": None, "image_size": None, "profile": "embedded", "fresh": False,
        "measure": False, "precision": "float32", "executor": None, "workers": None, "ray_address": None,
        "slurm": None, "wait": None, "shard": None,
    }  # fmt: skip
    options = run_options({**unused, **flags, "limit": flags["limit"] or subject.settings.limit})
    plugins.load(options.plugins)
    plans = planned(subject, lambda grid: plan_of(grid, options))
    if options.dry_run:
        for part, plan in plans:
            click.echo(f"{part:10} {len(plan.cells):3} cells, {len(plan.to_do(plan.jobs)):3} jobs to do")
        return

    def one(plan: "Plan", heading: str) -> "Run":
        return perform(plan, options, None, heading)

    card = run_audit(subject, plans, one, shlex.join(["rdp-bench", *sys.argv[1:]]))
    files = formats.write(card, options.out)
    click.echo(formats.text(card))
    click.echo(f"\n{', '.join(str(file) for file in files)}")
    if card.failed:
        sys.exit(1)
