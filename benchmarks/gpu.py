"""What a GPU does with the paper's networks: `python -m benchmarks.gpu`.

Weights are random, for only shapes decide how long a network takes; nothing is downloaded. For each precision it prints
image-steps per second of MI-FGSM on each source beside a bare loop of forward and backward passes, the share of the
measured peak, the peak memory, images per second of each defense and of the target, and the time of exhibits at 1,000
images that follows.
`--device cpu --networks effnet-lite0 --batch 2` tries it anywhere.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from rdp_bench import plugins, registry
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.engine import grid
from rdp_bench.engine.batch_memory import CudaMemory, FoundBatches
from rdp_bench.engine.tasks import BATCH
from rdp_bench.engine.worker import configure_torch
from rdp_bench.errors import RdpBenchError
from rdp_bench.models import classifier
from rdp_bench.models.card import cards
from rdp_bench.models.zoo import LoadedSource
from rdp_bench.numerics import precision
from rdp_bench.rng import ImageRng

NETWORKS = ("inc-v3", "inc-v4", "resnet-v2-101", "resnet-v2-152")
TARGET = "incres-v2-ens"
SIZE = 299
EXHIBITS = ("table1", "table3", "table4", "figure4")


@dataclass(frozen=True)
class Speed:
    """Seconds per image, and what the device held at most meanwhile."""

    seconds: float
    bytes: int = 0


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def clock(job: Callable[[], object], images: int, device: str, seconds: float = 2.0) -> Speed:
    """Repeat `job` for about `seconds` after two calls to warm up."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        job()
    synchronise(device)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or not count:
        job()
        synchronise(device)
        count += 1
    spent = (time.perf_counter() - begin) / count / images
    return Speed(spent, torch.cuda.max_memory_allocated(device) if device != "cpu" else 0)


def prepared(name: str, device: str) -> classifier.PixelClassifier:
    """The network of a card as a run prepares it, with random weights."""
    card = cards()[name]
    torch.manual_seed(0)
    return classifier.prepared(classifier.create(card), card, "random").to(device)


def peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product: what a network could reach at best."""
    side = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / clock(lambda: a @ b, 1, device).seconds


def operations(model: classifier.PixelClassifier) -> float:
    """Floating-point operations of a gradient of one image: those of its forward pass twice, as weights need none."""
    shapes = copy.deepcopy(model).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    return 2.0 * counter.get_total_flops()


def bare(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """A gradient of the loss at `x`."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def batches_of(device: str) -> FoundBatches | None:
    """What finds the batches of a run on this device."""
    return FoundBatches(CudaMemory(device)) if device.startswith("cuda") else None


def sources(names: Sequence[str], device: str, batch: int | None, ceiling: float, steps: int = 3) -> dict[str, float]:
    """Print a line per network; returns seconds per gradient of an image."""
    found, batches = {}, batches_of(device)
    attack = compose(f"I({steps})|MI")
    for name in names:
        model = prepared(name, device)

        def images(count: int) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            return torch.rand(count, 3, SIZE, SIZE, device=device), torch.zeros(count, dtype=torch.long, device=device)

        source = LoadedSource(name, [model])

        def craft(x: Tensor, y: Tensor, source: LoadedSource = source) -> Tensor:
            return attack(source, x, y, 16 / 255, ImageRng([str(i) for i in range(len(x))], device))

        size = batch or (batches.size(name, lambda count: craft(*images(count))) if batches else BATCH["cpu"])
        x, y = images(size)
        ours = clock(lambda: craft(x, y), size * steps, device)  # noqa: B023
        plain = clock(lambda: bare(model, x, y), size, device)  # noqa: B023
        share = operations(model) / ours.seconds / ceiling
        found[name] = ours.seconds
        of_bare, memory = plain.seconds / ours.seconds, ours.bytes / 1e9
        print(
            f"  MI-FGSM on {name:16} {1 / ours.seconds:10.1f} image-steps/s, {of_bare:5.2f} x a bare loop, "
            f"{100 * share:5.1f} % of the peak, {memory:6.2f} GB, batch {size}",
            flush=True,
        )
    return found


@torch.no_grad()
def judging(names: Sequence[str], target: str, device: str, batch: int | None) -> dict[str, float]:
    """Print a line per defense; returns seconds per image, the target's and all passes included."""
    model, found, batches = prepared(target, device), {}, batches_of(device)
    for name in names:
        try:
            entry = registry.defense.resolve(name).value

            def images(count: int) -> Tensor:
                torch.manual_seed(0)
                return torch.rand(count, 3, SIZE, SIZE, device=device)

            def purify(x: Tensor, entry: Any = entry) -> Tensor:
                purified: Tensor = entry.purify(x.clone(), ImageRng([str(i) for i in range(len(x))], device))
                return purified

            def classify(purified: Tensor) -> Tensor:
                logits: Tensor = model(purified, purified.shape[-1] / SIZE)
                return logits

            size = batch or (
                batches.size(name, lambda count: classify(purify(images(count)))) if batches else BATCH["cpu"]
            )
            x = images(size)
            purified = purify(x)
            alone = clock(lambda: purify(x), size, device)  # noqa: B023
            behind = clock(lambda: classify(purified), size, device)  # noqa: B023
        except (RdpBenchError, RuntimeError) as error:
            print(f"  {name:26} not measured: {error}")
            continue
        found[name] = (alone.seconds + behind.seconds) * entry.passes
        memory = max(alone.bytes, behind.bytes) / 1e9
        print(
            f"  {name:26} {1 / alone.seconds:10.1f} images/s purified, {1 / behind.seconds:10.1f} judged, "
            f"{memory:6.2f} GB, batch {size}",
            flush=True,
        )
    return found


def exhibit(name: str, gradients: dict[str, float], judged: dict[str, float], images: int = 1000) -> float | None:
    """Seconds of a built-in grid under the paper profile, from measured rates; None where a rate is missing."""
    axes = grid.settle(grid.load(name, "paper", {})[0], None).axes
    members = [axes.ensembles.get(source, (source,)) for source in axes.sources]
    if not all(member in gradients for each in members for member in each):
        return None
    total = 0.0
    passes = [judged[defense] for defense in axes.defenses if defense in judged]
    for eps in axes.eps:
        for label in axes.attacks:
            count = registry.attack.resolve(label).value.gradients(eps)
            total += sum(count * gradients[member] for each in members for member in each)
            total += len(members) * len(axes.targets) * sum(passes)
    return images * (total + len(axes.targets) * sum(passes))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--batch", type=int, help="default: what a run finds by memory; 20 on a CPU")
    parser.add_argument("--precision", nargs="+", default=("float32", "tf32", "bfloat16"))
    parser.add_argument("--no-defenses", action="store_true")
    arguments = parser.parse_args()
    device = arguments.device
    plugins.load()
    configure_torch(device)
    name = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    defenses = [] if arguments.no_defenses else grid.settle(grid.load("table1", "paper", {})[0], None).axes.defenses
    for each in arguments.precision:
        with precision.using(each):
            ceiling = peak(device, torch.bfloat16 if each == "bfloat16" else torch.float32)
            print(f"\n{each}: a matrix product reaches {ceiling / 1e12:.3g} TFLOP/s")
            gradients = sources(arguments.networks, device, arguments.batch, ceiling)
            judged = judging(defenses, arguments.target, device, arguments.batch)
            for label in EXHIBITS:
                seconds = exhibit(label, gradients, judged)
                shown = "sources not measured" if seconds is None else f"{seconds / 60:.1f} min at 1,000 images"
                print(f"  {label:26} {shown}")


if __name__ == "__main__":
    main()
