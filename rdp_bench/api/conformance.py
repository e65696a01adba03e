"""Checks of entries that users write: what the engine relies on and cannot see from a single call."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import RdpBenchError
from rdp_bench.keys import canonical_json
from rdp_bench.protocols import ALONE, Attack, Classifier, Dataset, Defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng

COUNT = 4
"""Images of a check."""

EPS = 8
"""Budget in /255 of an attack's check."""

SLOPE = 0.05
"""Share by which autograd's slope may differ from finite differences."""


@dataclass(frozen=True)
class Check:
    """One property of one entry; `reason` says why it does not hold, or what was measured."""

    name: str
    passed: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}{': ' if self.reason else ''}{self.reason}"


def _checked(name: str, check: Callable[[], str]) -> Check:
    """The result of `check`, which returns what it measured and raises where the property does not hold."""
    try:
        return Check(name, True, check())
    except RdpBenchError as error:
        return Check(name, False, str(error))
    except Exception as error:  # an entry may raise anything
        return Check(name, False, f"{type(error).__name__}: {error}")


def _require(good: bool, why: str) -> None:
    if not good:
        raise RdpBenchError(why)


def check_defense(name: str, defense: Defense, x: "Tensor") -> Iterator[Check]:
    """Every check of a defense on images `x` `[n, 3, h, w]` in [0, 1], n at least 2."""
    import torch

    from rdp_bench.engine.levels import check_purified

    def purify(images: "Tensor", stream: str = "a", first: int = 0) -> "Tensor":
        return check_purified(defense.purify(images.clone(), _rng(len(images), stream, first)), images, name)

    yield _checked("parameters: resolved() can be written as JSON", lambda: canonical_json(defense.resolved()))
    shape = _checked("shape and range: square images in [0, 1]", lambda: f"{list(purify(x).shape)}")
    yield shape
    if not shape.passed:
        return
    with torch.no_grad():

        def input_kept() -> str:
            lent = x.clone()
            defense.purify(lent, _rng(len(x), "a"))
            return "" if torch.equal(lent, x) else "writes into its input; the engine passes a copy"

        def repeats() -> str:
            first, again, other = purify(x), purify(x), purify(x, "b")
            _require(torch.equal(first, again), "two calls with the same random numbers differ; draw from `rng` only")
            differs = not torch.equal(first, other)
            _require(not differs or defense.random, "other random numbers change its output; declare random = True")
            _require(differs or not defense.random, "it declares random = True, but its output never changes")
            return "random" if differs else "deterministic"

        def alone() -> str:
            batch, one = purify(x), purify(x[-1:], first=len(x) - 1)
            apart = float((batch[-1:] - one).abs().mean())
            _require(apart <= ALONE, f"an image alone differs from the same in a batch by {apart:.4f} on average")
            return ""

        yield _checked("input", input_kept)
        yield _checked("determinism", repeats)
        yield _checked("batch independence", alone)
        yield _checked("no global randomness", lambda: _no_global_randomness(lambda: purify(x)))
    yield _checked("gradient", lambda: _gradient(defense, x))
    yield _checked("cost", lambda: _cost(lambda: purify(x), x))


def check_attack(name: str, attack: Attack, source: Any, x: "Tensor", y: "Tensor") -> Iterator[Check]:
    """Every check of an attack on a source (see `protocols.Source`), images and labels."""
    import torch

    from rdp_bench.engine.levels import to_delta, to_uint8

    def craft(images: "Tensor", labels: "Tensor", stream: str = "a", first: int = 0) -> "Tensor":
        rng = _rng(len(images), stream, first)
        adv = attack(source, images.clone(), labels.clone(), EPS / 255, rng)
        to_delta(adv, images, to_uint8(images), EPS, f"attack '{name}'")
        return adv.detach()

    yield _checked("parameters: resolved() can be written as JSON", lambda: canonical_json(attack.resolved(EPS)))
    budget = _checked(f"shape, range and budget at eps {EPS}/255", lambda: f"{list(craft(x, y).shape)}")
    yield budget
    if not budget.passed:
        return

    def repeats() -> str:
        first, again, other = craft(x, y), craft(x, y), craft(x, y, "b")
        _require(torch.equal(first, again), "two calls with the same random numbers differ; draw from `rng` only")
        return "deterministic" if torch.equal(first, other) else "random"

    def alone() -> str:
        batch, one = craft(x, y), craft(x[-1:], y[-1:], first=len(x) - 1)
        apart = float((batch[-1:] - one).abs().mean())
        _require(apart <= ALONE, f"an image alone differs from the same in a batch by {apart:.4f} on average")
        return ""

    def changes() -> str:
        moved = 255 * float((craft(x, y) - x).abs().amax())
        _require(moved > 0, "it changes no pixel")
        return f"pixels move by up to {moved:.2f}/255"

    yield _checked("effect", changes)
    yield _checked("determinism", repeats)
    yield _checked("batch independence", alone)
    yield _checked("no global randomness", lambda: _no_global_randomness(lambda: craft(x, y)))
    yield _checked("cost", lambda: _cost(lambda: craft(x, y), x))


