"""What score-based purifiers cost beyond the calls of their network: `python -m benchmarks.purifiers`.

A purifier's own work is measured by itself, with a network that returns its input: the ratio of two long times would be
mostly noise on a machine that others use. It is set against the time of as many calls of the real network; for the
gradient, every call once forward and once more forward and backward.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.defenses import Row, images
from rdp_bench import plugins
from rdp_bench.defenses._networks.score import Prediction
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


def median(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call, after one to warm up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


@contextmanager
def costless(net: Any) -> Iterator[None]:
    """The network returns its input."""
    net.predict = lambda x, step, abar: Prediction(x)  # noqa: ARG005
    try:
        yield
    finally:
        del net.predict


def rows(n: int = 2, repeats: int = 5) -> Iterator[Row]:
    """Ratios, and milliseconds of one network call."""
    plugins.load()
    x = images(n)
    for label in LABELS:
        entry: Any = defense.resolve(label).value
        net, calls = entry.net("cpu"), entry.resolved()["calls"]
        state = framed(x, net)

        def purify(slope: bool, entry: Any = entry) -> None:
            with torch.set_grad_enabled(slope):
                leaf = x.clone().requires_grad_(slope)
                out = entry.purify(leaf, ImageRng([str(i) for i in range(n)]))
            if slope:
                torch.autograd.grad(out, leaf, x)

        for slope, bare in ((False, forward), (True, gradient)):
            call = median(lambda bare=bare, net=net, state=state: bare(net, state, 1), repeats)  # type: ignore[misc]
            with costless(net):
                own = median(lambda purify=purify, slope=slope: purify(slope), 2 * repeats)  # type: ignore[misc]
            what = f"{label}, gradient" if slope else label
            yield Row(f"{what}, of its network calls' time", 1 + own / (calls * call), "times, at most 1.05")
            if not slope:
                yield Row(f"{label}, a network call", 1e3 * call / n, "ms an image, at most 300")


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
