"""Doing a job: crafting an adversarial set, or evaluating a purified one. Imported only when there is work."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
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
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job
from rdp_bench.engine.levels import add_delta, check_purified, to_delta, to_float, to_uint8, within
from rdp_bench.engine.plan import SET_FACTS, Plan
from rdp_bench.engine.tasks import batch_of
from rdp_bench.environment import describe
from rdp_bench.errors import DamagedError, RdpBenchError
from rdp_bench.keys import canonical_json, hash_many
from rdp_bench.metrics import measurements
from rdp_bench.models.entry_calls import checked_logits, is_out_of_memory, naming_entry
from rdp_bench.numerics import memory, pieces, precision
from rdp_bench.protocols import Classifier, Defense, Notes, StochasticLogits, aims_at_targets, classes_of, with_mates
from rdp_bench.rng import ImageRng
from rdp_bench.user_reads import noting_unkeyed, unkeyed

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


def configure_torch(device: str) -> None:
    """Settings of torch that hold for a whole run: exact float32, a fixed order of sums, reused memory."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if device == "cpu":
        memory.keep_blocks()


KEPT = 5 << 28
"""Bytes that a process may hold when a job begins; beyond, what earlier jobs freed is returned to the system."""


@dataclass
class Worker:
    """Does the jobs of a plan on one device; calls `report` after each batch."""

    plan: Plan
    batch: int | None = None
    """Images at once, as asked for; None: what suits the device and its memory."""
    report: Report | None = None
    classes: dict[str, int] = field(default_factory=dict)
    """Number of classes of every model loaded so far."""
    _phase: type[Job] | None = None  # crafting or evaluating
    _remarks: list[str] = field(default_factory=list)  # of the job at hand

    def __post_init__(self) -> None:
        self.size = batch_of(self.plan, self.batch)
        self._rows = (0, self.plan.n)
        configure_torch(self.plan.device)
        unkeyed.clear()  # what entries of an earlier run in this process read
        self.plan.store.made_by = describe(self.plan.device)
        local = None if self.plan.store.read_only else self.plan.store.local
        self._images = DecodedImages(self.plan.dataset, self.plan.image_hashes, local)

    def __call__(self, job: Job, rows: tuple[int, int] | None = None) -> list[str]:
        """Do what is still missing of `job`, of the images `rows` only (first, past-the-last) where they are given.

        Returns what a reader of its results must know.
        """
        self._rows = rows or (0, self.plan.n)
        # Jobs of one kind may need blocks of other sizes, too: each defense has a network of its own. Below `KEPT`,
        # freed memory is kept, because faulting it in again takes a quarter of a second per gigabyte.
        memory.release(above=KEPT if type(job) is self._phase else 0)
        self._phase = type(job)
        with precision.using(self.plan.precision), pieces.using(self.batch):
            if isinstance(job, CraftJob):
                self._craft(job)
            else:
                self._evaluate(job)
        remarks, self._remarks = [*self._remarks, *unkeyed], []
        return remarks

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
            self._check_labels(member.name, member.classes)
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

        def make(low: int, high: int) -> dict[str, NDArray[np.generic]]:
            u8 = self.clean(low, high)
            x = to_float(u8, plan.device)
            rng = ImageRng([f"{seed}/{image_hash}" for image_hash in plan.image_hashes[low:high]], plan.device)
            with naming_entry(f"attack '{job.attack}'"), noting_unkeyed(f"attack '{job.attack}'"):
                if isinstance(attack, AdversarialFiles):
                    adv = to_float(attack.crafted(low, high), plan.device)
                else:
                    # A copy: what comes back is compared with the engine's own images.
                    eps = job.eps / 255 if plan.norm == LINF else job.eps
                    bound = with_mates(attack, partial(self._mates, low))
                    adv = bound(source, x.clone(), aims(low, high), eps, rng)
            return {"delta": to_delta(adv, x, u8, job.eps, str(job), plan.norm)}

        size = self.size
        if self.batch is None and any(isinstance(member, StochasticLogits) for member in source.members):
            size = max(1, size // DEFENDED_BATCH_DIVISOR)
        for low, high in artefact.still_missing(size, self._rows):
            for a, b, arrays in self._retry_smaller_batches(make, low, high):
                artefact.write(a, b, arrays)
                if self.report:
                    self.report(job, b - a)
        artefact.merge()
        if isinstance(attack, Notes):
            self._remarks += attack.notes()

    def _mates(self, low: int, rng: ImageRng) -> Tensor:
        """For each of the images from `low` on, one per stream, another image of the data set."""
        n = self.plan.n
        index = (torch.arange(low, low + len(rng)) + (rng.integers(1, n) if n > 1 else 0)) % n
        return to_float(np.concatenate([self.clean(i, i + 1) for i in index.tolist()]), self.plan.device)

    def images(self, craft: CraftJob | None, low: int, high: int) -> NDArray[np.uint8]:
        """Images `low..high` of the adversarial set that `craft` makes, or of the data set, as uint8."""
        clean = self.clean(low, high)
        if craft is None:
            return clean
        artefact = self.plan.artefact(craft.record)
        try:
            delta = artefact.read(low, high)["delta"]
        except DamagedError:
            artefact.drop_damaged()
            self._craft(craft)
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
                self.model(label)
                found[label] = plan.artefact(record)
            except RdpBenchError as error:
                problems[label] = str(error)
        quality = plan.artefact(job.image_quality) if job.image_quality else None
        sample = plan.artefact(job.sample)
        for artefact in (*found.values(), sample, *([quality] if quality else [])):
            artefact.write_record()
        missing = {label: self._missing(artefact, self.size) for label, artefact in found.items()}
        unmeasured = self._missing(quality, self.size) if quality else []
        ranges = sorted({each for some in (*missing.values(), unmeasured) for each in some})
        # Images to be kept for the report that are in no missing batch.
        unkept = self._missing(sample, self.size)
        ranges += [(low, high) for low, high in unkept if not any(a <= low < b for a, b in ranges)]
        seed = hash_many([canonical_json({k: job.record[k] for k in ("defense", "seed", "stream")})])
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
                x = to_float(self.images(job.craft, a, b), plan.device)
                rng = ImageRng([f"{seed}/{image_hash}" for image_hash in plan.image_hashes[a:b]], plan.device)
                return self._predict(job, defense, x, rng, wanted, a, b, problems, measure=measure)

            for a, b, made in self._retry_smaller_batches(make, low, high):
                for label, arrays in made.predictions.items():
                    found[label].write(a, b, arrays)
                if quality and made.image_quality:
                    quality.write(a, b, made.image_quality)
                if self.report:
                    self.report(job, b - a)
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
        models = {label: self.model(label) for label in wanted}
        scores: dict[str, list[Tensor]] = {label: [] for label in models}  # of each draw
        spent = dict.fromkeys(models, 0.0)
        out = _Evaluated({})
        shared = 0.0
        # Where only image quality is missing, the first pass of the first draw will do.
        looks = product(range(job.defense_samples), range(defense.passes)) if models else [(0, 0)]
        for draw, number in looks:
            begin = time.perf_counter()
            streams = rng.fork(f"draw {draw}") if draw else rng  # draw 0 is that of a run with one draw
            with naming_entry(f"defense '{job.defense}'"), noting_unkeyed(f"defense '{job.defense}'"):
                output = defense.purify(x.clone(), streams.fork(f"pass {number}"))
            purified = check_purified(output, x, job.defense)
            shared += time.perf_counter() - begin
            if draw == number == 0:
                self._keep_sample(job, purified, low)
                if measure and job.image_quality:
                    clean = to_float(self.clean(low, high), self.plan.device)
                    near = measurements.measure(purified, clean, job.image_quality["measure"])
                    out.image_quality = {name: values.cpu().numpy() for name, values in near.items()}
            for label, model in models.items():
                if label in problems:
                    continue
                begin = time.perf_counter()
                try:
                    with naming_entry(f"target '{label}' behind '{job.defense}'"):
                        logits = model(purified, purified.shape[-1] / x.shape[-1])
                    logits = checked_logits(logits, len(x), model.classes, f"target '{label}'")
                    if not torch.isfinite(logits).all():
                        raise RdpBenchError(f"target '{label}' gave NaN or infinite outputs behind '{job.defense}'")
                except RdpBenchError as error:
                    problems[label] = str(error)
                    continue
                # One pass keeps its logits; several average their softmax outputs (Xie et al. 2018).
                part = logits.clone() if defense.passes == 1 else logits.softmax(1) / defense.passes
                if number:
                    scores[label][-1] += part
                else:
                    scores[label].append(part)
                spent[label] += time.perf_counter() - begin
        for label, each in scores.items():
            if label in problems:
                continue
            drawn = torch.stack(each, 1) if job.defense_samples > 1 else each[0]  # [n, draws, classes], or [n, classes]
            top = drawn.float().topk(2, dim=-1).values
            out.predictions[label] = {
                "predicted": drawn.argmax(-1).int().cpu().numpy(),
                "label": self._labels(low, high).int().cpu().numpy(),
                "margin": (top[..., 0] - top[..., 1]).cpu().numpy(),
                "seconds": np.full(len(x), (spent[label] + shared) / len(x), np.float32),
            }
        return out

    def model(self, label: str) -> Classifier:
        """The classifier of a target (or, to measure it, of a source's member), loaded and checked."""
        model = self.plan.models[label].load(self.plan.device)
        self._check_labels(label, model.classes)
        return model

    def _check_labels(self, name: str, classes: int) -> None:
        """Refuse a network whose outputs are not the classes that the data set's labels count."""
        dataset = self.plan.dataset
        expected = classes_of(dataset)
        if expected is not None and classes != expected:
            raise RdpBenchError(
                f"model '{name}' has {classes} classes, data set {dataset.name} has labels of {expected}: class "
                "numbers would not mean the same; use a network of the data set's classes"
            )
        for other, count in self.classes.items():
            if count != classes:
                raise RdpBenchError(
                    f"model '{name}' has {classes} classes and '{other}' {count}: class numbers would not mean the "
                    "same; use networks of one set of classes"
                )
        self.classes[name] = classes
        worst = max(dataset.labels)
        if worst >= classes:
            raise RdpBenchError(f"label {worst} of data set {dataset.name} is beyond the {classes} classes of {name}")

    def _keep_sample(self, job: EvaluateJob, purified: Tensor, low: int) -> None:
        artefact = self.plan.artefact(job.sample)
        high = min(low + len(purified), artefact.n)
        if low < high and not artefact.complete:
            artefact.write(low, high, {"purified": to_uint8(purified[: high - low])})

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
                    raise RdpBenchError(f"out of memory on {self.plan.device} even with one image") from error
                self.size = max(1, step // 2)
                log.warning("out of memory on %s: going on with batches of %d", self.plan.device, self.size)
                torch.cuda.empty_cache()
                continue
            yield low, low + step, result
            low += step
