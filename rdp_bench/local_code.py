"""Hashes of code outside this package, so that edited plugins, scripts and notebooks get new cache keys.

There are two methods:

* Plugins and editable packages: their files are hashed. `closure` follows the import statements of each file, including
  those inside functions, to other local modules.
* Objects of a script or notebook and of the modules that it imports: `digest_of` includes the code, defaults and
  closures of a function or class, and the values of the globals that it uses, whatever they were read from. In modules
  with a file, the code is that file, with its closure; in `__main__` and without a file, it is the code objects,
  because the source text may have been edited after it was compiled.

A file is local if it is neither in the standard library, nor in site-packages, nor in this package.
"""

import ast
import dataclasses
import dis
import functools
import json
import logging
import re
import sys
import sysconfig
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import resolve_name
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from rdp_bench.errors import UsageError
from rdp_bench.keys import file_state, hash_file, hash_many

log = logging.getLogger(__name__)

_OWN = Path(__file__).resolve().parent
_LIBRARIES = tuple(
    {str(Path(path).resolve()) for name, path in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib")}
    | {
        str(_OWN),
        *(str((_OWN / package_name).resolve()) for package_name in ("attacks", "defenses", "data", "reports")),
    }
    | {"/proc", "/sys", "/dev", "/etc"}
)

_MAIN = ("__main__", "__mp_main__")

Modules = dict[str, Path]
"""Files of local modules by module name."""


def is_local(file: str | Path) -> bool:
    """Return whether a file is in no library and not in this package."""
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _LIBRARIES)


def module_file(module: ModuleType | None) -> Path | None:
    """Return the file of a loaded module if it is local; of one in an archive, the archive."""
    file = getattr(module, "__file__", None)
    found = next((path for path in (Path(file), *Path(file).parents) if path.is_file()), None) if file else None
    return found if found is not None and is_local(found) else None


# --- files -----------------------------------------------------------------------------------------------


def closure(modules: Modules) -> Modules:
    """Return `modules` and all local modules that they import, directly or indirectly, anywhere in their files.

    Raises:
        UsageError: a file is not valid Python.
    """
    found: Modules = {}
    todo = dict(modules)
    while todo:
        name, path = todo.popitem()
        if name in found:
            continue
        found[name] = path
        if path.suffix == ".py":
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for other in _imports(path, package):
                for each, file in _files_of(other):
                    todo.setdefault(each, file)
    return found


def name_of(file: Path, code: Iterable[Path]) -> str:
    """Return how a data file is called in hashes, wherever the project lies.

    Args:
        file: the data file, resolved.
        code: the files of code that use it, resolved. In the folder of one of them, the name has its subfolders.
    """
    around = [path.parent for path in code if file.is_relative_to(path.parent)]
    return file.relative_to(min(around, key=lambda folder: len(folder.parts))).as_posix() if around else file.name


def digest_files(modules: Modules) -> str:
    """Return one hash of the names and contents of modules; paths do not matter."""
    return hash_many(f"{name} {hash_file(path)}" for name, path in sorted(modules.items()))


def imported(path: Path) -> set[str]:
    """Return the top-level names of all imports in a file."""
    return {name.partition(".")[0] for name in _imports(path, "")}


def _imports(path: Path, package: str) -> Iterator[str]:
    """Yield the full names of all imports in a file. A name from `from a import b` may be no module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path}: not valid Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the local files of module `name` and of its parent packages, without importing them."""
    top, *rest = name.split(".")
    if not top or top in sys.stdlib_module_names or top == "rdp_bench":
        return
    spec = getattr(sys.modules.get(top), "__spec__", None) or PathFinder.find_spec(top)
    if spec is None and (loaded := module_file(sys.modules.get(top))):
        yield top, loaded
        return
    if spec is None:
        return
    at, folders = top, list(spec.submodule_search_locations or ())
    if spec.origin and Path(spec.origin).is_file():
        if not is_local(spec.origin):
            return
        yield top, Path(spec.origin)
    for part in rest:
        at = f"{at}.{part}"
        places = [p for folder in folders for p in (Path(folder, part, "__init__.py"), Path(folder, f"{part}.py"))]
        file = module_file(sys.modules.get(at)) or next((p for p in places if p.is_file() and is_local(p)), None)
        if file:
            yield at, file
        folders = [str(Path(folder, part)) for folder in folders if Path(folder, part).is_dir()]
        if not folders:
            return


