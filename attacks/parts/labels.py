"""Which class an attack leaves or approaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rdp_bench.attacks.parts.base import Part, find, require
from rdp_bench.keys import neutral

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Outputs, Run

Label = Literal["true", "predicted"]
Target = Literal["random", "dataset"]


@dataclass(frozen=True)
class LabelChoice(Part):
    """The class to leave: the source's own prediction in its first forward pass (Kurakin et al. 2017, Sec. 3)."""

    id: ClassVar[str] = "label"
    order: ClassVar[int] = 3
    off: ClassVar[Any] = "true"

    label: Label = "predicted"
    """"true" for the data set's label, or "predicted"."""

    def rules(self) -> Mapping[str, bool]:
        """Only known choices."""
        return {f"label is one of {get_args(Label)}": self.label in get_args(Label)}

    def check(self, parts: Sequence[Part]) -> None:
        """The first prediction must be that of the image."""
        others = ", ".join(part.id for part in parts if part.changes_first)
        require({f"label=predicted is the class of the first forward pass, which {others} changes: use label=true": (
            not others)})  # fmt: skip

    def goal(self, run: Run, labels: Tensor | None) -> Tensor | None:  # noqa: ARG002
        """Left to the first prediction."""
        return None


@dataclass(frozen=True)
class Targeted(Part):
    """Approaches a class instead of leaving the label: descends the loss (Kurakin et al. 2016, Sec. 2.3)."""

    id: ClassVar[str] = "targeted"
    order: ClassVar[int] = 4
    off: ClassVar[Any] = False

    targeted: bool = True
    target: Target = neutral("random")
    """A random wrong class, or the data set's own target class."""

    def rules(self) -> Mapping[str, bool]:
        """Only known choices."""
        return {f"target is one of {get_args(Target)}": self.target in get_args(Target)}

    def check(self, parts: Sequence[Part]) -> None:
        """A target is chosen by the label."""
        require({"a targeted attack uses label=true": find(parts, LabelChoice) is None})

    def goal(self, run: Run, labels: Tensor | None) -> Tensor | None:
        """The labels, which are the data set's targets where those are asked for, or U over the wrong classes."""
        assert labels is not None
        if self.target == "dataset":
            return labels
        classes = run.source.members[0].classes
        return (labels + run.rng.integers(1, classes).to(labels.device)) % classes

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:  # noqa: ARG002
        """What is ascended: minus the cross-entropy."""
        return -loss