def check_model(name: str, model: Classifier, x: "Tensor") -> Iterator[Check]:
    """Every check of a classifier on images `x`."""
    import torch

    from rdp_bench.models.entry_calls import checked_logits

    def logits(images: "Tensor") -> "Tensor":
        found = checked_logits(model(images.clone(), 1.0), len(images), model.classes, f"model '{name}'")
        _require(bool(torch.isfinite(found).all()), "its logits hold NaN or infinite numbers")
        return found

    yield _checked("parameters: record() can be written as JSON", lambda: canonical_json(model.record())[:60])
    shape = _checked("shape: logits [n, classes]", lambda: f"{list(logits(x).shape)}")
    yield shape
    if not shape.passed:
        return

    def repeats() -> str:
        _require(torch.equal(logits(x), logits(x)), "two calls differ; is a layer in training mode?")
        return ""

    def alone() -> str:
        batch, one = logits(x), logits(x[-1:])
        scale = float(batch.abs().max()) or 1.0
        apart = float((batch[-1:] - one).abs().max()) / scale
        _require(apart <= ALONE, f"an image alone has other logits than in a batch (by {apart:.4f} of the largest)")
        return ""

    def gradient() -> str:
        leaf = x.clone().requires_grad_()
        total = logits(leaf).logsumexp(1).sum()
        _require(total.requires_grad, "no gradient reaches the images; it cannot be the source of an attack")
        (found,) = torch.autograd.grad(total, leaf)
        _require(bool((found != 0).any()), "its gradient is zero everywhere")
        return ""

    with torch.no_grad():
        yield _checked("determinism", repeats)
        yield _checked("batch independence", alone)
        yield _checked("no global randomness", lambda: _no_global_randomness(lambda: logits(x)))
    yield _checked("gradient", gradient)
    yield _checked("cost", lambda: _cost(lambda: logits(x), x))


def check_dataset(dataset: Dataset) -> Iterator[Check]:
    """Every check of a data set; its first few images are read."""
    import numpy as np

    def lengths() -> str:
        _require(len(dataset.ids) == len(dataset.labels) > 0, f"{len(dataset.ids)} ids, {len(dataset.labels)} labels")
        _require(len(set(dataset.ids)) == len(dataset.ids), "an id occurs twice")
        return f"{len(dataset.ids)} images"

    def images() -> str:
        for index in range(min(COUNT, len(dataset.ids))):
            first, again = np.asarray(dataset.image(index)), np.asarray(dataset.image(index))
            wanted = (3, dataset.size, dataset.size)
            _require(
                first.shape == wanted and first.dtype == np.uint8,
                f"image {index} is {first.dtype} of shape {list(first.shape)}, expected uint8 {list(wanted)}",
            )
            _require(bool((first == again).all()), f"image {index} differs when it is read again")
        return f"{dataset.size} pixels"

    yield _checked("ids and labels", lengths)
    yield _checked("images: the same uint8 [3, size, size] each time", images)


def _rng(count: int, stream: str, first: int = 0) -> "ImageRng":
    """A stream per image; that of an image depends on its number, not on its batch."""
    from rdp_bench.rng import ImageRng

    return ImageRng([f"{stream}/{first + i}" for i in range(count)])


def _no_global_randomness(call: Callable[[], object]) -> str:
    """Raises if a call draws from, or seeds, a stream that belongs to the whole process."""
    import numpy as np
    import torch

    def states() -> dict[str, Any]:
        _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the stream that others use
        numpy = (np.asarray(keys).tobytes(), *rest)
        return {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": numpy, "random": random.getstate()}

    before = states()
    call()
    after = states()
    used = [name for name in before if before[name] != after[name]]
    _require(not used, f"it changes the global stream of {', '.join(used)}; draw from `rng` instead")
    return ""


def _gradient(defense: Any, x: "Tensor") -> str:
    """Compare autograd with finite differences, for a defense that is declared differentiable."""
    import torch

    declared = bool(getattr(defense, "differentiable", False))
    # Away from 0 and 1, where clamping has a kink.
    inside = 0.3 + 0.4 * x
    generator = torch.Generator().manual_seed(0)

    def output(images: "Tensor") -> "Tensor":
        found: Tensor = defense.purify(images, _rng(len(images), "a"))
        return found

    with torch.no_grad():
        weight = torch.randn(output(inside.clone()).shape, generator=generator)
    leaf = inside.clone().requires_grad_()
    total = (output(leaf.clone()) * weight).sum()
    if not total.requires_grad:
        _require(not declared, "it declares differentiable = True, but autograd gives no gradient")
        return "not differentiable, as it declares"
    (slope,) = torch.autograd.grad(total, leaf, allow_unused=True)
    slope = torch.zeros_like(leaf) if slope is None else slope
    pairs = []
    with torch.no_grad():
        for _ in range(4):
            way = torch.randn(x.shape, generator=generator).sign()
            step = 2e-3
            ends = [(output(inside + side * step * way).double() * weight).sum() for side in (1, -1)]
            pairs.append((float(ends[0] - ends[1]) / (2 * step), float((slope.double() * way).sum())))
    scale = max(max(abs(one), abs(two)) for one, two in pairs)
    worst = max((abs(one - two) for one, two in pairs), default=0.0) / scale if scale else 0.0
    agree = worst <= SLOPE
    if declared:
        _require(
            agree,
            f"it declares differentiable = True, but autograd differs from finite differences by {100 * worst:.0f} %",
        )
        return f"autograd agrees with finite differences within {100 * worst:.1f} %"
    if agree and scale:
        return "autograd agrees with finite differences; differentiable = True would be right"
    return "not differentiable, as it declares"


def _cost(call: Callable[[], object], x: "Tensor") -> str:
    call()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return f"{1000 * min(times) / len(x):.1f} ms per image of {x.shape[-1]} pixels"