def refuse_stale(modules: Modules) -> None:
    """Compare the functions of loaded modules with the files of the modules.

    Raises:
        UsageError: they differ: the file was edited after it was imported.
    """
    for name, path in modules.items():
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is None or spec is None or type(spec.loader) is not SourceFileLoader:
            continue  # not loaded yet; or its loader rewrites code, or is that of `plugins`, which compares hashes
        codes = set(_codes(compile(path.read_bytes(), str(path), "exec", dont_inherit=True)))
        for value in _functions(module):
            if value.__code__ in codes:
                continue
            if digest_of(value.__code__) not in map(digest_of, codes):  # which NaN in constants does not disturb
                raise UsageError(
                    f"{path} was edited after this process imported it ({value.__qualname__} differs); "
                    "start a new process"
                )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module's file defines, by attributes of the module and its classes."""
    for value in list(vars(module).values()):
        for member in list(vars(value).values()) if isinstance(value, type) else [value]:
            function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
            function = function.fget if isinstance(function, property) else function
            if not isinstance(function, FunctionType) or function.__module__ != module.__name__:
                continue  # imported, or no function
            if function.__code__.co_filename == module.__file__:
                yield function


# --- objects ---------------------------------------------------------------------------------------------


def stamp_of(maker: Any) -> str:
    """Return the version suffix of an entry that was not registered by a plugin; empty for entries of this package.

    Raises:
        UsageError: its module was edited after it was imported.
    """
    name = str(getattr(maker, "__module__", ""))
    if name.partition(".")[0] == "rdp_bench":
        return ""
    return library_of(name) or digest_of(maker)[:16]


