"""What the attack engine costs beyond its gradients, and beside torchattacks: `python -m benchmarks.attacks`.

A bare loop is forward and backward of the same classifier, on as many images of the same sizes. It and the
attack run in turn; a ratio is the median of the rounds' ratios of CPU time, which others on the machine
disturb less than the clock. Each library's speed is taken in a process of its own, set up as it runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from rdp_bench import plugins
from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.attacks.parts import Diversity, ScaleCopies
from rdp_bench.data.open import open_dataset
from rdp_bench.engine import worker
from rdp_bench.models.classifier import load_state
from rdp_bench.models.zoo import LoadedSource, ModelRef, find
from rdp_bench.rng import ImageRng
from rdp_bench.weights.files import read_tensors

SIZE = 299
EPS = 16 / 255
CLASSIFIER = "effnet-lite0"
SECOND = "effnet-lite1"
JUDGE = "effnet-lite2"
BATCHES = (5, 20)


class Row(NamedTuple):
    """One measurement; `note` says what the number is beside its unit."""

    name: str
    value: float
    note: str


def photos(n: int) -> tuple[Tensor, Tensor]:
    """The first `n` of foolbox's photos, repeated if need be, and their labels."""
    data = open_dataset("photos20")
    index = [i % len(data.ids) for i in range(n)]
    x = torch.stack([torch.from_numpy(data.image(i)) for i in index]).float() / 255
    return x, torch.tensor([data.labels[i] for i in index])


def image_rng(n: int) -> ImageRng:
    return ImageRng([str(i) for i in range(n)])


def source(*labels: str) -> LoadedSource:
    return LoadedSource("+".join(labels), [find(label).load("cpu") for label in labels])


def cpu_seconds(job: Callable[[], object]) -> float:
    begin = time.process_time()
    job()
    return time.process_time() - begin


def ratios(attack: Callable[[], object], bare: Callable[[], object], rounds: int) -> list[float]:
    """CPU time of `attack` over that of `bare`, once a round after one to warm up."""
    found = []
    for number in range(rounds + 1):
        # Whoever goes second finds a warmer or more crowded machine: take turns.
        jobs = (attack, bare) if number % 2 else (bare, attack)
        spent = {job: cpu_seconds(job) for job in jobs}
        found.append(spent[attack] / spent[bare])
    return found[1:]


def bare(sees: list[list[tuple[Any, Tensor, float]]], y: Tensor) -> None:
    """Forward and backward for each step's list of classifier, images and zoom."""
    for step in sees:
        for classifier, images, zoom in step:
            leaf = images.detach().requires_grad_()
            loss = cross_entropy(classifier(leaf, zoom), y[: len(images)], reduction="sum")
            torch.autograd.grad(loss, leaf)


def sees(attack: GradientSign, members: LoadedSource, x: Tensor) -> list[list[tuple[Any, Tensor, float]]]:
    """What the classifiers of `attack` see: the same images counted, split and sized by the same draws."""
    diversity, copies = attack.part(Diversity), attack.part(ScaleCopies)
    stream, padded = image_rng(len(x)), round(SIZE * (diversity or Diversity()).diversity_size)
    large = interpolate(x, size=(padded, padded), mode="nearest")
    steps = []
    for _ in range(attack.count(16)):
        step: list[tuple[Any, Tensor, float]] = []
        for _ in range(copies.scale_copies if copies else 1):
            for member in members.members:
                applied = torch.zeros(len(x), dtype=torch.bool)
                if diversity:
                    applied, _, _ = diversity.sample(SIZE, stream)
                if diversity and diversity.resize_back:
                    applied[:] = False
                parts = ((large, padded / SIZE, applied), (x, 1.0, ~applied))
                step += [(member, images[: int(use.sum())], zoom) for images, zoom, use in parts if use.any()]
        steps.append(step)
    return steps


def overheads(batch: int, steps: int, rounds: int) -> Iterator[Row]:
    """Attacks over their bare loops."""
    worker.configure_torch("cpu")
    x, y = photos(batch)
    one, two = source(CLASSIFIER), source(CLASSIFIER, SECOND)
    short = f"I({steps})|"
    for name, text, members in (
        ("MI-FGSM", short + "MI", one),
        ("TI-DIM", short + "MI|DI|TI", one),
        ("SI-NI-FGSM, 5 copies", f"I({max(1, steps // 3)})|NI|SI", one),
        ("SINI-TIDIM, 5 copies", f"I({max(1, steps // 3)})|NI|SI|DI(.5, {331 / SIZE}, true)|TI(7)", one),
        ("MI-FGSM on two networks", short + "MI", two),
    ):
        attack = compose(text)
        seen = sees(attack, members, x)
        found = ratios(
            lambda attack=attack, members=members: attack(members, x, y, EPS, image_rng(batch)),  # type: ignore[misc]
            lambda seen=seen: bare(seen, y),  # type: ignore[misc]
            rounds,
        )
        note = f"x bare loop's CPU time, batch {batch}; {min(found):.2f}-{max(found):.2f} in {rounds} rounds"
        yield Row(f"{name} over a bare loop", statistics.median(found), note)


class Plain(nn.Module):
    """The network as a user of timm has it: eager, its batch-norms in place, `interpolate` in front."""

    name = "plain"
    classes = 1000

    def __init__(self, label: str) -> None:
        import timm

        super().__init__()
        member = find(label)
        assert isinstance(member, ModelRef)
        assert member.file is not None
        self.net = timm.create_model(member.card.arch, pretrained=False)
        load_state(self.net, read_tensors(member.file), member.card, member.file)
        self.size = member.card.input_size
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        size = round(self.size * zoom)
        x = interpolate(x, size=(size, size), mode="bicubic", align_corners=False)
        logits: Tensor = self.net((x - 0.5) / 0.5)
        return logits

    def record(self) -> dict[str, Any]:
        return {}


