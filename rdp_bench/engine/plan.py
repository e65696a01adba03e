"""From a grid to keyed jobs: who needs which adversarial set, and what is already there. No torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from rdp_bench import registry
from rdp_bench.budgets import LINF, show_eps
from rdp_bench.cache.store import Artefact, Store
from rdp_bench.data import nips2017
from rdp_bench.data._labelled import SIZE, Images
from rdp_bench.data.adversarial import ELSEWHERE, AdversarialFiles
from rdp_bench.data.image_hashes import digest, hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.engine import crosscheck
from rdp_bench.engine.crosscheck import Rate
from rdp_bench.engine.grid import Axes, Grid
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job
from rdp_bench.errors import UsageError, wrap_errors
from rdp_bench.keys import Record, hash_many, key_of, plain
from rdp_bench.metrics import measurements
from rdp_bench.models.defended import is_white_box, white_box
from rdp_bench.models.zoo import AnyModelRef, SourceSpec, find, find_or_missing, find_source
from rdp_bench.protocols import Attack, ChoosesNorm, Dataset, Defense, aims_at_targets
from rdp_bench.registry import Resolved, identity, left_out, refuse_shared_keys
from rdp_bench.specs import CLEAN, UNDEFENDED, Cell, files_from, show
from rdp_bench.weights import files as weight_files

log = logging.getLogger(__name__)

SET_FACTS = ("source", "attack", "eps", "seed")
"""Of a set's record, what an image's random stream follows from: not the images beside it."""


@dataclass(frozen=True)
class Keys:
    """Where a cell's artefacts are: adversarial set (None for clean images), samples, predictions, restoration."""

    adv: str | None
    sample: str
    eval: str
    image_quality: str | None = None