def library_of(name: str) -> str:
    """Return the library that a loaded module is from, with its version; empty where its code is local."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return _distribution(name) if name not in _MAIN and file and Path(file).is_file() and not is_local(file) else ""


def _digest_of_module(name: str, file: Path) -> str:
    """Return the hash of a loaded module and its imports, cached until one of the files changes."""
    states, digest = _digests.get(name, ({}, ""))
    if not states or any(not path.is_file() or file_state(path) != state for path, state in states.items()):
        modules = closure({name: file})
        states = {path: file_state(path) for path in modules.values()}
        refuse_stale(modules)
        digest = digest_files(modules)
        _digests[name] = states, digest
    return digest


_digests: dict[str, tuple[dict[Path, tuple[int, ...]], str]] = {}


def _distribution(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes longer to import than most of this package

    top = name.partition(".")[0]
    try:
        return f"{top}-{version(top)}"
    except PackageNotFoundError:
        return f"{top}-{hash_file(Path(str(sys.modules[name].__file__)))[:8]}"


def digest_of(value: Any) -> str:
    """Return a hash of a function, class or plain value: code, defaults, closures, and the globals that it uses.

    For an object of a library whose content cannot be read, only the class is hashed, and a warning is logged.
    """
    return sha256(json.dumps(_Walk().all_of(value), sort_keys=True).encode()).hexdigest()


class _Walk:
    """A traversal of objects that describes each object once.

    An object within another is described by its number; so a chain of any length needs no recursion.
    """

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.ahead: deque[Any] = deque()
        self.modules: set[tuple[int, frozenset[str]]] = set()
        self.homes: dict[str | None, Any] = {}

    def all_of(self, value: Any) -> list[Any]:
        """Return descriptions of `value` and of every object that it is made of."""
        found = [self.form(value)]
        while self.ahead:
            found.append(self.description(self.ahead.popleft()))
        return found

    def form(self, value: Any) -> Any:
        """Return a plain value in JSON's types, and the number of any other."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind in (float, complex, bytes):
            return [kind.__name__, repr(value)]
        if kind is tuple:
            return ["tuple", *map(self.form, value)]
        if id(value) not in self.seen:
            self.seen[id(value)] = (len(self.seen), value)  # the reference prevents that its id is reused
            self.ahead.append(value)
        return ["object", self.seen[id(value)][0]]

    def description(self, value: Any) -> Any:
        """Return what identifies an object, in JSON's types."""
        if isinstance(value, CodeType):
            return self.code(value)
        if isinstance(value, FunctionType):
            return self.function(value)
        if isinstance(value, MethodType):
            return ["method", self.form(value.__func__), self.form(value.__self__)]
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self.form(value.__func__)]
        if isinstance(value, property):
            return ["property", *map(self.form, (value.fget, value.fset, value.fdel))]
        if isinstance(value, functools.cached_property):
            return ["property", self.form(value.func)]
        if isinstance(value, functools.partial):
            return ["partial", self.form(value.func), self.form(value.args), self.form(value.keywords)]
        if isinstance(value, ModuleType):
            return self.module(value)
        if isinstance(value, type):
            return self.kind(value)
        if type(value).__module__ == "functools" and hasattr(value, "__wrapped__"):  # of `cache`
            return ["wrapped", self.form(value.__wrapped__)]
        if (content := self.content(value)) is not None:
            kind = type(value)
            more = [self.form(vars(value))] if hasattr(value, "__dict__") else []
            return content if kind.__module__ == "builtins" else [content, self.form(kind), *more]
        return self.thing(value)

    def content(self, value: Any) -> Any:
        """Describe what a builtin value or container, or one of a class derived from it, holds; None for others."""
        if isinstance(value, int):
            return ["int", int(value)]
        if isinstance(value, str):
            return ["str", str.__str__(value)]
        if isinstance(value, float | complex | bytes | bytearray) and not hasattr(type(value), "dtype"):
            return [type(value).__name__, repr(value)]
        if isinstance(value, list | tuple | deque):
            return [type(value).__name__, *map(self.form, value)]
        if isinstance(value, set | frozenset):
            return ["set", *map(self.form, sorted(value, key=_named))]
        if isinstance(value, dict):
            return ["dict", *([self.form(key), self.form(item)] for key, item in value.items())]
        return None

    def code(self, code: CodeType) -> Any:
        names = [list(getattr(code, name)) for name in ("co_names", "co_varnames", "co_freevars", "co_cellvars")]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        return ["code", code.co_code.hex(), *names, counts, [self.form(const) for const in code.co_consts]]

    def function(self, function: FunctionType) -> Any:
        home = self.home(function.__module__)
        if home is None:
            return self.foreign(function)
        codes = list(_codes(function.__code__))
        instructions = [each for code in codes for each in dis.get_instructions(code)]
        named = {str(each.argval) for each in instructions if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        imported = sorted(_imported(codes, str(function.__globals__.get("__package__") or "")))
        attributes = {name for code in codes for name in code.co_names}
        own = function.__globals__
        return [
            "function",
            home or self.form(function.__code__),
            function.__qualname__ if home else "",
            self.form(function.__defaults__),
            self.form(function.__kwdefaults__),
            [self.cell(cell) for cell in function.__closure__ or ()],
            [[name, self.used(own[name], attributes)] for name in sorted(named & set(own))],
            [digest_files(found) for name in imported if (found := closure(dict(_files_of(name))))],
            [self.used(loaded, attributes) for name in imported if module_file(loaded := sys.modules.get(name))],
        ]

    def home(self, module: str | None) -> Any:
        """How the code of a module's objects is described: "" by itself, else by its files; None: it is a library's."""
        if module not in self.homes:
            found = sys.modules.get(str(module))
            files = self.module(found) if found is not None and module_file(found) else None
            self.homes[module] = "" if _mine(module) else files
        return self.homes[module]

    def used(self, value: Any, attributes: set[str]) -> Any:
        """Describe a global of a function that names these attributes: of a local module, what it holds under them."""
        if not isinstance(value, ModuleType) or module_file(value) is None:
            return self.form(value)
        asked = frozenset(attributes & set(vars(value)))
        if (id(value), asked) in self.modules:
            return self.module(value)
        self.modules.add((id(value), asked))
        return [self.module(value), [[name, self.used(vars(value)[name], attributes)] for name in sorted(asked)]]

    def cell(self, cell: Any) -> Any:
        try:
            return self.form(cell.cell_contents)
        except ValueError:  # empty
            return "empty"

    def kind(self, kind: type) -> Any:
        home = self.home(kind.__module__)
        if home is None:
            return self.foreign(kind)
        members = []
        for name, value in sorted(vars(kind).items()):
            if name not in _OF_EVERY_CLASS and not _made_by_dataclass(kind, name, value):
                members.append([name, self.form(value)])
        if dataclasses.is_dataclass(kind):
            members += [
                [each.name, self.default(each.default), self.default(each.default_factory)]
                for each in dataclasses.fields(kind)
            ]
        bases = [self.form(base) for base in (*kind.__bases__, type(kind))]
        return ["class", home, kind.__qualname__, bases, members]

    def default(self, value: Any) -> Any:
        return "missing" if value is dataclasses.MISSING else self.form(value)

    def module(self, module: ModuleType) -> Any:
        file = module_file(module)
        if file is None:
            return ["module", module.__name__]
        return ["module", _digest_of_module(module.__name__, file)]

    def foreign(self, value: Any) -> Any:
        """Describe an object of a library by its name, and one of a local module by the hash of the module's files."""
        name = str(getattr(value, "__module__", ""))
        module = sys.modules.get(name)
        if module is not None and module_file(module):
            return [self.module(module), getattr(value, "__qualname__", "")]
        return ["library", name, getattr(value, "__qualname__", type(value).__qualname__)]

    def network(self, network: Any) -> Any:
        """Describe a torch module: its tensors, and the class, attributes, buffers and hooks of every submodule."""
        inner = []
        for name, module in network.named_modules():
            own = {
                key: value
                for key, value in vars(module).items()
                if key not in ("_parameters", "_modules") and not (key.startswith("_") and not value)
            }
            own |= {
                key: list(value.values()) for key, value in own.items() if "_hooks" in key and type(value) in _DICTS
            }
            inner.append([name, self.form(type(module)), self.form(own)])
        return ["network", str(network), inner, self.form(dict(network.state_dict()))]

    def thing(self, value: Any) -> Any:
        """Describe an array or network by its values, and an instance of the user's classes by its attributes."""
        kind = type(value)
        if isinstance(value, Path):
            return ["path", str(value)]
        if kind.__module__ in _SHARED:  # its state says nothing about who uses it
            return self.foreign(kind)
        if hasattr(kind, "inlined_graph"):
            state = dict(value.state_dict()) if hasattr(kind, "state_dict") else {}
            return ["scripted", str(value.inlined_graph), getattr(value, "training", None), self.form(state)]
        if hasattr(kind, "named_modules") and hasattr(kind, "state_dict"):
            return self.network(value)
        if callable(stated := getattr(kind, "state_dict", None)):
            return ["state", self.form(kind), _ADDRESS.sub("", str(value)), self.form(dict(stated(value)))]
        own = [self.form(kind)] if self.home(kind.__module__) is not None else []
        if hasattr(kind, "detach") and hasattr(kind, "cpu"):
            if (array := _array_of(value)) is None:
                return self.unseen(kind)
            value = array
        if hasattr(type(value), "tobytes") and hasattr(type(value), "dtype"):
            if value.dtype.hasobject:  # its bytes are pointers
                return ["array", str(value.dtype), self.form(value.tolist()), *own]
            shape = list(getattr(value, "shape", ()))
            return ["array", str(value.dtype), shape, sha256(value.tobytes()).hexdigest(), *own]
        if own or dataclasses.is_dataclass(value):
            kept = {**getattr(value, "__dict__", {}), **_slots(value)}
            return ["object", self.form(kind), self.form(kept)]
        if callable(value) and hasattr(value, "__qualname__"):  # builtins, methods of libraries
            return self.foreign(value)
        if (parts := _parts(value)) is not None:
            return ["made", self.form(kind), self.form(parts)]
        return self.unseen(kind)

    def unseen(self, kind: type) -> Any:
        log.warning(
            "an entry uses an object of class %s, whose content is not part of cache keys; use --fresh after a change",
            kind.__qualname__,
        )
        return ["unseen", kind.__module__, kind.__qualname__]


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object that have slots, of all its classes."""
    found = {}
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            full = f"_{kind.__name__.lstrip('_')}{name}" if private else name
            if full not in ("__dict__", "__weakref__") and hasattr(value, full):
                found[full] = getattr(value, full)
    return found


def _array_of(tensor: Any) -> Any:
    """A tensor as an array; None for one of a kind that has none."""
    try:
        tensor = tensor.detach().cpu()
        tensor = tensor if str(tensor.layout) == "torch.strided" else tensor.to_dense()
        tensor = tensor.resolve_conj().resolve_neg()
        small = str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8"))  # exact in float32
        return tensor.float().numpy() if small else tensor.numpy()
    except (TypeError, RuntimeError, ValueError):
        return None


def _parts(value: Any) -> Any:
    """What an object would be made from again, as for a copy; None where it cannot be copied."""
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # whatever a class raises that cannot be copied
        return None
    return made if isinstance(made, str) else [list(part) if isinstance(part, Iterator) else part for part in made]


_OF_EVERY_CLASS = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__hash__",
    "__abstractmethods__", "_abc_impl", "__annotate_func__", "__annotations_cache__", "_is_protocol", "__parameters__",
    "__subclasshook__",
}  # fmt: skip


_SHARED = {"rdp_bench.registry", "_thread", "threading", "os"}
"""Modules of objects that many use at once: registries, locks, the environment."""

_DICTS = (dict, OrderedDict)
"""Of hooks by a number that counts all hooks of the process."""

_GENERATED = {"__init__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__", "__delattr__"}


def _made_by_dataclass(kind: type, name: str, value: Any) -> bool:
    """Return whether `dataclass` generated a method, so that the fields determine its code.

    The file name alone does not show this: code of `python -c` and `exec` has the same one, "<string>".
    """
    params = vars(kind).get("__dataclass_params__")
    if params is None or name not in _GENERATED or (name == "__init__" and not params.init):
        return False
    return isinstance(value, FunctionType) and value.__code__.co_filename == "<string>"


def _mine(module: str | None) -> bool:
    """Return whether the objects of a module are described by their code: in `__main__` and modules without a file."""
    if module in _MAIN:
        return True
    found = sys.modules.get(str(module))
    return found is None or (
        getattr(found, "__file__", None) is None and str(module).partition(".")[0] not in sys.stdlib_module_names
        and getattr(found, "__spec__", None) is None
    )  # fmt: skip


def _named(value: Any) -> str:
    """What sets are sorted by: without addresses, which differ between processes."""
    return f"{type(value).__qualname__} {getattr(value, '__qualname__', '')} {_ADDRESS.sub('', repr(value))}"


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _imported(codes: Iterable[CodeType], package: str) -> set[str]:
    """Return the full names of what code imports: modules, and names in them that may be modules."""
    found = set()
    for code in codes:
        constants: deque[Any] = deque(maxlen=2)  # the level and the names, which are loaded before
        for each in dis.get_instructions(code):
            if each.opname == "IMPORT_NAME":
                level, names = constants
                try:
                    name = resolve_name("." * level + each.argval, package) if level else str(each.argval)
                except ImportError:
                    continue  # it fails where it runs, too
                found |= {name, *(f"{name}.{part}" for part in names or ())}
            if each.opname.startswith("LOAD_"):
                constants.append(each.argval)
    return found


def new_local_modules(before: Iterable[str]) -> Modules:
    """Return the local modules that were imported after `before`, a copy of the names in `sys.modules`.

    The program itself, to which an import of multiprocessing gives a second name, is not one of them.
    """
    known = {*before, *_MAIN}
    return {
        name: file
        for name, module in list(sys.modules.items())
        if name not in known and (file := module_file(module)) is not None
    }
