"""The four kinds of entries: attacks, defenses, classifiers and data sets, and their optional abilities.

The engine needs nothing but these methods; no base class is required. An optional ability is a protocol of its own that
is checked with `isinstance`, or has a default in a base class.

Images are float tensors `[n, 3, h, w]` in [0, 1], square, at the data set's own resolution. torch is imported for
typing only, so that listing entries stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from rdp_bench.rng import ImageRng

Backward = Literal["exact", "identity", "stand-in"]

ALONE = 1e-4
"""Mean difference of an image alone and in a batch, pixels in [0, 1], that the order of sums may explain."""


@runtime_checkable
class Classifier(Protocol):
    """A network in pixel space: it owns its resize, crop, mean and standard deviation.

    A classifier may have more abilities, each a protocol of its own: `AuxiliaryLogits`, `AuxiliaryTask`,
    `GatheredLogits`, `Features`, `StochasticLogits`. They are used where a classifier has the method.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int: ...

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]`.

        Args:
            x: images `[n, 3, h, w]` in [0, 1].
            zoom: how much larger than the data set's images `x` is on purpose (input diversity 330/299,
                super-resolution 2): a fully convolutional network then sees a larger input too.
        """
        ...

    def record(self) -> dict[str, Any]:
        """Everything its output depends on, as JSON: weights hash, preprocessing, version."""
        ...


@runtime_checkable
class AuxiliaryLogits(Protocol):
    """A classifier with an auxiliary head."""

    def logits_and_aux(self, x: Tensor, zoom: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits of the main and of the auxiliary head, each `[n, classes]`; arguments as for `Classifier`."""
        ...


@runtime_checkable
class AuxiliaryTask(Protocol):
    """A classifier that was trained with a self-supervised task beside its classes, for the defense `soap`."""

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """The loss of the task on each image, float `[n]`, differentiable in `x` `[n, 3, h, w]` in [0, 1].

        That of an image must not depend on the others of its batch.
        """
        ...


@runtime_checkable
class GatheredLogits(Protocol):
    """A classifier that takes input diversity's resized images without making them, which is faster."""

    def logits_of_gathered(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]` of the images that gathering pixels gives, up to rounding.

        Args:
            x: images `[n, 3, h, w]` in [0, 1].
            rows: for each row of the new images its row in `x`, int64 `[n, H]`; -1 is mid-grey padding.
            columns: the same for columns, `[n, W]`.
            zoom: size of the new images over the size of the data set's.
        """
        ...


@runtime_checkable
class InPieces(Protocol):
    """A classifier whose network may see a batch in pieces, which takes less memory, with equal bits."""

    def network_input(
        self, x: Tensor, zoom: float = 1.0, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """What the network sees of images `x` `[n, 3, h, h]`, `[n, 3, s, s]`, differentiable.

        With `rows` and `columns`, of the images that gathering these pixels gives; see `GatheredLogits`.
        """
        ...

    def logits_of_input(self, seen: Tensor) -> Tensor:
        """Logits `[n, classes]` of what `network_input` gave, or of some of it."""
        ...

    def at_once(self, seen: Tensor) -> int | None:
        """How many images of `seen` to differentiate at a time in a source of one network; None: all of them."""
        ...


@runtime_checkable
class Features(Protocol):
    """A classifier that gives its inner maps."""

    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        """Feature maps `[n, c, h', w']` of `x` at `levels`, 0 being the first and largest.

        Raises:
            UsageError: the network has no such level.
        """
        ...


@runtime_checkable
class StochasticLogits(Protocol):
    """A classifier that is random itself, such as one behind a random defense."""

    def stochastic_logits(self, x: Tensor, rng: ImageRng, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]` with randomness from `rng`, anew in every call; see `Classifier`."""
        ...


@runtime_checkable
class HasNet(Protocol):
    """A classifier around a `torch.nn.Module`, for attacks that hook into layers."""

    @property
    def net(self) -> nn.Module: ...


@runtime_checkable
class BehindDefense(Protocol):
    """A classifier with a defense in front of another one."""

    @property
    def inner(self) -> Classifier: ...

    @property
    def attacked_defense(self) -> Any: ...


@runtime_checkable
class Movable(Protocol):
    """A classifier that can be moved to another device, as a `torch.nn.Module` can."""

    def to(self, device: str) -> Classifier:
        """The classifier on `device`."""
        ...


