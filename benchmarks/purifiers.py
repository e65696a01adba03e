"""What score-based purifiers cost beyond the calls of their network: `python -m benchmarks.purifiers`.

The bare loop calls the same network as often on states of the same size; for the gradient, every call once forward and
once more forward and backward. It and the purifier run in turn; a ratio is the median of the rounds' ratios of CPU
time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.defenses import Row, images
from rdp_bench import plugins
from rdp_bench.defenses._score import framed
from rdp_bench.registry import defense
from rdp_bench.rng import ImageRng

LABELS = ("diffpure(t=100, stride=20)", "gdmp(steps=5)", "dds")


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def forward(net: Any, x: Tensor, calls: int) -> None:
    """`calls` calls of the network."""
    with torch.no_grad():
        for _ in range(calls):
            net.predict(x, 99, 0.9)


def gradient(net: Any, x: Tensor, calls: int) -> None:
    """`calls` calls of the network forward, and again forward and backward."""
    forward(net, x, calls)
    for _ in range(calls):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(net.predict(leaf, 99, 0.9).eps, leaf, x)


def rows(n: int = 2, repeats: int = 5) -> Iterator[Row]:
    """Ratios, and milliseconds of one network call."""
    plugins.load()
    x = images(n)
    for label in LABELS:
        entry: Any = defense.resolve(label).value
        net, calls = entry.net("cpu"), entry.resolved()["calls"]
        state = framed(x, net)

        def purify(entry: Any = entry, slope: bool = False) -> None:
            with torch.set_grad_enabled(slope):
                leaf = x.clone().requires_grad_(slope)
                out = entry.purify(leaf, ImageRng([str(i) for i in range(n)]))
            if slope:
                torch.autograd.grad(out, leaf, x)

        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "": (purify, lambda net=net, state=state, calls=calls: forward(net, state, calls)),
        }
        if label != "dds":  # a single call, which autograd differentiates
            pairs[", gradient"] = (
                lambda purify=purify: purify(slope=True),
                lambda net=net, state=state, calls=calls: gradient(net, state, calls),
            )
        for what, (whole, bare) in pairs.items():
            taken = [(seconds(whole), seconds(bare)) for _ in range(repeats + 1)][1:]
            ratio = statistics.median(a / b for a, b in taken)
            yield Row(f"{label}{what}, of its network calls' time", ratio, "times, at most 1.05")
            if not what:
                each = statistics.median(b for _, b in taken) / calls / n
                yield Row(f"{label}, a network call", 1e3 * each, "ms an image, at most 300")


def main() -> None:
    """Print every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for row in rows(given.images, given.repeats):
        print(f"{row.name:<72} {row.value:9.3f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
