"""What a part of a gradient-sign attack is, and what it works on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rdp_bench.protocols import AuxiliaryLogits, GatheredLogits, StochasticLogits
from rdp_bench.specs import show

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Classifier, Source
    from rdp_bench.rng import ImageRng

    Gradient = Callable[[Tensor], Tensor]
    """Images `[n, 3, h, w]` -> gradients of the loss at them, of the same shape."""

    Step = Callable[[Tensor, Tensor], Tensor]
    """Images and the direction of a step -> the images after it; it may write into the images."""

    Transform = Callable[[Tensor], Tensor]
    """A differentiable map of images to images of the same size."""

    Mates = Callable[[ImageRng], Tensor]
    """Random streams `[n]` -> for each image of the batch another image of its data set, `[n, 3, h, w]` in [0, 1]."""

    Outputs = tuple[Tensor, Tensor | None]
    """Logits `[n, classes]`, and those of an auxiliary head where they are wanted and the network has one."""

P = TypeVar("P", bound="Part")


@dataclass
class Run:
    """One call of an attack: its arguments, and what changes from step to step."""

    parts: Sequence[Part]
    source: Source
    x: Tensor
    """Clean images `[n, 3, h, w]` in [0, 1]."""
    eps: float | Tensor
    """Budget in [0, 1], or an L2 norm."""
    alpha: float | Tensor
    """Step size, in the unit of `eps`."""
    rng: ImageRng
    labels: Tensor | None
    """Classes that the loss is about, int64 `[n]`; None until the source's first prediction sets them."""
    g: Tensor
    """g_t, the direction of the previous step; zeros at first."""
    point: Tensor
    """x_t, where the step begins; parts may ask for the gradient elsewhere, as NI does."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What parts keep between steps, by their id."""
    tools: dict[str, Any] = field(default_factory=dict)
    """What `Part.around` makes for the steps, by id."""
    mates: Mates | None = None
    """Draws another image of the data set for each image of the batch; None: only this batch is known."""

    def part(self, kind: type[P]) -> P | None:
        """The part of this kind, if the attack has one."""
        return find(self.parts, kind)


@dataclass(frozen=True)
class Part:
    """One part of a gradient-sign attack: a frozen dataclass whose fields are its parameters.

    A subclass overrides the methods where it takes part in the iteration. Field names are the parameter names that
    labels use, so no two parts may share one. The first field switches the part: a part whose first field holds `off`
    is left out of an attack.
    """

    id: ClassVar[str]
    """Permanent, part of cache keys."""
    version: ClassVar[int] = 1
    """Bump it when the output of attacks that use this part changes."""
    order: ClassVar[int]
    """Parts with lower numbers are applied around those with higher ones."""
    off: ClassVar[Any] = None
    """Value of the first field with which the part does nothing."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Short names of fields in compositions."""
    auxiliary: ClassVar[bool] = False
    """Whether the part's loss needs logits of auxiliary heads."""
    changes_first: ClassVar[bool] = False
    """Whether the first forward pass sees another image than the one that is attacked: mixed, shuffled or noisy."""
    draws_mates: ClassVar[bool] = False
    """Whether the part uses other images of the data set (`Run.mates`)."""

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite, then whatever `rules` refuses."""
        numbers = [value for value in vars(self).values() if isinstance(value, float)]
        require({"numbers are finite": all(isfinite(number) for number in numbers)})
        require(self.rules())

    def rules(self) -> Mapping[str, bool]:
        """What must hold of the fields: sentence -> whether it does."""
        return {}

    def check(self, parts: Sequence[Part]) -> None:
        """Refuse other parts of an attack that this one does not go with.

        Raises:
            ValueError: a sentence that must hold and does not.
        """

    @property
    def idle(self) -> bool:
        """Whether the part does nothing."""
        return bool(fields(self)) and getattr(self, fields(self)[0].name) == self.off

    def unused(self, named: Collection[str]) -> Mapping[str, str]:
        """Of the fields `named` in a label, those that have no effect, and beside what, such as `p=0`."""
        switch = fields(self)[0].name if fields(self) else ""
        beside = f"{switch}={show(self.off)}" if self.idle else ""
        return {name: beside for name in named if beside and name != switch}

    @property
    def evaluations(self) -> int:
        """By how much the part multiplies the gradient evaluations of a step."""
        return 1

    def resolved(self, eps: float) -> dict[str, Any]:  # noqa: ARG002 - for parts that depend on it
        """Every field at budget `eps` (in /255, or an L2 norm), as JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def start(self, run: Run, adv: Tensor) -> Tensor:  # noqa: ARG002
        """Where the iteration starts; `adv` is a copy of the clean images, or what a part before made of it."""
        return adv

    def goal(self, run: Run, labels: Tensor | None) -> Tensor | None:  # noqa: ARG002
        """Classes int64 `[n]` that the loss is about; None for the source's own first prediction."""
        return labels

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:  # noqa: ARG002
        """The gradient at `at`; `inner` is the gradient as the parts inside this one give it."""
        return inner(at)

    def step(self, run: Run, inner: Step, adv: Tensor, g: Tensor) -> Tensor:  # noqa: ARG002
        """The images after a step from `adv` along `g`; `inner` is the step as the parts inside this one make it."""
        return inner(adv, g)

    def around(self, run: Run) -> AbstractContextManager[None]:  # noqa: ARG002
        """What surrounds the whole iteration, such as hooks in the networks of the source."""
        return nullcontext()

    def copies(self, run: Run) -> Iterable[Transform]:  # noqa: ARG002
        """Transformed copies of the images whose loss gradients are summed."""
        return (identity,)

    def look(self, run: Run, view: View, images: Tensor) -> Outputs:  # noqa: ARG002
        """Outputs of one member of the source for `images`; only one part of an attack may override this."""
        return view(images)

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:  # noqa: ARG002
        """The loss that is ascended, a sum over images, from the cross-entropy of the mean logits."""
        return loss


