"""Objects of the caller (networks, functions, purifiers) as entries that a run can use and key."""

import inspect
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdp_bench import __version__, local_code
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.keys import canonical_json
from rdp_bench.protocols import ALONE, Attack, Defense, Purifier, Source
from rdp_bench.registry import Entry, Registry
from rdp_bench.results.display import holder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rdp_bench.rng import ImageRng

ID = "python"
"""Of every object in cache keys; its version is the hash of its code and state."""

REPEAT = 1e-5
"""Mean difference of two calls on one image, pixels in [0, 1], above which they are not the same."""


class CallableDefense(Purifier):
    """A network or function from images to images, as a defense.

    A network is copied and put into evaluation mode; the caller's own is left as it is. The first batch is checked:
    two calls must give the same image, and an image must not depend on the others in its batch.
    """

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        set_ = object.__setattr__  # the base is frozen
        set_(self, "_name", name)
        set_(self, "_call", _evaluation_copy(name, call))
        set_(self, "_takes_rng", _takes_rng(name, call, 1))
        set_(self, "_on", {})
        set_(self, "_checked", False)

    _name: str
    _call: Callable[..., Any]
    _takes_rng: bool
    _on: "dict[str, Callable[..., Any]]"
    _checked: bool

    @property
    def random(self) -> bool:
        """Whether it takes `rng`."""
        return self._takes_rng

    def purify(self, x: "Tensor", rng: "ImageRng") -> "Tensor":
        """What the network or function makes of `x` `[n, 3, h, w]` in [0, 1].

        Raises:
            RdpBenchError: its output is no tensor, is not repeatable, or depends on the rest of the batch.
        """
        import torch

        if not self._checked:
            with torch.no_grad():
                self._check(x, rng)
            object.__setattr__(self, "_checked", True)
        return self._output(x, rng)

    def _output(self, x: "Tensor", rng: "ImageRng") -> "Tensor":
        call = self._placed(x.device)
        found = call(x.clone(), rng) if self._takes_rng else call(x.clone())
        if not hasattr(found, "detach"):
            raise RdpBenchError(f"defense '{self._name}' returned {type(found).__name__}, not a tensor of images")
        return found  # type: ignore[no-any-return]

    def _placed(self, device: "torch.device") -> Callable[..., Any]:
        """The call, a network moved to `device`."""
        network: Any = self._call
        if not hasattr(network, "named_modules"):
            return self._call
        tensors = [*network.parameters(), *network.buffers()]
        if all(each.device == device for each in tensors):
            return self._call
        if str(device) not in self._on:
            import copy

            self._on[str(device)] = copy.deepcopy(network).to(device)
        return self._on[str(device)]

    def _check(self, x: "Tensor", rng: "ImageRng") -> None:
        import torch

        last = x[-1:]
        own = rng.select(torch.arange(len(x))[-1:])

        def alone() -> "Tensor":
            return self._output(last, own.fork("check"))

        first, again = alone(), alone()
        if first.shape != again.shape or _apart(first, again) > REPEAT:
            raise RdpBenchError(
                f"defense '{self._name}' gives another image in a second call; take its random numbers from a "
                "parameter called rng (see rdp_bench.rng.ImageRng), as in def purify(x, rng)"
            )
        batch = self._output(x, rng.fork("check"))
        if batch.ndim != first.ndim or len(batch) != len(x):
            return  # the engine says what is wrong with its shape
        if batch[-1:].shape != first.shape or _apart(batch[-1:], first) > ALONE:
            raise RdpBenchError(
                f"defense '{self._name}' gives an image another output alone than in a batch of {len(x)}; its output "
                "may depend on the image itself only"
            )


