"""What the probes of an audit measure, kept in the cache. Imports torch only where a number is missing.

A number is stored under everything that determines it: the source with its weights and its defense, the images and
their labels, the settings, the kind of device, and the version of the probe.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rdp_bench.audits.parts import Subject
from rdp_bench.errors import DamagedError, RdpBenchError, StorageError, UnreadableError
from rdp_bench.keys import Record, hash_many, plain

if TYPE_CHECKING:
    from rdp_bench.cache.artefact import Artefact
    from rdp_bench.engine.plan import Plan
    from rdp_bench.models.zoo import LoadedSource, SourceSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeFacts:
    """What is known of a probe without torch."""

    images: int
    """The first so many images of the data set are used; fewer where memory runs out. A probe that asks whether calls
    agree, or averages over draws of noise, needs few; one image without a gradient can decide a tier."""
    version: int = 1
    """Of what it stores: count it up where its numbers change."""


PROBES = {
    "repeat": ProbeFacts(4, 4), "outputs": ProbeFacts(16, 2), "gradient": ProbeFacts(1_000_000, 4),
    "cosine": ProbeFacts(8, 4), "slopes": ProbeFacts(4, 4), "state": ProbeFacts(8, 4), "elsewhere": ProbeFacts(16, 4),
    "stability": ProbeFacts(4, 3), "progress": ProbeFacts(4, 2), "planted": ProbeFacts(16, 3),
}  # fmt: skip
"""The probes of `audits.probes`."""

Numbers = dict[str, Any]


@dataclass
class Measured:
    """What there is of the probes."""

    numbers: dict[str, Numbers] = field(default_factory=dict)
    """By probe; one that does not apply is left out."""
    problems: list[str] = field(default_factory=list)
    """Probes without a number, and why."""
    asked: int = 0
    """How many probes were looked for, with those that do not apply."""
    cached: int = 0
    """How many of them were in the cache."""


class Probing:
    """The probes of the source that the white-box part of an audit attacks.

    Args:
        subject: what is audited.
        plan: of the white-box part.
    """

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self._subject, self._plan = subject, plan
        (self._label,) = [name for name in plan.sources if name != subject.target] or [subject.target]
        self._made: LoadedSource | None = None

    @property
    def _spec(self) -> SourceSpec:
        return self._plan.sources[self._label]

    def record(self, name: str, images: int) -> Record:
        """Everything that the numbers of a probe depend on; `of` where memory was too small for all of its images."""
        subject, plan = self._subject, self._plan
        settings = subject.settings
        return {
            "kind": "probe", "n": 1, "probe": name, "version": PROBES[name].version,
            "source": plain(self._spec.record()), "images": hash_many(plan.image_hashes[:images]),
            "labels": hash_many(str(label) for label in plan.dataset.labels[:images]), "random": subject.random,
            "eps": subject.eps, "draws": settings.eot, "steps": settings.traced, "planted": list(settings.planted),
            "device": plan.device.partition(":")[0], "precision": plan.precision,
            **({"of": wanted} if images < (wanted := self._sizes(name)[0]) else {}),
        } | ({"seed": plan.seed} if plan.seed else {})  # fmt: skip

    def measure(self, *, fresh: set[str] | None = None, names: Iterable[str] = PROBES) -> Measured:
        """What every probe finds: from the cache, or else now.

        Args:
            fresh: keys that `--fresh` has computed again so far; None: use what the cache holds.
            names: of the probes.
        """
        found = Measured()
        for name in names:
            found.asked += 1
            if (numbers := self._stored(name, fresh)) is not None:
                found.cached += 1
            else:
                try:
                    numbers = self._measure(name)
                except StorageError:
                    raise
                except Exception as error:  # an entry may raise anything
                    why = str(error) if isinstance(error, RdpBenchError) else f"{type(error).__name__}: {error}"
                    log.warning("probe '%s' of %s: %s", name, self._label, why)
                    found.problems.append(f"probe '{name}': {why}")
                    continue
            if numbers:
                found.numbers[name] = numbers
        return found

    # --- the cache ---

    def _sizes(self, name: str) -> list[int]:
        """How many images a probe uses, and after memory ran out."""
        sizes = [min(self._plan.n, PROBES[name].images)]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        return sizes

    def _artefact(self, name: str, images: int) -> Artefact:
        record = self.record(name, images)
        return self._plan.store.artefact("probe", record, 1)

    def _stored(self, name: str, fresh: set[str] | None) -> Numbers | None:
        for images in self._sizes(name):
            artefact = self._artefact(name, images)
            if fresh is not None and artefact.key not in fresh:
                fresh.add(artefact.key)
                if self._plan.store.folder("probe", artefact.key).is_dir():
                    self._plan.store.delete("probe", artefact.key)
            if not artefact.complete:
                continue
            try:
                found = json.loads(artefact.read()["json"].tobytes())
            except (DamagedError, UnreadableError, ValueError):
                continue  # it is missing from now on
            if isinstance(found, dict):
                return found
        return None

    # --- measuring ---

    def _measure(self, name: str) -> Numbers:
        import numpy as np
        import torch

        from rdp_bench.audits import probes
        from rdp_bench.environment import describe
        from rdp_bench.models.entry_calls import is_out_of_memory, not_even_one
        from rdp_bench.numerics import precision
        from rdp_bench.numerics.determinism import ordered_sums

        plan = self._plan
        last: Exception | None = None
        for images in self._sizes(name):
            try:
                with precision.using(plan.precision), ordered_sums(plan.device):
                    numbers = probes.PROBES[name](self._context(images)) or {}
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                last = error
                if images > 1:
                    log.warning(
                        "out of memory on %s: probe '%s' goes on with %d images", plan.device, name, images // 2
                    )
                torch.cuda.empty_cache()
                continue
            plan.store.made_by = describe(plan.device)
            text = np.frombuffer(json.dumps(numbers).encode(), np.uint8)
            self._artefact(name, images).write(0, 1, {"json": text[None]})
            return numbers
        raise not_even_one(plan.device, last or MemoryError(f"probe '{name}'")) from last

    def _context(self, images: int) -> Any:
        import torch

        from rdp_bench.audits import probes
        from rdp_bench.data.image_hashes import batch

        subject, plan = self._subject, self._plan
        self._made = self._made or self._spec.load(plan.device)
        pixels = batch(plan.dataset, 0, images, plan.image_hashes)
        x = torch.from_numpy(pixels).to(plan.device).float() / 255
        y = torch.tensor(list(plan.dataset.labels[:images]), device=plan.device)
        fresh = partial(_copy, self._spec, plan.device) if self._spec.attacked_defense else None
        return probes.Context(
            self._made, x, y, subject.random, subject.settings.eot, subject.eps / 255, subject.settings.traced,
            subject.settings.planted, fresh, plan.seed,
        )  # fmt: skip


def _copy(spec: SourceSpec, device: str) -> LoadedSource:
    """The source with a copy of its defense, which keeps from here on what it sees to itself."""
    behind = spec.attacked_defense
    assert behind is not None
    own = replace(behind.defense, value=copy.deepcopy(behind.defense.value))
    return replace(spec, attacked_defense=replace(behind, defense=own)).load(device)
