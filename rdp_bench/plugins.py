"""Fills the registries: the built-in shelves, installed entry points, and files named by the user."""

import importlib
import importlib.util
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from rdp_bench.errors import UsageError
from rdp_bench.keys import hash_file
from rdp_bench.registry import registries

SHELVES = ("attacks", "defenses", "data")
_loaded: set[str] = set()


def load(files: tuple[Path, ...] = (), shelves: tuple[str, ...] = SHELVES) -> None:
    """Import every entry of the built-in `shelves`, every `rdp_bench` entry point, and each plugin file once.

    Raises:
        UsageError: a plugin cannot be imported; the message names it and the reason.
    """
    for shelf in shelves:
        package = importlib.import_module(f"rdp_bench.{shelf}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"rdp_bench.{shelf}.{module.name}")
    for point in entry_points(group="rdp_bench"):
        if point.value not in _loaded:
            version = point.dist.version if point.dist else ""
            with _Stamp(f"{point.name}-{version}"):
                _guarded(point.load, f"entry point {point.name} = {point.value}")
            _loaded.add(point.value)
    for file in files:
        path = file.resolve()
        if not path.is_file():
            raise UsageError(f"plugin file {file} is not there")
        if str(path) in _loaded:
            continue
        # The file's hash joins the version of its entries: an edited plugin never meets an old cache.
        with _Stamp(hash_file(path)[:16]):
            _guarded(lambda path=path: _import_file(path), f"plugin file {file}")
        _loaded.add(str(path))


class _Stamp:
    def __init__(self, stamp: str) -> None:
        self.stamp = stamp

    def __enter__(self) -> None:
        for registry in registries.values():
            registry.stamp = self.stamp

    def __exit__(self, *_: object) -> None:
        for registry in registries.values():
            registry.stamp = ""


def _guarded(work: object, what: str) -> None:
    try:
        work()  # type: ignore[operator]
    except (Exception, SystemExit) as error:  # a plugin may raise anything; the user gets one line
        raise UsageError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    name = f"rdp_bench_plugin_{path.stem}_{hash_file(path)[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module
