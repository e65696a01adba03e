"""Numbers that no cell shows, of the source that white-box attacks differentiate. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate

from rdp_bench.attacks._adaptive import apgd
from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import LOSSES, Loss
from rdp_bench.audits import binarisation
from rdp_bench.audits.checks_of_probes import FAR_LESS
from rdp_bench.budgets import LINF
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.defended import DefendedClassifier
from rdp_bench.protocols import StochasticLogits
from rdp_bench.rng import ImageRng

if TYPE_CHECKING:
    from rdp_bench.protocols import Source

CALLS = 5
DRAWS = 20
"""Of noise, in the probe of the loss's stability."""

TRACED = 4
"""Images on which the progress of an attack is traced."""

DIRECTIONS = 16
"""Random signs along which the gradient's prediction is compared with the loss."""

FINE_STEP, LARGE_STEP = 0.02, 8.0
"""Of these signs, in /255. A network of rectifiers bends: behind learned purifiers, the changes have a correlation of
.86 to .99 with what an exact gradient predicts at .1/255, and of .97 and more at the first. What the second moves and
the first does not is rounded."""

TOGETHER = 8
"""Images whose gradients are taken at once."""

REPEATED = 8
"""Draws of noise for images that seem to be known."""

BLOCK = 4
"""Side of a block of the images that ask for an imprint, in pixels: blurs and JPEG leave most of it."""

ENOUGH_BLOCKS, MOST_ROUNDS = 20_000, 16
"""Where images are small, several rounds of them give so many blocks."""

LEAST_CHANGE = 0.1 / 255
"""Mean change by a defense from which it is compared."""

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
        stream = _hash(f"audit/{name}/{self.seed}")  # they look like those of a run
        return ImageRng([f"{stream}/{_hash(str(number))}" for number in range(len(self.x))], self.x.device)

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


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


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
    found: Numbers = {"n": 0, "zero": 0, "saturated": 0, "broken": 0}
    for low in range(0, len(context.x), TOGETHER):
        part = slice(low, low + TOGETHER)
        try:
            some = _flat(replace(context, x=context.x[part], y=context.y[part]))
        except RdpBenchError as error:
            return {"error": str(error)}
        found = {name: count + some[name] for name, count in found.items()}
    return found


def _flat(context: Context) -> Numbers:
    margins, right = _gradient(context, LOSSES["margin"])
    entropies, _ = _gradient(context, LOSSES["ce"])
    sizes = [each.flatten(1).abs().sum(1) for each in (margins, entropies)]
    zero, flat = (size == 0 for size in sizes)
    broken = ~(torch.isfinite(sizes[0]) & torch.isfinite(sizes[1]))
    return {
        "n": int(right.sum()), "zero": int((zero & right).sum()), "saturated": int((flat & ~zero & right).sum()),
        "broken": int((broken & right).sum()),
    }  # fmt: skip


@torch.no_grad()
def state(context: Context) -> Numbers | None:
    """Whether seeing an image changes the output for a similar one.

    One copy of the defense saw it, another did not: `difference` is how far their outputs for the similar image are
    apart. `moved` is how far the output for the similar image is from that for the one that was seen, `unrelated` how
    far the latter is at least from that for another image, and `again` how far it is when the image comes a second
    time. `imprint` asks for what all copies share, be it on disk: see `_imprint`.
    """
    if context.fresh is None:
        return None
    strangers = context.rng("strangers").uniform(*context.x.shape[1:])
    near = (strangers + 8 / 255 * context.signs("near")).clamp(0, 1)
    seen, unseen = context.fresh(), context.fresh()
    first, again = (context.logits(strangers, context.rng("state"), seen) for _ in range(2))
    after = context.logits(near, context.rng("state"), seen)
    alone = context.logits(near, context.rng("state"), unseen)
    other = context.logits(context.rng("unrelated").uniform(*context.x.shape[1:]), context.rng("state"), unseen)
    found = {
        "difference": _apart(after, alone), "moved": _apart(after, first), "again": _apart(again, first),
        "unrelated": float(_distances(other, first).min()),
    }  # fmt: skip
    imprint = _imprint(context)
    return found if imprint is None else {**found, "imprint": imprint}


