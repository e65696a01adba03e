"""Plans of plugins written on the spot, and what a new process would know."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rdp_bench import local_code, plugins, user_reads
from rdp_bench.cache.store import Store
from rdp_bench.defenses import _learned
from rdp_bench.engine.grid import Axes, Grid
from rdp_bench.engine.plan import Plan, make_plan
from rdp_bench.registry import registries
from tests.helpers.commands import PLUGIN

plugins.load()  # what is built in stays


@contextmanager
def new_process() -> Iterator[None]:
    """Around what a process of its own would do; the entries, modules and paths that it adds are then forgotten."""
    kept = [(each, dict(each.entries), list(each.label_schemes)) for each in registries.values()]
    modules, path = dict(sys.modules), list(sys.path)
    states: list[Any] = [getattr(plugins, name, None) for name in ("_loaded", "_executed", "_read_by")]
    states += [getattr(user_reads, name, None) for name in ("unkeyed", "_versions")]
    copies = [state.copy() if state is not None else None for state in states]
    try:
        yield
    finally:
        for registry, entries, label_schemes in kept:
            registry.entries.clear()
            registry.entries.update(entries)
            registry.label_schemes[:] = label_schemes
        for name in set(sys.modules) - set(modules):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file and not name.startswith("rdp_bench.") and local_code.is_local(file):
                del sys.modules[name]
        sys.path[:] = path
        for state, copy in zip(states, copies, strict=True):
            if state is not None and copy is not None:
                state.clear()
                state.update(copy)
        _learned._networks().clear()


def plan(folder: Path, *files: Path, models_dir: Path | None = None, limit: int = 4, **axes: Any) -> Plan:
    """A plan on the images of tests/plugin/tiny.py with plugin `files` loaded; axes as tuples of labels."""
    plugins.load((PLUGIN, *files))
    usual = {
        "dataset": "tiny/noise", "sources": ("tiny/one",), "targets": ("tiny/two",), "attacks": ("fgsm",),
        "defenses": ("none",), "eps": (8.0,),
    }  # fmt: skip
    made = Grid("toy", "Toy", "embedded", Axes(**(usual | axes)))
    return make_plan(made, Store(folder / "cache"), seed=0, device="cpu", limit=limit, models_dir=models_dir)


def keys(made: Plan) -> dict[str, tuple[str | None, str]]:
    """Adversarial and evaluation key of every attacked cell, by source, attack, defense and target."""
    found = {}
    for cell in made.grid.cells():
        if cell.attack != "clean":
            name = f"{cell.source} {cell.attack} {cell.defense} {cell.target}"
            found[name] = (made.cells[cell].set_key, made.cells[cell].eval.key)
    return found