class Source(Protocol):
    """What an attack differentiates: one classifier, or several whose logits are averaged."""

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> Sequence[Classifier]: ...


@runtime_checkable
class Sampled(Protocol):
    """A source behind a random defense."""

    @property
    def samples(self) -> int:
        """How many draws of the defense a gradient is averaged over (EOT)."""
        ...


def samples_of(source: Source) -> int:
    """Gradients of `source` to add up for one step (EOT); 1 where it is not `Sampled`."""
    return source.samples if isinstance(source, Sampled) else 1


@runtime_checkable
class SaysRandom(Protocol):
    """A classifier that says whether two calls on one image may differ."""

    @property
    def random(self) -> bool:
        """Whether they may."""
        ...


def is_random(source: Source) -> bool:
    """Whether a member of `source` says that two calls on one image may differ."""
    return any(isinstance(member, SaysRandom) and bool(member.random) for member in source.members)


class Attack(Protocol):
    """Crafts adversarial images on a source.

    Subclass it as a frozen dataclass whose fields are the parameters and define `__call__`; the other methods have
    defaults. A class of another base with the same methods is an attack, too, and so is a plain function of the
    arguments of `__call__` under the decorator `attack`.
    """

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images in [0, 1], within `eps` of `x`; the engine checks both and rounds to 8 bits.

        Args:
            source: what is attacked.
            x: clean images `[n, 3, h, w]` in [0, 1].
            y: labels int64 `[n]`; target classes for an attack that aims at them (`AimsAtTargets`).
            eps: L-infinity budget in [0, 1], or an L2 norm (`ChoosesNorm`).
            rng: all randomness, one stream per image.
        """
        ...

    def resolved(self, eps_255: float) -> dict[str, Any]:  # noqa: ARG002 - for attacks that depend on it
        """Every parameter at the budget `eps_255` (in /255), derived ones included, as JSON; part of the cache key.

        By default the fields of the dataclass.

        Raises:
            TypeError: the attack is no dataclass and has attributes, which may be parameters.
        """
        if is_dataclass(self):
            return {f.name: getattr(self, f.name) for f in fields(self)}
        if names := ", ".join(sorted(vars(self))):
            raise TypeError(
                f"{type(self).__name__} has the attributes {names}: make it a frozen dataclass, or define resolved()"
            )
        return {}

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002
        """Gradient evaluations per image and source member, for planning; by default the field `steps`, or 1."""
        steps = vars(self).get("steps", 1)
        return steps if isinstance(steps, int) else 1


class FunctionAttack(Attack):
    """A plain function as an attack: it has no parameters, and its version is a hash of its code."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """`function` has the arguments of `Attack.__call__`."""
        self._function = function

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """What the function returns."""
        return self._function(source, x, y, eps, rng)

    def resolved(self, eps_255: float) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: a function has no parameters."""
        return {}


@runtime_checkable
class ChoosesNorm(Protocol):
    """An attack whose budget may have another norm than L-infinity; optional.

    Under `l2` eps is the L2 norm of an image's change, pixels in [0, 1], wherever it is passed.
    """

    def with_norm(self, norm: str) -> Attack:
        """The same attack with its budget in `norm`, "linf" or "l2".

        Raises:
            UsageError: it has no such budget.
        """
        ...


@runtime_checkable
class AimsAtTargets(Protocol):
    """An attack that may approach the data set's target classes; optional."""

    @property
    def aims_at_targets(self) -> bool:
        """Whether it does; it then gets the target classes as `y`."""
        ...


def aims_at_targets(attack: Attack) -> bool:
    """Whether an attack approaches the data set's target classes."""
    return isinstance(attack, AimsAtTargets) and bool(attack.aims_at_targets)


@runtime_checkable
class DrawsMates(Protocol):
    """An attack that may mix other images of the data set into an image; optional.

    The key of its sets contains all images of the run, and its results are not shared between runs of different length.
    """

    @property
    def draws_mates(self) -> bool:
        """Whether it does."""
        ...

    def with_mates(self, mates: Callable[[ImageRng], Tensor]) -> Attack:
        """The same attack with `mates`: streams of a batch -> another image for each of its images, `[n, 3, h, w]`."""
        ...


