"""What a run of fewer, or of more, of the same images has made, a run takes over.

A result belongs to an image and does not depend on its neighbours: the first 100 images of a set of 500 are the set of
100. But a key names all images of a set, so that `--limit 100` and the whole are two artefacts. Therefore every run
leaves a list of its images in the cache,

    CACHE/lists/3f2a....json    fingerprints and labels, in order

and where one list begins with the other, the same plan is keyed with the other list, and the shards found under those
keys are linked. Every key is made from the list anew: what does not belong is not found.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.data.fingerprints import digest
from rdp_bench.executor import CraftJob, Job
from rdp_bench.plan import Plan
from rdp_bench.store import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass
class Listed:
    """A data set of which only the order, the pixels' hashes and the labels are known."""

    name: str
    size: int
    ids: Sequence[str]  # fingerprints
    labels: Sequence[int]

    def image(self, index: int) -> "NDArray[np.uint8]":
        """Never asked for: this plan is keyed, not done."""
        raise NotImplementedError(f"image {index} of {self.name} is known by its hash alone")


def remember(plan: Plan) -> None:
    """Leave the list of this plan's images in the cache."""
    path = plan.store.root / "lists" / f"{digest(plan.dataset, plan.prints)}.json"
    if not path.exists():
        content = {"prints": plan.prints, "labels": list(plan.dataset.labels)}
        write_atomic(path, json.dumps(content).encode())


def take_over(plan: Plan) -> int:
    """Link into the artefacts that `plan` lacks what plans of fewer or more images have; returns how many shards."""
    jobs: list[Job] = [*plan.jobs(), *plan.clean_check()]
    if all(plan.done(job) for job in jobs):
        return 0
    count = 0
    for other in _others(plan):
        pairs = zip(jobs, [*other.jobs(), *other.clean_check()], strict=True)
        count += sum(
            plan.artefact(mine).take_over(other.artefact(theirs))
            for pair in pairs
            for mine, theirs in zip(*([*_records(plan, job)] for job in pair), strict=True)
        )
    if count:
        log.info("%d shards are those of runs of fewer or more images", count)
    return count


def _records(plan: Plan, job: Job) -> list[dict[str, object]]:
    return [job.record] if isinstance(job, CraftJob) else [*job.records, plan.sample_record(job.key)]


def _others(plan: Plan) -> Iterator[Plan]:
    ours = list(zip(plan.prints, plan.dataset.labels, strict=True))
    for path in sorted(plan.store.root.glob("lists/*.json")):
        theirs = _read(path)
        common = min(len(ours), len(theirs))
        if theirs != ours and theirs[:common] == ours[:common]:
            prints, labels = zip(*theirs, strict=True)
            yield plan.of(Listed(plan.dataset.name, plan.dataset.size, prints, labels), list(prints))


def _read(path: Path) -> list[tuple[str, int]]:
    try:
        content = json.loads(path.read_bytes())
        found = [(str(a), int(b)) for a, b in zip(content["prints"], content["labels"], strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not usable (%s); nothing is taken over from its runs", path, error)
        return []
    return found
