"""What a run of many images costs besides its computations: `python -m benchmarks.scale [IMAGES ...]`.

A store is filled with made-up predictions of every cell; then the commands run as a user runs them. Nothing is
decoded, crafted or evaluated, so what is measured is planning, the store, the numbers and the report. Cost should grow
linearly: the exponents at the end are those between the two largest sizes.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from rdp_bench.cache.artefact import Artefact
    from rdp_bench.cache.batches import Batch
    from rdp_bench.cache.store import Store

PLUGIN = Path(__file__).with_name("scale_entries.py")
SIZE, CLASSES = 8, 1000  # as in the plugin
SOURCES, TARGETS, DEFENSES = 5, 2, 13
SIZES = (5_000, 10_000, 20_000, 50_000)
ATTACKS = ("fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim")
BATCH = 64
MOST_SECONDS, MOST_MEGABYTES, MOST_FILES = 60.0, 2000.0, 20_000


class Cost(NamedTuple):
    """Of one command: processor seconds, and megabytes at its peak."""

    seconds: float
    megabytes: float


def grid_file(folder: Path, n: int, sources: int) -> Path:
    """A grid of `n` images and every attack, defense and target."""
    names = {
        "sources": [f"scale/s{i}" for i in range(sources)],
        "targets": [f"scale/t{i}" for i in range(TARGETS)],
        "attacks": list(ATTACKS),
        "defenses": ["none", *(f"scale/idle(number={i})" for i in range(DEFENSES))],
    }
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in names.items()]
    path = folder / f"scale-{n}-{sources}.toml"
    path.write_text("\n".join(["[axes]", f'dataset = "scale/pixels(n={n})"', "eps = [16]", "clean = true", *lines]))
    return path


def fill(store: "Store", grid: Path) -> None:
    """Store made-up results of every cell of a grid."""
    import numpy as np

    from rdp_bench import plugins
    from rdp_bench.cache.batches import grouped
    from rdp_bench.cache.stored import MERGED_BYTES
    from rdp_bench.engine.grid import load
    from rdp_bench.engine.plan import make_plan

    plugins.load((PLUGIN,))
    chosen, _ = load(str(grid), "embedded", {})
    plan = make_plan(chosen, store, seed=0, device="cpu", limit=None, models_dir=None)
    dice = np.random.default_rng(0)
    store.made_by = {"torch": "2.6", "device": "cpu", "threads": 2}
    for number, job in enumerate((*plan.jobs, *plan.clean_checks)):
        for record in job.records:
            artefact = plan.artefact(record)
            if not artefact.complete:
                artefact.write_record()
                for group in grouped(_batches(artefact, number, dice), MERGED_BYTES):
                    artefact.put_batches(group)


def _batches(artefact: "Artefact", number: int, dice: "np.random.Generator") -> "Iterator[Batch]":
    import numpy as np

    from rdp_bench.cache.batches import Batch, Column

    n = artefact.n
    label = (np.arange(n) % CLASSES).astype(np.int32)
    wrong = dice.random(n) < (5 + number % 60) / 100
    arrays = {
        "eval": {
            "label": label,
            "predicted": np.where(wrong, (label + 1) % CLASSES, label).astype(np.int32),
            "margin": dice.random(n, np.float32),
            "seconds": np.full(n, 0.02, np.float32),
        },
        "adv": {"delta": np.full((n, 3, SIZE, SIZE), 1 + number % 16, np.int8)},
        "sample": {"purified": np.full((n, 3, SIZE, SIZE), 99, np.uint8)},
    }[artefact.kind]
    made = {**artefact.store.made_by, "time": "2026-01-01T00:00:00+00:00"}
    for low in range(0, n, BATCH):
        high = min(low + BATCH, n)
        columns = {
            name: Column(array.dtype.name, array.shape[1:], True, array[low:high].tobytes())
            for name, array in arrays.items()
        }
        yield Batch(low, high, columns, made)


def cost(*command: str) -> Cost:
    """What `python -m COMMAND` costs in a process of its own; an error if it fails.

    A new process counts its parent's memory until it has a program of its own, so this process stays small.
    """
    process = os.posix_spawn(sys.executable, [sys.executable, "-m", *command], os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def measure(folder: Path, n: int, sources: int) -> tuple[int, int, dict[str, Cost]]:
    """Cells, files of the store, and the cost of each command."""
    grid, cache, out = grid_file(folder, n, sources), folder / f"cache-{n}-{sources}", folder / f"out-{n}-{sources}"
    with _quiet():
        cost("benchmarks.scale", "fill", str(cache), str(grid))
    cells = (sources * len(ATTACKS) + 1) * TARGETS * (1 + DEFENSES)
    files = sum(1 for _ in cache.rglob("*"))
    run = (
        "rdp_bench",
        "run",
        str(grid),
        "--plugin",
        str(PLUGIN),
        "--cache",
        str(cache),
        "--out",
        str(out),
        "--device",
        "cpu",
    )
    with _quiet():
        costs = {
            "dry run": cost(*run, "--dry-run"),
            "cached run": cost(*run),
            "report": cost("rdp_bench", "report", "--cache", str(cache), "--out", str(out)),
        }
    return cells, files, costs


class _quiet:  # noqa: N801 - a context manager
    """Sends what commands print to nowhere."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.kept = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, 1)
        os.close(self.kept)


def exponent(sizes: list[int], costs: list[float]) -> float:
    """With which power of the size the cost grows between the last two sizes."""
    return log(costs[-1] / costs[-2]) / log(sizes[-1] / sizes[-2])


def main() -> None:
    """Print a line a command and size, and the exponents."""
    if sys.argv[1:2] == ["fill"]:
        from rdp_bench.cache.store import Store

        fill(Store(Path(sys.argv[2])), Path(sys.argv[3]))
        return
    sizes = [int(text) for text in sys.argv[1:]] or list(SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        largest = sizes[-1]
        rounds = {"images": [(n, SOURCES) for n in sizes]}
        rounds["cells"] = [(sizes[len(sizes) // 2], sources) for sources in (1, 2, SOURCES)]
        print(f"{'images':>8} {'cells':>6} {'files':>7}  {'command':12} {'CPU s':>7} {'peak MB':>8}")
        for axis, settings in rounds.items():
            found: dict[str, list[float]] = {}
            counts = []
            for n, sources in settings:
                cells, files, costs = measure(folder, n, sources)
                counts.append(n if axis == "images" else cells)
                for name, each in costs.items():
                    found.setdefault(name, []).append(each.seconds)
                    late = n == largest and (each.seconds > MOST_SECONDS or each.megabytes > MOST_MEGABYTES)
                    note = "  MISSED" if late or files > MOST_FILES else ""
                    print(
                        f"{n:8d} {cells:6d} {files:7d}  {name:12} {each.seconds:7.1f} {each.megabytes:8.0f}{note}",
                        flush=True,
                    )
            for name, seconds in found.items():
                if len(seconds) > 1:
                    print(f"{name}: grows with {axis} to the power of {exponent(counts, seconds):.2f} (at most 1.1)")


if __name__ == "__main__":
    main()