def draws_mates(attack: Attack) -> bool:
    """Whether an attack mixes other images of the data set into an image."""
    return isinstance(attack, DrawsMates) and bool(attack.draws_mates)


def with_mates(attack: Attack, mates: Callable[[ImageRng], Tensor]) -> Attack:
    """`attack` with a source of other images, where it uses them; see `DrawsMates`."""
    return attack.with_mates(mates) if isinstance(attack, DrawsMates) and attack.draws_mates else attack


@runtime_checkable
class NeedsClasses(Protocol):
    """An attack that few classes do not suffice for; optional."""

    @property
    def least_classes(self) -> int:
        """How many classes a source must tell apart."""
        ...


def least_classes(attack: Attack) -> int:
    """How many classes a source of the attack must tell apart; 2 where it does not say."""
    return attack.least_classes if isinstance(attack, NeedsClasses) else 2


def too_few_classes(least: int, what: str, found: int) -> str:
    """The error of an attack that needs at least `least` classes."""
    advice = "use apgd-ce or apgd-ce(loss=margin), or fewer targets; in an audit, --budget quick"
    return f"it needs at least {least} classes, and {what} has {found}; {advice}"


@runtime_checkable
class Notes(Protocol):
    """An attack with remarks on its results, such as pixels moved back into the budget; optional."""

    def notes(self) -> list[str]:
        """Sentences for the user about the calls since this was last asked."""
        ...


@runtime_checkable
class Defense(Protocol):
    """Changes images before a classifier sees them."""

    @property
    def random(self) -> bool: ...

    @property
    def passes(self) -> int: ...

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor: ...

    def resolved(self) -> dict[str, Any]: ...


@runtime_checkable
class Inspected(Protocol):
    """A defense that says whether it is meant to purify, or only to be looked at; optional."""

    @property
    def purifies(self) -> bool:
        """False: `*` in a grid leaves it out."""
        ...


def purifies(defense: Defense) -> bool:
    """Whether a defense is meant to purify, as all are that do not say otherwise."""
    return not isinstance(defense, Inspected) or bool(defense.purifies)


@runtime_checkable
class AskedForByName(Protocol):
    """A defense that `*` in a grid may leave out, because of its cost or because it is a control; optional."""

    @property
    def only_by_name(self) -> bool:
        """True: a grid names it, or `--defense +NAME` does."""
        ...


def only_by_name(defense: Defense) -> bool:
    """Whether `*` leaves a defense out, although it purifies."""
    return isinstance(defense, AskedForByName) and bool(defense.only_by_name)


def defense_facts(defense: Defense) -> dict[str, Any]:
    """What a defense says of itself, for records of runs; None for what only a `Purifier` says."""
    facts: dict[str, Any] = {"random": defense.random, "passes": defense.passes}
    if isinstance(defense, Purifier):
        return facts | {"differentiable": defense.differentiable, "backward": defense.backward, "scale": defense.scale}
    return facts | dict.fromkeys(("differentiable", "backward", "scale"))


@runtime_checkable
class Chained(Protocol):
    """A defense that applies others one after the other."""

    @property
    def parts(self) -> Sequence[Defense]: ...


@runtime_checkable
class HasNetwork(Protocol):
    """A defense with a trained network. Where `always_float32` is true, no --precision but tf32 changes it."""

    def load(self) -> nn.Module:
        """The network, on the CPU."""
        ...


@runtime_checkable
class HasWeightFiles(Protocol):
    """A defense that reads weights from files."""

    @property
    def paths(self) -> tuple[Path, ...]: ...


