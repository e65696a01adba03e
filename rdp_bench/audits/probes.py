"""Numbers that no cell shows, of the source that white-box attacks differentiate. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rdp_bench.attacks._adaptive import apgd
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import LOSSES, Loss
from rdp_bench.audits import binarisation
from rdp_bench.budgets import LINF
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.defended import DefendedClassifier
from rdp_bench.protocols import StochasticLogits
from rdp_bench.rng import ImageRng

if TYPE_CHECKING:
    from rdp_bench.protocols import Source

MOST_IMAGES = 16
CALLS = 5
DRAWS = 20
"""Of noise, in the probe of the loss's stability."""

TRACED = 4
"""Images on which the progress of an attack is traced."""

DIRECTIONS = 16
"""Random signs along which the gradient's prediction is compared with the loss."""

FINE_STEP = 0.1
"""Of these signs, in /255. A network of rectifiers bends: with 1/255 an exact gradient explains .8 of the change, with
this .97."""

STILL = 1e-6
"""L2 distance of two purified images up to which nothing has moved."""

SMALL_STEP = 1.0
"""Of the finite difference, in /255: less would ask how a defense rounds."""


@dataclass(frozen=True)
class Context:
    """What a probe may use."""

    source: Source
    """The target behind the defense, as white-box attacks differentiate it."""
    x: Tensor
    """Clean images `[n, 3, h, w]` in [0, 1]."""
    y: Tensor
    """Labels int64 `[n]`."""
    random: bool
    draws: int
    """Evaluations that a mean is taken over where the defense is random."""
    eps: float = 4 / 255
    """The audit's budget, in [0, 1]."""
    steps: int = 20
    """Of the attack whose progress is traced."""
    planted: tuple[int, int] = (5, 50)
    """Of the binarisation test: images, and points inside the budget for each."""
    fresh: Callable[[], Source] | None = None
    """The same source with a copy of its defense; None without a defense."""
    seed: int = 0
    """Of all streams."""

    def rng(self, name: str) -> ImageRng:
        """Streams for the images; equal names give equal streams."""
        of_seed = f"/seed {self.seed}" if self.seed else ""
        return ImageRng([f"audit/{name}/{number}{of_seed}" for number in range(len(self.x))], self.x.device)

    def signs(self, name: str) -> Tensor:
        """Random signs of the images' shape."""
        return torch.where(self.rng(name).uniform(*self.x.shape[1:]) < 0.5, -1.0, 1.0)

    def logits(self, x: Tensor, rng: ImageRng, source: Source | None = None) -> Tensor:
        """Logits `[n, classes]` of one draw, a mean over members; of the context's source, or another."""
        outputs = [
            member.stochastic_logits(x, rng) if isinstance(member, StochasticLogits) else member(x)
            for member in (source or self.source).members
        ]
        return torch.stack(outputs).mean(0)


Numbers = dict[str, Any]
Probe = Callable[[Context], Numbers]


@torch.no_grad()
def repeat(context: Context) -> Numbers:
    """Normalised logits of several calls with equal streams, other images in between; and of two draws of a stream.

    `streams` is how far those of another stream differ, of a defense that says it is deterministic; `alone` how far
    those of an image that comes alone differ from those in the batch. `redrawn` is whether the second draw of a stream
    differs from the first, as draws of two streams do: where it does not, the defense forks the stream and never draws
    from it.
    """
    found = []
    for number in range(CALLS):
        if number:
            context.logits(1 - context.x, context.rng("other"))
        found.append(_normalised(context.logits(context.x, context.rng("repeat"))))
    far = max(float((one - two).norm(dim=1).max()) for one in found for two in found)
    stream = context.rng("redrawn")
    first, second = (context.logits(context.x, stream) for _ in range(2))
    alike = torch.equal(first, second) and not torch.equal(first, context.logits(context.x, context.rng("another")))
    other = _normalised(context.logits(context.x, context.rng("another")))
    single = [
        _normalised(context.logits(context.x[i : i + 1], context.rng("repeat").select(torch.tensor([i]))))
        for i in range(len(context.x))
    ]
    return {
        "passes": CALLS, "difference": far, "redrawn": not (context.random and alike),
        "streams": 0.0 if context.random else float((other - found[0]).norm(dim=1).max()),
        "alone": float((torch.cat(single) - found[0]).norm(dim=1).max()),
    }  # fmt: skip


def _normalised(logits: Tensor) -> Tensor:
    size: Tensor = logits.norm(dim=1, keepdim=True)
    return logits / (size + 1e-10)


@torch.no_grad()
def outputs(context: Context) -> Numbers:
    """The range of the outputs, and whether they are a probability distribution."""
    found = context.logits(context.x, context.rng("outputs"))
    sums = found.sum(1)
    probabilities = bool(found.min() > -1e-5 and found.max() < 1 + 1e-5 and ((sums - 1).abs() < 1e-5).all())
    return {
        "low": float(found.min()), "high": float(found.max()),
        "probabilities": probabilities,
    }  # fmt: skip