class FunctionAttack:
    """A function `attack(source, x, y, eps)` or `attack(source, x, y, eps, rng)` as an attack."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call
        self._takes_rng = _takes_rng(name, call, 4)
        self._checked = False

    def __call__(self, source: Source, x: "Tensor", y: "Tensor", eps: float, rng: "ImageRng") -> "Tensor":
        """What the function makes of `x` `[n, 3, h, w]` in [0, 1], labels `y` `[n]`; `eps` in [0, 1].

        Raises:
            RdpBenchError: a second call on the first image gives another result.
        """
        import torch

        if not self._checked:
            own = rng.select(torch.arange(1))
            first, again = (self._output(source, x[:1], y[:1], eps, own.fork("check")) for _ in range(2))
            same = isinstance(first, torch.Tensor) and isinstance(again, torch.Tensor) and first.shape == again.shape
            if same and _apart(first, again) > REPEAT:
                raise RdpBenchError(
                    f"attack '{self._name}' gives another image in a second call; take its random numbers from a "
                    "parameter called rng (see rdp_bench.rng.ImageRng), as in def attack(source, x, y, eps, rng)"
                )
            self._checked = True
        return self._output(source, x, y, eps, rng)

    def _output(self, source: Source, x: "Tensor", y: "Tensor", eps: float, rng: "ImageRng") -> "Tensor":
        more = (rng,) if self._takes_rng else ()
        found: Tensor = self._call(source, x.clone(), y.clone(), eps, *more)
        return found

    def resolved(self, eps_255: float) -> dict[str, Any]:  # noqa: ARG002 - the protocol's
        """Nothing: the hash of the function stands for all of it."""
        return {}

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002 - the protocol's
        """One; not known of a function, and used to estimate times only."""
        return 1


@dataclass
class Named:
    """Labels for a grid's axis, the entries that some of them need, and names to show."""

    labels: list[str] = field(default_factory=list)
    entries: dict[str, Entry[Any]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)


Given = Mapping[str, Any] | Sequence[Any] | str | Callable[..., Any] | None


def named(registry: Registry[Any], given: Given, wrap: Callable[[str, Any], Any]) -> Named:
    """`given` as labels: texts are labels, objects get an entry under their name.

    Args:
        registry: of attacks or defenses.
        given: one or several labels or objects, or a mapping of names to them.
        wrap: makes an entry's object of a name and an object.

    Raises:
        UsageError: an object that is no entry, or a name that is taken.
    """
    found = Named()
    if given is None:
        return found
    if isinstance(given, str) or callable(given) or not isinstance(given, Mapping | Sequence):
        given = [given]
    pairs = given.items() if isinstance(given, Mapping) else [("", each) for each in given]
    for name, value in pairs:
        if isinstance(value, str):
            label = value
        else:
            entry = _entry(registry, str(name) or _name_of(value), value, wrap)
            label = entry.name
            if label in found.entries:
                raise UsageError(f"two {registry.kind}s are called '{label}'; give them as a mapping of names")
            found.entries[label] = entry
        if name and str(name) != label:
            found.titles[label] = str(name)
        found.labels.append(label)
    return found


def _entry(registry: Registry[Any], name: str, value: Any, wrap: Callable[[str, Any], Any]) -> Entry[Any]:
    label = label_of(name)
    if taken := label if label in registry.entries else holder(registry.kind, name):
        raise UsageError(
            f"{registry.kind} '{name}': the name is taken by {registry.entries[taken].origin}; use another"
        )
    made = wrap(label, value)
    kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    summary = (inspect.getdoc(value) or "").partition("\n")[0]
    origin = f"{kind.__module__}.{getattr(kind, '__qualname__', name)}"
    wrapped = made is not value and isinstance(made, CallableDefense | FunctionAttack)
    found = _Given(made, made._call if wrapped else made)
    return Entry(label, found, summary, "your code", 1, origin, ID, found.stamp())


@dataclass(frozen=True)
class _Given:
    """Makes an entry's object: the one that the caller gave."""

    made: Any
    keyed: Any
    """What its code and state are read from."""

    def __call__(self) -> Any:
        return self.made

    def stamp(self) -> str:
        """Of its code and state; a state that it came to in an earlier call counts as the one before that call."""
        found = digest(self.keyed)
        return _before.get(found, found)

    def settle(self, stamp: str) -> None:
        """After a call: what the object itself changed, such as a counter, makes it no other object."""
        if (found := digest(self.keyed)) != stamp:
            _before[found] = stamp


_before: dict[str, str] = {}
"""Stamp of an object's state after a call -> before it."""


def digest(value: Any) -> str:
    """A hash of an object's code and state: class or function, attributes, tensors, and the library it is from."""
    kind = value if inspect.isroutine(value) or isinstance(value, type) else type(value)
    home = str(getattr(kind, "__module__", ""))
    own = home.partition(".")[0] == "rdp_bench"
    library = f"rdp-bench-{__version__}" if own else local_code.library_of(home)
    return local_code.digest_of([library, value])[:16]


