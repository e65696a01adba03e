"""From a grid to keyed jobs: who needs which adversarial set, and what is already there. No torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from rdp_bench import registry
from rdp_bench.budgets import LINF, bounded
from rdp_bench.cache.store import Artefact, Store
from rdp_bench.data import nips2017
from rdp_bench.data._labelled import SIZE, Images
from rdp_bench.data.adversarial import ELSEWHERE, AdversarialFiles
from rdp_bench.data.image_hashes import hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.engine.class_counts import ClassCounts
from rdp_bench.engine.grid import Axes, Grid, settle
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, Job
from rdp_bench.engine.named_twice import in_any_order
from rdp_bench.engine.precision import check as check_precision
from rdp_bench.errors import UsageError, wrap_errors
from rdp_bench.keys import Record, hash_many, key_of, plain
from rdp_bench.metrics import measurements
from rdp_bench.models.defended import is_white_box, white_box
from rdp_bench.models.zoo import AnyModelRef, MissingModel, ModelRef, SourceSpec, find, find_or_missing, find_source
from rdp_bench.protocols import (
    Attack,
    Dataset,
    Defense,
    aims_at_targets,
    classes_of,
    least_classes,
    targets_of,
    too_few_classes,
)
from rdp_bench.registry import Resolved, identity, left_out, refuse_shared_keys
from rdp_bench.results import crosscheck
from rdp_bench.results.crosscheck import Rate
from rdp_bench.specs import UNDEFENDED, CellKey, show_level

log = logging.getLogger(__name__)

SET_FACTS = ("source", "attack", "eps", "seed")
"""Of a set's record, what an image's random stream follows from: not the images beside it."""


@dataclass(frozen=True)
class PlannedCell:
    """The job that makes a cell, and where its results are in the store."""

    job: EvaluateJob
    eval: Artefact
    sample: Artefact
    image_quality: Artefact | None

    @property
    def set_key(self) -> str | None:
        """The key of the adversarial set; None for clean images."""
        return self.job.craft.key if self.job.craft else None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything a run needs, resolved and keyed, before torch is loaded.

    It is computed once, when it is made, and never changes. `make_plan` makes one from a grid.

    Attributes:
        checks: models that only the cross-check needs.
        remarks: what a reader of the results must know of the images and budgets.
        precision: of the networks, see `numerics.precision`.
        jobs: all work of the grid in order: clean images first, then each set followed by its defenses. Jobs whose
            results are all in the store are listed too; see `to_do`.
        clean_checks: jobs that measure the clean accuracy of every model of the grid, one a model.
        cross_checks: published transfer rates that the run measures too, and the record of what its target predicts.
        cells: what there is of each cell of the grid.
    """

    grid: Grid
    store: Store
    seed: int
    device: str
    dataset: Dataset
    image_hashes: Sequence[str]
    attacks: Mapping[str, Resolved[Attack]]
    defenses: Mapping[str, Resolved[Defense]]
    sources: Mapping[str, SourceSpec]
    targets: Mapping[str, AnyModelRef]
    checks: Mapping[str, AnyModelRef] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    precision: str = "float32"
    jobs: tuple[Job, ...] = field(init=False)
    clean_checks: tuple[EvaluateJob, ...] = field(init=False)
    cross_checks: tuple[tuple[Rate, Record], ...] = field(init=False)
    cells: Mapping[CellKey, PlannedCell] = field(init=False)
    _images: Record = field(init=False, repr=False)
    _models: Mapping[str, Record] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The only place that sets fields. Hashes of 50,000 images take .03 s, and every record holds them.
        set_once = object.__setattr__
        if UNDEFENDED not in self.defenses:  # the accuracies of models are measured behind it
            set_once(self, "defenses", {**self.defenses, UNDEFENDED: registry.defense.resolve(UNDEFENDED)})
        set_once(self, "_images", self._image_facts())
        parts = (*self.models.values(), *self.sources.values())
        set_once(self, "_models", {_name(part): _record(part) for part in parts})
        set_once(self, "cross_checks", tuple(self._cross_checks()))
        set_once(self, "clean_checks", tuple(self._clean_checks()))
        jobs: list[Job] = []
        cells: dict[CellKey, PlannedCell] = {}
        self._plan_cells(jobs, cells)
        set_once(self, "jobs", tuple(jobs))
        set_once(self, "cells", cells)

    def with_dataset(self, dataset: Dataset, image_hashes: Sequence[str]) -> "Plan":
        """The same plan for other images."""
        return replace(self, dataset=dataset, image_hashes=image_hashes)

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
        return targets_of(self.dataset)

    @property
    def models(self) -> dict[str, AnyModelRef]:
        """Every model of the run by name, members of sources included."""
        members = {m.name: m for source in self.sources.values() for m in source.members}
        return {**members, **self.targets, **self.checks}

    # --- records: everything that an artefact depends on ---

    def _image_facts(self) -> Record:
        return {
            "n": self.n,
            "images": hash_many(self.image_hashes),
            "labels": hash_many(str(label) for label in self.dataset.labels),
            "seed": self.seed,
            # Arithmetic differs in its last bits between kinds of device, and then so may a pixel.
            "device": self.device.partition(":")[0],
            **({} if self.precision == "float32" else {"precision": self.precision}),
        }

    def set_record(self, source: str, attack: str, eps: float) -> Record:
        """Everything an adversarial set depends on."""
        aims = aims_at_targets(self.attacks[attack].value)
        return {
            **self._images,
            "kind": "adv",
            "source": self._models[_name(self.sources[source])],
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

    def purified_record(self, made_set: Record | None, defense: str) -> Record:
        """Everything a purified set depends on; `made_set` is the adversarial set's record, None for clean images."""
        return {
            **self._images,
            "kind": "purified",
            "set": key_of(made_set) if made_set else None,
            # What a random defense's draws follow from, besides itself, the seed and the image: not how many images.
            "stream": key_of({name: made_set[name] for name in SET_FACTS}) if made_set else None,
            "defense": self.defense_record(defense),
        }

    def eval_record(self, purified: Record, target: AnyModelRef, defense_samples: int = 1) -> Record:
        """Everything a list of predictions depends on."""
        record = {**purified, "kind": "eval", "target": self._models[_name(target)]}
        return {**record, "defense_samples": defense_samples} if defense_samples > 1 else record

    def image_quality_record(self, purified: Record) -> Record:
        """Everything that the measurements of a purified set's images depend on."""
        return {**purified, "kind": "image_quality", "measure": measurements.record()}

    def sample_record(self, purified_key: str) -> Record:
        """The first few images of a purified set."""
        return {"kind": "sample", "of": purified_key, "n": min(self.grid.axes.samples, self.n)}

    def artefact(self, record: Record) -> Artefact:
        """Where what `record` describes is in the store, or will be."""
        return self.store.artefact(record["kind"], record, record["n"])

    def defense_samples(self, defense: str) -> int:
        """How many draws of a defense are evaluated: one, unless it is random."""
        return self.grid.axes.defense_samples if self.defenses[defense].value.random else 1

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
                log.warning(
                    "%s: resolved() leaves out %s, so labels that differ only there share their results",
                    what,
                    ", ".join(names),
                )

    def records(self) -> dict[str, dict[str, Record]]:
        """What identifies every attack (at the largest eps), defense and source in cache keys, by kind and label."""
        eps = max(self.grid.axes.eps, default=0.0)
        own = [label for label, made in self.attacks.items() if not isinstance(made.value, AdversarialFiles)]
        return {
            "attack": {label: self.attack_record(label, eps) for label in own},
            "defense": {label: self.defense_record(label) for label in self.defenses},
            "source": {label: in_any_order(source) for label, source in self.sources.items() if source.members},
        }

    # --- jobs ---

    def _plan_cells(self, jobs: list[Job], cells: dict[CellKey, PlannedCell]) -> None:
        """Append every job of the grid to `jobs`, and to `cells` what each makes."""
        axes = self.grid.axes
        every = {defense: axes.targets_for(defense) for defense in axes.defenses}

        def evaluate(craft: CraftJob | None, label: str, behind: Mapping[str, Sequence[str]]) -> None:
            for defense, targets in behind.items():
                job = self._evaluate_job(craft, label, defense, targets)
                jobs.append(job)
                quality = self.artefact(job.image_quality) if job.image_quality else None
                sample = self.artefact(job.sample)
                for target, record in job.evals[: len(targets)]:
                    cell = CellKey.clean(target, defense)
                    if craft:
                        cell = CellKey(label, craft.attack, craft.eps, target, defense)
                    cells[cell] = PlannedCell(job, self.artefact(record), sample, quality)

        def craft_and_evaluate(
            label: str, source: str, attack: str, eps: float, behind: Mapping[str, Sequence[str]]
        ) -> None:
            record = self.set_record(source, attack, eps)
            craft = CraftJob(key_of(record), record, source, attack, eps)
            jobs.append(craft)
            evaluate(craft, label, behind)

        if axes.clean:
            evaluate(None, "-", every)
        for eps, source, attack in product(axes.eps, axes.sources, axes.attacks):
            if not is_white_box(source):
                craft_and_evaluate(source, source, attack, eps, every)
                continue
            for defense, target in _pairs(self.grid):
                random = self.defenses[defense].value.random
                one = white_box(source, defense, target, random=random)
                craft_and_evaluate(source, one, attack, eps, {defense: (target,)})

    def _evaluate_job(self, craft: CraftJob | None, label: str, defense: str, targets: Sequence[str]) -> EvaluateJob:
        """The evaluation of one purified set: `targets` first, then those that only the cross-check asks for.

        `label` is the source as the cells name it.
        """
        purified = self.purified_record(craft.record if craft else None, defense)
        key, draws = key_of(purified), self.defense_samples(defense)
        evals = [(target, self.eval_record(purified, self.targets[target], draws)) for target in targets]
        if craft and defense == UNDEFENDED:
            asked = (label, craft.attack, craft.eps)
            evals += [
                (rate.target, record)
                for rate, record in self.cross_checks
                if (rate.source, rate.attack, rate.eps) == asked and rate.target not in targets
            ]
        quality = self.image_quality_record(purified) if self.grid.axes.image_quality else None
        return EvaluateJob(key, purified, defense, tuple(evals), self.sample_record(key), craft, draws, quality)

    def _clean_checks(self) -> list[EvaluateJob]:
        purified = self.purified_record(None, UNDEFENDED)
        key = key_of(purified)
        sample = self.sample_record(key)
        return [
            EvaluateJob(key, purified, UNDEFENDED, ((name, self.eval_record(purified, model)),), sample)
            for name, model in self.models.items()
        ]

    def _cross_checks(self) -> list[tuple[Rate, Record]]:
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

    # --- the store ---

    def done(self, job: Job) -> bool:
        """Whether all results of a job are in the store."""
        return all(self.artefact(record).complete for record in job.records)

    def discard(self, jobs: Sequence[Job], made: set[str]) -> None:
        """Delete what the store holds of `jobs`, except the keys in `made`; add all their keys to it."""
        for record in (one for job in jobs for one in job.records):
            key = key_of(record)
            if key not in made and self.store.folder(record["kind"], key).is_dir():
                self.store.delete(record["kind"], key)
            made.add(key)

    def to_do(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs that lack something; sets too whose cells are done, because `export` writes them."""
        return [job for job in jobs if not self.done(job)]


def _name(part: AnyModelRef | SourceSpec) -> str:
    return f"{'source' if isinstance(part, SourceSpec) else 'model'} {part.name}"


def _record(part: AnyModelRef | SourceSpec) -> Record:
    with wrap_errors(f"{_name(part)} failed to give its record"):
        record: Record = plain(part.record())
        return record


def make_plan(
    grid: Grid,
    store: Store,
    *,
    seed: int,
    device: str,
    limit: int | None,
    models_dir: Path | None,
    precision: str = "float32",
) -> Plan:
    """Settle the grid, resolve every label of it and read the images' hashes.

    Raises:
        UsageError, BadModelError, BadImageError: something that is named does not exist or is invalid.
    """
    grid = settle(grid, models_dir)
    axes = grid.axes
    attacks = {
        label: _bounded(registry.attack.resolve(label, files=grid.files("attacks", models_dir)), axes.norm)
        for label in axes.attacks
    }
    behind = grid.files("defenses", models_dir)
    defenses = {label: registry.defense.resolve(label, files=behind) for label in axes.defenses}
    named: dict[str, str] = {}  # source label -> the axis that names its files
    for label in axes.sources if axes.attacks else ():
        if is_white_box(label):
            for defense, target in _pairs(grid):
                named[white_box(label, defense, target, random=defenses[defense].value.random)] = "defenses"
        else:
            named[label] = "sources"
    _crafted_here_or_elsewhere(list(named), attacks)
    beside = axes.baselines if UNDEFENDED in axes.defenses else ()
    baselines = {label: find_or_missing(label, models_dir) for label in beside}
    targets = {label: find(label, models_dir) for label in axes.targets} | baselines
    sources: dict[str, SourceSpec] = {}
    for label, axis in named.items():
        if label in baselines or label == ELSEWHERE:
            sources[label] = SourceSpec(label, (baselines[label],) if label in baselines else ())
            continue
        sources[label] = find_source(label, axes.ensembles, grid.files(axis, models_dir))
    checks = {label: find(label, models_dir) for label in axes.checks}
    dataset = _resized(axes, axes.limit if limit is None else limit)
    if not dataset.labels:
        raise UsageError(f"data set {axes.dataset} holds no images")
    aiming = [label for label, made in attacks.items() if aims_at_targets(made.value)]
    if aiming and not targets_of(dataset):
        raise UsageError(
            f"attack '{aiming[0]}' approaches the data set's target classes, and {axes.dataset} has none; use "
            "nips2017, a data set of your own with `targets`, or target=random"
        )
    for label, made in attacks.items():
        if (classes := classes_of(dataset)) is not None and classes < (least := least_classes(made.value)):
            raise UsageError(f"attack '{label}': {too_few_classes(least, f'data set {axes.dataset}', classes)}")
    image_hashes = hash_images(dataset, store.local, write=not store.read_only)
    remarks = nips2017.remarks(dataset, image_hashes)
    for label, made in attacks.items():
        if isinstance(made.value, AdversarialFiles):
            attacks[label] = replace(made, value=made.value.of(dataset, store.local, write=not store.read_only))
            remarks.append(made.value.remark)
    if axes.norm == LINF:
        remarks += [
            f"eps {show_level(eps)} is between two levels of the 8-bit images that are stored: pixels move by at most "
            f"{int(eps)}/255"
            for eps in axes.eps
            if not eps.is_integer()
        ]
    plan = Plan(
        grid, store, seed, device, dataset, tuple(image_hashes), attacks, defenses, sources, targets, checks,
        tuple(remarks), precision,
    )  # fmt: skip
    lowered = any(spec.attacked_defense or any(map(_is_ours, spec.members)) for spec in sources.values())
    crafts = lowered and any(not isinstance(made.value, AdversarialFiles) for made in attacks.values())
    check_precision(precision, device, [made.value for made in plan.defenses.values()], crafts=crafts)
    plan.refuse_shared_keys()
    _check_files(plan)
    counts = ClassCounts(dataset)
    for model in (*(member for spec in sources.values() for member in spec.members), *targets.values()):
        if model.classes is not None:
            counts.add(model.name, model.classes)
    return plan


def _is_ours(member: AnyModelRef) -> bool:
    """Whether a model is one of our networks; those of plugins compute as they are."""
    return isinstance(member, ModelRef | MissingModel)


def _crafted_here_or_elsewhere(sources: Sequence[str], attacks: Mapping[str, Resolved[Attack]]) -> None:
    """Raises `UsageError` if files of adversarial images meet a source, or an attack meets none."""
    for source, (label, made) in product(sources, attacks.items()):
        if isinstance(made.value, AdversarialFiles) and source != ELSEWHERE:
            raise UsageError(
                f"attack '{label}' reads images crafted elsewhere, not on {source}; use --source {ELSEWHERE}, and "
                f"another run for attacks on {source}"
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
    return replace(made, value=bounded(made.label, made.value, norm))


def _resized(axes: Axes, limit: int | None) -> Dataset:
    """The data set at the size that the grid wants; at another than the usual one, its name says so.

    Published numbers belong to a name, and not to images of another size.
    """
    found = open_dataset(axes.dataset, size=axes.image_size, limit=limit)
    if axes.image_size is None:
        return found
    if found.size != axes.image_size:
        raise UsageError(
            f"--image-size {axes.image_size}: data set {axes.dataset} sets {found.size} pixels itself; leave out "
            "one size"
        )
    if not isinstance(found, Images) or found.size == SIZE:
        return found
    return replace(found, name=f"{found.name}-{found.size}px")


def _pairs(grid: Grid) -> list[tuple[str, str]]:
    """Every defense with every target behind it."""
    return [(defense, target) for defense in grid.axes.defenses for target in grid.axes.targets_for(defense)]