def _gradient(context: Context, loss_function: Loss) -> tuple[Tensor, Tensor]:
    """The mean gradient of a loss over draws, and which images are right in the first."""
    rng = context.rng("gradient")
    total, right = torch.zeros_like(context.x), None
    for _ in range(context.draws if context.random else 1):
        leaf = context.x.clone().requires_grad_()
        logits = context.logits(leaf, rng)
        right = logits.argmax(1) == context.y if right is None else right
        loss = loss_function(logits, context.y).sum()
        if not loss.requires_grad:
            raise RdpBenchError("the outputs have no gradient with respect to the images")
        (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        if grad is None:
            raise RdpBenchError("the outputs have no gradient with respect to the images")
        total += grad
    assert right is not None
    return total, right


def gradient(context: Context) -> Numbers:
    """How many images that are right have a zero gradient: of the margin of the logits, and of the cross-entropy.

    `broken`: those with a gradient of either that is NaN or infinite.
    """
    try:
        margins, right = _gradient(context, LOSSES["margin"])
        entropies, _ = _gradient(context, LOSSES["ce"])
    except RdpBenchError as error:
        return {"error": str(error)}
    sizes = [each.flatten(1).abs().sum(1) for each in (margins, entropies)]
    zero, flat = (size == 0 for size in sizes)
    broken = ~(torch.isfinite(sizes[0]) & torch.isfinite(sizes[1]))
    return {
        "n": int(right.sum()), "zero": int((zero & right).sum()), "saturated": int((flat & ~zero & right).sum()),
        "broken": int((broken & right).sum()),
    }  # fmt: skip


@torch.no_grad()
def state(context: Context) -> Numbers | None:
    """Whether seeing an image changes the output for a similar one: one copy of the defense saw it, another did not.

    `moved` is how far the output for the similar image is from that for the one that was seen, which both copies know
    where they share what they keep.
    """
    if context.fresh is None:
        return None
    strangers = context.rng("strangers").uniform(*context.x.shape[1:])
    near = (strangers + 8 / 255 * context.signs("near")).clamp(0, 1)
    seen, unseen = context.fresh(), context.fresh()
    first = context.logits(strangers, context.rng("state"), seen)
    after = context.logits(near, context.rng("state"), seen)
    alone = context.logits(near, context.rng("state"), unseen)
    return {"difference": _apart(after, alone), "moved": _apart(after, first)}


def _apart(one: Tensor, two: Tensor) -> float:
    """The largest distance of two outputs for an image, over the size of the second."""
    return float(((one - two).norm(dim=1) / (two.norm(dim=1) + 1e-10)).max())


@torch.no_grad()
def elsewhere(context: Context) -> Numbers | None:
    """How much random signs of 8/255 move purified images, over how much they move others that were made of the same.

    What the defense gives back is compared, not what the target says, which may be sure of these images only.
    `ratios` has the median over images for each kind of others; kinds of which nothing moves are left out.
    """
    behind = context.source.members[0]
    if not isinstance(behind, DefendedClassifier):
        return None
    step = 8 / 255 * context.signs("elsewhere")

    def moved(x: Tensor) -> Tensor:
        here, there = (behind.purified(each, context.rng("noise")) for each in (x, (x + step).clamp(0, 1)))
        change: Tensor = torch.linalg.vector_norm((there - here).flatten(1), dim=1)
        return change

    x = context.x
    others = {
        "mirrored": x.flip(3), "upside down": x.flip(2), "with their channels changed over": x.roll(1, 1),
        "in negative": 1 - x, "mixed with one another": (x + x.roll(1, 0).flip(3)) / 2,
    }  # fmt: skip
    ours, found = moved(x), {}
    for kind, other in others.items():
        theirs = moved(other)
        if (there := theirs > STILL).any():
            found[kind] = float((ours[there] / theirs[there]).median())
    return {"ratios": found}


def slopes(context: Context) -> Numbers | None:
    """How well the gradient predicts what small random signs do to the margin over the likeliest other class.

    The correlation of both over `DIRECTIONS` signs for each image, changes in units of the image's own gradient; None
    where the gradient is a stand-in's. A random defense draws the same every time.
    """
    if any(
        isinstance(member, DefendedClassifier) and not member.attacked_defense.exact
        for member in context.source.members
    ):
        return None
    step = FINE_STEP / 255
    x = context.x.clamp(step, 1 - step)

    def logits(at: Tensor) -> Tensor:
        return context.logits(at, context.rng("slopes"))

    leaf = x.clone().requires_grad_()
    seen = logits(leaf)
    if not seen.requires_grad:
        return None  # C4.a says so
    other = seen.detach().scatter(1, context.y[:, None], -torch.inf).argmax(1)

    def margins(found: Tensor) -> Tensor:
        rows = torch.arange(len(found), device=found.device)
        return (found[rows, context.y] - found[rows, other]).double()

    (grad,) = torch.autograd.grad(margins(seen).sum(), leaf)
    size = grad.flatten(1).double().norm(dim=1)
    predicted, measured = [], []
    noise = context.rng("signs")
    with torch.no_grad():
        for _ in range(DIRECTIONS):
            signs = torch.where(noise.uniform(*x.shape[1:]) < 0.5, -1.0, 1.0)
            predicted.append((grad * signs).flatten(1).double().sum(1) * step)
            measured.append((margins(logits(x + step * signs)) - margins(logits(x - step * signs))) / 2)
    told = size > 0
    pairs = [(torch.stack(each)[:, told] / (size[told] * step)).flatten() for each in (predicted, measured)]
    top, below = (pairs[0] * pairs[1]).sum(), pairs[0].norm() * pairs[1].norm()
    return {"step": FINE_STEP, "n": int(pairs[0].numel()), "correlation": float(top / below) if below > 0 else None}


def cosine(context: Context) -> Numbers | None:
    """On how many images a small step along the gradient's sign raises the loss, and on how many it lowers it."""
    try:
        grad, _ = _gradient(context, LOSSES["ce"])
    except RdpBenchError:
        return None
    step = SMALL_STEP / 255 * grad.sign()

    @torch.no_grad()
    def loss(x: Tensor) -> Tensor:
        rng, total = context.rng("difference"), torch.zeros(len(x), device=x.device, dtype=torch.float64)
        for _ in range(context.draws if context.random else 1):
            total += cross_entropy(context.logits(x, rng).double(), context.y, reduction="none")
        return total

    change = loss((context.x + step).clamp(0, 1)) - loss((context.x - step).clamp(0, 1))
    return {"step": SMALL_STEP, "n": len(change), "up": int((change > 0).sum()), "down": int((change < 0).sum())}


@torch.no_grad()
def stability(context: Context) -> Numbers:
    """How far uniform noise of 4/255 moves the margin, over its size and at most 1: a mean over draws and images.

    A random defense draws the same for the image and for its neighbour: what its own noise moves is not the loss's.
    """
    noise = context.rng("noise")
    moved = []
    for number in range(DRAWS):
        name = f"stability/{number}" if context.random else "stability"
        near = (context.x + noise.uniform(*context.x.shape[1:], low=-4 / 255, high=4 / 255)).clamp(0, 1)
        here, there = (LOSSES["margin"](context.logits(x, context.rng(name)), context.y) for x in (context.x, near))
        moved.append(((there - here).abs() / (here.abs() + 1e-12)).clamp(max=1).mean())
    return {"draws": DRAWS, "change": float(torch.stack(moved).mean())}


def progress(context: Context) -> Numbers | None:
    """The share of what APGD gains in the best loss that its last steps gain: ten, or half where there are fewer."""
    few = min(len(context.x), TRACED)
    x, y = context.x[:few], context.y[:few]
    victim = Victim.of(context.source, x, y, context.eps, LINF, context.rng("progress").select(torch.arange(few)))
    losses: list[Tensor] = []

    def traced(logits: Tensor, labels: Tensor) -> Tensor:
        found = LOSSES["margin"](logits, labels)
        losses.append(found.detach())
        return found

    try:
        apgd.ascend(victim, x.clone(), traced, context.steps)
    except RdpBenchError:
        return None
    values = torch.stack(losses).view(-1, victim.draws, few).mean(1).cummax(0).values  # [steps + 1, images]
    gained = values[-1] - values[0]
    last = min(10, context.steps // 2)
    late = (values[-1] - values[-1 - last]) / gained.clamp(min=1e-12)
    open_ = values[-1] < 0  # an image that is broken needs no more
    most = float(late[open_].max()) if open_.any() else 0.0
    return {"steps": context.steps, "last": last, "n": int(open_.sum()), "late": most}


def planted(context: Context) -> Numbers:
    """How often the attack finds a planted point; see `binarisation`."""
    images, inner = context.planted
    few = min(images, len(context.x))
    rng = context.rng("planted").select(torch.arange(few))
    x = context.x[:few]
    eps = int(255 * context.eps + 1e-3) / 255  # as attacks store images: of 2.5 levels, two
    return binarisation.binarisation_test(context.source, x, eps, context.steps, inner, rng, random=context.random)


PROBES: Mapping[str, Callable[[Context], Numbers | None]] = {
    "repeat": repeat, "outputs": outputs, "gradient": gradient, "cosine": cosine, "slopes": slopes, "state": state,
    "elsewhere": elsewhere, "stability": stability, "progress": progress,
    "planted": planted,
}  # fmt: skip


def measure(context: Context) -> dict[str, Numbers]:
    """What every probe finds, by its name; a probe that does not apply is left out."""
    found = {name: probe(context) for name, probe in PROBES.items()}
    return {name: numbers for name, numbers in found.items() if numbers is not None}
