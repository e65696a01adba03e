"""The binarisation test: whether the attack finds an adversarial image that is known to exist.

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022.
Around a clean image, random points well inside the budget get label 0 and one point at its border label 1. A linear
read-out of the network's features is fitted to them without an error. The attack then starts from the clean image. If
it does not reach label 1, it is too weak, whatever the defense is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rdp_bench.attacks._adaptive import cascade
from rdp_bench.attacks._adaptive.victim import Victim, hardest
from rdp_bench.budgets import LINF
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.models.defended import DefendedClassifier
from rdp_bench.models.entry_calls import is_out_of_memory
from rdp_bench.protocols import Features, Purifier, samples_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rdp_bench.protocols import Classifier, Source
    from rdp_bench.rng import ImageRng

log = logging.getLogger(__name__)

MARGIN = 0.95
"""How far inside the budget they are, over eps."""

PLANTED_DRAWS = 10
"""Draws of a random defense on which the planted point is fitted, and checked."""

RANDOM_POINTS = 10
"""Points of random search of each kind: uniform in the budget, and at its corners."""

BATCH = 16
FITS = 1000
"""Most iterations of the fit, as the authors'."""


@dataclass(frozen=True)
class ReadOut:
    """Two classes, linear in the features of a network behind a defense; see `protocols.StochasticLogits`."""

    member: Classifier
    weight: Tensor
    """`[features]`."""
    bias: Tensor
    random: bool
    """Whether the defense draws anew in every call; if not, it draws the same for every image and call."""
    name: str = "binary read-out"
    classes: int = 2

    def stochastic_logits(self, x: Tensor, rng: ImageRng, zoom: float = 1.0) -> Tensor:
        """Logits `[n, 2]`; class 1 is the planted point's."""
        score = features(self.member, x, rng if self.random else _same(rng), zoom) @ self.weight + self.bias
        return torch.stack([-score, score], 1)

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:  # noqa: ARG002 - the interface of classifiers
        """Refused: what a defense draws from is needed."""
        raise UsageError("a binary read-out needs random streams")

    def record(self) -> dict[str, Any]:
        """Nothing: no result of it is stored."""
        return {}


@dataclass(frozen=True)
class _Source:
    """A read-out as a source of attacks."""

    members: Sequence[ReadOut]
    samples: int
    name: str = "binary read-out"


@dataclass(frozen=True)
class Trial:
    """The test on one image."""

    found: bool
    """Whether the attack reached label 1."""
    random: float
    """Share of random points in the budget that have label 1."""
    fixed: bool = False
    """Whether the defense drew the same in every call."""


def features(member: Classifier, x: Tensor, rng: ImageRng, zoom: float = 1.0) -> Tensor:
    """Features `[n, d]` of `x` `[n, 3, h, w]` behind the member's defense: the last map, pooled, or else the logits."""
    if isinstance(member, DefendedClassifier):
        purified = member.purified(x, rng)
        return features(member.inner, purified, rng, zoom * purified.shape[-1] / x.shape[-1])
    last = _last_map(member, x, zoom)
    if last is None:
        return member(x, zoom)
    if last.ndim == 3:  # tokens
        return last.mean(1)
    return last.flatten(2).mean(2) if last.ndim > 2 else last


def _last_map(member: Classifier, x: Tensor, zoom: float) -> Tensor | None:
    """The last feature map of a network `[n, ...]`, or None: `features` of a plugin may be anything."""
    if not isinstance(member, Features):
        return None
    try:
        last = member.features(x, (), zoom)[-1]
    except Exception as error:  # whatever a network raises
        if is_out_of_memory(error):
            raise
        log.info("%s gives no feature maps (%s): its logits are used", member.name, error)
        return None
    usable = isinstance(last, Tensor) and last.ndim > 1 and len(last) == len(x) and last.is_floating_point()
    return last if usable else None


def trial(
    source: Source, x: Tensor, eps: float, steps: int, inner: int, rng: ImageRng, *, random: bool
) -> Trial | None:
    """The test on one image `[1, 3, h, w]`; None where no read-out separates the planted point from the others.

    Args:
        source: as for `binarisation_test`.
        x: the image.
        eps: as for `binarisation_test`.
        steps: as for `binarisation_test`.
        inner: points of label 0.
        rng: the stream of the image.
        random: whether the defense draws anew in every call.

    Raises:
        RdpBenchError: the outputs have no gradient.
    """
    (member,) = source.members
    own, noise = rng.fork("points"), rng.fork("noise")
    planted = _stored(_uniform(own, x, eps))
    draws = PLANTED_DRAWS if random else 1

    def seen(points: Iterable[Tensor]) -> Tensor:
        return _features(member, points, noise, random=random)

    far = seen([planted] * draws)
    count = min(inner, max(1, far.shape[1] - draws - 1))  # else no read-out need exist
    inside = (x + MARGIN * (_uniform(own, x, eps) - x) for _ in range(count - 1))
    fitted = _fit(seen(chain([x], inside)), far)
    if fitted is None:
        return None

    def share(points: Iterable[Tensor]) -> float:
        """Of points, or draws, that have label 1."""
        score = seen(points) @ fitted[0] + fitted[1]
        return float((score > 0).float().mean())

    if share([planted] * draws) <= 0.5 or share([x] * draws) >= 0.5:
        return None
    corners = (x + eps * torch.sign(_uniform(own, x, 1.0) - x) for _ in range(RANDOM_POINTS))
    uniform = (_uniform(own, x, eps) for _ in range(RANDOM_POINTS))
    searched = share(chain(corners, uniform))
    label = torch.zeros(1, dtype=torch.int64, device=x.device)

    def finds(attacked: Classifier) -> bool:
        read_out = _Source([ReadOut(attacked, *fitted, random)], samples_of(source))
        victim = Victim.of(read_out, x, label, eps, LINF, rng.fork("attack"))
        adv = hardest(victim, cascade.apgd_runs("ce", steps, 1, 1, stop=True))
        return bool(victim.accuracy(victim.stored(adv)) < 0.5)

    return Trial(any(map(finds, _ways(member))), searched)


