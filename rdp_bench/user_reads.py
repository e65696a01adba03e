"""What code outside this package reads while a plugin is imported, an entry is made, or an entry works.

Files that local code opens and environment variables that it asks for, itself or through functions of a library. Files
that compiled code opens are not seen, except those that `safetensors` reads through its Python functions.
"""

import importlib.util
import linecache
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from rdp_bench import local_code
from rdp_bench.keys import hash_file, hash_many

log = logging.getLogger(__name__)

watched: list["Reads"] = []
"""Blocks of `watching` that are open; the last one of a thread notes what it reads."""

unkeyed: dict[str, str] = {}
"""Remarks on files that entries opened while they worked, with the entry: no cache key holds their content."""

at_work: set[str] = set()
"""Entries that have worked since this was cleared; one that opened its files earlier still depends on them."""

keyed: dict[str, set[Path]] = {}
"""Files whose content is in cache keys, by the label of the entry that read them when it was made."""

keyed_by_plugins: dict[str, set[Path]] = {}
"""Files whose content is in the keys of a plugin's entries, by the entry's name or the start of its labels."""

_versions: dict[str, str] = {}
"""Of the entries that have worked."""


_started: WeakKeyDictionary[threading.Thread, int] = WeakKeyDictionary()
"""Threads that local code started within a block, with the thread that opened the block."""

Block = Literal["import", "make", "work"]
"""What local code does in a block: a plugin is imported, an entry is made, or an entry works."""

_memoised: set[Any] = set()
"""Functions with a memory (`functools.cache`) that read files or variables."""


@dataclass
class Reads:
    """What was read within one block."""

    modules: local_code.Modules = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    environment: dict[str, str | None] = field(default_factory=dict)
    prefix: str = ""
    by_code: dict[Path, "Reads"] = field(default_factory=dict)
    """What was read by each file of local code itself."""
    within: "Block" = "make"
    thread: int = field(default_factory=threading.get_ident)

    def add(self, reader: Path | None, file: Path) -> None:
        """Note that a file was opened by the code in `reader`, or by a thread that it started."""
        self.files.add(file)
        if reader:
            self.by_code.setdefault(reader, Reads()).files.add(file)

    def ask(self, reader: Path, variable: str, value: str | None) -> None:
        """Note that the code in `reader` asked for an environment variable."""
        self.environment[variable] = value
        self.by_code.setdefault(reader, Reads()).environment[variable] = value

    def leave_out_copies(self, what: str) -> None:
        """Forget the variables if all were read, as for a copy; a warning says so of `what`."""
        if self.environment and set(os.environ) <= set(self.environment):
            log.warning("%s copies all environment variables, so none of them is part of a cache key", what)
            self.environment.clear()

    def digest(self, label: str) -> str:
        """Of the files' content and the variables' values, for the keys of `label`; empty where nothing was read."""
        keyed.setdefault(label, set()).update(self.files)
        facts = [
            f"file {local_code.name_of(path, self.by_code)} {hash_file(path)}" for path in self.files if path.is_file()
        ]
        self.leave_out_copies(label)
        facts += [f"environment {name} {value!r}" for name, value in self.environment.items()]
        return hash_many(sorted(facts))[:16] if facts else ""


@contextmanager
def watching(within: Block = "make") -> Iterator[Reads]:
    """Notes what local code reads until the block ends.

    Among the files are those of Python code that no import statement names. What a function remembers of files is
    forgotten before an entry is made, so that every entry that uses it reads them.
    """
    global _hooked
    if within == "make":
        for function in _memoised:
            function.cache_clear()
    if not _hooked:  # an audit hook cannot be taken away again
        sys.addaudithook(_on_event)
        _hooked = True
    reads = Reads(within=within)
    with _lock:
        if not watched:
            _notice()
        watched.append(reads)
    if within == "import":  # before the plugin takes a function from it
        with suppress(ImportError):
            importlib.import_module("safetensors")
    opened = _noting_safetensors()
    try:
        yield reads
    finally:
        for module, function in opened:
            module.safe_open = function
        with _lock:
            watched.remove(reads)
            if not watched:
                for owner, name, function in _replaced:
                    setattr(owner, name, function)
                _replaced.clear()


def forget_others(versions: Mapping[str, str]) -> None:
    """Forget remarks on entries that have the names of these, and other code.

    Args:
        versions: version by what remarks call the entry. Of these entries remarks are kept: what one has read in an
            earlier run of this process it may still hold.
    """
    for what, version in versions.items():
        if _versions.setdefault(what, version) != version:
            _versions[what] = version
            for remark in [remark for remark, entry in unkeyed.items() if entry == what]:
                del unkeyed[remark]


