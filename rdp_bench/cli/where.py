"""The flags that say where a run's jobs are done."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.api.place import Where
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.options import RunOptions

_OPTIONS = (
    click.option(
        "--executor",
        metavar="NAME",
        help="serial (this process), ray, slurm, or one of another package.  [default: serial]",
    ),
    click.option(
        "--workers", metavar="auto|N", help="Number of workers of ray (auto: one per GPU or group of cores) or slurm."
    ),
    click.option(
        "--ray-address", metavar="HOST:PORT", help="A running Ray cluster; auto finds the one of this machine."
    ),
    click.option("--slurm", metavar="OPTIONS", help='Options of sbatch, like "partition=gpu,time=4:00:00,gres=gpu:1".'),
    click.option(
        "--wait/--no-wait",
        default=None,
        help="Wait until the Slurm workers have ended, or return at once.  [default: wait]",
    ),
    click.option("--shard", metavar="I/N", help="Do only share I of N of the plan, for job arrays and CI."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RunOptions` that the flags give.

    Raises:
        UsageError: a value that no run can have.
    """
    from rdp_bench.engine.options import Shard

    workers = flags["workers"]
    if workers is not None and workers != "auto" and not (workers.isdecimal() and workers.isascii()):
        raise UsageError(f"--workers {workers}: expected auto or a number above 0")
    given = {name: flags[name] for name in ("executor", "ray_address", "slurm", "wait") if flags[name] is not None}
    if workers is not None:
        given["workers"] = int(workers) if workers != "auto" else workers
    return {"place": given, "shard": Shard.read(flags["shard"]) if flags["shard"] is not None else None}


def where_of(grid: "Grid", options: "RunOptions") -> "Where":
    """Where the jobs of a grid are done under the flags."""
    from rdp_bench.api.place import Where, placement

    place = dict(options.place)
    if options.shard:
        place.setdefault("executor", "serial")  # whatever the grid's own is
    found = Where(
        placement(place, dict(grid.run), grid.name),
        options.limit, options.batch_size, options.models_dir, options.shard,
    )  # fmt: skip
    if found.shard and not found.here:
        raise UsageError(
            f"--shard does one share in this process, and --executor {found.placement.executor} divides the work "
            "itself; use one of them"
        )
    if options.fresh and (found.shard or not found.placement.wait):
        flag = "--shard" if found.shard else "--no-wait"
        raise UsageError(f"--fresh deletes what the other workers of {flag} have finished; use it without {flag}")
    return found
