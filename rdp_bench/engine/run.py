"""A run: do the jobs of a plan that the store lacks, and keep OUT readable at every moment."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rdp_bench.budgets import show_eps
from rdp_bench.cache.store import Artefact
from rdp_bench.engine import crosscheck, defense_cost, prefix_reuse
from rdp_bench.engine.crosscheck import Check, check_rate
from rdp_bench.engine.grid import CLEAN
from rdp_bench.engine.jobs import EvaluateJob, Executor, Job, SerialExecutor
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.record import header, now
from rdp_bench.environment import merged
from rdp_bench.errors import DamagedError, RdpBenchError, StorageError, UnreadableError, UsageError
from rdp_bench.keys import Record, key_of
from rdp_bench.metrics import stats
from rdp_bench.metrics.correctness import distances, error_flags
from rdp_bench.protocols import aims_at_targets
from rdp_bench.results import rows as table
from rdp_bench.specs import Cell

log = logging.getLogger(__name__)

_PLACE = ("source", "attack", "eps", "defense", "target")

OFF_BY = 0.5
"""Points of clean accuracy by which a known model may be off before a run warns."""


LEAST_FOR_CHANCE = 10
"""Images below which an accuracy at chance is not warned of: a poor model may be wrong on all of them."""


@dataclass
class Run:
    """One execution of a plan; `record` is what OUT/runs/<grid>.json holds."""

    plan: Plan
    out: Path
    command: str
    record: dict[str, Any] = field(default_factory=dict)
    rows: dict[Cell, table.Row] = field(default_factory=dict)
    more: dict[Cell, list[table.Row]] = field(default_factory=dict)
    """Of cells of several draws: worst and vote; of the first cell of a purified set: PSNR and SSIM."""
    wrong: dict[Cell, Any] = field(default_factory=dict)
    """Which images are wrong, `[n]`, in the first draw; of every cell that is done."""
    failures: dict[str, str] = field(default_factory=dict)
    _begin: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._made = table.Provenance(self.plan.store)

    def start(self, made: set[str] | None = None) -> list[Job]:
        """Write what is known so far, cached results included; returns the jobs still to do.

        Args:
            made: None to use what the cache holds. A set: to compute everything again (`run --fresh`), except the
                artefacts whose keys are in it; theirs are added.
        """
        jobs = self.plan.jobs()
        everything = [*jobs, *self.plan.clean_check()]
        if made is not None:
            self.plan.discard(everything, made)
        self._check_store(everything, reuse=made is None)
        self.record = header(self.plan, self.command)
        if self.plan.grid.axes.cost:
            self.record["cost"] = self._known_cost()
        to_do = self.plan.to_do(jobs)  # before the cells are read: what another run finishes in between is done again
        self.refresh(self.plan.grid.cells())
        self._warn_of_remarks()
        self._warn_of_removed_cells()
        self._warn_of_untouched_sets()
        self.save()
        return to_do

    def _check_store(self, jobs: Sequence[Job], *, reuse: bool) -> None:
        """Delete damaged artefacts of `jobs`, restore lost records; with `reuse`, copy shards of related runs.

        A cache that cannot be written to is a warning: it may hold all that the run needs.
        """
        plan = self.plan
        prefix_reuse.drop_damaged(plan, jobs)
        try:
            plan.store.mark()
            prefix_reuse.register_images(plan)
            if reuse:
                prefix_reuse.link_shared_shards(plan)
            for record in (one for job in jobs for one in prefix_reuse.records(plan, job)):
                if (artefact := plan.artefact(record)).shards():
                    artefact.write_record()
        except StorageError as error:
            log.warning("%s; going on with what is stored", error)

    def _warn_of_removed_cells(self) -> None:
        """Of the run that this one takes the place of: a narrower one must not seem to be all there ever was."""
        try:
            before = table.read_record(self._path)
            there = {tuple(cell[name] for name in _PLACE) for cell in before["cells"]}
            old, new = before["dataset"], self.record["dataset"]
            if old["name"] == new["name"] and old["n"] <= new["n"]:
                there -= {tuple(getattr(cell, name) for name in _PLACE) for cell in self.record["cells"]}
        except (UsageError, ValueError, KeyError, TypeError):
            return  # none, or none that could be read
        if there:
            log.warning(
                "%d cells of the %s before this one leave %s; its command brings them back from the cache: %s",
                len(there), self.plan.grid.name, self.out, before.get("command", ""),
            )  # fmt: skip

    def execute(
        self, jobs: Sequence[Job], work: Callable[[Job], Any], executor: Executor | None = None, save_every: float = 5.0
    ) -> None:
        """Do `jobs`; results and record are written as they come, and at the latest when this returns."""
        saved = time.perf_counter()
        try:
            for outcome in (executor or SerialExecutor()).run(jobs, work):
                self.failures.pop(outcome.job.key, None)
                if outcome.reason:
                    self.failures[outcome.job.key] = outcome.reason
                    log.error("%s: %s", outcome.job, outcome.reason)
                self._warn_of_remarks()
                if isinstance(outcome.job, EvaluateJob):
                    self.refresh(self._cells_of(outcome.job))
                if time.perf_counter() - saved > save_every:
                    self.save()
                    saved = time.perf_counter()
        finally:
            self._warn_of_untouched_sets()
            self.save()

    def check_accuracy(self, work: Callable[[Job], Any] | None) -> None:
        """Measure every model's clean accuracy; one that is off what its card knows gets a loud warning.

        Without `work`, only what is stored is looked at.
        """
        for job in self.plan.clean_check():
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
        for craft in self.plan.crafts.values():
            if craft.eps and self._untouched(self.plan.artefact(craft.record)):
                self.warn(
                    f"{craft}, eps {show_eps(craft.eps, self.plan.norm)}: no pixel of any image changed, so that its "
                    "rows are those of clean images and say nothing of a defense. Is its step or eps below half a "
                    "level of 8-bit pixels, or has the source no gradient?"
                )

    def _untouched(self, made: Artefact) -> bool:
        try:
            return made.complete and not any(made.read(low, high)["delta"].any() for low, high, _ in made.shards())
        except (DamagedError, UnreadableError):
            return False

    def _warn_of_chance(self, label: str, right: int) -> None:
        """Warn of a model that does no better than guessing, where so many images can tell."""
        dataset, n = self.plan.dataset, self.plan.n
        chance = 1 / (getattr(dataset, "classes", None) or max(dataset.labels) + 1)
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
            found: Record = table.read_record(self._path)["cost"]
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
        clean = {label: self._stored(record) for job in plan.clean_check() for label, record in job.evals}
        published = [(label, row) for label, model in plan.models.items() for row in model.card.accuracy]
        accuracies = [
            crosscheck.check_clean(label, float(row["percent"]), row["n"], clean[label])
            for label, row in published
            if row["dataset"] == name
        ]
        rates = [check_rate(rate, clean[rate.target], self._stored(record)) for rate, record in plan.cross_checks()]
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

    def _warn_of_remarks(self) -> None:
        for remark in self.plan.remarks:
            if remark not in self.record["warnings"]:
                self.warn(remark)

    def refresh(self, cells: Any) -> None:
        """Read what the store has for these cells into rows."""
        for cell in cells:
            keys = self.plan.keys(cell)
            entry: dict[str, Any] = {
                "source": cell.source,
                "attack": cell.attack,
                "eps": cell.eps,
                "target": cell.target,
                "defense": cell.defense,
                "status": "pending",
                "reason": "",
                "adv_key": keys.adv,
                "sample_key": keys.sample,
                "eval_key": keys.eval,
                "seconds": 0.0,
                "defense_samples": self.plan.defense_samples(cell.defense),
                "image_quality_key": keys.image_quality,
            }
            predicted: Any = None
            label: Any = None
            artefact = self.plan.artefact(self.plan.eval_records[keys.eval])
            if artefact.complete:
                try:
                    arrays = artefact.read()
                    predicted, label = arrays["predicted"], arrays["label"]
                    entry |= {"status": "done", "seconds": float(arrays["seconds"].sum())}
                    self._made.add(entry)
                except UnreadableError as error:
                    entry |= {"status": "failed", "reason": str(error)}
                except DamagedError:
                    pass  # it is missing from now on
            elif reason := self.failures.get(self.plan.job_of[keys.eval]):
                entry |= {"status": "failed", "reason": reason}
            line = self.rows[cell] = table.row(self.record, entry, predicted, label)
            self.more[cell] = table.aggregation_rows(line, predicted, label) if entry["defense_samples"] > 1 else []
            if predicted is not None:
                self.wrong[cell] = error_flags(predicted if predicted.ndim == 1 else predicted[:, 0], label)
            if cell.attack != CLEAN and aims_at_targets(self.plan.attacks[cell.attack].value):
                self.more[cell].append(table.targeted_row(line, self._hits(predicted)))
            if keys.image_quality and cell.target == self.plan.grid.axes.targets[0]:
                self.more[cell] += self._restored(line, keys.image_quality, cell)
            self.record["cells"][cell] = entry

    def _hits(self, predicted: Any) -> Any:
        """Which images are taken for their target class, `[n]`; None without predictions."""
        if predicted is None:
            return None
        import numpy as np

        missed = error_flags(predicted, np.array(self.plan.targets_of_images))
        return ~missed if missed.dtype == bool else 1 - missed

    def _success(self, cell: Cell) -> list[table.Row]:
        if not self.plan.grid.axes.success or cell.attack == CLEAN:
            return []
        clean = replace(cell, source="-", attack=CLEAN, eps=0.0)
        return [table.success_row(self.rows[cell], self.wrong.get(cell), self.wrong.get(clean))]

    def _restored(self, line: table.Row, key: str, cell: Cell) -> list[table.Row]:
        adv = self.plan.keys(cell).adv
        purified = self.plan.purified_record(self.plan.crafts[adv].record if adv else None, cell.defense)
        artefact = self.plan.artefact(self.plan.image_quality_record(purified))
        if not artefact.complete:
            return []
        try:
            near = artefact.read()
        except (DamagedError, UnreadableError):
            return []
        return table.image_quality_rows(line, key, distances(near))

    def save(self) -> None:
        """Write OUT/runs/<grid>.json and OUT/results.csv, each whole or not at all."""
        cells = list(self.record["cells"].values())
        done = all(cell["status"] != "pending" for cell in cells)
        self.record["seconds"] = round(time.perf_counter() - self._begin, 1)
        self.record["finished"] = now() if done else None
        self.record["environment"] = merged(self._made.found)
        table.write_record(self._path, {**self.record, "cells": cells})
        rows = [line for cell, first in self.rows.items() for line in (first, *self._success(cell), *self.more[cell])]
        table.write_results(self.out, rows)

    @property
    def _path(self) -> Path:
        return self.out / "runs" / f"{self.plan.grid.name}.json"

    @property
    def failed(self) -> dict[str, str]:
        """Failed cells and why."""
        return {
            str(cell): entry["reason"] for cell, entry in self.record["cells"].items() if entry["status"] == "failed"
        }

    def _cells_of(self, job: EvaluateJob) -> list[Cell]:
        return [cell for cell in self.record["cells"] if self.plan.job_of[self.plan.keys(cell).eval] == job.key]


def summary(run: Run) -> str:
    """One line: how many cells are done, failed and open."""
    states = [entry["status"] for entry in run.record["cells"].values()]
    parts = [f"{states.count('done')} of {len(states)} cells done"]
    parts += [f"{states.count(state)} {state}" for state in ("failed", "pending") if states.count(state)]
    return ", ".join(parts)
