"""What the transfer attacks of 2020 to 2024 cost beyond their gradients: `python -m benchmarks.modern_attacks`.

The bare loop takes as many gradients of the same batch. On a machine that others use, the ratio of two long times is
mostly noise, so an attack's own work is measured by itself: on a linear classifier that costs almost nothing, attack
minus bare loop. It is then set against the bare loop on the real network. Attacks that hook into layers have no such
stand-in; they and their bare loops run on the network in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
HOOKED = {"sgm": CLASSIFIER, "ilpd": CLASSIFIER, "tgr": "vit_tiny_patch16_224"}
"""Attacks with hooks, and the network on which each is measured."""


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


def median(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds, after one call to warm up."""
    work()
    return statistics.median(cpu_seconds(work) for _ in range(rounds))


def own_work(x: Tensor, y: Tensor, steps: int, rounds: int) -> Iterator[Row]:
    """Each attack's own work over the time of its gradients on the real network."""
    linear, real = Linear(), source(CLASSIFIER).members[0]
    of_linear, few = y % linear.classes, 3
    gradient = median(lambda: bare(real, x, y, few), rounds) / few
    yield Row(f"a gradient of {CLASSIFIER}", 1e3 * gradient / len(x), "ms an image")
    for name in NAMES:
        attack = short(name, steps)
        count = attack.gradients(16)

        def whole(attack: GradientSign = attack) -> None:
            attack(LoadedSource("linear", [linear]), x, of_linear, EPS, image_rng(len(x)))

        mine = median(whole, rounds) - median(lambda count=count: bare(linear, x, of_linear, count), rounds)  # type: ignore[misc]
        note = f"x its {count} gradients of {CLASSIFIER}, at most 1.05; own work {1e3 * mine / count / len(x):.2f} ms"
        yield Row(name, 1 + mine / (count * gradient), note)


def vision_transformer(name: str) -> Any:
    """A prepared network of timm with random weights."""
    card = Card(name, "", name, "file", 224, (0.5,) * 3, (0.5,) * 3, fixed_size=True)
    return prepared(create(card), card, "random")


def ratios(pair: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """CPU time of the first over that of the second, in turn, each round in the other order."""
    found = []
    for number in range(rounds + 1):
        order = pair if number % 2 else pair[::-1]
        spent = {work: cpu_seconds(work) for work in order}
        found.append(spent[pair[0]] / spent[pair[1]])
    return found[1:]


def hooked(x: Tensor, y: Tensor, steps: int, rounds: int) -> Iterator[Row]:
    """Attacks with hooks, whole; ILPD's forward pass on the clean image counts as one."""
    for name, network in HOOKED.items():
        member: Any = source(network).members[0] if network == CLASSIFIER else vision_transformer(network)
        attack = short(name, steps)
        forwards = steps if name == "ilpd" else 0
        found = ratios(
            (
                lambda attack=attack, member=member: attack(  # type: ignore[misc]
                    LoadedSource("hooked", [member]), x, y, EPS, image_rng(len(x))
                ),
                lambda member=member, forwards=forwards: bare(
                    unfused(member) if name == "tgr" else member, x, y, steps, forwards
                ),  # type: ignore[misc]
            ),
            rounds,
        )
        what = f"{steps} gradients" + (f" and {forwards} forward passes" if forwards else "")
        note = f"x {what} of {network}; {min(found):.2f}-{max(found):.2f} in {rounds} rounds"
        yield Row(name, statistics.median(found), note)


def unfused(member: Any) -> nn.Module:
    """The transformer with attention maps, which TGR needs and the fused operation never makes."""
    for block in member.net.blocks:
        block.attn.fused_attn = False
    found: nn.Module = member
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    plugins.load()
    worker.configure_torch("cpu")
    x, y = photos(given.batch)
    for rows in (own_work, hooked):
        for row in rows(x, y, given.steps, given.rounds):
            print(f"{row.name:<32} {row.value:9.3f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
