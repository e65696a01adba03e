"""The predictions behind a run record: from OUT/predictions, where they are compared with the record, or the cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.budgets import LINF, norm_of
from rdp_bench.cache.store import Store
from rdp_bench.errors import DamagedError, RdpBenchError
from rdp_bench.keys import Record, hash_many, key_of
from rdp_bench.metrics import measurements
from rdp_bench.results import keyed
from rdp_bench.results.prediction_file import FOLDER, PredictionFile, path_of
from rdp_bench.results.provenance import ARTEFACTS, Provenance
from rdp_bench.results.record import CellResult
from rdp_bench.specs import CLEAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


@dataclass
class Predictions:
    """The predictions of one run.

    Attributes:
        path: its record, OUT/runs/<grid>.json.
        record: what the record says, without the cells.
        store: the cache, used for what OUT lacks. None: only OUT is read.
        file: OUT/predictions/<grid>.<hash>.safetensors; None if it cannot be used.
        problem: why it cannot be used; empty if the record names no such file.
    """

    path: Path
    record: Record
    store: Store | None
    file: PredictionFile | None = None
    problem: str = ""
    made: list[Record] = field(default_factory=list)
    """What made the artefacts that were read: environments with a time each."""
    _cached: int = 0  # artefacts that the file lacks, read from the cache
    _reason: str = ""  # why the first of them was not read from the file
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._provenance = Provenance(self.store) if self.store else None
        named = self.record.get("predictions")
        if not named:
            return
        try:
            found = PredictionFile(path_of(self.path.parent.parent, self.path.stem, named["sha256"]), named["sha256"])
            if why := self._other_run(found):
                raise DamagedError(f"{found.path} does not belong to {self.path.name}: {why}")
            self.file = found
        except RdpBenchError as error:
            self.problem = str(error)

    @property
    def remark(self) -> str:
        """What a reader must know of numbers that are not from OUT; empty if there are none."""
        if not self._cached or not self.store:
            return ""
        return (
            f"{self._cached} results of {self.record['grid']} were read from the cache {self.store.root}, not from "
            f"OUT/{FOLDER}: {self._reason}. The same run writes {FOLDER} again"
        )

    def evaluated(self, cell: CellResult) -> "Arrays":
        """`predicted` and `margin`, `[n]` or `[n, draws]`, and `label` `[n]` of a cell that is done.

        Raises:
            RdpBenchError: neither OUT nor the cache holds them undamaged; the message says why.
        """
        return self._read(cell, "eval", cell.eval_key or "", self._evaluated)

    def image_quality(self, cell: CellResult) -> "dict[str, Any]":
        """`measurements.values` of the purified images of a cell.

        Raises:
            RdpBenchError: as `evaluated`.
        """
        arrays = self._read(cell, "image_quality", cell.image_quality_key or "", self._measured)
        return measurements.values(arrays, self._measure(cell.image_quality_key or ""))

    def published(self, cell: CellResult) -> "Arrays":
        """As `evaluated`, of OUT alone."""
        if self.file is None:
            raise DamagedError(self.problem or f"{self.path} names no predictions; run the grid again to add them")
        return self._evaluated(cell)

    def _read(self, cell: CellResult, kind: str, key: str, read: Any) -> "Arrays":
        reason = self.problem
        if self.file is not None:
            try:
                arrays: Arrays = read(cell)
                self._add_made(cell)
                return arrays
            except RdpBenchError as error:
                reason = str(error)
        if self.store is None or self._provenance is None:
            raise DamagedError(reason or f"{self.path} names no predictions; run the grid again to add them")
        try:
            found = dict(self.store.open(kind, key).read())
        except RdpBenchError as error:
            raise type(error)(f"{reason}; and in the cache, {error}" if reason else str(error)) from error
        if kind == "eval":
            before = len(self._provenance.found)
            self._provenance.add(cell)
            self.made += self._provenance.found[before:]
        if reason:
            self._cached += 1
            self._reason = self._reason or reason
        return found

    def _add_made(self, cell: CellResult) -> None:
        assert self.file is not None
        for _, name in ARTEFACTS:
            key = getattr(cell, name)
            if key and key not in self._seen:
                self._seen.add(key)
                self.made += self.file.made(key)

    def _evaluated(self, cell: CellResult) -> "Arrays":
        import numpy as np

        assert self.file is not None
        key = cell.eval_key or ""
        arrays = self.file.read(key)
        if why := _asked(self._unlike, cell):
            raise DamagedError(f"{self.file.path}: the predictions of {cell.key} are not what the record says: {why}")
        predicted, margin = arrays["predicted"], arrays["margin"]
        classes = self.record["dataset"].get("classes")
        if predicted.min() < 0 or (classes and predicted.max() >= classes):
            many = f"{classes} classes" if classes else "classes"
            raise DamagedError(f"{self.file.path}: a prediction of {cell.key} is none of the {many} of the data set")
        if margin.shape != predicted.shape or not np.isfinite(margin).all() or margin.min() < 0:
            raise DamagedError(f"{self.file.path}: {cell.key} has a margin that is no difference of two logits")
        return {**arrays, "label": self.file.label}

    def _measured(self, cell: CellResult) -> "Arrays":
        import numpy as np

        assert self.file is not None
        key = cell.image_quality_key or ""
        arrays = self.file.read(key)
        if why := _asked(self._unlike_images, cell):
            raise DamagedError(f"{self.file.path}: the image quality of {cell.key} is not what the record says: {why}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise DamagedError(f"{self.file.path}: the image quality of {cell.key} is not finite")
        return arrays

    def _measure(self, key: str) -> Record:
        """The measurements of an artefact of image quality, with what they depend on."""
        if self.file is not None and key in self.file.about["records"]:
            found: Record = self.file.about["records"][key]["measure"]
        else:
            assert self.store is not None
            found = self.store.open("image_quality", key).record["measure"]
        return found

    # --- what the file says, beside what the record says ---

    def _other_run(self, found: PredictionFile) -> str:
        """Why a file is not of this run; empty if it is."""
        mine = {"grid": self.record["grid"], **{name: self.record["dataset"][name] for name in ("n", "images")}}
        for name, value in mine.items():
            if found.about.get(name) != value:
                return f"its {name} is {str(found.about.get(name))[:40]}, not {str(value)[:40]}"
        return ""

    @cached_property
    def _images(self) -> tuple[str, str]:
        """The hash of all pixels and that of all labels, as keys have them."""
        assert self.file is not None
        return hash_many(self.file.image_hashes), hash_many(map(str, self.file.label.tolist()))

    def _facts(self, key: str | None, kind: str) -> Record:
        """The facts that a key is the hash of.

        Raises:
            DamagedError: there are none, or others.
        """
        assert self.file is not None
        facts: Record = self.file.about["records"].get(key)
        if not isinstance(facts, dict) or key_of(facts) != key or facts.get("kind") != kind:
            raise DamagedError(f"{self.file.path}: {str(key)[:12]} is not the key of what the file says it is")
        return facts

    def _unlike(self, cell: CellResult) -> str:
        """In what the facts behind the key of a cell differ from the run record; empty if in nothing."""
        assert self.file is not None
        facts = self._facts(cell.eval_key, "eval")
        stored = self.file.facts(cell.eval_key or "") or {}
        wanted = {
            "set": (facts.get("set"), cell.adv_key),
            "whether it has one": (cell.adv_key is not None, cell.attack != CLEAN),
            "number of defense samples": (facts.get("defense_samples", 1), cell.defense_samples),
            "labels": (facts.get("labels"), self._images[1]),
            "seconds": (stored.get("seconds"), cell.seconds),
            **keyed.of_model(self.record, cell.target, facts["target"]),
            **self._unlike_purified(facts, cell),
        }
        return _first_difference(wanted)

    def _unlike_images(self, cell: CellResult) -> str:
        facts = self._facts(cell.image_quality_key, "image_quality")
        return _first_difference({"set": (facts.get("set"), cell.adv_key), **self._unlike_purified(facts, cell)})

    def _unlike_purified(self, facts: Record, cell: CellResult) -> keyed.Pairs:
        """Of a defense's output: the images, the seed, the set and the defense."""
        found: keyed.Pairs = {
            "number of images": (facts["n"], self.record["dataset"]["n"]),
            "images": (facts["images"], self._images[0]),
            "seed": (facts["seed"], self.record["seed"]),
            "precision": (facts.get("precision", "float32"), self.record.get("precision", "float32")),
            **keyed.of_defense(self.record, cell.defense, facts["defense"]),
        }
        if "request" in self.record:
            found["device"] = (facts["device"], self.record["request"]["device"])
        if cell.adv_key:
            made = self._facts(cell.adv_key, "adv")
            targets = hash_many(map(str, self.record["dataset"].get("targets", ())))
            aims = self.record["attacks"].get(cell.attack, {}).get("aims_at_targets")
            found |= {
                "eps": (float(made["eps"]), float(cell.eps)),
                "norm": (made.get("norm", LINF), norm_of(self.record)),
                "images of the set": (made.get("images"), self._images[0]),
                "labels of the set": (made.get("labels", self._images[1]), self._images[1]),
                "target classes of the set": (made.get("targets"), targets if aims else None),
                **keyed.of_attack(self.record, cell, made["attack"]),
                **keyed.of_source(self.record, cell, made["source"], facts["defense"]),
            }
        return found


def _asked(differs: Callable[[CellResult], str], cell: CellResult) -> str:
    """What `differs` says; a record with a right checksum may still lack anything."""
    try:
        return differs(cell)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"the two cannot be compared ({error!r})"


def _first_difference(pairs: keyed.Pairs) -> str:
    for name, (stored, recorded) in pairs.items():
        if stored != recorded:
            return f"{name} {str(stored)[:60]}, recorded {str(recorded)[:60]}"
    return ""