class View:
    """One member of the source as parts see it: with its optional abilities, and fresh randomness in every call."""

    def __init__(self, run: Run, member: Classifier) -> None:
        self.run, self.member = run, member
        self.auxiliary = any(part.auxiliary for part in run.parts)

    def __call__(self, images: Tensor, zoom: float = 1.0, which: Tensor | None = None) -> Outputs:
        """Outputs for `images` `[k, 3, h, w]` in [0, 1].

        Args:
            images: the batch, or some images of it.
            zoom: size of `images` over the size of the data set's images.
            which: indices of `images` in the batch, int64 `[k]`; None: all of it.
        """
        if isinstance(self.member, StochasticLogits):
            rng = self.run.rng if which is None else self.run.rng.select(which)
            return self.member.stochastic_logits(images, rng, zoom), None
        if self.auxiliary and isinstance(self.member, AuxiliaryLogits):
            return self.member.logits_and_aux(images, zoom)
        return self.member(images, zoom), None

    def gathered(
        self,
        images: Tensor,
        rows: Tensor,
        columns: Tensor,
        zoom: float = 1.0,
        which: Tensor | None = None,
        *,
        fuse: bool = True,
        reach: int | None = None,
    ) -> Outputs:
        """Outputs for `gather_pixels(images, rows, columns, reach)`.

        With `fuse`, a classifier that has the ability computes them without making those images (`GatheredLogits`).
        """
        from rdp_bench.attacks._kernels.gather import gather_pixels

        if fuse and not self.auxiliary and isinstance(self.member, GatheredLogits):
            return self.member.logits_of_gathered(images, rows, columns, zoom), None
        return self(gather_pixels(images, rows, columns, reach), zoom, which)


def find(parts: Iterable[Part], kind: type[P]) -> P | None:
    """The part of this kind among `parts`."""
    return next((part for part in parts if type(part) is kind), None)


def look(run: Run, member: Classifier, images: Tensor) -> Outputs:
    """Outputs of one member of the source for `images`, as the part that decides what the source sees gives them."""
    return look_by(run, View(run, member), images)


def look_by(run: Run, view: View, images: Tensor) -> Outputs:
    """`look`, by a view of the member."""
    part = next((part for part in run.parts if type(part).look is not Part.look), None)
    return part.look(run, view, images) if part else view(images)


def loss_of(run: Run, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:
    """The loss that is ascended, from the outputs of every member of the source."""
    from torch.nn.functional import cross_entropy

    # A sum, not a mean, over the batch: an image's gradient must not depend on its neighbours.
    loss = cross_entropy(mean([main for main, _ in outputs]), labels, reduction="sum")
    for part in reversed(run.parts):
        loss = part.loss(run, loss, outputs, labels)
    return loss


def prediction(outputs: Sequence[Outputs]) -> Tensor:
    """Classes int64 `[n]` of largest mean probability over the members."""
    return mean([main.detach().softmax(1) for main, _ in outputs]).argmax(1)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    import torch

    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(0)


def identity(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def require(rules: Mapping[str, bool]) -> None:
    """Raise a `ValueError` with the first sentence that does not hold."""
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)
