"""What code outside this package reads while a plugin is imported, an entry is made, or an entry works.

Files that local code opens and environment variables that it asks for, itself or through functions of a library. Files
that compiled code opens are not seen, except those that `safetensors` reads through its Python functions.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from rdp_bench import local_code
from rdp_bench.keys import hash_file, hash_many

watched: list["Reads"] = []
"""Blocks of `watching` that are open; the last one notes what is read."""

unkeyed: dict[str, None] = {}
"""Remarks on files that entries opened while they worked: no cache key holds their content."""

keyed: dict[str, set[Path]] = {}
"""Files whose content is in cache keys: of an entry by its label, of all entries of a plugin by ""."""


@dataclass
class Reads:
    """What was read within one block."""

    modules: local_code.Modules = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    environment: dict[str, str | None] = field(default_factory=dict)
    prefix: str = ""

    def digest(self, label: str) -> str:
        """Of the files' content and the variables' values, for the keys of `label`; empty where nothing was read."""
        keyed.setdefault(label, set()).update(self.files)
        facts = [f"file {hash_file(path)}" for path in self.files if path.is_file()]
        if not set(os.environ) <= set(self.environment):  # else it was copied, and says nothing
            facts += [f"environment {name} {value!r}" for name, value in self.environment.items()]
        return hash_many(sorted(facts))[:16] if facts else ""


@contextmanager
def watching() -> Iterator[Reads]:
    """Notes what local code reads until the block ends."""
    global _hooked
    if not _hooked:  # an audit hook cannot be taken away again
        sys.addaudithook(_on_event)
        _hooked = True
    reads = Reads()
    watched.append(reads)
    kind: Any = type(os.environ)
    plain = kind.__getitem__

    def asked(self: Any, key: str) -> str:
        if isinstance(key, str) and by_local_code(sys._getframe(1)):
            try:
                value: str | None = plain(self, key)
            except KeyError:
                value = None
            watched[-1].environment[key] = value
        found: str = plain(self, key)
        return found

    kind.__getitem__ = asked
    opened = _noting_safetensors()
    try:
        yield reads
    finally:
        for module, function in opened:
            module.safe_open = function
        kind.__getitem__ = plain
        watched.remove(reads)


@contextmanager
def noting_unkeyed(what: str) -> Iterator[None]:
    """Around a call of an entry's code; a file that it opens gets a remark that begins with `what`."""
    with watching() as reads:
        yield
    known = {path for label, paths in keyed.items() if label in what for path in paths}  # `what` may name a chain
    for path in sorted(reads.files - known):
        if path.is_file():  # not a temporary file of its own
            unkeyed[
                f"{what} reads {path} while it works, and no cache key holds that file's content: read it when the "
                "entry is made, or use --fresh whenever the file changes"
            ] = None


_hooked = False


def _noting_safetensors() -> list[tuple[Any, Callable[..., Any]]]:
    """Let the modules of safetensors say which file they open; returns what to put back."""
    names = ("safetensors", "safetensors.torch", "safetensors.numpy")
    found = [module for name in names if hasattr(module := sys.modules.get(name), "safe_open")]
    before: list[tuple[Any, Callable[..., Any]]] = [(module, module.safe_open) for module in found]  # type: ignore[union-attr]
    for module, function in before:

        def safe_open(filename: Any, *rest: Any, _open: Callable[..., Any] = function, **named: Any) -> Any:
            _note(filename, sys._getframe(1))
            return _open(filename, *rest, **named)

        module.safe_open = safe_open
    return before


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not watched:
        return
    file, mode, flags = arguments
    if isinstance(mode, str) and not mode.startswith("r"):
        return
    if mode is None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    _note(file, sys._getframe(1))


def _note(file: Any, frame: FrameType) -> None:
    # A module of safetensors that is imported within a block keeps what that block put in the place of `safe_open`.
    if not watched or not isinstance(file, str | bytes | os.PathLike):
        return
    path = Path(os.fsdecode(file))
    data = path.suffix not in (".py", ".pyc") and path.is_file() and local_code.is_local(path)
    if data and by_local_code(frame):
        watched[-1].files.add(path.resolve())


def by_local_code(frame: FrameType | None) -> bool:
    """Whether local code asks, itself or through functions of a library, and not a library that is being imported."""
    return first_local(frame) is not None


def first_local(frame: FrameType | None) -> Path | None:
    """The file of the innermost local code, up to a library that is being imported, or to who calls a plugin."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith("<"):
            path, local = _place(file)
            if local:
                return path
            if frame.f_code.co_name == "<module>" or (path, frame.f_code.co_name) in _CALLERS:
                return None
        frame = frame.f_back
    return None


@cache
def _place(file: str) -> tuple[Path, bool]:
    return Path(file).resolve(), local_code.is_local(file)


_HERE = Path(__file__).resolve().parent
_CALLERS = {
    (_HERE / "plugins.py", "load"),
    (_HERE / "registry.py", "resolve"),
    (_HERE / "models/zoo.py", "_load"),
    (_HERE / "models/entry_calls.py", "__call__"),
    (_HERE / "engine/worker.py", "make"),
}
"""Where this package calls entries: who called this package, such as a user's script, has not read what they read."""