def _imprint(context: Context) -> float | None:
    """How much of one image is in the output for a similar one that comes after it, in standard deviations of chance.

    Both are a pattern of blocks with block noise of half the budget, independent of each other. An output that depends
    on the second image alone is independent of the first one's noise: so is what is left of it without the pattern, and
    their correlation is that of chance.
    """
    behind = context.source.members[0]
    side = context.x.shape[-1] // BLOCK
    if not isinstance(behind, DefendedClassifier) or side < 1:
        return None
    total, variance = 0.0, 0.0
    for number in range(max(1, min(MOST_ROUNDS, ENOUGH_BLOCKS // (len(context.x) * 3 * side**2)))):
        blocks = [context.rng(f"{name} {number}").uniform(3, side, side) for name in ("pattern", "first", "second")]
        pattern, (first, second) = 0.1 + 0.8 * blocks[0], [torch.where(each < 0.5, -1.0, 1.0) for each in blocks[1:]]
        for noise in (first, second):
            image = interpolate(pattern + context.eps / 2 * noise, context.x.shape[-2:], mode="nearest").clamp(0, 1)
            found = behind.purified(image, context.rng("imprint"))
        seen, known = (_centred(adaptive_avg_pool2d(each, side)) for each in (found, pattern))
        rest = seen - (seen * known).sum(1, keepdim=True) / (known * known).sum(1, keepdim=True) * known
        total += float((rest * first.flatten(1)).sum())
        variance += float((rest * rest).sum())  # of a sum with independent signs
    return total / variance**0.5 if variance else 0.0


def _centred(images: Tensor) -> Tensor:
    flat = images.double().flatten(1)
    return flat - flat.mean(1, keepdim=True)


def _apart(one: Tensor, two: Tensor) -> float:
    """The largest distance of two outputs for an image, over the size of the second."""
    return float(_distances(one, two).max())


def _distances(one: Tensor, two: Tensor) -> Tensor:
    """The distance of two outputs for each image, over the size of the second, `[n]`."""
    found: Tensor = (one - two).norm(dim=1) / (two.norm(dim=1) + 1e-10)
    return found


@torch.no_grad()
def elsewhere(context: Context) -> Numbers | None:
    """Whether the defense treats the test images as others that have the same pixels in other places or channels.

    What it gives back is compared, not what the target says, which may be sure of these images only.

    `ratios`: how much random signs of 8/255 move purified images, over how much they move others, by kind, without
    kinds of which nothing moves. `stored`: images that move less than `FAR_LESS` of what others made of them do (median
    over kinds). Where either makes images seem known, more signs are drawn, and it must hold for every draw: what a
    coarse quantiser gives back moves or not by chance. `changes`: how far the defense changes an image itself, over
    how far it changes others made of it (median over kinds), for each image in falling order. `strangers`: the largest
    movement of images of noise, where no kind moves.
    """
    behind = context.source.members[0]
    if not isinstance(behind, DefendedClassifier):
        return None

    def size(change: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
        return norm

    def treated(x: Tensor, number: int = 0) -> tuple[Tensor, Tensor]:
        """How far noise moves what is given back for `x`, and how far that is from `x`."""
        near = (x + LARGE_STEP / 255 * context.signs(f"elsewhere {number}" if number else "elsewhere")).clamp(0, 1)
        here, there = (behind.purified(each, context.rng("noise")) for each in (x, near))
        return size(there - here), size(interpolate(here, x.shape[-2:], mode="area") - x)

    x = context.x
    half = torch.arange(x.shape[3], device=x.device) < x.shape[3] // 2
    others = {
        "mirrored": x.flip(3), "upside down": x.flip(2), "with their channels changed over": x.roll(1, 1),
        "with halves of one another": torch.where(half, x, x.roll(1, 0)),
    }  # fmt: skip
    ours, own_change = treated(x)
    theirs = {kind: treated(other) for kind, other in others.items()}
    ratios, known = _moved_less(ours, {kind: far for kind, (far, _) in theirs.items()})
    if not ratios:
        noise = context.rng("strangers").uniform(*x.shape[1:])
        return {"ratios": {}, "strangers": float(treated(noise)[0].max())}
    for number in range(1, REPEATED):
        if not known.any() and min(ratios.values()) >= FAR_LESS:
            break
        more, again = _moved_less(
            treated(x, number)[0], {kind: treated(other, number)[0] for kind, other in others.items()}
        )
        ratios, known = {**ratios, **{kind: max(far, ratios.get(kind, 0)) for kind, far in more.items()}}, known & again
    stored = int(known.sum())
    of_others = torch.stack([change for _, change in theirs.values()]).median(0).values
    least = LEAST_CHANGE * x[0].numel() ** 0.5
    changes = own_change.clamp(min=least) / of_others.clamp(min=least)
    return {"ratios": ratios, "n": len(x), "stored": stored, "changes": changes.sort(descending=True).values.tolist()}


def _moved_less(ours: Tensor, others: Mapping[str, Tensor]) -> tuple[dict[str, float], Tensor]:
    """How far images move over how far others made of them do, by kind; and which move much less, bool `[n]`."""
    ratios = {kind: float(ours.sum() / moved.sum()) for kind, moved in others.items() if moved.max() > STILL}
    return ratios, ours < FAR_LESS * torch.stack([*others.values()]).median(0).values


def slopes(context: Context) -> Numbers | None:
    """How well the gradient predicts what small random signs do to the margin over the likeliest other class.

    The correlation of both over `DIRECTIONS` signs for each image, changes in units of the image's own gradient; None
    where the gradient is a stand-in's. A random defense draws the same every time. Pixels are moved by less than half
    a level first: those of 8-bit images are often equal, and the gradient of a median or a maximum of equal pixels is
    that of any of them. `rounds` is the share of values that the defense gives back unchanged where all pixels change
    by the step, and changed where they change by 8/255: it rounds them, and the loss with them.
    """
    defended = [member for member in context.source.members if isinstance(member, DefendedClassifier)]
    if not all(member.attacked_defense.exact for member in defended):
        return None
    step = FINE_STEP / 255
    apart = (context.rng("apart").uniform(*context.x.shape[1:]) - 0.5) / 255
    x = (context.x + apart).clamp(step, 1 - step)

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
    with torch.no_grad():
        signs = context.signs("rounds")
        rounds = 0.0
        for member in defended:
            stays = []
            for far in (step, LARGE_STEP / 255):
                moved = [(x + sign * far * signs).clamp(0, 1) for sign in (-1, 1)]
                low, high = (member.purified(each, context.rng("slopes")) for each in moved)
                stays.append(low == high)
            rounds = max(rounds, float((stays[0] & ~stays[1]).double().mean()))
    correlation = float(top / below) if below > 0 else None
    return {"step": FINE_STEP, "n": int(pairs[0].numel()), "correlation": correlation, "rounds": rounds}


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
