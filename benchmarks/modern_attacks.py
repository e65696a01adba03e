"""What the transfer attacks of 2020 to 2024 cost beyond their gradients: `python -m benchmarks.modern_attacks`.

The bare loop takes as many gradients of the same batch. On a machine that others use, the ratio of two long times is
mostly noise, so an attack's own work is measured by itself: on a linear classifier that costs almost nothing, attack
minus bare loop. It is then set against gradients of the smallest network that ships and of ResNet-50, the usual source
of these attacks. Attacks that hook into layers have no such stand-in; they and their bare loops run on a network in
turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.attacks import CLASSIFIER, EPS, SIZE, Row, cpu_seconds, image_rng, photos, source
from rdp_bench import plugins
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.engine import worker
from rdp_bench.models.card import Card
from rdp_bench.models.classifier import create, prepared
from rdp_bench.models.zoo import LoadedSource
from rdp_bench.registry import attack as attacks

NAMES = ("mi-fgsm", "vmi-fgsm", "vni-fgsm", "gra", "pgn", "pi-fgsm", "admix", "ssa", "bsr", "sia")
LARGE = "resnet50"
HOOKED = {
    "sgm": (CLASSIFIER, LARGE),
    "ilpd": (CLASSIFIER, LARGE),
    "tgr": ("vit_tiny_patch16_224", "vit_base_patch16_224"),
}
"""Attacks with hooks, and the networks on which each is measured: a small one, and the usual source."""


class Linear:
    """Logits linear in the pixels: its gradient is a contiguous tensor and takes about a millisecond."""

    name = "linear"
    classes = 10

    def __init__(self) -> None:
        self.weight = torch.randn(3 * SIZE * SIZE, self.classes, generator=torch.Generator().manual_seed(0)) / SIZE

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:  # noqa: ARG002
        return x.flatten(1) @ self.weight

    def record(self) -> dict[str, Any]:
        return {}


def network(name: str) -> Any:
    """A classifier: the one that ships, or a prepared network of timm with random weights."""
    if name == CLASSIFIER:
        return source(name).members[0]
    card = Card(name, "", name, "file", 224, (0.5,) * 3, (0.5,) * 3, fixed_size=True)
    return prepared(create(card), card, "random")


def bare(member: Any, x: Tensor, y: Tensor, gradients: int, forwards: int = 0) -> None:
    """`gradients` gradients of the loss at the batch, and `forwards` forward passes without one."""
    for _ in range(gradients):
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(member(leaf), y, reduction="sum"), leaf)
    with torch.no_grad():
        for _ in range(forwards):
            member(x)


def short(name: str, steps: int) -> GradientSign:
    """The preset with `steps` steps."""
    made: Any = attacks.resolve(f"{name}(steps={steps})").value
    return made  # type: ignore[no-any-return]


def crafting(name: str, member: Any, x: Tensor, y: Tensor, steps: int) -> Callable[[], object]:
    """The attack on the batch."""
    attack, members = short(name, steps), LoadedSource("one", [member])
    return lambda: attack(members, x, y, EPS, image_rng(len(x)))


def median(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds, after one call to warm up."""
    work()
    return statistics.median(cpu_seconds(work) for _ in range(rounds))


def own_work(x: Tensor, y: Tensor, steps: int, rounds: int) -> Iterator[Row]:
    """Each attack's own work, and that over the time of its gradients."""
    price = {}
    for name in (CLASSIFIER, LARGE):
        member = network(name)
        price[name] = median(lambda member=member: bare(member, x, y, 1), rounds)  # type: ignore[misc]
        yield Row(f"a gradient of {name}", 1e3 * price[name] / len(x), "ms an image")
    linear = Linear()
    classes = y % linear.classes
    for name in NAMES:
        count = short(name, steps).gradients(16)
        attacked = median(crafting(name, linear, x, classes, steps), rounds)
        own = (attacked - median(lambda count=count: bare(linear, x, classes, count), rounds)) / count  # type: ignore[misc]
        note = f"x its gradients of {LARGE}, at most 1.05; {1 + own / price[CLASSIFIER]:.3f} x those of {CLASSIFIER}; "
        yield Row(name, 1 + own / price[LARGE], f"{note}{1e3 * own / len(x):.2f} ms an image and gradient")


def ratios(pair: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """CPU time of the first over that of the second, in turn, each round in the other order."""
    found = []
    for number in range(rounds + 1):
        spent = {work: cpu_seconds(work) for work in (pair if number % 2 else pair[::-1])}
        found.append(spent[pair[0]] / spent[pair[1]])
    return found[1:]


def hooked(x: Tensor, y: Tensor, steps: int, rounds: int) -> Iterator[Row]:
    """Attacks with hooks, whole. ILPD's forward passes on the clean image count, as do the attention maps of TGR."""
    for name, of in ((name, of) for name, networks in HOOKED.items() for of in networks):
        member = network(of)
        forwards = steps if name == "ilpd" else 0
        for block in member.net.blocks if name == "tgr" else ():
            block.attn.fused_attn = False
        plain = lambda member=member, forwards=forwards: bare(member, x, y, steps, forwards)  # type: ignore[misc] # noqa: E731
        found = ratios((crafting(name, member, x, y, steps), plain), rounds)
        what = f"{steps} gradients" + (f" and {forwards} forward passes" if forwards else "")
        note = f"x {what} of {of}, at most 1.05; {min(found):.2f}-{max(found):.2f} in {rounds} rounds"
        yield Row(name, statistics.median(found), note)


def rows(batch: int = 5, steps: int = 1, rounds: int = 3) -> Iterator[Row]:
    """Every measurement, as it is made."""
    plugins.load()
    worker.configure_torch("cpu")
    x, y = photos(batch)
    yield from own_work(x, y, steps, rounds)
    yield from hooked(x, y, steps, rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for row in rows(given.batch, given.steps, given.rounds):
        print(f"{row.name:<32} {row.value:9.3f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
