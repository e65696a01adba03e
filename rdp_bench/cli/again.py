"""`rdp-bench run --from RECORD`: its flags, what it prints before and after."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.cli.perform import plan_of, settled
from rdp_bench.errors import StorageError, UsageError
from rdp_bench.terminal import counted

if TYPE_CHECKING:
    from rdp_bench.engine.options import RunOptions
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run

MOST = 10
"""Cells that differ, or differences of the machines, that are printed; the others are counted."""


class Again:
    """A published run that is repeated.

    Attributes:
        options: those of the command line, with what the record says in the place of what it does not name.

    Raises:
        UsageError: the record cannot be used, or options that a repetition cannot have.
    """

    def __init__(self, path: Path, options: "RunOptions", flags: Mapping[str, Any], named: set[str]) -> None:
        from rdp_bench.engine.repeat import Published

        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "does not exist"
            raise UsageError(f"--from {path}: it {kind}; name the record of a run, OUT/runs/GRID.json")
        if "profile" in named:
            raise UsageError(
                f"--profile {flags['profile']}: the record already has the axes of its profile; leave out --profile"
            )
        self.published = Published.read(path)
        if options.out.resolve() == path.resolve().parent.parent:
            raise UsageError(
                f"--out {options.out} holds the published run, which would be replaced; name another --out"
            )
        record = self.published.record
        changes = {"profile": record["profile"], "limit": options.limit or record["dataset"]["n"]}
        if "seed" not in named:
            changes["seed"] = record["seed"]
        if "precision" not in named:
            changes["precision"] = record.get("precision", "float32")
        if "device" not in named:
            changes["device"] = _device(self.published.request["device"])
        self.options = replace(options, **changes)

    @cached_property
    def plan(self) -> "Plan":
        """The plan; what differs from the published run is printed.

        Raises:
            UsageError: an entry or plugin of the run is missing, or the images are others.
        """
        from rdp_bench.engine import prefix_reuse

        grid = self.published.grid(self.options.changes, self.options.plugins)
        try:
            plan = plan_of(settled(grid, self.options), self.options)
        except UsageError as error:
            if self.published.record["command"].startswith("rdp_bench.evaluate("):
                raise UsageError(f"{error} (rdp_bench.evaluate made the run in Python; repeat it there)") from error
            raise
        self.published.refuse_other_images(plan)
        lines = self.published.differences(plan)
        name = self.published.path.name
        if self.published.predictions.file is None:
            why = self.published.predictions.problem or "the record names none"
            click.echo(f"the published predictions cannot be read, so nothing will be compared: {why}", err=True)
        click.echo(f"{counted(len(lines), 'difference')} from {name}" + (":" if lines else ""), err=True)
        for line in lines[:MOST]:
            click.echo(f"  {line}", err=True)
        if len(lines) > MOST:
            click.echo(f"  and {len(lines) - MOST} more", err=True)
        if not self.options.fresh:
            prefix_reuse.drop_damaged(plan, plan.jobs)
            with suppress(StorageError):  # the run says so
                prefix_reuse.copy_shared_shards(plan)
        cached = sum(planned.eval.complete for planned in plan.cells.values())
        if cached and not self.options.fresh:
            click.echo(
                f"{cached} of {len(plan.cells)} cells are in the cache {plan.store.root} and will not be computed "
                "again; --fresh or another --cache computes them",
                err=True,
            )
        return plan

    def compare(self, running: "Run") -> bool:
        """Print how the predictions agree with the published ones; whether all of them do."""
        found, lacking = self.published.compare(running.out, running.plan)
        apart = [each for each in found if each.differing]
        path, total = self.published.path, len(found) + len(lacking)
        done = sum(cell.status == "done" for cell in self.published.cells.values())
        for each in apart[:MOST]:
            click.echo(str(each))
        if len(apart) > MOST:
            click.echo(f"and {len(apart) - MOST} more cells that differ")
        images = min((each.images for each in found), default=0)
        published = self.published.record["dataset"]["n"]
        which = "every image" if images == published else f"each of the {images} images of {published} that both have"
        agree = f"{len(found) - len(apart)} of {total} cells agree with {path} on {which}"
        click.echo(agree + (f"; {len(apart)} differ" if apart else ""))
        if done > total:
            click.echo(
                f"{done - total} of the {done} published cells are not in this run, so nothing was compared there"
            )
        if lacking:
            cell, why = next(iter(lacking.items()))
            click.echo(f"{len(lacking)} cells could not be compared; the first: {cell}: {why}")
        return bool(found) and not apart and not lacking


def _device(kind: str) -> str:
    """The published kind of device, if it is here."""
    from rdp_bench.environment import choose_device

    try:
        return choose_device(kind)
    except UsageError:
        return "auto"
