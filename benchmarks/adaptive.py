"""What the adaptive attacks cost beyond gradients and queries, and beside others: `python -m benchmarks.adaptive`.

`--original FOLDER` adds fra31/auto-attack, cloned into that folder. Ratios are of CPU time, in turns; see
`benchmarks/attacks.py`. Libraries attack the same images at the same budget, and their outcomes stand beside the times.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.attacks import CLASSIFIER, Row, cpu_seconds, image_rng, photos, ratios, source
from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive import apgd, square
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels import losses
from rdp_bench.engine import worker
from rdp_bench.models.zoo import LoadedSource
from rdp_bench.protocols import Classifier

NEVER = 0.01 / 255
"""An eps at which no image breaks, so that nobody stops early."""

HARD = 1 / 255
"""The least eps of 8-bit images."""


class Half:
    """A classifier at half its input size, for a fifth of the time."""

    def __init__(self, inner: Classifier) -> None:
        self.inner, self.name, self.classes = inner, f"{inner.name} at half size", inner.classes

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        """Logits."""
        return self.inner(x, 0.5 * zoom)

    def record(self) -> dict[str, Any]:
        """Nothing is stored."""
        return {}


def overheads(batch: int, steps: int, rounds: int) -> Iterator[Row]:
    """An APGD run over its gradients, and a Square run over its forward passes."""
    worker.configure_torch("cpu")
    x, _ = photos(batch)
    one = source(CLASSIFIER)
    (net,) = one.members
    with torch.no_grad():
        y = net(x).argmax(1)

    def victim() -> Victim:
        return Victim.of(one, x, y, NEVER, "linf", image_rng(batch))

    def gradients() -> None:
        for _ in range(steps + 1):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(cross_entropy(net(leaf), y, reduction="sum"), leaf)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(steps + 1):
            net(x)

    climb: Callable[[], object] = lambda: apgd.ascend(victim(), x.clone(), losses.cross_entropy, steps)  # noqa: E731
    squares: Callable[[], object] = lambda: square.search(victim(), steps, 0.8)  # noqa: E731
    for name, ours, bare in (("APGD-CE, step", climb, gradients), ("Square, query", squares, forwards)):
        found = ratios(ours, bare, rounds)
        spread = f"{min(found):.3f} to {max(found):.3f}"
        yield Row(f"{name} of {batch} images / bare pass", statistics.median(found), f"x ({spread})")


def beside_others(batch: int, steps: int, queries: int, original: Path | None) -> Iterator[Row]:
    """Ours and other libraries at equal budget: CPU seconds, and how many images each breaks."""
    worker.configure_torch("cpu")
    plugins.load()
    x, _ = photos(batch)
    (inner,) = source(CLASSIFIER).members
    half = Half(inner)
    with torch.no_grad():
        y = half(x).argmax(1)
    labels = {
        "APGD-CE": f"apgd-ce(steps={steps}, stop=true)",
        "FAB-T": f"fab-t(steps={steps}, targets=2, stop=true)",
        "Square": f"square(queries={queries})",
        "AutoAttack": f"autoattack(steps={steps}, targets=2, queries={queries})",
    }
    for name, label in labels.items():
        attack = registry.attack.resolve(label).value
        members = LoadedSource("half", (half,))
        ours = _timed(partial(_attack, attack, members, x, y), half, y)
        yield Row(f"{name}, ours", ours[0], f"s, {ours[1]} of {batch} broken")
        for library, theirs in _others(half, steps, queries, original).items():
            if name in theirs:
                spent, broken = _timed(partial(theirs[name], x.clone(), y), half, y)
                yield Row(f"{name}, {library} / ours", spent / ours[0], f"x, {broken} of {batch} broken")


def _attack(attack: Any, members: LoadedSource, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = attack(members, x.clone(), y, HARD, image_rng(len(x)))
    return found


def _timed(run: Callable[[], Tensor], net: Half, y: Tensor) -> tuple[float, int]:
    found: list[Tensor] = []
    spent = cpu_seconds(lambda: found.append(run()))
    with torch.no_grad():
        return spent, int((net(found[0]).argmax(1) != y).sum())


def _others(net: Half, steps: int, queries: int, original: Path | None) -> dict[str, dict[str, Callable[..., Tensor]]]:
    """Library -> name -> attack of images and labels."""
    found: dict[str, dict[str, Callable[..., Tensor]]] = {}
    try:
        import torchattacks
    except ImportError:
        pass
    else:

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.anchor = nn.Parameter(torch.zeros(()))

            def forward(self, images: Tensor) -> Tensor:
                return net(images)

        model = Network().eval()
        found["torchattacks"] = {
            "APGD-CE": torchattacks.APGD(model, eps=HARD, steps=steps, n_restarts=1, loss="ce"),
            "FAB-T": torchattacks.FAB(model, eps=HARD, steps=steps, n_restarts=1, n_classes=3, multi_targeted=True),
            "Square": torchattacks.Square(model, eps=HARD, n_queries=queries),
        }
    if original is not None:
        sys.path.insert(0, str(original))
        from autoattack import AutoAttack

        def whole(names: list[str]) -> Callable[..., Tensor]:
            made: Any = AutoAttack(net, norm="Linf", eps=HARD, seed=0, verbose=False, version="custom", device="cpu")
            made.attacks_to_run = names
            made.logger.log = lambda _: None
            for each in (made.apgd, made.apgd_targeted, made.fab):
                each.n_iter, each.n_restarts = steps, 1
            for each in (made.apgd, made.apgd_targeted):
                shares = (("n_iter_2", 0.22), ("n_iter_min", 0.06), ("size_decr", 0.03))
                vars(each).update({name: max(int(share * steps), 1) for name, share in shares})
            made.apgd_targeted.n_target_classes = made.fab.n_target_classes = 2
            made.square.n_queries = queries
            run: Callable[..., Tensor] = made.run_standard_evaluation
            return run

        found["fra31/auto-attack"] = {
            "APGD-CE": whole(["apgd-ce"]), "FAB-T": whole(["fab-t"]), "Square": whole(["square"]),
            "AutoAttack": whole(["apgd-ce", "apgd-t", "fab-t", "square"]),
        }  # fmt: skip
    return found


def rows(
    batch: int = 20, steps: int = 10, rounds: int = 3, queries: int = 50, original: Path | None = None
) -> Iterator[Row]:
    """Every measurement."""
    yield from overheads(min(batch, 5), steps, rounds)
    yield from beside_others(batch, steps, queries, original)


def main() -> None:
    """Print each row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--original", type=Path)
    given = parser.parse_args()
    for row in rows(given.batch, given.steps, given.rounds, given.queries, given.original):
        print(f"{row.name:<60} {row.value:9.3f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
