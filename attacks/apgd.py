"""Auto-PGD: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of attacks", ICML 2020."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rdp_bench.attacks._base import Adaptive, for_targets, limits
from rdp_bench.protocols import Attack
from rdp_bench.registry import attack

if TYPE_CHECKING:
    from rdp_bench.attacks._adaptive.victim import Run

ApgdLoss = Literal["ce", "dlr", "targeted-dlr", "margin", "cw"]


@dataclass(frozen=True)
class AutoPgd(Adaptive):
    """Projected gradient ascent whose step sizes follow the loss of each image.

    Steps begin with 2 eps and are halved where the loss oscillates or gains nothing.
    """

    loss: ApgdLoss = "ce"
    steps: int = 100
    restarts: int = 1
    """Runs from new random points, each on the images that are still right."""
    targets: int = 9
    """Classes that `targeted-dlr` approaches one after the other, the likeliest first."""
    stop: bool = False
    """Leave an image alone once it is misclassified as it will be stored: on 20 draws where the source is random."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        limits(steps=self.steps, restarts=self.restarts, targets=self.targets)
        if self.loss not in (known := ApgdLoss.__args__):  # type: ignore[attr-defined]
            raise ValueError(f"loss is one of {', '.join(known)}, found {self.loss}")
        if self.targets != type(self).targets and self.loss != "targeted-dlr":
            raise ValueError(f"targets has an effect with loss=targeted-dlr only (apgd-t), found loss={self.loss}")

    @property
    def least_classes(self) -> int:
        """What the loss needs."""
        return {"dlr": 3, "targeted-dlr": for_targets(4, self.targets)}.get(self.loss, 2)

    def runs(self, classes: int) -> Iterator[Run]:
        """See `Adaptive`."""
        from rdp_bench.attacks._adaptive import cascade

        return cascade.apgd_runs(self.loss, self.steps, self.restarts, min(self.targets, classes - 1), stop=self.stop)

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002 - the same at each
        """At most: later runs attack only the images that are still right."""
        return (self.steps + 1) * self.restarts * (self.targets if self.loss == "targeted-dlr" else 1)


@attack("apgd-ce", source="Croce and Hein 2020b, Alg. 1; fra31/auto-attack", version=2)
def apgd_ce() -> Attack:
    """Auto-PGD on the cross-entropy: 100 steps of adaptive size."""
    return AutoPgd()


@attack("apgd-dlr", source="Croce and Hein 2020b, Eq. 6; fra31/auto-attack", version=2)
def apgd_dlr() -> Attack:
    """Auto-PGD on the difference of logits ratio, which does not change with the scale of the logits."""
    return AutoPgd("dlr")


@attack("apgd-t", source="Croce and Hein 2020b, Eq. 7; fra31/auto-attack", version=2)
def apgd_t() -> Attack:
    """Auto-PGD on the targeted difference of logits ratio, towards the 9 likeliest wrong classes."""
    return AutoPgd("targeted-dlr")