def _ways(member: Classifier) -> list[Classifier]:
    """The member, and the one with the closer stand-in of its defense: the white-box tier takes the worst of both."""
    if isinstance(member, DefendedClassifier) and member.attacked_defense.mode == "adaptive":
        behind = member.attacked_defense
        if isinstance(behind.defense.value, Purifier) and behind.defense.value.has_smooth:
            return [member, replace(member, attacked_defense=replace(behind, mode="smooth"))]
    return [member]


def binarisation_test(
    source: Source, x: Tensor, eps: float, steps: int, inner: int, rng: ImageRng, *, random: bool
) -> dict[str, Any]:
    """Over images: how many were tested, on how many the attack succeeds, the rate of random search.

    Where the draws of a random defense hide the planted point, they are fixed: this tests the gradient, not EOT.

    Args:
        source: the target behind the defense, as white-box attacks differentiate it.
        x: clean images `[n, 3, h, w]` in [0, 1].
        eps: the budget in [0, 1].
        steps: of APGD on the cross-entropy.
        inner: points of label 0 per image; fewer where there are not as many features.
        rng: streams of the images.
        random: whether the defense is.
    """
    if len(source.members) != 1:
        return {"reason": "the target is an ensemble"}
    trials: list[Trial] = []
    for i in range(len(x)):
        image, stream = x[i : i + 1], rng.select(torch.tensor([i]))
        try:
            one = trial(source, image, eps, steps, inner, stream, random=True) if random else None
            if one is None:
                one = trial(source, image, eps, steps, inner, stream, random=False)
                one = replace(one, fixed=random) if one else None
        except RdpBenchError as error:
            return {"reason": str(error)}
        trials += [one] if one else []
    if not trials:
        return {"reason": "no linear read-out separates the planted point from the others"}
    return {
        "images": len(x), "n": len(trials), "found": sum(each.found for each in trials),
        "fixed": sum(each.fixed for each in trials), "random": sum(each.random for each in trials) / len(trials),
        "inner": inner, "steps": steps,
    }  # fmt: skip


def _uniform(rng: ImageRng, x: Tensor, eps: float) -> Tensor:
    """A random point whose largest change is eps."""
    change = rng.uniform(*x.shape[1:], low=-1.0, high=1.0)
    return x + eps * change / change.abs().max()


def _stored(point: Tensor) -> Tensor:
    """A point in whole levels of 8 bits."""
    return (point * 255).round().clamp(0, 255) / 255


def _same(rng: ImageRng) -> ImageRng:
    """Streams that begin alike for every image and in every call."""
    return type(rng)(["fixed noise"] * len(rng), rng.device)


@torch.no_grad()
def _features(member: Classifier, points: Iterable[Tensor], rng: ImageRng, *, random: bool) -> Tensor:
    """Features of points `[1, 3, h, w]` around one image, each with draws of its own, or all with the same."""
    parts: list[Tensor] = []
    left, size = iter(points), BATCH
    some: list[Tensor] = []
    while some := [*some, *islice(left, max(0, size - len(some)))]:
        part = torch.cat(some[:size]).clamp(0, 1)
        streams = rng.select(torch.zeros(len(part), dtype=torch.int64))  # one stream: they follow one another
        try:
            parts.append(features(member, part, streams if random else _same(streams)))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
            continue
        some = some[size:]
    return torch.cat(parts)


@torch.enable_grad()
def _fit(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the logistic regression that is positive on `far` alone; None where some point is wrong.

    Unpenalised. Logits are scaled to a range of 1, as the authors'.
    """
    points = torch.cat([near, far]).double()
    label = torch.cat([near.new_zeros(len(near)), near.new_ones(len(far))]).double()
    centre, size = points.mean(0), (points - points.mean(0)).norm(dim=1).mean()
    if not size > 0:
        return None
    scaled = (points - centre) / size
    parameters = torch.zeros(points.shape[1] + 1, dtype=torch.float64, device=points.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=FITS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(scaled @ parameters[:-1] + parameters[-1], label)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    found = parameters.detach()
    score = scaled @ found[:-1] + found[-1]
    if ((score > 0) != (label > 0)).any():
        return None
    found = found / (2 * score.abs().max())
    weight = found[:-1] / size
    return weight.to(near.dtype), (found[-1] - weight @ centre).to(near.dtype)
