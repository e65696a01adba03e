"""SOAP: Shi et al., "Online Adversarial Purification based on Self-supervised Learning", ICLR 2021."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.errors import BadModelError, RdpBenchError, wrap_errors
from rdp_bench.keys import Record, canonical_json
from rdp_bench.protocols import AuxiliaryTask, Backward, Classifier, Movable, Purifier
from rdp_bench.registry import defense, model, version_with
from rdp_bench.user_reads import watching

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from rdp_bench.rng import ImageRng

NEEDS = (
    "soap needs a network that was trained with a self-supervised task beside its classes: a plugin's model with a "
    "method auxiliary_loss(x) that returns the loss of each image, as in soap(network=mine/net); see "
    "docs/examples/soap_network.py"
)


@defense("soap", source="Shi et al. 2021; Mishne-Lab/SOAP")
@dataclass(frozen=True)
class SelfSupervisedPurification(Purifier):
    """Moves an image, by PGD within a budget, to where the loss of a self-supervised task is lowest.

    PGD starts at the image and is repeated with budgets of 0, 4/255, ... 40/255; the result with the lowest loss is
    kept. The task is that of `network`, which is usually the target itself. The loss, and so the choice of the budget,
    is that of each image; the authors' code takes the mean over the batch. The steps follow signs, so the gradient of
    the whole is that of its clamps: for most pixels the identity, with which the authors attack, too.
    """

    network: str = ""  # the label of a plugin's model that has `auxiliary_loss`
    budgets: int = 10  # the largest budget is budgets * budget_step
    budget_step: float = 4.0  # /255
    steps: int = 5  # of PGD, for each budget
    step_size: float = 4.0  # /255

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"
    only_by_name: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject budgets and steps that do nothing."""
        if not 1 <= self.budgets <= 100 or not 1 <= self.steps <= 1000:
            raise ValueError("budgets is 1 to 100, steps 1 to 1000")
        if not 0 < self.budget_step <= 255 or not 0 < self.step_size <= 255:
            raise ValueError("budget_step and step_size are in /255, above 0 and at most 255")

    def resolved(self) -> dict[str, Any]:
        """Every parameter, and in place of the network's label what identifies it.

        Raises:
            BadModelError: no network is named, or one without an auxiliary task.
        """
        return {**super().resolved(), "network": self._identified[1]}

    @cached_property
    def _identified(self) -> tuple[Classifier, Record]:
        """The network on the CPU, and its identity for cache keys."""
        if not self.network:
            raise BadModelError(NEEDS)
        with watching() as reads:
            made = model.make(self.network)
        if not isinstance(made, AuxiliaryTask):
            raise BadModelError(f"model {self.network} has no method auxiliary_loss; {NEEDS}")
        entry = model.get(self.network)
        with wrap_errors(f"model '{self.network}' returned no valid record"):
            params = json.loads(canonical_json(made.record()))
        return made, {"id": entry.id, "version": version_with(entry, reads, self.network), "params": params}

    @cached_property
    def _loaded(self) -> dict[str, AuxiliaryTask]:
        return {}

    def _task(self, device: str) -> AuxiliaryTask:
        """The network on `device`."""
        if device not in self._loaded:
            made: Any = self._identified[0]
            if device != "cpu":
                made = model.make(self.network)
                made = made.to(device) if isinstance(made, Movable) else made
            self._loaded[device] = made
        return self._loaded[device]

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Images `[n, 3, h, w]` of lower auxiliary loss than `x`, in [0, 1]."""
        import torch

        task, clean = self._task(str(x.device)), x.detach()
        least = self._loss(task, clean.clamp(0, 1)).detach()
        signs = torch.zeros((self.steps, *x.shape), dtype=x.dtype, device=x.device)
        budget = x.new_zeros(len(x), 1, 1, 1)
        for number in range(1, self.budgets + 1):
            eps = number * self.budget_step / 255
            taken, at = [], clean
            for _ in range(self.steps):
                taken.append(self._descent(task, at))
                at = self.walk(clean, taken[-1:], eps, at)
            loss = self._loss(task, at).detach()
            better = loss < least
            least = torch.where(better, loss, least)
            shaped = better.view(-1, 1, 1, 1)
            signs = torch.where(shaped, torch.stack(taken), signs)
            budget = torch.where(shaped, torch.full_like(budget, eps), budget)
        return self.walk(x, signs, budget, x).clamp(0, 1)

    def walk(self, x: Tensor, signs: Iterable[Tensor], eps: Tensor | float, at: Tensor) -> Tensor:
        """Where steps along `signs` lead from `at`, each within `eps` of `x` and [0, 1]; differentiable."""
        for sign in signs:
            change = (at - x + self.step_size / 255 * sign).clamp(min=-eps, max=eps)  # type: ignore[arg-type]
            at = (x + change).clamp(0, 1)
        return at

    def _descent(self, task: AuxiliaryTask, at: Tensor) -> Tensor:
        """The sign of the direction that lowers the loss of each image."""
        import torch

        with torch.enable_grad():
            leaf = at.clone().requires_grad_()
            loss = self._loss(task, leaf)
            if not loss.requires_grad:
                raise RdpBenchError(f"auxiliary_loss of model '{self.network}' is not differentiable in its images")
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return -grad.sign()

    def _loss(self, task: AuxiliaryTask, x: Tensor) -> Tensor:
        """The loss of each image, checked."""
        import torch

        loss: object = task.auxiliary_loss(x.clone())
        if not isinstance(loss, torch.Tensor) or loss.shape != (len(x),) or not loss.is_floating_point():
            found = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise RdpBenchError(
                f"auxiliary_loss of model '{self.network}' returned {found} for {len(x)} images, expected float "
                f"[{len(x)}]: the loss of each image, not the mean over the batch"
            )
        if not bool(torch.isfinite(loss.detach()).all()):
            raise RdpBenchError(f"auxiliary_loss of model '{self.network}' is not finite")
        return loss
