"""The runs of each adaptive attack, in order; `victim.hardest` does them on who is left."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rdp_bench.attacks._adaptive import apgd, fab, spsa, square
from rdp_bench.attacks._adaptive.victim import Run, Victim
from rdp_bench.attacks._kernels.losses import LOSSES


def apgd_runs(loss: str, steps: int, restarts: int, targets: int, *, stop: bool) -> Iterator[Run]:
    """One run a restart; for the loss `targeted-dlr`, those of one target class after the other."""

    def untargeted(victim: Victim) -> Tensor:
        return apgd.ascend(victim, apgd.start(victim), LOSSES[loss], steps, stop=stop)

    def targeted(rank: int) -> Run:
        def run(victim: Victim) -> Tensor:
            return apgd.ascend(victim, apgd.start(victim), likely_class(victim, rank), steps, stop=stop)

        return run

    if loss == "targeted-dlr":
        for rank in range(1, targets + 1):
            yield from [targeted(rank)] * restarts
    else:
        yield from [untargeted] * restarts


def fab_runs(steps: int, restarts: int, targets: int, constants: fab.Constants, *, stop: bool) -> Iterator[Run]:
    """The restarts of one target class after the other; the first run starts from the clean images."""

    def one(rank: int, restart: int) -> Run:
        def run(victim: Victim) -> Tensor:
            begin = fab.random_start(victim) if restart else victim.x.clone()
            return fab.boundary(victim, begin, likely_class(victim, rank), steps, constants, stop=stop)

        return run

    for rank in range(1, targets + 1):
        yield from (one(rank, restart) for restart in range(restarts))


def square_runs(queries: int, restarts: int, first: float) -> Iterator[Run]:
    """One run a restart."""
    yield from [lambda victim: square.search(victim, queries, first)] * restarts


def spsa_runs(steps: int, samples: int, delta: float, step: float) -> Iterator[Run]:
    """One run."""
    yield lambda victim: spsa.descend(victim, steps, samples, delta, step)


def likely_class(victim: Victim, rank: int) -> Tensor:
    """The class of the logit of clean images that only `rank` others exceed, int64 `[n]`.

    Where that is the label, the class of the highest: the image is misclassified already.
    """
    order = victim.mean_logits(victim.x).argsort(1, descending=True)
    found: Tensor = order[:, rank]
    return found.where(found != victim.y, order[:, 0])
