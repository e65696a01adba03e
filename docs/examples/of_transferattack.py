"""Attacks of TransferAttack as entries of rdp-bench.

TransferAttack is a repository, not a package: clone it, and put the clone on PYTHONPATH.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench import Attack, attack

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng


@attack("transferattack", source="Trustworthy-AI-Group/TransferAttack")
@dataclass(frozen=True)
class TransferAttack(Attack):
    """The class of TransferAttack called `name`, such as `bsr`; steps of eps/10.

    It gets one image at a time, so that a result does not depend on the others. Not for attacks that mix the images of
    a batch, such as `admix`: they would mix an image with itself.
    """

    name: str = "mifgsm"
    steps: int = 10

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Return adversarial images of `x` `[n, 3, h, w]`, made one at a time from a seed of each."""
        import torch
        from transferattack import load_attack_class

        from rdp_bench.attacks.library import as_network, seeded

        class OnOurSource(load_attack_class(self.name)):  # type: ignore[misc]
            def load_model(self, model_name: Any) -> Any:
                return as_network(source, x.device)

        method = OnOurSource("our source", epsilon=eps, alpha=eps / self.steps, epoch=self.steps, device=x.device)
        out = []
        for i, seed in enumerate(rng.integers(0, 2**32).tolist()):
            with seeded(seed, x.device):  # TransferAttack draws from the global streams
                out.append((x[i : i + 1] + method(x[i : i + 1], y[i : i + 1])).clamp(0, 1))
        return torch.cat(out).detach()
