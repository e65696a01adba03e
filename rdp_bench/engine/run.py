"""A run: do the jobs of a plan that the store lacks, and keep OUT readable at every moment."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rdp_bench.budgets import show_eps
from rdp_bench.cache.store import Artefact
from rdp_bench.data.image_hashes import digest
from rdp_bench.engine import defense_cost, prefix_reuse
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job, JobResult, Work
from rdp_bench.engine.named_twice import named_twice
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.record import header, now
from rdp_bench.engine.schedule import run_here
from rdp_bench.environment import merged
from rdp_bench.errors import DamagedError, RdpBenchError, StorageError, UnreadableError, UsageError
from rdp_bench.keys import Record, hash_file, key_of
from rdp_bench.metrics import measurements, stats
from rdp_bench.protocols import classes_of
from rdp_bench.results import crosscheck, lines
from rdp_bench.results import rows as table
from rdp_bench.results.crosscheck import Check, check_rate
from rdp_bench.results.prediction_file import PredictionWriter, tidy
from rdp_bench.results.provenance import Provenance
from rdp_bench.results.record import CellResult, read_run, write_run
from rdp_bench.specs import CellKey

log = logging.getLogger(__name__)

OFF_BY = 0.5
"""Points of clean accuracy by which a known model may be off before a run warns."""


KEEP_EVERY = 600.0
"""Seconds between two versions of OUT/predictions during a run: a version contains all predictions so far."""

LEAST_FOR_CHANCE = 10
"""With fewer images than this, an accuracy at chance raises no warning: a poor model may be wrong on all of them."""


@dataclass
class Run:
    """One execution of a plan: what OUT/runs/<grid>.json holds of it is `record` (everything else) and `cells`."""

    plan: Plan
    out: Path
    command: str
    record: Record = field(default_factory=dict)
    cells: dict[CellKey, CellResult] = field(default_factory=dict)
    rows: dict[CellKey, table.Row] = field(default_factory=dict)
    more: dict[CellKey, list[table.Row]] = field(default_factory=dict)
    """Of cells of several draws: worst and vote; of the first cell of a purified set: PSNR and SSIM."""
    wrong: dict[CellKey, Any] = field(default_factory=dict)
    """Which images are wrong, `[n]`, in the first draw; of every cell that is done."""
    failures: dict[str, str] = field(default_factory=dict)
    watch: "Callable[[Run], None] | None" = None
    """Called after each evaluation, when its cells are known."""
    _begin: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._made = Provenance(self.plan.store)
        dataset = self.plan.dataset
        about = {
            "grid": self.plan.grid.name,
            "n": self.plan.n,
            "images": digest(self.plan.image_hashes, dataset.labels),
        }
        self._predictions = PredictionWriter(
            self.out, self.plan.grid.name, about, dataset.labels, dataset.ids, self.plan.image_hashes
        )
        self._cells_of: dict[str, list[CellKey]] = {}  # by the key of the job that makes them
        for key, planned in self.plan.cells.items():
            self._cells_of.setdefault(planned.job.key, []).append(key)

    def start(self, made: set[str] | None = None) -> list[Job]:
        """Write what is known so far, cached results included; returns the jobs still to do.

        Args:
            made: None to use what the cache holds. A set: to compute everything again (`run --fresh`), except the
                artefacts whose keys are in it; theirs are added.
        """
        everything = [*self.plan.jobs, *self.plan.clean_checks]
        if made is not None:
            self.plan.discard(everything, made)
        self._check_store(everything, reuse=made is None)
        self.record = header(self.plan, self.command)
        if self.plan.grid.axes.cost:
            self.record["cost"] = self._known_cost()
        self.refresh(self.plan.cells)
        to_do = self.plan.to_do(self.plan.jobs)
        # Cells that another run finished between these two calls are in no job, so they are read now.
        left = {job.key for job in to_do}
        self.refresh(
            [
                key
                for key, cell in self.cells.items()
                if cell.status == "pending" and self.plan.cells[key].job.key not in left
            ]
        )
        self._warn_of((*self.plan.remarks, *named_twice(self.plan.records())))
        self._warn_of_removed_cells()
        self._warn_of_untouched_sets()
        self.keep_predictions()
        return to_do

    def _check_store(self, jobs: Sequence[Job], *, reuse: bool) -> None:
        """Delete damaged artefacts of `jobs`, restore lost records; with `reuse`, copy shards of related runs.

        A cache that cannot be written to is a warning: it may hold all that the run needs, related runs included.
        """
        plan = self.plan
        prefix_reuse.drop_damaged(plan, jobs)
        try:
            plan.store.mark()
            prefix_reuse.register_images(plan)
            if reuse:
                prefix_reuse.copy_shared_shards(plan)
            for record in (one for job in jobs for one in job.records):
                if (artefact := plan.artefact(record)).shards():
                    artefact.write_record()
        except StorageError as error:
            log.warning("%s; going on with what is stored", error)
            plan.store.read_only = True
        if plan.store.read_only and reuse:
            prefix_reuse.copy_shared_shards(plan)

    def _warn_of_removed_cells(self) -> None:
        """Warn of cells of the previous run that this one does not have and so removes from OUT.

        A file that cannot be read as that run is kept beside the new one.
        """
        try:
            before = read_run(self._path)
        except UsageError as error:
            if self._path.is_file():
                kept = self._path.with_name(f"{self._path.name}.{hash_file(self._path)[:8]}")
                self._path.replace(kept)
                log.warning("%s; it is kept as %s", error, kept)
            return
        there = {cell.key for cell in before.cells}
        old, new = before.header["dataset"], self.record["dataset"]
        if old["name"] == new["name"] and old["n"] <= new["n"]:
            there -= self.cells.keys()
        if there:
            log.warning(
                "%d cells of the previous run of %s are removed from %s; restore them with: %s",
                len(there), self.plan.grid.name, self.out, before.header["command"],
            )  # fmt: skip

    def execute(self, jobs: Sequence[Job], work: Work) -> None:
        """Do `jobs` in this process; results and record are written as they come."""
        self.follow(run_here(jobs, work))

    def follow(self, outcomes: Iterable[JobResult], save_every: float = 5.0) -> None:
        """Take up the end of each job; results and record are written at the latest when this returns."""
        saved = kept = time.perf_counter()
        try:
            for outcome in outcomes:
                self.failures.pop(outcome.job.key, None)
                if outcome.reason:
                    self.failures[outcome.job.key] = outcome.reason
                    log.error("%s: %s", outcome.job, outcome.reason)
                self._warn_of(outcome.remarks)
                if isinstance(outcome.job, EvaluateJob):
                    self.refresh(self._cells_of[outcome.job.key])
                    if self.watch:
                        self.watch(self)
                if time.perf_counter() - kept > KEEP_EVERY:
                    self.keep_predictions()
                    saved = kept = time.perf_counter()
                elif time.perf_counter() - saved > save_every:
                    self.save()
                    saved = time.perf_counter()
        finally:
            self._warn_of_untouched_sets()
            self.keep_predictions()

    def check_accuracy(self, work: Work | None) -> None:
        """Measure every model's clean accuracy; one that is off what its card knows gets a loud warning.

        Without `work`, only stored predictions are used.
        """
        for job in self.plan.clean_checks:
            if work and not self.plan.done(job):
                try:
                    work(job)
                except StorageError:
                    raise
                except RdpBenchError as error:
                    log.warning("%s", error)  # the cells that need this model will fail and say so
            for label, record in job.evals:
                arrays = self._stored(record)
                if arrays is None:
                    continue  # nothing measured, nothing to compare
                right = int((arrays["predicted"] == arrays["label"]).sum())
                measured = 100 * right / self.plan.n
                self.record["models"][label]["measured_accuracy"] = measured
                self._warn_of_chance(label, right)
                card = self.plan.models[label].card
                known = card.known_accuracy(self.plan.dataset.name, self.plan.n)
                if known is not None and abs(measured - known) > OFF_BY:
                    self.warn(
                        f"{label} is right on {measured:.1f} % of {self.plan.dataset.name}, "
                        f"its card says {known:.1f} %: wrong weights, preprocessing or labels? "
                        "Do not trust numbers made with it"
                    )

    def _warn_of_untouched_sets(self) -> None:
        """Warn of adversarial sets that are the clean images: the numbers behind them are not robustness."""
        for craft in (job for job in self.plan.jobs if isinstance(job, CraftJob)):
            if craft.eps and self._untouched(self.plan.artefact(craft.record)):
                self.warn(
                    f"{craft}, eps {show_eps(craft.eps, self.plan.norm)}: no pixel of any image changed, so that its "
                    "rows are those of clean images and say nothing of a defense. Is its step or eps below half a "
                    "level of 8-bit pixels, or has the source no gradient?"
                )

    def _untouched(self, made: Artefact) -> bool:
        try:
            return made.complete and not any(made.read(low, high)["delta"].any() for low, high in made.batches())
        except (DamagedError, UnreadableError):
            return False

    def _warn_of_chance(self, label: str, right: int) -> None:
        """Warn of a model that does no better than guessing, where so many images can tell."""
        dataset, n = self.plan.dataset, self.plan.n
        chance = 1 / (classes_of(dataset) or max(dataset.labels) + 1)
        level = 1 - stats.LEVEL
        telling = n >= LEAST_FOR_CHANCE and stats.binomial_tail(n, n, chance) <= level
        if telling and stats.binomial_tail(right, n, chance) > level:
            self.warn(
                f"{label} is right on {right} of {n} images of {dataset.name} without attack or defense, no better "
                f"than guessing ({100 * chance:.1f} %): other class numbers, preprocessing or weights? "
                "Do not trust numbers made with it"
            )

    @property
    def lacks_cost(self) -> bool:
        """Whether the grid asks what its defenses cost, and nobody has measured it."""
        return self.record.get("cost", {}) is None

    def keep_cost(self, found: Record) -> None:
        """Write what `cost.measure` found into the record."""
        self.record["cost"] = found
        self.save()

    def _known_cost(self) -> Record | None:
        """What the last run into OUT measured, if it is what would be measured now."""
        try:
            found: Record = read_run(self._path).header["cost"]
            return found if found["key"] == key_of(defense_cost.asked(self.plan)) else None
        except (UsageError, KeyError, TypeError):
            return None

    def cross_check(self) -> list[Check]:
        """A paper-profile run against what others published for its networks; a rate that is off becomes a warning.

        For accuracies, `check_accuracy` has warned.
        """
        plan, name = self.plan, self.plan.dataset.name
        if (plan.grid.profile, name) != (crosscheck.PROFILE, crosscheck.DATASET):
            return []
        clean = {label: self._stored(record) for job in plan.clean_checks for label, record in job.evals}
        published = [(label, known) for label, model in plan.models.items() for known in model.card.accuracy]
        accuracies = [
            crosscheck.check_clean(label, known.percent, known.n, clean[label])
            for label, known in published
            if known.dataset == name
        ]
        rates = [check_rate(rate, clean[rate.target], self._stored(record)) for rate, record in plan.cross_checks]
        for check in rates:
            if check.passed is False:
                self.warn(f"cross-check failed: {check.text}")
        checks = accuracies + rates
        self.record["checks"] = [asdict(check) for check in checks]
        self.save()
        return checks

    def _stored(self, record: Record) -> Any:
        try:
            return self.plan.artefact(record).read()
        except (DamagedError, UnreadableError):
            return None

    def warn(self, message: str) -> None:
        """Log a warning and keep it for the report."""
        log.warning("%s", message)
        if message not in self.record["warnings"]:
            self.record["warnings"].append(message)

    def _warn_of(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            if remark not in self.record["warnings"]:
                self.warn(remark)

    def refresh(self, cells: Iterable[CellKey]) -> None:
        """Read what the store has for these cells into rows."""
        for key in cells:
            planned = self.plan.cells[key]
            cell = CellResult(
                **vars(key),
                status="pending",
                adv_key=planned.set_key,
                sample_key=planned.sample.key,
                eval_key=planned.eval.key,
                defense_samples=planned.job.defense_samples,
                image_quality_key=planned.image_quality.key if planned.image_quality else None,
            )
            predicted: Any = None
            label: Any = None
            if planned.eval.complete:
                try:
                    arrays = planned.eval.read()
                    seconds = float(arrays["seconds"].sum())
                    kept = {name: arrays[name] for name in ("predicted", "margin", "label")}
                    self._predictions.add("eval", planned.eval.key, kept, seconds=seconds)
                    cell = replace(cell, status="done", seconds=seconds)
                    self._made.add(cell)
                    self._warn_of(self._made.remarks)
                    predicted, label = arrays["predicted"], arrays["label"]
                except UnreadableError as error:
                    cell = replace(cell, status="failed", reason=str(error))
                except DamagedError:
                    pass  # it is missing from now on
            elif reason := self.failures.get(planned.job.key):
                cell = replace(cell, status="failed", reason=reason)
            self.cells[key] = cell
            line = self.rows[key] = table.row(self.record, cell, predicted, label)
            if predicted is not None:
                self.wrong[key] = lines.first_draw(predicted, label)
            near = self._image_quality(planned.image_quality) if lines.shows_images(self.record, cell) else None
            self.more[key] = lines.rows_beside(self.record, line, cell, predicted, label, near)

    def _image_quality(self, artefact: Artefact | None) -> Any:
        if artefact is None or not artefact.complete:
            return None
        try:
            arrays = artefact.read()
            near = measurements.values(arrays, artefact.record["measure"])
        except (DamagedError, UnreadableError):
            return None
        self._predictions.add("image_quality", artefact.key, arrays)
        return near

    def keep_predictions(self) -> None:
        """Write the predictions so far into OUT/predictions, then the record that names them."""
        records, wanted = {}, []
        for key, cell in self.cells.items():
            planned = self.plan.cells[key]
            if cell.status == "done":
                wanted += [cell.eval_key or "", cell.image_quality_key or ""]
                records[planned.eval.key] = planned.eval.record
                if planned.job.craft:
                    records[planned.job.craft.key] = planned.job.craft.record
                if planned.image_quality:
                    records[planned.image_quality.key] = planned.image_quality.record
        found = self._predictions.commit(wanted, records, self._made.facts)
        self.record.pop("predictions", None)
        if found:
            self.record["predictions"] = found
        self.save()
        tidy(self.out, self.plan.grid.name, found["sha256"] if found else None)

    def save(self) -> None:
        """Write OUT/runs/<grid>.json and OUT/results.csv, each whole or not at all."""
        done = all(cell.status != "pending" for cell in self.cells.values())
        self.record["seconds"] = round(time.perf_counter() - self._begin, 1)
        self.record["finished"] = now() if done else None
        self.record["environment"] = merged(self._made.found)
        write_run(self._path, self.record, self.cells.values())
        rows = []
        for key, first in self.rows.items():
            rows += [first, *lines.success_rows(self.record, self.rows, self.wrong, key), *self.more[key]]
        table.write_results(self.out, rows)

    @property
    def _path(self) -> Path:
        return self.out / "runs" / f"{self.plan.grid.name}.json"

    @property
    def failed(self) -> dict[str, str]:
        """Failed cells and why."""
        return {str(key): cell.reason for key, cell in self.cells.items() if cell.status == "failed"}


def summary(run: Run) -> str:
    """One line: how many cells are done, failed and open."""
    states = [cell.status for cell in run.cells.values()]
    parts = [f"{states.count('done')} of {len(states)} cells done"]
    parts += [f"{states.count(state)} {state}" for state in ("failed", "pending") if states.count(state)]
    return ", ".join(parts)