def over_plain(batch: int, steps: int, rounds: int) -> Iterator[Row]:
    """Attacks on the prepared network as against a bare loop on the network as timm gives it, on the same images."""
    worker.configure_torch("cpu")
    x, y = photos(batch)
    ours, plain = source(CLASSIFIER), LoadedSource("plain", [Plain(CLASSIFIER)])
    few = max(1, steps // 3)
    for name, text in (
        ("MI-FGSM", f"I({steps})|MI"),
        ("TI-DIM", f"I({steps})|MI|DI|TI"),
        ("SI-NI-FGSM", f"I({few})|NI|SI"),
        ("SINI-TIDIM", f"I({few})|NI|SI|DI(.5, {331 / SIZE}, true)|TI(7)"),
    ):
        attack = compose(text)
        seen = sees(attack, plain, x)
        found = ratios(
            lambda seen=seen: bare(seen, y),  # type: ignore[misc]
            lambda attack=attack: attack(ours, x, y, EPS, image_rng(batch)),  # type: ignore[misc]
            rounds,
        )
        note = f"x its speed, CPU time, batch {batch}; {min(found):.2f}-{max(found):.2f}; aim 1.8"
        yield Row(f"{name} beside a bare loop on plain timm", statistics.median(found), note)


def speed(library: str, batch: int, steps: int, rounds: int) -> list[float]:
    """Image-steps a second of MI-FGSM: wall clock and CPU, the best of `rounds`; in this process."""
    x, y = photos(batch)
    if library == "torchattacks":
        import torchattacks

        method = torchattacks.MIFGSM(Plain(CLASSIFIER), eps=EPS, alpha=EPS / steps, steps=steps)

        def job() -> object:
            return method(x, y)
    else:
        worker.configure_torch("cpu")
        attack, members = compose(f"I({steps})|MI"), source(CLASSIFIER)

        def job() -> object:
            return attack(members, x, y, EPS, image_rng(batch))

    wall, cpu = [], []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        cpu.append(cpu_seconds(job))
        wall.append(time.perf_counter() - begin)
    return [batch * steps / min(times[1:]) for times in (wall, cpu)]


def beside_torchattacks(steps: int, rounds: int) -> Iterator[Row]:
    """Each library at its best batch, in processes that take turns."""
    best: dict[str, tuple[float, float, int]] = {}
    try:
        import torchattacks  # noqa: F401
    except ImportError:
        yield Row("MI-FGSM beside torchattacks", float("nan"), "torchattacks is not installed")
        return
    for _ in range(2):
        for batch in BATCHES:
            for library in ("ours", "torchattacks"):
                options = ["--speed", library, "--batch", str(batch), "--steps", str(steps), "--rounds", str(rounds)]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.attacks", *options], capture_output=True, text=True, check=True
                )
                wall, cpu = json.loads(done.stdout.splitlines()[-1])
                best[library] = max(best.get(library, (0.0, 0.0, 0)), (cpu, wall, batch))
    for library, (cpu, wall, batch) in best.items():
        yield Row(
            f"MI-FGSM, {library}", cpu, f"image-steps a second of CPU; {wall:.2f} by the clock; best batch {batch}"
        )
    yield Row("MI-FGSM, ours over torchattacks", best["ours"][0] / best["torchattacks"][0], "x its speed, CPU time")


@cache
def crafted(prepared: bool) -> Tensor:
    x, y = photos(20)
    members = source(CLASSIFIER) if prepared else LoadedSource("plain", [Plain(CLASSIFIER)])
    adv = compose("MI")(members, x, y, EPS, image_rng(20))
    return (adv * 255).round() / 255


def effect() -> Iterator[Row]:
    """Does the prepared network lead to other sets? Errors they cause in a third network, and how far they differ."""
    judge = find(JUDGE).load("cpu")
    x, y = photos(20)
    crafted(True), crafted(False)  # they need gradients; what follows does not
    with torch.no_grad():
        for name, images in (("no attack", x), ("prepared", crafted(True)), ("plain", crafted(False))):
            wrong = int((judge(images).argmax(1) != y).sum())
            label = (
                f"error of {JUDGE}, MI-FGSM on {name} network" if name != "no attack" else f"error of {JUDGE}, clean"
            )
            yield Row(label, 100 * wrong / 20, f"%, {wrong} of 20 photos")
    same = (crafted(True) == crafted(False)).float().mean()
    yield Row("pixels equal in both sets", 100 * float(same), "%; rounding turns few signs, then more with each step")


def rows(batch: int = 20, steps: int = 3, rounds: int = 3) -> Iterator[Row]:
    """Every measurement, as it is made."""
    plugins.load()
    yield from overheads(batch, steps, rounds)
    yield from over_plain(batch, steps, rounds)
    yield from beside_torchattacks(steps, max(1, rounds // 2))
    yield from effect()


def main() -> None:
    """Print the table, or one process's speed for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=20, help="images at a time in the ratios to a bare loop")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed", choices=("ours", "torchattacks"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed:
        print(json.dumps(speed(options.speed, options.batch, options.steps, options.rounds)))
        return
    for row in rows(options.batch, options.steps, options.rounds):
        print(f"{row.name:<66} {row.value:9.2f} {row.note}", flush=True)


if __name__ == "__main__":
    main()
