"""Rules that make one gradient of several members of a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part, find, look, mean, prediction, require
from rdp_bench.attacks.parts.variance import VarianceTuning
from rdp_bench.budgets import LINF

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.attacks.parts.base import Gradient, Outputs, Run
    from rdp_bench.protocols import Classifier

Rule = Literal["logits", "losses", "gradients"]


@dataclass(frozen=True)
class Member:
    """One member of a source as a source."""

    name: str
    members: Sequence[Classifier]
    samples: int


@contextmanager
def only(run: Run, number: int) -> Iterator[None]:
    """Within, member `number` is the whole source of `run`."""
    from rdp_bench.protocols import samples_of

    whole = run.source
    member = whole.members[number]
    run.source = Member(member.name, (member,), samples_of(whole))
    try:
        yield
    finally:
        run.source = whole


@dataclass(frozen=True)
class EnsembleRule(Part):
    """What is averaged over the members of a source (Dong et al. 2018, Sec. 3.2).

    `logits`: J of the mean logits, the rule without this part. `losses`: the mean of each member's J, and so the mean
    of their gradients. `gradients`: the mean of each member's g / mean|g|, which gives all members the same weight.
    """

    id: ClassVar[str] = "ensemble-rule"
    order: ClassVar[int] = 90
    off: ClassVar[Any] = "logits"
    aliases: ClassVar = {"rule": "ensemble_rule"}

    ensemble_rule: Rule = "losses"

    def rules(self) -> Mapping[str, bool]:
        """Only known rules."""
        return {f"ensemble_rule is one of {get_args(Rule)}": self.ensemble_rule in get_args(Rule)}

    def check(self, parts: Sequence[Part]) -> None:
        """Losses are averaged as cross-entropies."""
        objective = any(part.id == "objective" for part in parts)
        require({"ensemble_rule=losses averages cross-entropies; leave out loss_function": (
            self.ensemble_rule != "losses" or not objective)})  # fmt: skip

    def loss(self, run: Run, loss: Tensor, outputs: Sequence[Outputs], labels: Tensor) -> Tensor:  # noqa: ARG002
        """The mean of the members' losses, where they are averaged."""
        from torch.nn.functional import cross_entropy

        if self.ensemble_rule != "losses":
            return loss
        return mean([cross_entropy(main, labels, reduction="sum") for main, _ in outputs])

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The mean of the members' normalised gradients, where they are averaged."""
        import torch

        from rdp_bench.attacks._kernels.norms import normalise

        if self.ensemble_rule != "gradients":
            return inner(at)
        if run.labels is None:
            with torch.no_grad():
                run.labels = prediction([look(run, member, at) for member in run.source.members])
        found = []
        for number in range(len(run.source.members)):
            with only(run, number):
                found.append(normalise(inner(at)))
        return mean(found)


@dataclass(frozen=True)
class VarianceReduction(Part):
    """SVRE: M inner steps, each corrected by the gradient of all members (Xiong et al. 2022, Alg. 2).

    G is the gradient of all members at x_t. From x_t, inner steps of size alpha follow
    h_{m+1} = mu h_m + d / mean|d|, d = grad J_k(x_m) - (grad J_k(x_t) - G), with a random member k. The outer step gets
    h_M. M is `reduction_steps` times the number of members; mu is `reduction_momentum`. The sequence of members is
    random and the same for all images and runs, so that no image depends on its batch; JHL-HUST/SVRE draws one per
    batch.
    """

    id: ClassVar[str] = "variance-reduction"
    order: ClassVar[int] = 25
    off: ClassVar[Any] = 0
    aliases: ClassVar = {"m": "reduction_steps", "mu": "reduction_momentum"}

    reduction_steps: int = 4
    reduction_momentum: float = 1.0

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {
            "reduction_steps is not negative and at most 1000": 0 <= self.reduction_steps <= 1000,
            "reduction_momentum is not negative": self.reduction_momentum >= 0,
        }

    def check(self, parts: Sequence[Part]) -> None:
        """Inner steps are sign steps, and ask for several gradients a step."""
        require(
            {
                "SVRE is defined for L-infinity": (find(parts, Ball) or Ball()).norm == LINF,
                "SVRE does not go with VT, which keeps the variance of the last gradient": (
                    find(parts, VarianceTuning) is None
                ),
            }
        )

    @property
    def evaluations(self) -> int:
        """Of a member in a step: one in G, and two in each of the M / members inner steps that choose it."""
        return 1 + 2 * self.reduction_steps

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The accumulated gradient of the inner steps."""
        import torch

        from rdp_bench.attacks._kernels.norms import normalise

        count = len(run.source.members)
        whole = inner(at)  # also settles the labels
        step = (run.part(Ball) or Ball()).stepper(run)
        moved, sum_ = at.clone(), torch.zeros_like(at)
        number = run.memory.get(self.id, torch.zeros(1, dtype=torch.long)) + 1
        run.memory[self.id] = number
        stream = torch.Generator().manual_seed(int(number))
        for member in torch.randint(count, (self.reduction_steps * count,), generator=stream).tolist():
            with only(run, member):
                difference = inner(moved) - inner(at)
            sum_ = normalise(difference + whole) + self.reduction_momentum * sum_
            moved = step(moved, sum_)
        return sum_
