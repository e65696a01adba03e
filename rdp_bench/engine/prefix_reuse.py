"""Reuses cached shards between runs whose image lists share a prefix.

The result of an image does not depend on the other images: the first 100 images of a set of 500 are the set of 100. A
key, however, names all images of a set, so `--limit 100` and the whole data set are two artefacts. Every run therefore
writes the list of its images into the cache:

    CACHE/lists/3f2a....json    pixel hashes and labels, in order

Where one list begins with the other, the same plan is keyed with the other list, and the shards stored under those keys
are copied to the new key, except for attacks that mix other images of the run into an image (`protocols.DrawsMates`). A
list is used only if its content has the hash in its name. Keys are computed from the list, so shards of other images
cannot be found.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdp_bench.cache.files import Location, children, write_atomic
from rdp_bench.data.image_hashes import digest
from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.plan import Plan
from rdp_bench.protocols import draws_mates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass
class ImageList:
    """A data set of which only the order, the pixel hashes and the labels are known."""

    name: str
    size: int
    ids: Sequence[str]  # pixel hashes
    labels: Sequence[int]

    def image(self, index: int) -> "NDArray[np.uint8]":
        """Never called: the plan of such a data set is keyed and not run."""
        raise NotImplementedError(f"image {index} of {self.name} is known by its hash alone")


def register_images(plan: Plan) -> None:
    """Write the list of this plan's images into the cache."""
    path = plan.store.root / "lists" / f"{digest(plan.image_hashes, plan.dataset.labels)}.json"
    content = json.dumps({"image_hashes": list(plan.image_hashes), "labels": list(plan.dataset.labels)}).encode()
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomic(path, content)


def drop_damaged(plan: Plan, jobs: Iterable[Job]) -> None:
    """Delete the stored batches of `jobs` that fail their check; a read-only store ignores them from now on."""
    for job in jobs:
        for record in job.records:
            plan.artefact(record).drop_damaged()


def copy_shared_shards(plan: Plan) -> int:
    """Copy into the artefacts that `plan` lacks what plans of fewer or more images have; returns how many shards.

    A read-only store reads it where it is.
    """
    jobs = [*plan.jobs, *plan.clean_checks]
    if all(plan.done(job) for job in jobs):
        return 0
    count = 0
    for other in _others(plan):
        pairs = zip(jobs, [*other.jobs, *other.clean_checks], strict=True)
        count += sum(
            plan.artefact(mine).copy_shards_of(other.artefact(theirs))
            for pair in pairs
            if not _depends_on_all_images(plan, pair[0])
            for mine, theirs in zip(*(job.records for job in pair), strict=True)
        )
    if count:
        log.info("%d shards are those of runs of fewer or more images", count)
    return count


def _depends_on_all_images(plan: Plan, job: Job) -> bool:
    """Whether an image of the job's set depends on other images of the run."""
    craft = job if isinstance(job, CraftJob) else job.craft
    return craft is not None and draws_mates(plan.attacks[craft.attack].value)


def _others(plan: Plan) -> Iterator[Plan]:
    ours = list(zip(plan.image_hashes, plan.dataset.labels, strict=True))
    for path in children(plan.store.root / "lists"):
        if path.name.startswith(".") or not path.name.endswith(".json"):
            continue
        listed = _read(path, plan)
        if listed is None:
            continue
        theirs = list(zip(listed.ids, listed.labels, strict=True))
        common = min(len(ours), len(theirs))
        if theirs != ours and theirs[:common] == ours[:common]:
            yield plan.with_dataset(listed, listed.ids)


def read_list(path: Location) -> tuple[list[str], list[int]]:
    """The pixel hashes and labels of a list in the cache.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what a run wrote.
    """
    try:
        content = json.loads(path.read_bytes())
        image_hashes = [str(one) for one in content["image_hashes"]]
        labels = [int(one) for one in content["labels"]]
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it is not a list ({error})") from error
    if not image_hashes or len(image_hashes) != len(labels) or digest(image_hashes, labels) != path.stem:
        raise ValueError("it does not have the hash that its name says")
    return image_hashes, labels


def _read(path: Location, plan: Plan) -> ImageList | None:
    """The list of images in a file; None, and the file is deleted, where it is not what a run wrote."""
    try:
        image_hashes, labels = read_list(path)
    except OSError as error:
        log.warning("%s: cannot be read (%s); nothing is taken over from its runs", path, error.strerror or error)
        return None
    except ValueError as error:
        plan.store.reject(path, f"{path}: is not a list of images ({error}); nothing is taken over from its runs")
        return None
    return ImageList(plan.dataset.name, plan.dataset.size, image_hashes, labels)
