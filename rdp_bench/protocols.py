"""The four things the engine knows by their shape alone: attacks, defenses, classifiers, datasets.

Images are float tensors `[n, 3, h, w]` in [0, 1], square, at the dataset's own resolution.
torch is imported for typing only, so that listing entries stays instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rdp_bench.rng import ImageRng

Backward = Literal["exact", "identity", "stand-in"]


class Classifier(Protocol):
    """A network in pixel space: it owns its resize, crop, mean and standard deviation.

    Optional methods are used where they exist: `logits_and_aux(x, zoom)` gives an auxiliary head's logits too,
    `logits_of_gathered(x, rows, columns, zoom)` is a faster way to the same logits under input diversity, `features(x,
    levels,
    zoom)` gives inner maps, and `stochastic_logits(x, rng, zoom)` the logits of a classifier that is random itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int: ...

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits `[n, classes]` of images `[n, 3, h, w]` in [0, 1].

        `zoom` says how much larger than the dataset's images `x` is on purpose (input diversity
        330/299, super-resolution 2): a fully convolutional network then sees a larger input too.
        """
        ...

    def record(self) -> dict[str, Any]:
        """Everything its output depends on, as JSON: weights hash, preprocessing, version."""
        ...


class Source(Protocol):
    """What an attack differentiates: one classifier, or several whose logits are averaged."""

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> Sequence[Classifier]: ...


class Attack(Protocol):
    """Crafts adversarial images on a source."""

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images for `x` `[n, 3, h, w]`, labels `y` `[n]`, L-infinity `eps` in [0, 1].

        All randomness comes from `rng` (one stream an image). The result is in [0, 1] and within
        `eps` of `x`; the engine checks both and rounds to 8 bits.
        """
        ...

    def resolved(self, eps_255: float) -> dict[str, Any]:
        """Every parameter at this `eps_255` (in /255), defaults and derived ones included, as JSON."""
        ...

    def gradients(self, eps_255: float) -> int:
        """Gradient evaluations per image and source member, for planning."""
        ...


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


def aims_at_targets(attack: Attack) -> bool:
    """Whether an attack approaches the data set's target classes: its attribute `aims_at_targets`, if it has one.

    Such an attack gets the target classes as `y`.
    """
    return bool(getattr(attack, "aims_at_targets", False))


@runtime_checkable
class Notes(Protocol):
    """An attack that has something to say of what it made, such as pixels moved back into the budget; optional."""

    def notes(self) -> list[str]:
        """Sentences for the user, about all calls so far."""
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


@dataclass(frozen=True)
class Purifier:
    """Base of a defense: subclass it as a frozen dataclass whose fields are its parameters.

    Class attributes (or properties, where parameters decide) say what an attacker and a reader must know:

    * `random`: two calls on one image may differ (randomness comes from `rng` only).
    * `purifies`: False for what is only to be looked at; `*` in a grid leaves it out.
    * `differentiable`: autograd through `purify` gives its true gradient.
    * `backward`: what BPDA uses: "exact" (autograd), "identity", or "stand-in" (`stand_in`).
    * `passes`: how often a classifier sees the image, softmax outputs averaged (R&P-30).
    * `scale`: output size over input size.
    """

    purifies: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    backward: ClassVar[Backward] = "identity"

    @property
    def random(self) -> bool:
        """Whether a second call may give another image."""
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
        """A differentiable map near `purify`, of the same output size; BPDA's backward pass."""
        return x

    def straight_through(self, x: Tensor, rng: ImageRng) -> Tensor:
        """`purify` forward, `stand_in` backward: BPDA (Athalye et al. 2018, Sec. 4.1).

        Raises:
            UsageError: `purify` changes the images' size, and there is no stand-in that does.
        """
        # Copies: either may write into its input.
        near = self.stand_in(x.clone(), rng.fork("stand-in"))
        purified = self.purify(x.detach().clone(), rng)
        if near.shape != purified.shape:
            raise UsageError(
                f"BPDA: {type(self).__name__} makes {list(purified.shape)} of {list(x.shape)} and has no stand-in of "
                "that "
                "size; use its true gradient, exact(...)"
            )
        return near + (purified - near).detach()

    def bpda(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The strongest gradient there is, as `backward` says: `purify` itself or `straight_through`."""
        return self.purify(x, rng) if self.backward == "exact" else self.straight_through(x, rng)

    def resolved(self) -> dict[str, Any]:
        """Every parameter, as JSON; part of the cache key."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Dataset(Protocol):
    """Labelled images of one square size, in a fixed order.

    `labels` count from 0. Two attributes are optional: `targets`, one class per image for a targeted attack, counted
    from 0 (NIPS-2017's TargetClass), and `note`, one line that every report of these images must show.
    `getattr(dataset, "targets", ())` is empty where a data set has none.
    """

    name: str
    size: int
    ids: Sequence[str]
    labels: Sequence[int]

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 `[3, size, size]`, RGB."""
        ...


AttackFactory = Callable[[], Attack]
DefenseFactory = Callable[[], Defense]
ClassifierFactory = Callable[[], Classifier]
DatasetFactory = Callable[[], Dataset]