def _of_a_word(letter: str) -> bool:
    """Whether it is a letter, a mark on one, or a digit, of any script."""
    return unicodedata.category(letter)[0] in "LMN"


def label_of(name: str) -> str:
    """A name as labels have it.

    >>> label_of("Ours (v2)"), label_of("my_net"), label_of("净化 2")
    ('ours-v2', 'my_net', '净化-2')
    """
    lower = unicodedata.normalize("NFC", name.lower())
    kept = "".join(letter if letter in "&._+/-" or _of_a_word(letter) else " " for letter in lower)
    label = re.sub(" +", "-", kept).strip("-./_+&")
    if not label:
        raise UsageError(f"the name '{name}' has no letter or digit; give another")
    return label


def _name_of(value: Any) -> str:
    own = getattr(value, "__name__", None) or type(value).__name__
    return "function" if own == "<lambda>" else str(own)


def as_defense(name: str, value: Any) -> Defense:
    """A purifier as it is; a network or function wrapped.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, type) and issubclass(value, Purifier):
        value = value()
    if isinstance(value, type):
        raise UsageError(f"defense '{name}': {value.__name__} is a class; give an object of it: {value.__name__}()")
    if isinstance(value, Defense):
        try:
            canonical_json(value.resolved())
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"defense '{name}': resolved() cannot be written as JSON ({error}); override it to return the "
                "numbers and texts among its parameters (what else the object holds is keyed by its hash)"
            ) from error
        return value
    if callable(value):
        return CallableDefense(name, value)
    raise UsageError(
        f"defense '{name}' is of type {type(value).__name__}; expected a label, a torch.nn.Module, a function from "
        "images to images, or a Purifier"
    )


def as_attack(name: str, value: Any) -> Attack:
    """An attack as it is; a function wrapped.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, type):
        raise UsageError(f"attack '{name}': {value.__name__} is a class; give an object of it: {value.__name__}()")
    if callable(value) and hasattr(value, "resolved") and hasattr(value, "gradients"):
        found: Attack = value
        return found
    if callable(value):
        return FunctionAttack(name, value)
    raise UsageError(
        f"attack '{name}' is of type {type(value).__name__}; expected a label, a function of (source, x, y, eps), or "
        "an Attack"
    )


@contextmanager
def registered(registry: Registry[Any], entries: Mapping[str, Entry[Any]]) -> Iterator[None]:
    """Entries that exist inside this block only, so that the same call can be made again."""
    before = {name: registry.entries[name] for name in entries if name in registry.entries}
    registry.entries.update(entries)
    try:
        yield
    finally:
        for name, entry in entries.items():  # and no others: a plugin of the grid stays, as plugins are loaded once
            registry.entries.pop(name, None)
            if isinstance(entry.factory, _Given):
                entry.factory.settle(str(entry.stamp))
        registry.entries.update(before)


def _evaluation_copy(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    if not (hasattr(call, "state_dict") and hasattr(call, "named_modules")):
        return call
    import copy

    try:
        network: Any = copy.deepcopy(call)
    except Exception as error:
        raise UsageError(
            f"defense '{name}': the network cannot be copied ({error}); give a function that calls it"
        ) from error
    network.eval()
    for weight in network.parameters():  # a scripted module has no method for all, and copies are no leaves
        if weight.is_leaf:
            weight.requires_grad_(False)
    copied: Callable[..., Any] = network
    return copied


def _takes_rng(name: str, call: Callable[..., Any], count: int) -> bool:
    """Whether a callable takes `rng` after its `count` arguments.

    Raises:
        UsageError: it cannot be called with `count` arguments.
    """
    function = call.forward if hasattr(call, "state_dict") and hasattr(call, "forward") else call
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a builtin that does not say
        return False
    takes = "rng" in signature.parameters
    try:
        signature.bind(*range(count + takes))
    except TypeError as error:
        wanted = "(x) or (x, rng)" if count == 1 else "(source, x, y, eps) or (source, x, y, eps, rng)"
        raise UsageError(f"'{name}' cannot be called with {wanted}: {error}") from error
    return takes


def _apart(one: "Tensor", two: "Tensor") -> float:
    return float((one.detach().float() - two.detach().float()).abs().mean())
