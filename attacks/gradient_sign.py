"""Gradient-sign attacks: compositions of parts, and the grammar that spells them.

    x_0 = x (+ U(-eps, eps))
    z   = x_t + mu * alpha * g_t                              look-ahead (NI)
    G   = sum_i d/dx J(f(D_i(.5 + (z - .5) / 2^i)), y)        copies (SI), input diversity (DI)
    G   = K * G                                               smoothing (TI)
    g_{t+1} = mu * g_t + G / mean|G|                          momentum (MI)
    x_{t+1} = clip(x_t + alpha * sign(g_{t+1}), ball, [0, 1])

The parts lie in `attacks/parts`, the iteration in `attacks/_loop.py`. The constants of the authors' code are for images
in [-1, 1]; here pixels are in [0, 1], which halves eps and alpha and turns their padding value 0 and their scaling
towards 0 into mid-grey .5.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from rdp_bench.attacks._base import refuse_classes
from rdp_bench.attacks.parts import ALWAYS, WORDS
from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, find
from rdp_bench.attacks.parts.labels import Targeted
from rdp_bench.attacks.parts.objective import Objective
from rdp_bench.attacks.parts.restarts import Restarts
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.budgets import LINF, Norm
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.keys import Record, without_neutral
from rdp_bench.specs import Spec, parse_spec, split, values

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Mates
    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

P = TypeVar("P", bound=Part)

ENGINE_VERSION = 1
"""Of the iteration in `_loop.py`; bump it when the output of every attack changes."""


@dataclass(frozen=True)
class GradientSign:
    """A gradient-sign attack, composed of `parts`.

    Parts that do nothing are left out, the others are put into their order; without `Steps` there are 10. Where the
    norm of the budget is L2, `eps` is an L2 norm everywhere, the arguments called `eps_255` included.

    Raises:
        ValueError: two parts of one kind, or parts that do not go together.
    """

    parts: tuple[Part, ...] = ()
    mates: Mates | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        kinds = [type(part) for part in self.parts]
        if twice := [kind.__name__ for kind in kinds if kinds.count(kind) > 1]:
            raise ValueError(f"part {twice[0]} is given twice")
        parts = [*self.parts, *(part for part in ALWAYS if type(part) not in kinds)]
        used = tuple(sorted((part for part in parts if not part.idle), key=lambda part: (part.order, part.id)))
        names = [each.name for part in used for each in fields(part)]
        ids = [part.id for part in used]
        if shared := [each for each in ids if ids.count(each) > 1]:
            raise ValueError(f"two parts have the id {shared[0]}")
        if shared := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two parts have a parameter {shared[0]}")
        if len(looking := [part.id for part in used if type(part).look is not Part.look]) > 1:
            raise ValueError(f"only one part may decide what the source sees, found {' and '.join(looking)}")
        for part in used:
            part.check(used)
        object.__setattr__(self, "parts", used)

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images for `x` `[n, 3, h, w]` in [0, 1]; `eps` in [0, 1], or an L2 norm; see `Attack`."""
        from rdp_bench.attacks import _loop

        refuse_classes(self, source)
        if restarts := self.part(Restarts):
            return self._repeated(restarts.restarts, source, x, y, eps, rng)
        return _loop.craft(self.parts, source, x, y, eps, rng, self.mates)

    def _repeated(self, count: int, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """`count` runs, each on the images that the ones before left right; see `Restarts`."""
        from rdp_bench.attacks import _loop
        from rdp_bench.attacks._adaptive.victim import Victim, hardest

        def run(victim: Victim) -> Tensor:
            return _loop.craft(self.parts, source, victim.x, victim.y, eps, victim.noise, self.mates)

        return hardest(Victim.of(source, x, y, eps, self.norm, rng), [run] * count)

    def part(self, kind: type[P]) -> P | None:
        """The part of this kind, if the attack has one."""
        return find(self.parts, kind)

    @property
    def schedule(self) -> Steps:
        """Number and size of the steps."""
        return self.part(Steps) or Steps()

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return (self.part(Ball) or Ball()).norm

    @property
    def least_classes(self) -> int:
        """What its loss needs."""
        objective = self.part(Objective)
        return 3 if objective and objective.loss_function == "dlr" else 2

    @property
    def aims_at_targets(self) -> bool:
        """Whether it approaches the data set's target classes."""
        targeted = self.part(Targeted)
        return targeted is not None and targeted.target == "dataset"

    @property
    def draws_mates(self) -> bool:
        """Whether it mixes other images of the data set into an image; see `protocols.DrawsMates`."""
        return any(part.draws_mates for part in self.parts)

    def with_mates(self, mates: Mates) -> GradientSign:
        """The same attack with a source of other images; see `protocols.DrawsMates`."""
        return replace(self, mates=mates)

    def with_part(self, part: Part) -> GradientSign:
        """The same attack with `part` in place of its own part of that kind, if it has one."""
        return replace(self, parts=(*(each for each in self.parts if type(each) is not type(part)), part))

    def with_norm(self, norm: Norm) -> GradientSign:
        """The same attack with its budget in `norm`; see `protocols.ChoosesNorm`.

        Raises:
            UsageError: its label names another norm. ValueError: a part has no meaning in `norm`.
        """
        if self.norm not in (LINF, norm):
            raise UsageError(f"an attack with norm={self.norm} needs --norm {self.norm}, with --eps in that norm")
        return self.with_part(Ball(norm))

    def with_params(self, spec: Spec, kind: str = "attack") -> GradientSign:
        """The same attack with the fields of parts that `spec` names set; see `specs.ReadsParams`.

        A part that the attack does not have yet is added where its first field is named.

        Raises:
            UsageError: an unknown field, a value of another type, or a field of a part that the attack does not have.
            ValueError: a value that its part refuses.
        """
        return replace(self, parts=_set({type(part): part for part in self.parts}, spec, kind))

    def identity(self, eps_255: float) -> Record:
        """The record for cache keys: the engine's id and version, and those of each part with its parameters."""
        from rdp_bench import local_code

        parts = {}
        for part in self.parts:
            stamp = local_code.stamp_of(type(part))
            version = f"{part.version}+{stamp}" if stamp else str(part.version)
            parts[part.id] = {"version": version, **without_neutral(type(part), part.resolved(eps_255))}
        return {"id": "gradient-sign", "version": str(ENGINE_VERSION), "params": {"parts": parts}}

    def count(self, eps_255: float) -> int:
        """Iterations at `eps_255`."""
        return self.schedule.count(eps_255)

    def step(self, eps_255: float) -> float:
        """Step size at `eps_255`, both in /255."""
        return self.schedule.size(eps_255)

    def gradients(self, eps_255: float) -> int:
        """Gradient evaluations per image and source member."""
        return self.count(eps_255) * prod(part.evaluations for part in self.parts)

    def resolved(self, eps_255: float) -> dict[str, Any]:
        """The fields of all parts, with the steps and step size that `eps_255` gives.

        Raises:
            UsageError: all steps together move less than half a level, so that no stored pixel would change.
        """
        self.schedule.refuse_no_change(eps_255, (self.part(Ball) or Ball()).unit)
        found: dict[str, Any] = {"norm": self.norm}
        for part in self.parts:
            found |= part.resolved(eps_255)
        return found


def _set(parts: dict[type[Part], Part], spec: Spec, kind: str) -> tuple[Part, ...]:
    """`parts` with the fields that `spec` names set; see `GradientSign.with_params`."""
    known = _known()
    changed: dict[type[Part], dict[str, str]] = {}
    for name, word in spec.params:
        if name not in known:
            raise unknown_name(f"parameter of {kind} '{spec.name}'", name, known)
        changed.setdefault(type(known[name]), {})[name] = word
    found = dict(parts)
    for each, words in changed.items():
        switch = fields(each)[0].name
        if each not in found and switch not in words and each not in map(type, ALWAYS):
            raise UsageError(f"{kind} '{spec}': {next(iter(words))} has no effect without {switch}")
        old = found.get(each, known[switch])
        found[each] = replace(old, **values(old, Spec(spec.name, tuple(words.items())), kind))
        if unused := found[each].unused(words):
            name, beside = next(iter(unused.items()))
            raise UsageError(f"{kind} '{spec}': {name} has no effect with {beside}; leave one of them out")
    return tuple(found.values())


def _known() -> dict[str, Part]:
    """Every field of every part that has a word, or that all attacks have -> a default part of its kind."""
    kinds = [type(part) for part in ALWAYS] + [type(part) for word in WORDS.values() for part in word.parts]
    return {each.name: kind() for kind in dict.fromkeys(kinds) for each in fields(kind)}


def compose(text: str) -> GradientSign:
    """The attack that a composition such as `MI|DI(p=.7)|TI(15)|SI(5)` spells.

    >>> compose("MI|TI(7)").resolved(16)["kernel_size"]
    7

    Raises:
        UsageError: an unknown part, an unknown argument, or the same part twice.
        ValueError: a value that a part refuses, or parts that do not go together.
    """
    parts: dict[type[Part], Part] = {}
    words: dict[str, str] = {}
    seen: set[str] = set()
    for piece in split(text, "|"):
        spec = parse_spec(piece)
        if spec.name not in WORDS:
            raise unknown_name("part of an attack", spec.name, WORDS)
        if spec.name in seen:
            raise UsageError(f"attack '{text}': part {spec.name} is given twice")
        seen.add(spec.name)
        for name, word in _arguments(text, spec):
            if words.setdefault(name, word) != word:
                raise UsageError(f"attack '{text}': {name} is given twice, as {words[name]} and as {word}")
        for part in WORDS[spec.name].parts:
            parts[type(part)] = _merged(parts.get(type(part)), part)
    return GradientSign(_set(parts, Spec(text, tuple(words.items())), "attack"))


def _merged(old: Part | None, new: Part) -> Part:
    """`old` with the fields of `new` that are not at their defaults; a word after another adds to what that one set."""
    if old is None:
        return new
    usual = type(new)()
    changed = {f.name: getattr(new, f.name) for f in fields(new) if getattr(new, f.name) != getattr(usual, f.name)}
    return replace(old, **changed)


def _arguments(text: str, spec: Spec) -> list[tuple[str, str]]:
    """The fields that the arguments of one word set, with what they say."""
    names = WORDS[spec.name].takes
    aliases = {short: name for part in WORDS[spec.name].parts for short, name in part.aliases.items()}
    if len(spec.positional) > len(names):
        raise UsageError(f"attack '{text}': {spec.name} takes {len(names)} values: {', '.join(names) or 'none'}")
    given = [*zip(names, spec.positional, strict=False), *((aliases.get(k, k), v) for k, v in spec.params)]
    for name, _ in given:
        if name not in names:
            raise unknown_name(f"argument of {spec.name}", name, names)
    if len(dict(given)) < len(given):
        raise UsageError(f"attack '{text}': an argument of {spec.name} is given twice")
    return given
