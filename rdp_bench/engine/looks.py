"""What targets see behind a defense: each sample of a random defense, each of its passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product

import torch
from torch import Tensor

from rdp_bench.engine.jobs import EvaluateJob
from rdp_bench.engine.levels import check_purified
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.entry_calls import checked_logits, naming_entry
from rdp_bench.protocols import ALONE, Classifier, Defense
from rdp_bench.rng import ImageRng
from rdp_bench.user_reads import noting_unkeyed


def together(images: int, at_once: int, device: str) -> int:
    """Passes that a target sees in one call: on a GPU as many as fill a batch, on a CPU one, which is as fast.

    Args:
        images: in the batch.
        at_once: images that the device takes at once.
        device: a torch device.
    """
    return 1 if torch.device(device).type == "cpu" else max(1, at_once // images)


def look(
    job: EvaluateJob,
    defense: Defense,
    x: Tensor,
    rng: ImageRng,
    models: Mapping[str, Classifier],
    problems: dict[str, str],
    first: Callable[[Tensor], None],
    passes: int = 1,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Outputs of targets for the purified images.

    Args:
        job: names the defense and the number of samples.
        defense: purifies.
        x: images `[n, 3, h, w]` in [0, 1].
        rng: one stream per image.
        models: targets by label; where there are none, one pass is purified for `first`.
        problems: errors of targets by label; those that are in it are left out, and those that fail are added.
        first: called with the purified images of the first pass.
        passes: how many a target sees in one call.

    Returns:
        For each target without a problem `[n, classes]`, or `[n, samples, classes]` of several samples: logits, or with
        several passes the mean of their softmax outputs; and the seconds that an image took.
    """
    scores: dict[str, list[Tensor]] = {label: [] for label in models}  # of each sample
    spent = dict.fromkeys(models, 0.0)
    shared = 0.0
    looks = list(product(range(job.defense_samples), range(defense.passes))) if models else [(0, 0)]
    for group in _groups(looks, passes):
        begin = time.perf_counter()
        seen = [_purified(job, defense, x, rng, *each) for each in group]
        shared += time.perf_counter() - begin
        if group[0] == (0, 0):
            first(seen[0])
        if len({each.shape for each in seen}) == 1:
            seen = [torch.cat(seen)] if len(seen) > 1 else seen
        for label, model in models.items():
            if label in problems:
                continue
            begin = time.perf_counter()
            try:
                logits = torch.cat([_logits(job, label, model, purified, x) for purified in seen])
            except RdpBenchError as error:
                problems[label] = str(error)
                continue
            for (_, number), each in zip(group, torch.split(logits, len(x)), strict=True):
                # One pass keeps its logits; several average their softmax outputs (Xie et al. 2018).
                part = each.clone() if defense.passes == 1 else each.softmax(1) / defense.passes
                if number:
                    scores[label][-1] += part
                else:
                    scores[label].append(part)
            spent[label] += time.perf_counter() - begin
    found = {
        label: torch.stack(each, 1) if job.defense_samples > 1 else each[0]
        for label, each in scores.items()
        if label not in problems
    }
    return found, {label: (spent[label] + shared) / len(x) for label in found}


def _groups(looks: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    rest = iter(looks)
    while group := list(islice(rest, size)):
        yield group


def _purified(job: EvaluateJob, defense: Defense, x: Tensor, rng: ImageRng, draw: int, number: int) -> Tensor:
    streams = rng.fork(f"draw {draw}") if draw else rng  # draw 0 is that of a run with one draw
    with naming_entry(f"defense '{job.defense}'"), noting_unkeyed(f"defense '{job.defense}'"):
        output = defense.purify(x.clone(), streams.fork(f"pass {number}"))
    return check_purified(output, x, job.defense)


def unrepeatable(job: EvaluateJob, defense: Defense, x: Tensor, rng: ImageRng, purified: Tensor) -> str:
    """What a reader must know of a defense that gives the last image of a batch another output alone; mostly nothing.

    Args:
        job: what is evaluated.
        defense: the defense.
        x: a batch.
        rng: its streams.
        purified: the first output for it.
    """
    alone = _purified(job, defense, x[-1:], rng.select(torch.arange(len(x))[-1:]), 0, 0)
    if alone.shape == purified[-1:].shape and float((alone - purified[-1:]).abs().mean()) <= ALONE:
        return ""
    return (
        f"defense '{job.defense}' does not repeat its output for an image that comes alone: its numbers depend on the "
        "batch, on chance or on what it saw before"
    )


def _logits(job: EvaluateJob, label: str, model: Classifier, purified: Tensor, x: Tensor) -> Tensor:
    with naming_entry(f"target '{label}' behind '{job.defense}'"):
        output = model(purified, purified.shape[-1] / x.shape[-1])
    logits = checked_logits(output, len(purified), model.classes, f"target '{label}'")
    if not torch.isfinite(logits).all():
        raise RdpBenchError(f"target '{label}' gave NaN or infinite outputs behind '{job.defense}'")
    return logits
