"""How fast each trainer is, and how much of a step the loop costs: `python -m benchmarks.training`.

A step is a whole one, from cutting its crops to counting its losses. While it runs, every call of a network and every
backward pass through networks is timed, in CPU time; what is left is spent outside of them: crops, losses, signs and
projections of attacks, guards, optimizers, bookkeeping. Timing networks and step together makes the share immune to
whatever else the machine does; bare calls of the same shapes, timed between steps, scatter by several percent.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.defenses import Row
from rdp_bench.environment import choose_device
from rdp_bench.models.classifier import PixelClassifier
from rdp_bench.train import recipes
from rdp_bench.train.loop import LoopIntervals, Training
from rdp_bench.train.photos import Photos

NAMES = tuple(recipes.TRAINERS)
SIZE = (256, 341)


def photos(n: int = 24) -> Photos:
    """Noise: what a pixel is takes no time."""
    pixels = np.random.default_rng(0).integers(0, 256, n * 3 * SIZE[0] * SIZE[1], np.uint8)
    return Photos(pixels, [SIZE] * n, [str(i) for i in range(n)], "noise")


def now(device: str) -> float:
    """Seconds of CPU; on a GPU of the clock, once it has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def networks_timed(device: str) -> Iterator[list[float]]:
    """Collects the seconds of each outermost call of a network, and of each backward pass."""
    spent: list[float] = []
    within = False

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal within
            if within:
                return call(*args, **kwargs)
            within, begin = True, now(device)
            try:
                return call(*args, **kwargs)
            finally:
                spent.append(now(device) - begin)
                within = False

        return wrapped

    places: list[tuple[Any, str]] = [
        (nn.Module, "__call__"),
        (PixelClassifier, "features"),
        (torch.Tensor, "backward"),
        (torch.autograd, "grad"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    try:
        for (owner, name), call in zip(places, before, strict=True):
            setattr(owner, name, timed(call))
        yield spent
    finally:
        for (owner, name), call in zip(places, before, strict=True):
            setattr(owner, name, call)


def measure(training: Training, rounds: int) -> tuple[float, list[float]]:
    """Seconds of the fastest step by the clock, and the share of each step that is spent outside the networks."""
    device = training.recipe.device
    taken, shares = [], []
    for _ in range(rounds + 1):
        begin, clock = now(device), time.perf_counter()
        with networks_timed(device) as inside:
            training.step(training._crops(training.done))
            training._count()
        shares.append(1 - sum(inside) / (now(device) - begin))
        taken.append(time.perf_counter() - clock)
    return min(taken[1:]), shares[1:]


def rows(
    rounds: int = 7,
    names: Sequence[str] = NAMES,
    size: str = "compact",
    device: str = "cpu",
    models: Path | None = None,
) -> Iterator[Row]:
    """Every measurement, as it is made."""
    for name in names:
        kind = recipes.get(name)
        with tempfile.TemporaryDirectory() as out:
            recipe = kind(kind.settings(size, {"steps": 10**6}), device, models)
            taken, shares = measure(Training(recipe, photos(), Path(out), None, LoopIntervals()), rounds)
        batch, crop = recipe.options.batch, recipe.options.crop
        yield Row(
            f"train {name}, {size}", batch / taken, f"crops of {crop} a second, {1e3 * taken:.0f} ms a step of {batch}"
        )
        note = f"% of a step (at most 5); {100 * min(shares):.1f} to {100 * max(shares):.1f} in {rounds} steps"
        yield Row(f"train {name}, {size}: outside the networks", 100 * statistics.median(shares), note)
    made, taken = photos(), 1e9
    for i in range(rounds):
        begin = time.perf_counter()
        made.crops(64, 96, torch.Generator().manual_seed(i))
        taken = min(taken, time.perf_counter() - begin)
    yield Row("crops of 96 pixels", 64 / taken, "a second, cut beside the step in a thread of their own")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", action="append", choices=NAMES, help="one of them; repeatable")
    parser.add_argument("--size", default="compact")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models-dir", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    for row in rows(options.rounds, options.trainer or NAMES, options.size, device, options.models_dir):
        print(f"{row.name:<66} {row.value:9.2f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
