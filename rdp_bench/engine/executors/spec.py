"""From what a run was asked to do to a worker for it, in any process: `WorkerSpec` is all that crosses."""

from __future__ import annotations

import base64
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench import __version__, plugins, schema
from rdp_bench.cache.locations import locate
from rdp_bench.cache.store import Store
from rdp_bench.engine.executors.board import Board, digest
from rdp_bench.engine.grid import Axes, Grid
from rdp_bench.engine.plan import Plan, make_plan
from rdp_bench.environment import choose_device, versions
from rdp_bench.errors import RdpBenchError, StorageError, UsageError
from rdp_bench.keys import hash_file

if TYPE_CHECKING:
    from rdp_bench.engine.worker import Worker

log = logging.getLogger(__name__)

BESIDE_A_GPU = 4
"""Threads of a worker that computes on a GPU: they decode, compress and draw."""

LARGEST_SHIPPED = 1 << 20
"""Bytes of a plugin's file that are sent to workers; larger ones must be on their machines."""

FREE = ("python", "pillow")
"""Packages whose version may differ between machines: what depends on them (decoding) is compared by pixel hashes."""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that a worker is made from, as plain data: it can be pickled, and written as JSON.

    Attributes:
        grid: the settled grid, as plain data; `axes` holds its axes.
        cache: the store that all workers share.
        device: kind of device, "cpu" or "cuda".
        threads: of torch on a CPU, as the driver has.
        folder: the current folder of the driver, where relative paths in labels start.
        plugins: plugin files, by their path.
        shipped: content of the plugins' modules by path, base64, for machines that lack them.
        versions: of the packages that results depend on, on the driver.
        plan: hash of every key of the plan; see `board.digest`.
        keys: key of each job, to say which one differs.
        precision: of the networks.
    """

    grid: dict[str, Any]
    cache: str
    seed: int
    device: str
    limit: int | None
    batch_size: int | None
    threads: int
    folder: str
    models_dir: str | None = None
    plugins: tuple[str, ...] = ()
    shipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    plan: str = ""
    keys: tuple[str, ...] = ()
    precision: str = "float32"

    def json(self) -> Any:
        """As dicts, lists and scalars."""
        return schema.plain(self)

    @classmethod
    def read(cls, raw: Any) -> WorkerSpec:
        """What `json` gave."""
        return schema.read(raw, cls, "worker's specification")


def spec_of(plan: Plan, *, limit: int | None, batch_size: int | None, models_dir: Path | None) -> WorkerSpec:
    """The specification of workers for `plan`, which was made with this limit and folder of models."""
    from rdp_bench.engine.tasks import numbered

    files = plugins.loaded_files()
    grid = plan.grid
    axes = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(grid.axes).items()}
    axes["ensembles"] = {name: list(members) for name, members in grid.axes.ensembles.items()}
    return WorkerSpec(
        grid={
            "name": grid.name,
            "title": grid.title,
            "profile": grid.profile,
            "axes": axes,
            "folders": {axis: str(folder.absolute()) for axis, folder in grid.folders.items()},
        },
        cache=str(plan.store.root if not isinstance(plan.store.root, Path) else plan.store.root.absolute()),
        seed=plan.seed,
        device=plan.device.partition(":")[0],
        limit=limit,
        batch_size=batch_size,
        threads=_threads() if plan.device == "cpu" else min(_threads(), BESIDE_A_GPU),
        folder=str(Path.cwd()),
        models_dir=str(models_dir.absolute()) if models_dir else None,
        plugins=tuple(map(str, files)),
        shipped=_shipped(path for covered in files.values() for path in covered),
        versions=_versions(),
        environment={name: value for name, value in os.environ.items() if name.startswith("RDP_BENCH_")},
        plan=digest(plan),
        keys=tuple(job.key for job in numbered(plan)),
        precision=plan.precision,
    )


def make_worker(spec: WorkerSpec) -> tuple[Worker, Board]:
    """The worker of `spec` in this process, and the notes of its run.

    Raises:
        RdpBenchError: this machine lacks something, or has another version; one line that names the host.
    """
    try:
        return _make(spec)
    except RdpBenchError as error:
        raise type(error)(f"host {socket.gethostname()}: {error}") from error
    except Exception as error:  # a plugin, or an installation of another kind
        raise RdpBenchError(f"host {socket.gethostname()}: {type(error).__name__}: {error}") from error


def _make(spec: WorkerSpec) -> tuple[Worker, Board]:
    _compare_versions(spec.versions)
    for name, value in spec.environment.items():
        os.environ.setdefault(name, value)
    if Path(spec.folder).is_dir():
        os.chdir(spec.folder)
    store = Store(locate(spec.cache))
    board = Board(store, spec.plan)
    if board.about() is None:
        raise StorageError(
            f"the cache {spec.cache} is not the one that the run began with (its notes are missing there); name a "
            "--cache that is the same folder on all machines"
        )
    try:
        board.keep(f"probe-{socket.gethostname()}.json", {})
    except StorageError as error:
        raise StorageError(f"the cache cannot be written to: {error}") from error
    plugins.load(_plugin_files(spec))
    plan = _plan(spec, store)
    if digest(plan) != spec.plan:
        raise RdpBenchError(_difference(spec, plan))
    import torch

    from rdp_bench.engine.worker import Worker

    if plan.device == "cpu":
        torch.set_num_threads(spec.threads)
    return Worker(plan, spec.batch_size), board


def _plan(spec: WorkerSpec, store: Store) -> Plan:
    table = spec.grid
    axes = schema.read(table["axes"], Axes, "grid of a worker")
    folders = {axis: Path(folder) for axis, folder in table["folders"].items()}
    grid = Grid(table["name"], table["title"], table["profile"], axes, folders)
    return make_plan(
        grid,
        store,
        seed=spec.seed,
        device=choose_device(spec.device),
        limit=spec.limit,
        models_dir=Path(spec.models_dir) if spec.models_dir else None,
        precision=spec.precision,
    )


def _compare_versions(wanted: Mapping[str, str]) -> None:
    here = _versions()
    differing = [
        f"{name} is {here.get(name, 'absent')} there and {wanted.get(name, 'absent')} on the driver"
        for name in sorted({*here, *wanted})
        if here.get(name) != wanted.get(name)
    ]
    if differing:
        raise RdpBenchError(f"other versions than the driver's: {', '.join(differing)}; install the same ones")


def _versions() -> dict[str, str]:
    """Public versions: builds of torch for CPU and for CUDA have one."""
    found = {name: text.partition("+")[0] for name, text in versions().items() if name not in FREE}
    return {**found, "rdp-bench": __version__}


def _difference(spec: WorkerSpec, plan: Plan) -> str:
    from rdp_bench.engine.tasks import numbered

    jobs = numbered(plan)
    for job, wanted in zip(jobs, spec.keys, strict=False):
        if job.key != wanted:
            return (
                f"'{job}' has another key there than on the driver: a plugin, a weight file, an image or an installed "
                "entry differs; make them equal and run the same command again"
            )
    return (
        f"the plan has {len(jobs)} jobs there and {len(spec.keys)} on the driver, or other models: a plugin or a "
        "weight file differs; make them equal and run the same command again"
    )


# --- plugins ---------------------------------------------------------------------------------------------------


def _shipped(files: Iterable[Path]) -> dict[str, str]:
    """The modules among the files of plugins, by absolute path."""
    return {
        str(path): base64.b64encode(path.read_bytes()).decode()
        for path in sorted(set(files))
        if path.suffix == ".py" and path.stat().st_size <= LARGEST_SHIPPED
    }


def _plugin_files(spec: WorkerSpec) -> tuple[Path, ...]:
    """The plugin files here: the driver's own where this machine has the same, else copies of what was sent."""
    import hashlib

    content = {Path(path): base64.b64decode(text) for path, text in spec.shipped.items()}
    if all(path.is_file() and hash_file(path) == hashlib.sha256(data).hexdigest() for path, data in content.items()):
        return tuple(map(Path, spec.plugins))
    for plugin in spec.plugins:
        if Path(plugin) not in content:
            raise UsageError(f"plugin {plugin} is missing there, and too large to be sent")
    root = Path(os.path.commonpath([path.parent for path in content]))
    folder = Path(tempfile.mkdtemp(prefix="rdp-bench-plugins-"))
    for path, data in content.items():
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    return tuple(folder / Path(plugin).relative_to(root) for plugin in spec.plugins)


def _threads() -> int:
    """Threads of torch in this process, as a run in it would use them."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    import torch as loaded

    return loaded.get_num_threads()