@contextmanager
def noting_unkeyed(what: str) -> Iterator[None]:
    """Around a call of an entry's code; a file that it opens gets a remark that begins with `what`."""
    at_work.add(what)
    with watching("work") as reads:
        yield
    ends = ((keyed, r"(?=[\s'),>|])"), (keyed_by_plugins, r"(?=[\s'),>|(:])"))
    known = {
        path
        for by_label, end in ends
        for label, paths in by_label.items()
        if re.search(rf"(?<=[\s'(,>=]){re.escape(label)}{end}", what)  # it may name a chain
        for path in paths
    }
    for path in sorted(reads.files - known):
        if path.is_file():  # not a temporary file of its own
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            unkeyed[
                f"{what} reads {shown} while it works, and no cache key holds that file's content: read it when the "
                "entry is made, or use --fresh whenever the file changes"
            ] = what


_hooked = False
_lock = threading.Lock()
_replaced: list[tuple[type, str, Callable[..., Any]]] = []
"""Methods that `_notice` replaced, to be put back when no block is open."""


def _notice() -> None:
    """Let the environment say who asks for a variable, and threads who starts them."""
    environment: Any = type(os.environ)
    get, start = environment.__getitem__, threading.Thread.start

    def asked(self: Any, key: str) -> str:
        if isinstance(key, str) and (block := _block()) and (reader := first_local(frame := sys._getframe(1))):
            try:
                value: str | None = get(self, key)
            except KeyError:
                value = None
            block.ask(reader, key, value)
            _remember(frame)
        found: str = get(self, key)
        return found

    def started(self: threading.Thread) -> None:
        if (block := _block()) and first_local(sys._getframe(1)):
            _started[self] = block.thread
        start(self)

    for owner, name, function in ((environment, "__getitem__", asked), (threading.Thread, "start", started)):
        _replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)


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


def _block() -> Reads | None:
    """The open block that notes what this thread reads; None if there is none.

    A thread that the user's own program started beside the block reads for nobody's key.
    """
    if not watched:
        return None
    owner = working_for()
    return next((reads for reads in reversed(watched) if reads.thread == owner), None)


def working_for() -> int:
    """The thread that opened the block in which local code started this one; else this one."""
    return _started.get(threading.current_thread(), threading.get_ident())


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
    reads = _block()
    if reads is None or not isinstance(file, str | bytes | os.PathLike):
        return
    path = Path(os.fsdecode(file))
    if path.suffix in (".py", ".pyc"):
        if _shows_source(frame) or (reads.within != "import" and _imports(frame)):
            return
        with suppress(ValueError):  # compiled, but not in __pycache__
            path = Path(importlib.util.source_from_cache(str(path))) if path.suffix == ".pyc" else path
    reader = first_local(frame)
    started = threading.get_ident() != reads.thread  # by local code, which the frames of a thread do not show
    if (reader or started) and path.is_file() and local_code.is_local(path):
        reads.add(reader, path.resolve())
        _remember(frame)


def _shows_source(frame: FrameType | None) -> bool:
    """Whether a file is opened to show a line of it, in a warning or a traceback."""
    for _ in range(4):
        if frame is None:
            return False
        if frame.f_code.co_filename == linecache.__file__:
            return True
        frame = frame.f_back
    return False


def _imports(frame: FrameType | None) -> bool:
    """Whether a file is opened for an import statement, which the hash of the code follows."""
    while frame is not None and not _place(frame.f_code.co_filename)[1]:
        if frame.f_code.co_name == "_find_and_load" and frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _remember(frame: FrameType | None) -> None:
    """Note the functions with a memory that are at work in this frame and above."""
    while frame is not None:
        code = frame.f_code
        if _place(code.co_filename)[1] and (found := _memory_of(frame, code)):
            _memoised.add(found)
        frame = frame.f_back


def _memory_of(frame: FrameType, code: CodeType) -> Any:
    """The object of `functools` that calls a function and remembers what it returned; None if there is none."""
    first, *rest = code.co_qualname.split(".")
    found = frame.f_globals.get(first)
    for name in rest:
        found = vars(found).get(name) if isinstance(found, type) else None
    found = getattr(found, "__func__", found)  # of a static or a class method
    mine = getattr(getattr(found, "__wrapped__", None), "__code__", None) is code
    return found if mine and hasattr(found, "cache_clear") else None


def first_local(frame: FrameType | None) -> Path | None:
    """The file of the innermost local code that asks, itself or through functions of a library; None if none does.

    Frames count up to a library that is being imported, or to who calls a plugin.
    """
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
    return Path(file).resolve(), not file.startswith("<") and local_code.is_local(file)


_HERE = Path(__file__).resolve().parent
_CALLERS = {
    (_HERE / "plugins.py", "load"),
    (_HERE / "registry.py", "resolve"),
    (_HERE / "models/zoo.py", "_load"),
    (_HERE / "models/entry_calls.py", "__call__"),
    (_HERE / "engine/worker.py", "make"),
    (_HERE / "engine/worker.py", "predict"),
}
"""Where this package calls entries: who called this package, such as a user's script, has not read what they read."""