@dataclass(frozen=True)
class Purifier:
    """Base class of defenses: subclass it as a frozen dataclass whose fields are the parameters.

    Class attributes, or properties where parameters decide, describe the defense:

    * `random`: two calls on one image may differ (randomness comes from `rng` only).
    * `purifies`: False for transformations that are no defense; `*` in a grid leaves them out.
    * `only_by_name`: True for defenses that `*` leaves out because of their cost, or because they are controls.
    * `differentiable`: autograd through `purify` gives its true gradient.
    * `backward`: the backward pass of BPDA: "exact" (autograd), "identity", or "stand-in" (`stand_in`).
    * `has_smooth`: `smooth` is closer to `purify` than `stand_in`; audits attack through both.
    * `passes`: how many random draws a prediction averages the softmax outputs of (R&P-30).
    * `scale`: output size over input size.
    """

    purifies: ClassVar[bool] = True
    only_by_name: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    backward: ClassVar[Backward] = "identity"
    has_smooth: ClassVar[bool] = False

    @property
    def random(self) -> bool:
        """Whether two calls on one image may differ."""
        return False

    @property
    def scale(self) -> float:
        """Output size over input size."""
        return 1.0

    @property
    def passes(self) -> int:
        """Random draws whose softmax outputs are averaged for one prediction."""
        return 1

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Purified images for `x` `[n, 3, h, w]` in [0, 1]; float, in [0, 1], any square size."""
        raise NotImplementedError

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - for subclasses
        """A differentiable approximation of `purify` with the same output size; the backward pass of BPDA."""
        return x

    def straight_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`purify` forward, `stand_in` backward: BPDA (Athalye et al. 2018, Sec. 4.1).

        Raises:
            UsageError: `purify` changes the size of images, and `stand_in` does not change it equally.
        """
        # Copies: either may write into its input. First what is seen, with the draws that an evaluation has. Attacks
        # that look ahead (NI, VMI) leave [0, 1], and whatever casts to 8 bits would wrap around there.
        purified = self.purify(x.detach().clamp(0, 1), rng)
        # A stand-in that draws has other draws in every call (EOT).
        draws = self.random and type(self).stand_in is not Purifier.stand_in
        near = self.stand_in(x.clone(), rng.spawn("stand-in") if draws else rng.fork("stand-in"))
        return self._with_gradient_of(near, purified, x)

    def smooth(self, x: Tensor, rng: ImageRng) -> Tensor:
        """A differentiable approximation of `purify`, closer than `stand_in`; see `has_smooth`.

        Args:
            x: images `[n, 3, h, w]` in [0, 1].
            rng: streams that give the draws that `purify` had.
        """
        raise NotImplementedError

    def smooth_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`purify` forward, `smooth` with the same draws backward: BPDA with a better stand-in.

        Raises:
            UsageError: the two differ in size.
        """
        again = rng.copy()
        purified = self.purify(x.detach().clamp(0, 1), rng)
        return self._with_gradient_of(self.smooth(x.clone(), again), purified, x)

    def _with_gradient_of(self, near: Tensor, purified: Tensor, x: Tensor) -> Tensor:
        if near.shape != purified.shape:
            raise UsageError(
                f"BPDA: {type(self).__name__} makes {list(purified.shape)} of {list(x.shape)} and has no stand-in of "
                "that size; use its true gradient, exact(...)"
            )
        return near + (purified - near).detach()

    def bpda(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Purified images with the gradient that `backward` names: of `purify` itself or of `straight_through`."""
        return self.purify(x, rng) if self.backward == "exact" else self.straight_through(x, rng)

    def resolved(self) -> dict[str, Any]:
        """Every parameter as JSON; part of the cache key."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Dataset(Protocol):
    """Labelled images of one square size, in a fixed order.

    `labels` count from 0. A data set may also be `HasTargets` and `HasClasses`, and have an attribute `note`, one line
    that every report of these images must show.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 `[3, size, size]`, RGB."""
        ...


@runtime_checkable
class HasTargets(Protocol):
    """A data set with a class per image for targeted attacks, counted from 0 (NIPS-2017's TargetClass)."""

    targets: Sequence[int]


@runtime_checkable
class HasClasses(Protocol):
    """A data set that says how many classes its labels are of, or None where it does not know."""

    classes: int | None


@runtime_checkable
class HasNote(Protocol):
    """A data set with a line that every report of its images must show."""

    note: str


def targets_of(dataset: Dataset) -> Sequence[int]:
    """The target class of each image; empty where the data set has none."""
    return dataset.targets if isinstance(dataset, HasTargets) and dataset.targets is not None else ()


def classes_of(dataset: Dataset) -> int | None:
    """The number of classes of the data set's labels; None where it is not known."""
    return dataset.classes if isinstance(dataset, HasClasses) else None


def note_of(dataset: Dataset) -> str:
    """The line that reports of these images must show, or nothing."""
    return str(dataset.note) if isinstance(dataset, HasNote) else ""
