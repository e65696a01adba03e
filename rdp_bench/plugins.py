"""Loads the built-in packages, installed entry points and plugin files into the registries.

Entries of plugins get a stamp, which is part of their version: a hash of the plugin file, of all local modules that it
imports, and of the data files and environment variables that it reads during its import.
"""

import importlib
import importlib.util
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import Distribution, entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, ModuleType
from typing import Any

from rdp_bench import local_code
from rdp_bench.errors import UsageError
from rdp_bench.keys import hash_file, hash_many, known_hash
from rdp_bench.registry import registries
from rdp_bench.user_reads import Reads, first_local, keyed_by_plugins, watching, working_for

log = logging.getLogger(__name__)

BUILTIN_PACKAGES = ("attacks", "defenses", "data")

_loaded: dict[str, dict[Path, str]] = {}
"""Plugin file or entry point -> the local files in its stamp, with their hashes."""


def load(files: tuple[Path, ...] = (), packages: tuple[str, ...] = BUILTIN_PACKAGES) -> None:
    """Import the built-in `packages`, all entry points of the group `rdp_bench`, and each plugin file once.

    The folder of a plugin file is added to `sys.path` permanently, as Python does for a script.

    Args:
        files: plugin files.
        packages: subpackages of rdp_bench whose modules are imported.

    Raises:
        UsageError: a plugin cannot be imported, or was edited after this process imported it. The message names the
            plugin and the reason.
    """
    for package_name in packages:
        package = importlib.import_module(f"rdp_bench.{package_name}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"rdp_bench.{package_name}.{module.name}")
    for point in entry_points(group="rdp_bench"):
        what = f"entry point {point.name} = {point.value}"
        if not _known(point.value, what):
            with _stamping(what, point.value) as reads:
                point.load()
                reads.modules |= _of_package(point.module)
                reads.files |= _of_distribution(point.module, point.dist)
                reads.prefix = f"{point.name}-{point.dist.version if point.dist else ''}"
    for file in files:
        path = file.resolve()
        what = f"plugin file {file}"
        if not path.is_file():
            raise UsageError(f"{what} does not exist")
        if not _known(str(path), what):
            with _stamping(what, str(path)) as reads:
                reads.modules["plugin"] = path
                _import_file(path)
                _refuse_shadowed(path)


def loaded_files() -> dict[Path, tuple[Path, ...]]:
    """The plugin files that this process loaded, each with the local files that it consists of."""
    return {Path(name): tuple(files) for name, files in _loaded.items() if Path(name) in files}


def _known(name: str, what: str) -> bool:
    """Return whether a plugin is already loaded.

    Raises:
        UsageError: one of its files changed after it was loaded.
    """
    for path, content in _loaded.get(name, {}).items():
        if not path.is_file() or known_hash(path) != content:
            raise UsageError(f"{what}: {path} changed after this process loaded it; start a new process")
    return name in _loaded


@contextmanager
def _stamping(what: str, name: str) -> Iterator[Reads]:
    """Context of the import of a plugin.

    The entries that the plugin registers get its stamp. If the import fails, its entries and modules are removed.
    """
    _add_finder()
    before = set(sys.modules)
    kept = [(registry, dict(registry.entries), list(registry.label_schemes)) for registry in registries.values()]
    _importing.append(threading.get_ident())
    try:
        with _restoring(what), watching("import") as reads:
            yield reads
        modules = local_code.closure(reads.modules | _new_modules(before))
        earlier = before | _of_others
        of_program = {each for each, path in modules.items() if each in earlier and path.resolve() not in _executed}
        if of_program:
            _read_again(what, reads, sorted(of_program))
        _add_earlier_reads(reads, modules)
        local_code.refuse_stale(modules)
        paths = {path.resolve() for path in (*modules.values(), *reads.files)}
        hashes = _loaded[name] = {path: hash_file(path) for path in paths if path.is_file()}
        for path in paths & set(_executed):
            if _executed[path] != hashes.get(path):
                raise UsageError(f"{path} changed after this process imported it; start a new process")
        reads.leave_out_copies(what)
        version_suffix = _stamp(reads, modules, hashes)
    except (Exception, SystemExit) as error:  # plugins may raise any exception; the user gets a one-line error
        _loaded.pop(name, None)
        for registry, entries, label_schemes in kept:
            registry.entries.clear()
            registry.entries.update(entries)
            registry.label_schemes[:] = label_schemes
        for module in _new_modules(before):
            sys.modules.pop(module, None)
        raise UsageError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        _importing.remove(threading.get_ident())
    for registry, entries, label_schemes in kept:
        for each, entry in registry.entries.items():
            if each not in entries:
                registry.entries[each] = replace(entry, stamp=version_suffix)
                keyed_by_plugins.setdefault(each, set()).update(hashes)
        for scheme in registry.label_schemes:
            if scheme not in label_schemes:
                start = re.split("[:(]", scheme.example)[0]
                keyed_by_plugins.setdefault(start, set()).update(hashes)
        registry.label_schemes[:] = [
            each if each in label_schemes else replace(each, stamp=version_suffix) for each in registry.label_schemes
        ]


def _new_modules(before: set[str]) -> local_code.Modules:
    """The local modules that a plugin imported since `before`, without those that the program's other threads did."""
    return {name: path for name, path in local_code.new_local_modules(before).items() if name not in _of_others}


def _add_earlier_reads(reads: Reads, modules: local_code.Modules) -> None:
    """Add what the modules of a plugin read when another plugin imported them first."""
    for code, own in reads.by_code.items():
        known = _read_by.setdefault(code, Reads())
        known.files |= own.files
        known.environment |= own.environment
    for path in modules.values():
        if earlier := _read_by.get(path.resolve()):
            reads.files |= earlier.files
            reads.environment = earlier.environment | reads.environment


_AGAIN = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
from rdp_bench import user_reads
with user_reads.watching("import") as reads:
    for name in sys.argv[3:]:
        importlib.import_module(name)
with open(sys.argv[1], "w") as file:
    json.dump([[str(path) for path in reads.files], list(reads.environment)], file)
"""
"""Writes which files and variables the import of some modules reads."""


def _read_again(what: str, reads: Reads, modules: list[str]) -> None:
    """Add what modules read that the program imported before the plugin: another process imports them again.

    Raises:
        UsageError: one of the files was changed after this process began.
    """
    begun = time.time()
    with TemporaryDirectory(prefix="rdp-bench-") as folder:
        said = Path(folder, "reads.json")
        command = [sys.executable, "-c", _AGAIN, str(said), json.dumps(sys.path), *modules]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        answer = said.read_text() if said.is_file() else ""
    if not answer:
        log.warning(
            "%s uses %s, imported earlier by this program; what was read then is part of no cache key, because another "
            "process cannot import the same: %s", what, ", ".join(modules), found.stderr.strip().rpartition("\n")[2],
        )  # fmt: skip
        return
    files, variables = json.loads(answer)
    for path in map(Path, files):  # what the import itself writes is later than `begun`
        if _process_began() + 1 < path.stat().st_mtime < begun:
            raise UsageError(
                f"{path} was changed after this process began, which may have read it; start a new process"
            )
    before = _first_environment()
    if changed := [name for name in variables if before is not None and before.get(name) != os.environ.get(name)]:
        log.warning(
            "this program has changed the environment variable %s, which %s reads: change it before the import, or "
            "start a new process with it", changed[0], ", ".join(modules),
        )  # fmt: skip
    reads.files |= set(map(Path, files))
    reads.environment |= {name: os.environ.get(name) for name in variables}


def _process_began() -> float:
    """Seconds since 1970; where the system does not say, when this package was loaded."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return _LOADED


_LOADED = time.time()


def _first_environment() -> dict[str, str] | None:
    """The environment with which this process began; None where the system does not say."""
    try:
        parts = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    pairs = (os.fsdecode(part).partition("=") for part in parts if part)
    return {name: value for name, _, value in pairs}


@contextmanager
def _restoring(what: str) -> Iterator[None]:
    """Context of the import of a plugin: settings of torch that it changes would change other results."""
    before = _torch_settings().read() if "torch" in sys.modules else None
    try:
        yield
    finally:
        if "torch" in sys.modules:
            settings = _torch_settings()
            wanted = {name: value for name, value in (before or settings.USUAL).items() if name in settings.USUAL}
            if changed := " and ".join(settings.restore(wanted)):
                log.warning("importing %s changed %s, and so other results; that is undone", what, changed)


def _torch_settings() -> ModuleType:
    from rdp_bench import torch_settings

    return torch_settings


def _stamp(reads: Reads, modules: local_code.Modules, hashes: dict[Path, str]) -> str:
    """Return the version suffix of a plugin: a hash of its local modules, files and variables, without any path."""
    named = {path.resolve(): name for name, path in modules.items()}
    facts = [f"module {'plugin' if _is_plugin(name) else name} {hashes[path]}" for path, name in named.items()]
    facts += {f"file {local_code.name_of(path, named)} {hashes[path]}" for path in hashes if path not in named}
    facts += [f"environment {name} {value!r}" for name, value in reads.environment.items()]
    return "-".join(filter(None, (reads.prefix, hash_many(sorted(facts))[:16] if facts else "")))


def _is_plugin(module: str) -> bool:
    return module == "plugin" or module.startswith("rdp_bench_plugin_")


def _import_file(path: Path) -> ModuleType:
    name = f"rdp_bench_plugin_{path.stem}_{hash_file(path)[:8]}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses find their module by its name
    spec.loader.exec_module(module)
    return module


def _refuse_shadowed(path: Path) -> None:
    """Raise ImportError if a module beside the plugin is hidden by an imported module of the same name."""
    for name in local_code.imported(path):
        other = local_code.module_file(sys.modules.get(name))
        for file in (path.parent / f"{name}.py", path.parent / name / "__init__.py"):
            if other and file.is_file() and other.resolve() != file:
                raise ImportError(f"it imports {name} from {other}, which was imported earlier, not {file}; rename one")


def _of_package(module: str) -> local_code.Modules:
    """Return the module of an entry point if it is local."""
    file = local_code.module_file(sys.modules.get(module))
    return {module: file} if file else {}


def _of_distribution(module: str, distribution: Distribution | None) -> set[Path]:
    """Return all files of the package that contains an entry point's module, if it is local (an editable install)."""
    top = local_code.module_file(sys.modules.get(module.partition(".")[0]))
    if distribution is None or top is None or top.name != "__init__.py":
        return set()
    return {
        path
        for path in top.parent.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not any(part.startswith(".") for part in path.parts)
    }


# --- files read by an import --------------------------------------------------------------------------------

_importing: list[int] = []
"""Threads in which the import of a plugin is in progress."""

_of_others: set[str] = set()
"""Local modules whose import began in a thread that imports no plugin."""

_read_by: dict[Path, Reads] = {}
"""What local code read while plugins were imported, by its file."""

_executed: dict[Path, str] = {}
"""Local file -> hash of its bytes when `_Loader` executed it."""


def _imports_plugin() -> bool:
    """Whether this thread imports a plugin, or was started by one that is being imported."""
    return working_for() in _importing


class _Loader(SourceFileLoader):
    """Executes the bytes that it hashes. It ignores `.pyc` files, which can be outdated by up to a second."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source file.

        Raises:
            ImportError: an entry imports the module at run time, and the stamp of its plugin does not cover the file or
                has another hash of it.
        """
        path = Path(self.get_filename(fullname)).resolve()
        data = self.get_data(str(path))
        content = sha256(data).hexdigest()
        if not _imports_plugin():
            known = _known_files()
            if path not in known:
                raise ImportError(f"{path} is imported at run time and is part of no cache key; import it at the top")
            if known[path] != content:
                raise ImportError(f"{path} changed after the plugin was loaded; run again")
        _executed[path] = content
        return self.source_to_code(data, str(path))


def _known_files() -> dict[Path, str]:
    return {path: content for files in _loaded.values() for path, content in files.items()}


class _Finder(MetaPathFinder):
    """Selects `_Loader` for local modules that a plugin imports, during its own import and after it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or not spec.origin or type(spec.loader) is not SourceFileLoader:
            return None
        file = Path(spec.origin).resolve()
        if not local_code.is_local(file):
            return None
        if not (_imports_plugin() or first_local(sys._getframe(1)) in _known_files()):
            _of_others.add(name)
            return None
        _of_others.discard(name)
        spec.loader = _Loader(name, spec.origin)
        return spec


_finder_added = False


def _add_finder() -> None:
    global _finder_added
    if not _finder_added:
        sys.meta_path.insert(0, _Finder())
        _finder_added = True