@dataclass
class Plan:
    """Everything a run needs, resolved and keyed, before torch is loaded."""

    grid: Grid
    store: Store
    seed: int
    device: str
    dataset: Dataset
    image_hashes: list[str]
    attacks: dict[str, Resolved[Attack]] = field(default_factory=dict)
    defenses: dict[str, Resolved[Defense]] = field(default_factory=dict)
    sources: dict[str, SourceSpec] = field(default_factory=dict)
    targets: dict[str, AnyModelRef] = field(default_factory=dict)
    checks: dict[str, AnyModelRef] = field(default_factory=dict)
    """Models that only the cross-check needs."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the results must know; the run warns of it, and work adds to it."""
    classes: dict[str, int] = field(default_factory=dict)
    """Number of classes of every model loaded so far."""
    eval_records: dict[str, Record] = field(default_factory=dict)
    job_of: dict[str, str] = field(default_factory=dict)
    """Eval key -> key of the job that makes it."""
    crafts: dict[str, CraftJob] = field(default_factory=dict)
    """Set key -> the job that makes it."""
    _records: dict[str, Record] = field(default_factory=dict)
    _measured: Record | None = None  # `measurements.record`, once asked for
    _keys: dict[Cell, Keys] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.dataset.labels)

    @property
    def norm(self) -> str:
        """The norm of every budget of the run."""
        return self.grid.axes.norm

    @property
    def targets_of_images(self) -> Sequence[int]:
        """The data set's target class of each image; empty where it has none."""
        return getattr(self.dataset, "targets", ())

    @property
    def models(self) -> dict[str, AnyModelRef]:
        """Every model of the run by name, members of sources included."""
        members = {m.name: m for source in self.sources.values() for m in source.members}
        return {**members, **self.targets, **self.checks}

    def model_record(self, part: AnyModelRef | SourceSpec) -> Record:
        """A model's or source's record, computed once: hashing weights takes time."""
        name = f"{type(part).__name__} {part.name}"
        if name not in self._records:
            with wrap_errors(f"model '{name}' cannot say its record"):
                self._records[name] = plain(part.record())
        return self._records[name]

    def _images(self) -> Record:
        return {
            "n": self.n,
            "images": hash_many(self.image_hashes),
            "labels": hash_many(str(label) for label in self.dataset.labels),
            "seed": self.seed,
            # Arithmetic differs in its last bits between kinds of device, and then so may a pixel.
            "device": self.device.partition(":")[0],
        }

    def set_record(self, source: str, attack: str, eps: float) -> Record:
        """Everything an adversarial set depends on."""
        aims = aims_at_targets(self.attacks[attack].value)
        return {
            **self._images(),
            "kind": "adv",
            "source": self.model_record(self.sources[source]),
            "attack": self.attack_record(attack, eps),
            "eps": eps,
            # Neutral where it is L-infinity, as it was before there were others.
            **({} if self.norm == LINF else {"norm": self.norm}),
            **({"targets": hash_many(map(str, self.targets_of_images))} if aims else {}),
        }

    def attack_record(self, attack: str, eps: float) -> Record:
        """Identity of an attack at `eps` (in /255)."""
        with wrap_errors(f"attack '{attack}' cannot say its parameters"):
            return identity(self.attacks[attack], eps)

    def defense_record(self, defense: str) -> Record:
        """Identity of a defense."""
        with wrap_errors(f"defense '{defense}' cannot say its parameters"):
            return {**identity(self.defenses[defense]), "passes": self.defenses[defense].value.passes}

    def refuse_shared_keys(self) -> None:
        """Compare everything that the plan keys.

        Raises:
            UsageError: two different entries have one key.
        """
        made: dict[str, tuple[object, Record]] = {}
        for eps in self.grid.axes.eps or (0.0,):
            attacks = [(each, self.attack_record(label, eps)) for label, each in self.attacks.items()]
            refuse_shared_keys("attack", attacks)
            made |= {f"attack '{each.label}'": (each.value, record) for each, record in attacks}
        behind = [source.attacked_defense.defense for source in self.sources.values() if source.attacked_defense]
        defenses = [(each, self.defense_record(label)) for label, each in self.defenses.items()]
        defenses += [(each, {**identity(each), "passes": each.value.passes}) for each in behind]
        refuse_shared_keys("defense", defenses)
        made |= {f"defense '{each.label}'": (each.value, record) for each, record in defenses}
        for what, (value, record) in made.items():
            if names := left_out(value, record["params"]):
                log.warning("%s: resolved() leaves out %s; all its values share their results", what, ", ".join(names))

    def with_dataset(self, dataset: Dataset, image_hashes: list[str]) -> "Plan":
        """The same plan for other images."""
        fresh: dict[str, Any] = {"eval_records": {}, "job_of": {}, "crafts": {}, "_keys": {}}
        return replace(self, dataset=dataset, image_hashes=image_hashes, **fresh)

    def purified_record(self, made_set: Record | None, defense: str) -> Record:
        """Everything a purified set depends on; `made_set` is the adversarial set's record, None for clean images."""
        return {
            **self._images(),
            "kind": "purified",
            "set": key_of(made_set) if made_set else None,
            # What a random defense's draws follow from, besides itself, the seed and the image: not how many images.
            "stream": key_of({name: made_set[name] for name in SET_FACTS}) if made_set else None,
            "defense": self.defense_record(defense),
        }

    def eval_record(self, purified: Record, target: AnyModelRef, defense_samples: int = 1) -> Record:
        """Everything a list of predictions depends on."""
        record = {**purified, "kind": "eval", "target": self.model_record(target)}
        return {**record, "defense_samples": defense_samples} if defense_samples > 1 else record

    def defense_samples(self, defense: str) -> int:
        """How many draws of a defense are judged: one, unless it is random."""
        return self.grid.axes.defense_samples if self.defenses[defense].value.random else 1

    def image_quality_record(self, purified: Record) -> Record:
        """Everything that the measurements of a purified set's images depend on."""
        if self._measured is None:
            self._measured = measurements.record()
        return {**purified, "kind": "image_quality", "measure": self._measured}

    def sample_record(self, purified_key: str) -> Record:
        """The first few images of a purified set."""
        return {"kind": "sample", "of": purified_key, "n": min(self.grid.axes.samples, self.n)}

    def artefact(self, record: Record) -> Artefact:
        return self.store.artefact(record["kind"], record, record["n"])

    def keys(self, cell: Cell) -> Keys:
        """Where the artefacts of a cell of this grid are."""
        return self._keys[cell]

    def jobs(self) -> list[Job]:
        """All work of the grid in order: clean images first, then each set followed by its defenses.

        Jobs whose results are all in the store are listed too; see `done`.
        """
        axes = self.grid.axes
        targets_by_defense = {defense: axes.targets_for(defense) for defense in axes.defenses}
        jobs: list[Job] = []
        if axes.clean:
            jobs += self._evaluate_jobs(None, "clean images", CLEAN, "-", 0.0, targets_by_defense)
        for eps, source, attack in product(axes.eps, axes.sources, axes.attacks):
            if not is_white_box(source):
                jobs += self._set(source, source, attack, eps, targets_by_defense)
                continue
            for defense, target in _pairs(self.grid):
                jobs += self._set(source, white_box(source, defense, target), attack, eps, {defense: (target,)})
        return jobs

    def _set(
        self, label: str, source: str, attack: str, eps: float, targets_by_defense: Mapping[str, Sequence[str]]
    ) -> list[Job]:
        """An adversarial set and what is judged of it; `label` is the source in its cells."""
        record = self.set_record(source, attack, eps)
        craft = CraftJob(key_of(record), record, source, attack, eps)
        self.crafts[craft.key] = craft
        return [
            craft,
            *self._evaluate_jobs(
                craft.key, f"{craft} at eps {show_eps(eps, self.norm)}", attack, label, eps, targets_by_defense
            ),
        ]

    def clean_check(self) -> list[EvaluateJob]:
        """Jobs that measure the clean accuracy of every model of the grid, sources included; one a model."""
        self.defenses.setdefault(UNDEFENDED, registry.defense.resolve(UNDEFENDED))
        purified = self.purified_record(None, UNDEFENDED)
        evals = [(name, self.eval_record(purified, model)) for name, model in self.models.items()]
        return [EvaluateJob(key_of(purified), purified, UNDEFENDED, (one,), None, "clean images") for one in evals]

    def cross_checks(self) -> list[tuple[Rate, Record]]:
        """Published transfer rates that this run measures too, and the record of what its target predicts."""
        axes = self.grid.axes
        if (self.grid.profile, self.dataset.name) != (crosscheck.PROFILE, crosscheck.DATASET) or self.norm != LINF:
            return []
        found = []
        for rate in crosscheck.rates():
            made = rate.source in axes.sources and rate.attack in axes.attacks and rate.eps in axes.eps
            if made and UNDEFENDED in axes.defenses and rate.target in self.models:
                purified = self.purified_record(self.set_record(rate.source, rate.attack, rate.eps), UNDEFENDED)
                found.append((rate, self.eval_record(purified, self.models[rate.target])))
        return found

    def _evaluate_jobs(
        self,
        set_key: str | None,
        name: str,
        attack: str,
        source: str,
        eps: float,
        targets_by_defense: Mapping[str, Sequence[str]],
    ) -> list[Job]:
        """A judgement a defense: `behind` holds the targets of each."""
        jobs: list[Job] = []
        asked = (source, attack, eps)
        checks = [check for check in self.cross_checks() if (check[0].source, check[0].attack, check[0].eps) == asked]
        for defense, targets in targets_by_defense.items():
            purified = self.purified_record(self.crafts[set_key].record if set_key else None, defense)
            sample = key_of(self.sample_record(key_of(purified)))
            defense_samples, evals = self.defense_samples(defense), []
            quality_record = self.image_quality_record(purified) if self.grid.axes.image_quality else None
            near = key_of(quality_record) if quality_record else None
            for label in targets:
                record = self.eval_record(purified, self.targets[label], defense_samples)
                evals.append((label, record))
                cell = Cell(self.grid.axes.dataset, source, attack, eps, label, defense)
                keys = self._keys[cell] = Keys(set_key, sample, key_of(record), near)
                self.eval_records[keys.eval] = record
                self.job_of[keys.eval] = key_of(purified)
            if defense == UNDEFENDED:
                evals += [(rate.target, record) for rate, record in checks if rate.target not in targets]
            jobs.append(
                EvaluateJob(
                    key_of(purified), purified, defense, tuple(evals), set_key, name, defense_samples, quality_record
                )
            )
        return jobs

    def done(self, job: Job) -> bool:
        """Whether all results of a job are in the store."""
        if isinstance(job, CraftJob):
            return self.artefact(job.record).complete
        return all(self.artefact(record).complete for record in [*job.records, self.sample_record(job.key)])

    def discard(self, jobs: Sequence[Job], made: set[str]) -> None:
        """Delete what the store holds of `jobs`, except the keys in `made`; add all their keys to it."""
        for job in jobs:
            records = [job.record] if isinstance(job, CraftJob) else [*job.records, self.sample_record(job.key)]
            for record in records:
                key = key_of(record)
                if key not in made and self.store.folder(record["kind"], key).is_dir():
                    self.store.delete(record["kind"], key)
                made.add(key)

    def to_do(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs that lack something; sets too that are judged already, for they are what `export` gives away."""
        return [job for job in jobs if not self.done(job)]


def make_plan(grid: Grid, store: Store, *, seed: int, device: str, limit: int | None, models_dir: Path | None) -> Plan:
    """Resolve every label of the grid and read the images' fingerprints.

    Raises:
        UsageError, BadModelError, BadImageError: something named is not there or not as it should be.
    """
    axes = grid.axes
    if models_dir is not None and not models_dir.is_dir():
        raise UsageError(f"--models-dir {models_dir}: no such folder")
    weight_files.set_search_dir(models_dir)
    attacks = {label: _bounded(registry.attack.resolve(label), axes.norm) for label in axes.attacks}
    with files_from(grid.folders.get("defenses")):
        defenses = {label: registry.defense.resolve(label) for label in axes.defenses}
    named: dict[str, str] = {}  # source label -> the axis that names its files
    for label in axes.sources if axes.attacks else ():
        adaptive = is_white_box(label)
        named |= {white_box(label, *pair): "defenses" for pair in _pairs(grid)} if adaptive else {label: "sources"}
    _crafted_here_or_elsewhere(list(named), attacks)
    beside = axes.baselines if UNDEFENDED in axes.defenses else ()
    baselines = {label: find_or_missing(label, models_dir) for label in beside}
    targets = {label: find(label, models_dir) for label in axes.targets} | baselines
    sources: dict[str, SourceSpec] = {}
    for label, axis in named.items():
        if label in baselines or label == ELSEWHERE:
            sources[label] = SourceSpec(label, (baselines[label],) if label in baselines else ())
            continue
        with files_from(grid.folders.get(axis)):
            sources[label] = find_source(label, axes.ensembles, models_dir)
    checks = {label: find(label, models_dir) for label in axes.checks}
    dataset = _resized(axes, min((n for n in (limit, axes.limit) if n), default=None))
    if not dataset.labels:
        raise UsageError(f"data set {axes.dataset} holds no images")
    aiming = [label for label, made in attacks.items() if aims_at_targets(made.value)]
    if aiming and not getattr(dataset, "targets", ()):
        raise UsageError(
            f"attack '{aiming[0]}' approaches the data set's target classes, and {axes.dataset} has none; use "
            "nips2017, a data set of your own with `targets`, or target=random"
        )
    image_hashes = hash_images(dataset, store.root, write=not store.read_only)
    remarks = nips2017.remarks(dataset, image_hashes)
    for label, made in attacks.items():
        if isinstance(made.value, AdversarialFiles):
            attacks[label] = replace(made, value=made.value.of(dataset, store.root, write=not store.read_only))
            remarks.append(made.value.remark)
    if axes.norm == LINF:
        remarks += [
            f"eps {show(eps)} is between two levels of the 8-bit images that are stored: pixels move by at most "
            f"{int(eps)}/255"
            for eps in axes.eps
            if not eps.is_integer()
        ]
    plan = Plan(grid, store, seed, device, dataset, image_hashes, attacks, defenses, sources, targets, checks, remarks)
    plan.refuse_shared_keys()
    _check_files(plan)
    return plan


def _crafted_here_or_elsewhere(sources: Sequence[str], attacks: Mapping[str, Resolved[Attack]]) -> None:
    """Raises `UsageError` if files of adversarial images meet a source, or an attack meets none."""
    for source, (label, made) in product(sources, attacks.items()):
        if isinstance(made.value, AdversarialFiles) and source != ELSEWHERE:
            raise UsageError(
                f"attack '{label}' reads images crafted elsewhere, and {source} has no part in them; use --source "
                f"{ELSEWHERE}, and another run for attacks on {source}"
            )
        if not isinstance(made.value, AdversarialFiles) and source == ELSEWHERE:
            raise UsageError(
                f"source '{ELSEWHERE}' goes with files of adversarial images (files:FOLDER), not '{label}'"
            )


def _check_files(plan: Plan) -> None:
    """Compare adversarial images crafted elsewhere with the clean ones, unless the store holds the set already."""
    for label, made in plan.attacks.items():
        if isinstance(made.value, AdversarialFiles) and ELSEWHERE in plan.sources:
            for eps in plan.grid.axes.eps:
                if not plan.artefact(plan.set_record(ELSEWHERE, label, eps)).complete:
                    made.value.check(plan.dataset, plan.image_hashes, eps)


def _bounded(made: Resolved[Attack], norm: str) -> Resolved[Attack]:
    """The attack with its budget in `norm`.

    Raises:
        UsageError: it has no such budget.
    """
    if isinstance(made.value, ChoosesNorm):
        try:
            return replace(made, value=made.value.with_norm(norm))
        except ValueError as error:
            raise UsageError(f"attack '{made.label}' under --norm {norm}: {error}") from error
    if norm != LINF:
        raise UsageError(
            f"attack '{made.label}' has an L-infinity budget only; leave out --norm {norm}, or use an attack that has "
            "both, such as fgsm, mi-fgsm or pgd"
        )
    return made


def _resized(axes: Axes, limit: int | None) -> Dataset:
    """The data set at the size that the grid wants; at another than the usual one, its name says so.

    Published numbers belong to a name, and not to images of another size.
    """
    found = open_dataset(axes.dataset, size=axes.image_size, limit=limit)
    if axes.image_size is None:
        return found
    if found.size != axes.image_size:
        raise UsageError(f"--image-size {axes.image_size}: data set {axes.dataset} gives {found.size} pixels; drop one")
    if not isinstance(found, Images) or found.size == SIZE:
        return found
    return replace(found, name=f"{found.name}-{found.size}px")


def _pairs(grid: Grid) -> list[tuple[str, str]]:
    """Every defense with every target behind it."""
    return [(defense, target) for defense in grid.axes.defenses for target in grid.axes.targets_for(defense)]


def dataset_digest(plan: Plan) -> str:
    """One hash for the images and labels of the run."""
    return digest(plan.dataset, plan.image_hashes)
