"""Doing a job: crafting an adversarial set, or evaluating a purified one. Imported only when there is work."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdp_bench.budgets import LINF, allowed
from rdp_bench.cache.artefact import within_rows
from rdp_bench.cache.store import Artefact
from rdp_bench.data.adversarial import AdversarialFiles
from rdp_bench.data.decoded import DecodedImages
from rdp_bench.engine.batch_memory import FROM, PROBED, CudaMemory, FoundBatches, kind_of_work
from rdp_bench.engine.class_counts import ClassCounts
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job
from rdp_bench.engine.levels import (
    add_delta,
    check_adversarial,
    delta_of,
    on_host,
    to_float,
    to_uint8,
    within,
)
from rdp_bench.engine.looks import look, together, unrepeatable
from rdp_bench.engine.overlap import Reader, Writer
from rdp_bench.engine.plan import SET_FACTS, Plan
from rdp_bench.engine.tasks import batch_of
from rdp_bench.environment import describe
from rdp_bench.errors import DamagedError, RdpBenchError
from rdp_bench.keys import canonical_json, hash_many
from rdp_bench.metrics import measurements
from rdp_bench.models.entry_calls import (
    CheckedClassifier,
    is_out_of_memory,
    naming_entry,
    not_even_one,
    written_elsewhere,
)
from rdp_bench.numerics import memory, pieces, precision
from rdp_bench.numerics.determinism import ordered_sums
from rdp_bench.protocols import Classifier, Defense, Notes, StochasticLogits, aims_at_targets, with_mates
from rdp_bench.registry import model
from rdp_bench.rng import ImageRng
from rdp_bench.user_reads import at_work, forget_others, noting_unkeyed, unkeyed

R = TypeVar("R")

log = logging.getLogger(__name__)

DEFENDED_BATCH_DIVISOR = 4
"""Batch-size divisor when backpropagating through a purifier: 350 MB per image for the compact NRP."""

Report = Callable[[Job, int], None]  # job, images finished since the last call


Arrays = dict[str, NDArray[np.generic]]


@dataclass
class _Evaluated:
    """What one batch of a purified set gives, to be stored."""

    predictions: dict[str, Arrays]  # by target
    image_quality: Arrays | None = None
    sample: Arrays | None = None  # of the first images, to be shown


def configure_torch(device: str) -> None:
    """Settings of torch that hold for a whole run: exact float32, a fixed order of sums, reused memory."""
    precision.allow_tf32(allowed=False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if device == "cpu":
        memory.keep_blocks()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts


KEPT = 14 * 10**8
"""Bytes that a process may hold when a job begins; beyond, what earlier jobs freed is returned to the system."""


@dataclass
class Worker:
    """Does the jobs of a plan on one device; calls `report` after each batch."""

    plan: Plan
    batch: int | None = None
    """Images at once, as asked for; None: what suits the device and its memory."""
    report: Report | None = None
    _remarks: list[str] = field(default_factory=list)  # of the job at hand
    _names: dict[str, str] = field(default_factory=dict)  # of target models, by label
    _work: str = ""  # the kind of it, where batches are found by memory

    def __post_init__(self) -> None:
        self.size = batch_of(self.plan, self.batch)
        on_gpu = self.batch is None and self.plan.device.startswith("cuda")
        self.batches = FoundBatches(CudaMemory(self.plan.device)) if on_gpu and self.plan.n > FROM else None
        self.classes = ClassCounts(self.plan.dataset)
        self._rows = (0, self.plan.n)
        configure_torch(self.plan.device)
        forget_others({f"defense '{label}'": made.version for label, made in self.plan.defenses.items()})
        forget_others({f"attack '{label}'": made.version for label, made in self.plan.attacks.items()})
        forget_others({f"model '{name}'": str(entry.stamp) for name, entry in model.entries.items()})
        self.plan.store.made_by = describe(self.plan.device)
        local = None if self.plan.store.read_only else self.plan.store.local
        self._images = DecodedImages(self.plan.dataset, self.plan.image_hashes, local)

    def __call__(self, job: Job, rows: tuple[int, int] | None = None) -> list[str]:
        """Do what is still missing of `job`, of the images `rows` only (first, past-the-last) where they are given.

        Returns what a reader of its results must know.
        """
        self._rows = rows or (0, self.plan.n)
        self._remarks = []
        at_work.clear()
        # Jobs need blocks of different sizes: each defense has a network of its own. Below `KEPT`, freed memory is
        # kept, because faulting it in again takes a quarter of a second per gigabyte.
        memory.release(above=KEPT)
        failed = True
        try:
            with precision.using(self.plan.precision), ordered_sums(self.plan.device), pieces.using(self.batch):
                if isinstance(job, CraftJob):
                    self._craft(job)
                else:
                    self._evaluate(job)
            failed = False
        finally:  # also where a target failed: the others have their numbers
            remarks = self._keep_remarks(job, failed=failed)
        return remarks

    def _keep_remarks(self, job: Job, *, failed: bool) -> list[str]:
        """Keep what was said during a job beside its results; what was said of one target, beside those of it."""
        said = {remark: entry for remark, entry in unkeyed.items() if entry in at_work}
        if not said and not self._remarks:
            return []
        evals = job.evals if isinstance(job, EvaluateJob) else ()
        models = {id(record): f"model '{self._names.get(label, label)}'" for label, record in evals}
        for record in job.records:
            artefact = self.plan.artefact(record)
            if failed and not artefact.shards():
                continue
            others = {*models.values()} - {models.get(id(record))}
            artefact.add_remarks([*self._remarks, *(remark for remark, entry in said.items() if entry not in others)])
        return [*self._remarks, *said]

    def clean(self, low: int, high: int) -> NDArray[np.uint8]:
        """Images `low..high` of the data set as uint8 `[k, 3, s, s]`; not to be written into."""
        return self._images.batch(low, high)

    def _missing(self, artefact: Artefact, size: int) -> list[tuple[int, int]]:
        """Batches that are not stored yet, within the rows that this worker was given."""
        return within_rows(artefact.missing(size), self._rows)

    def _labels(self, low: int, high: int) -> Tensor:
        return torch.tensor(list(self.plan.dataset.labels[low:high]), device=self.plan.device)

    def _targets(self, low: int, high: int) -> Tensor:
        return torch.tensor(list(self.plan.targets_of_images[low:high]), device=self.plan.device)

    def _craft(self, job: CraftJob) -> None:
        plan = self.plan
        source = plan.sources[job.source].load(plan.device)
        for member in source.members:
            self.classes.add(member.name, member.classes)
        attack = plan.attacks[job.attack].value
        aims = self._labels
        if aims_at_targets(attack):
            aims = self._targets
            worst = max(plan.targets_of_images)
            if any(worst >= member.classes for member in source.members):
                raise RdpBenchError(
                    f"target class {worst} of data set {plan.dataset.name} is beyond the classes of {source.name}"
                )
        facts = {name: job.record[name] for name in SET_FACTS}
        seed = hash_many([canonical_json(facts)])
        artefact = plan.artefact(job.record)
        artefact.write_record()

        unseen = [member for member in source.members if isinstance(member, CheckedClassifier)]

        def make(low: int, high: int) -> Callable[[], Arrays]:
            u8 = images.get(low, high, self._after(low, high))
            x = to_float(u8, plan.device)
            while unseen:
                _require_finite(unseen[-1], x[:1])
                unseen.pop()
            rng = ImageRng([f"{seed}/{image_hash}" for image_hash in plan.image_hashes[low:high]], plan.device)
            with naming_entry(f"attack '{job.attack}'"), noting_unkeyed(f"attack '{job.attack}'"):
                if isinstance(attack, AdversarialFiles):
                    adv = to_float(attack.crafted(low, high), plan.device)
                else:
                    # A copy: what comes back is compared with the engine's own images.
                    eps = job.eps / 255 if plan.norm == LINF else job.eps
                    bound = with_mates(attack, partial(self._mates, low))
                    adv = bound(source, x.clone(), aims(low, high), eps, rng)
            check_adversarial(adv, x, job.eps, str(job), plan.norm)
            found = on_host(adv, plan.norm)
            return lambda: {"delta": delta_of(found, u8, job.eps)}

        ahead = self.clean if self._images.in_threads else None
        with Writer(partial(self._count, job)) as writer, Reader(self.clean, ahead) as images:
            size = self._found_size(job, make)
            defended = any(isinstance(member, StochasticLogits) for member in source.members)
            if defended and self.batch is None and self.batches is None:
                size = max(1, min(size, FROM) // DEFENDED_BATCH_DIVISOR)
            for low, high in artefact.still_missing(size, self._rows):
                for a, b, made in self._retry_smaller_batches(make, low, high):
                    writer.put(partial(_write_set, artefact, a, b, made), b - a)
        artefact.merge()
        if isinstance(attack, Notes):
            self._remarks += attack.notes()

    def _mates(self, low: int, rng: ImageRng) -> Tensor:
        """For each of the images from `low` on, one per stream, another image of the data set."""
        n = self.plan.n
        index = (torch.arange(low, low + len(rng)) + (rng.integers(1, n) if n > 1 else 0)) % n
        return to_float(np.concatenate([self.clean(i, i + 1) for i in index.tolist()]), self.plan.device)

    def _found_size(self, job: Job, make: Callable[[int, int], object]) -> int:
        """Images at once in `job`, of which `make` computes rows."""
        first, last = self._rows

        def compute(count: int) -> object:
            self.size = count  # a target then sees one pass at a time
            return make(first, first + count)

        if self.batches is not None and last - first >= PROBED:
            self._work = kind_of_work(job)
            self.size = self.batches.size(self._work, compute)
        return self.size

    def _count(self, job: Job, images: int) -> None:
        if self.report:
            self.report(job, images)

    def _after(self, low: int, high: int) -> tuple[int, int]:
        """The rows that probably come after a batch `low..high`."""
        return high, min(high + max(self.size, high - low), self._rows[1])

    def images(self, craft: CraftJob | None, low: int, high: int) -> NDArray[np.uint8]:
        """Images `low..high` of the adversarial set that `craft` makes, or of the data set, as uint8.

        Rows of the set that are damaged are made again.
        """
        try:
            return self._stored_images(craft, low, high)
        except DamagedError:
            if craft is None:
                raise
            self.plan.artefact(craft.record).drop_damaged()
            kept = self.size, self._work
            self._craft(craft)
            self.size, self._work = kept
            return self._stored_images(craft, low, high)

    def _stored_images(self, craft: CraftJob | None, low: int, high: int) -> NDArray[np.uint8]:
        clean = self.clean(low, high)
        if craft is None:
            return clean
        artefact = self.plan.artefact(craft.record)
        delta = artefact.read(low, high)["delta"]
        if not within(delta, craft.eps, self.plan.norm):
            raise RdpBenchError(
                f"{craft}: stored images {low}..{high - 1} are not within {allowed(craft.eps, self.plan.norm)} of the "
                f"clean ones; delete {artefact.folder} and run again"
            )
        return add_delta(clean, delta)

    def _evaluate(self, job: EvaluateJob) -> None:
        plan = self.plan
        defense = plan.defenses[job.defense].value
        found: dict[str, Artefact] = {}  # of the predictions of each target
        problems: dict[str, str] = {}  # of each target; one bad target must not cost the others their numbers
        for label, record in job.evals:
            try:
                self._names[label] = getattr(self.model(label), "name", label)
                found[label] = plan.artefact(record)
            except RdpBenchError as error:
                problems[label] = str(error)
        quality = plan.artefact(job.image_quality) if job.image_quality else None
        sample = plan.artefact(job.sample)
        for artefact in (*found.values(), sample, *([quality] if quality else [])):
            artefact.write_record()
        seed = hash_many([canonical_json({k: job.record[k] for k in ("defense", "seed", "stream")})])

        def predict(
            a: int, b: int, images: NDArray[np.uint8], wanted: list[str], problems: dict[str, str], *, measure: bool
        ) -> _Evaluated:
            rng = ImageRng([f"{seed}/{image_hash}" for image_hash in plan.image_hashes[a:b]], plan.device)
            x = to_float(images, plan.device)
            return self._predict(job, defense, x, rng, wanted, a, b, problems, measure=measure)

        self._found_size(
            job,
            lambda a, b: predict(a, b, self.images(job.craft, a, b), list(found), {}, measure=quality is not None),
        )
        missing = {label: self._missing(artefact, self.size) for label, artefact in found.items()}
        unmeasured = self._missing(quality, self.size) if quality else []
        ranges = sorted({each for some in (*missing.values(), unmeasured) for each in some})
        # Images to be kept for the report that are in no missing batch.
        unkept = self._missing(sample, self.size)
        ranges += [(low, high) for low, high in unkept if not any(a <= low < b for a, b in ranges)]
        ahead = partial(self._stored_images, job.craft) if self._images.in_threads else None

        def write(a: int, b: int, made: _Evaluated) -> None:
            if made.sample:
                sample.write(a, a + len(made.sample["purified"]), made.sample)
            for label, arrays in made.predictions.items():
                found[label].write(a, b, arrays)
            if quality and made.image_quality:
                quality.write(a, b, made.image_quality)

        with Writer(partial(self._count, job)) as writer, Reader(partial(self.images, job.craft), ahead) as images:
            for low, high in ranges:
                wanted = [
                    label
                    for label, artefact in found.items()
                    if (low, high) in missing[label] and label not in problems and not artefact.has_shard(low, high)
                ]
                measure = (low, high) in unmeasured
                if not wanted and not measure and not any(low <= first < high for first, _ in unkept):
                    continue  # another run made them meanwhile, or no target can be evaluated

                def make(a: int, b: int, wanted: list[str] = wanted, measure: bool = measure) -> _Evaluated:
                    read = images.get(a, b, self._after(a, b))
                    return predict(a, b, read, wanted, problems, measure=measure)

                for a, b, made in self._retry_smaller_batches(make, low, high):
                    writer.put(partial(write, a, b, made), b - a)
        for artefact in (*found.values(), *([quality] if quality else [])):
            artefact.merge()
        if problems:
            raise RdpBenchError("; ".join(problems.values()))

    @torch.no_grad()
    def _predict(
        self,
        job: EvaluateJob,
        defense: Defense,
        x: Tensor,
        rng: ImageRng,
        wanted: list[str],
        low: int,
        high: int,
        problems: dict[str, str],
        *,
        measure: bool,
    ) -> _Evaluated:
        """Arrays to store of the targets in `wanted`; a target that fails goes to `problems` instead.

        With `measure`, also the distances of the purified images to the clean ones.
        """
        out = _Evaluated({})

        def first(purified: Tensor) -> None:
            if written_elsewhere(defense) and (remark := unrepeatable(job, defense, x, rng, purified)):
                self._remarks = [*dict.fromkeys([*self._remarks, remark])]
            out.sample = self._sample(job, purified, low)
            if measure and job.image_quality:
                clean = to_float(self.clean(low, high), self.plan.device)
                with precision.exactly():
                    near = measurements.measure(purified, clean, job.image_quality["measure"])
                out.image_quality = {name: values.cpu().numpy() for name, values in near.items()}

        models = {label: self.model(label) for label in wanted}
        passes = together(len(x), self.size, self.plan.device)
        scores, seconds = look(job, defense, x, rng, models, problems, first, passes)
        for label, drawn in scores.items():
            top = drawn.float().topk(2, dim=-1).values
            out.predictions[label] = {
                "predicted": drawn.argmax(-1).int().cpu().numpy(),
                "label": self._labels(low, high).int().cpu().numpy(),
                "margin": (top[..., 0] - top[..., 1]).cpu().numpy(),
                "seconds": np.full(len(x), seconds[label], np.float32),
            }
        return out

    def model(self, label: str) -> Classifier:
        """The classifier of a target (or, to measure it, of a source's member), loaded and checked."""
        model = self.plan.models[label].load(self.plan.device)
        self.classes.add(label, model.classes)
        return model

    def _sample(self, job: EvaluateJob, purified: Tensor, low: int) -> Arrays | None:
        """Purified images from row `low` on that are kept to be shown; None where there are none."""
        artefact = self.plan.artefact(job.sample)
        if low >= artefact.n or artefact.complete:
            return None
        return {"purified": to_uint8(purified[: artefact.n - low])}

    def _retry_smaller_batches(
        self, make: Callable[[int, int], R], low: int, high: int
    ) -> Iterator[tuple[int, int, R]]:
        """`make` over `low..high` in one go, or in halves where the device runs out of memory."""
        while low < high:
            step = min(self.size, high - low)
            try:
                result = make(low, low + step)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if step == 1:
                    raise not_even_one(self.plan.device, error) from error
                self.size = max(1, step // 2)
                if self.batches is not None:
                    self.size = self.batches.keep(self._work, self.size)
                log.warning("out of memory on %s: going on with batches of %d", self.plan.device, self.size)
                torch.cuda.empty_cache()
                continue
            yield low, low + step, result
            low += step


@torch.no_grad()
def _require_finite(member: Classifier, x: Tensor) -> None:
    """Refuse a user's source whose outputs have no gradient: its images would be the clean ones."""
    if not torch.isfinite(member(x)).all():
        raise RdpBenchError(f"source '{member.name}' gives NaN or infinite outputs for a clean image")


def _write_set(artefact: Artefact, low: int, high: int, arrays: Callable[[], Arrays]) -> None:
    artefact.write(low, high, arrays())
