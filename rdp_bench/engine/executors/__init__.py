"""Where jobs are done: this process, Ray, Slurm, or what an entry point of the group `rdp_bench.executors` adds.

Nothing here imports Ray or submitit before a run asks for it.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from rdp_bench.engine.executors.spec import WorkerSpec
from rdp_bench.engine.options import Placement
from rdp_bench.engine.schedule import Executor
from rdp_bench.errors import RdpBenchError, UsageError, unknown_name

GROUP = "rdp_bench.executors"

SERIAL = "serial"
"""One job after another in this process."""

BUILTIN = {
    "ray": "rdp_bench.engine.executors.on_ray:RayExecutor",
    "slurm": "rdp_bench.engine.executors.on_slurm:SlurmArray",
}


@runtime_checkable
class Pool(Executor, Protocol):
    """Workers that a driver sends tasks to."""

    workers: int
    """How many there will be; long jobs are cut so that all have something to do."""


@runtime_checkable
class Array(Protocol):
    """Workers that are submitted once and share the plan among themselves through the store, see `array.work`."""

    def submit(self) -> str:
        """Submit the workers, unless those of an earlier command still live; returns what they are called."""

    def alive(self) -> bool:
        """Whether a worker runs or waits for its turn."""

    def log(self) -> str:
        """Where the workers' output is."""


Maker = Callable[[WorkerSpec, Placement], Pool | Array]


def known() -> list[str]:
    """Names of all executors."""
    return sorted({SERIAL, *BUILTIN, *(point.name for point in entry_points(group=GROUP))})


def refuse_unknown(name: str) -> None:
    """Raises `UsageError` if there is no such executor."""
    if name not in known():
        raise unknown_name("executor", name, known())


def make(spec: WorkerSpec, placement: Placement) -> Pool | Array:
    """Start an executor.

    Raises:
        UsageError: there is none of this name, it is not installed, or it cannot be reached.
    """
    name = placement.executor
    refuse_unknown(name)
    if name in BUILTIN:
        module, _, entry = BUILTIN[name].partition(":")
        maker: Maker = getattr(importlib.import_module(module), entry)
        return maker(spec, placement)
    (point, *_) = [point for point in entry_points(group=GROUP) if point.name == name]
    what = f"executor {name} = {point.value}"
    try:
        maker = point.load()
        made = maker(spec, placement)
    except RdpBenchError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Pool | Array):
        raise UsageError(
            f"{what} made a {type(made).__name__}, which has neither workers, send, wait and close (a Pool) nor "
            "submit, alive and log (an Array)"
        )
    return made
