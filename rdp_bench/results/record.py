"""OUT/runs/<grid>.json: its schema, its format version, how it is written and read.

    {"format": 2, "grid": "table1", ..., "cells": [{"source": ..., "status": "done", ...}, ...], "sha256": ...}

`sha256` is over everything else: an edited record is refused.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from rdp_bench import schema
from rdp_bench.cache.store import write_atomic
from rdp_bench.errors import UsageError
from rdp_bench.keys import Record
from rdp_bench.specs import CellKey
from rdp_bench.terminal import utf8

FORMAT = 2
"""Version of the run record. Bump it when this version would misread what another one wrote."""


@dataclass(frozen=True)
class CellResult(CellKey):
    """What became of one cell: its state, and where its artefacts are in the store."""

    status: Literal["done", "failed", "pending"]
    reason: str = ""  # why it failed
    adv_key: str | None = None  # of the adversarial set; None for clean images
    sample_key: str | None = None  # of the first few purified images
    eval_key: str | None = None  # of the predictions
    seconds: float = 0.0
    defense_samples: int = 1  # draws of a random defense
    image_quality_key: str | None = None  # of the distances to the clean images, where they are asked for

    @property
    def key(self) -> CellKey:
        return CellKey(self.source, self.attack, self.eps, self.target, self.defense)


@dataclass(frozen=True)
class DatasetFacts:
    """The images of a run."""

    name: str
    n: int
    size: int  # pixels
    images: str  # a hash of all pixels and labels
    label: str = ""  # what opens it again
    image_size: int | None = None  # as asked for
    targets: tuple[int, ...] = ()  # target classes, where an attack aims at them
    classes: int | None = None  # of its labels, where it knows


@dataclass(frozen=True)
class AxesFacts:
    """The labels of a run in table order, and what it measured."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    defenses: tuple[str, ...]
    norm: str = "linf"
    success: bool = False
    clean: bool = True
    defense_samples: int = 1


@dataclass(frozen=True)
class SourceFacts:
    """The models of a source, and the defense in front of them."""

    members: tuple[str, ...]
    attacked_defense: Record | None = None


@dataclass(frozen=True)
class CheckFacts:
    """A line of the cross-check with published numbers; `passed` is None where nothing could be compared."""

    passed: bool | None
    text: str


@dataclass(frozen=True)
class PredictionFacts:
    """OUT/predictions/<grid>.<hash>.safetensors, as the record was written."""

    sha256: str  # of the facts in the file, which hold a hash of everything else in it
    artefacts: int


@dataclass(frozen=True)
class FileFacts:
    """A plugin file."""

    name: str
    sha256: str


@dataclass(frozen=True)
class RequestFacts:
    """What `run --from` needs to make the same plan."""

    axes: Record  # `engine.grid.Axes`, every label resolved
    device: str  # cpu or cuda
    key_format: int
    plugins: tuple[FileFacts, ...] = ()


@dataclass(frozen=True)
class CodeFacts:
    """The commit of a repository when the run began."""

    what: str  # "working directory", or the name of a plugin file
    commit: str
    dirty: bool | None = None  # tracked files were changed; None: git could not tell


@dataclass(frozen=True)
class RunRecord:
    """The schema of a run record. Facts about models and entries are what each of them says."""

    format: int
    grid: str
    title: str
    profile: str
    dataset: DatasetFacts
    seed: int
    command: str
    started: str
    seconds: float
    environment: Record
    axes: AxesFacts
    models: dict[str, Record]
    sources: dict[str, SourceFacts]
    attacks: dict[str, Record]
    defenses: dict[str, Record]
    warnings: tuple[str, ...]
    cells: tuple[CellResult, ...]
    finished: str | None = None
    note: str = ""
    figures: tuple[str, ...] = ()
    samples: int = 0
    checks: tuple[CheckFacts, ...] = ()
    names: dict[str, str] = field(default_factory=dict)  # how reports write labels
    cost: Record | None = None  # of each defense; absent where nobody asked, None where it is not measured yet
    predictions: PredictionFacts | None = None
    request: RequestFacts | None = None
    code: tuple[CodeFacts, ...] = ()
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"  # of networks


@dataclass(frozen=True)
class StoredRun:
    """A run record that was read: `header` is everything in the file except the cells."""

    header: Record
    cells: list[CellResult] = field(default_factory=list)


def write_run(path: Path, header: Record, cells: Iterable[CellResult]) -> None:
    """Write a run record, once it fits the schema.

    Raises:
        UsageError: it does not fit.
        StorageError: the file cannot be written.
    """
    schema.read({**header, "cells": []}, RunRecord, f"the record of run {header.get('grid')}")
    write_record(path, {**header, "cells": [schema.plain(cell) for cell in cells]})


def write_record(path: Path, record: Record) -> None:
    """Write a run record with its checksum, unchecked."""
    write_atomic(path, sealed(record).encode())


def sealed(record: Record) -> str:
    """A record with its checksum, as JSON."""
    plain = json.loads(json.dumps(record))
    return json.dumps({**plain, "sha256": checksum(plain)}, indent=1)


def read_run(path: Path) -> StoredRun:
    """A run record as it was written.

    Raises:
        UsageError: it is not one, is of another format, was edited, or is not named by its grid.
    """
    try:
        raw = json.loads(path.read_bytes())
        found = raw.pop("sha256", None)
        record: Record = _readable(raw)
        if "label" in record["dataset"]:
            record["dataset"]["label"] = raw["dataset"]["label"]  # `export` opens it
        if "request" in record:
            record["request"] = raw["request"]  # `run --from` opens what it names
        if record["format"] != FORMAT:
            raise UsageError(f"{path}: format {record['format']}, this version reads {FORMAT}; run the grid again")
        if found != checksum(raw):
            raise UsageError(f"{path} was changed after the run wrote it (its checksum differs); run the grid again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not a run record ({error!r}); run the grid again, or move it away") from error
    try:
        cells = schema.read(record, RunRecord, "run record").cells
    except UsageError as error:
        raise UsageError(f"{path} is not a run record ({error}); run the grid again, or move it away") from error
    if record["grid"] != path.stem:  # else two runs of a grid would be taken for one
        raise UsageError(f"{path} is the record of {record['grid']}; name the file {record['grid']}.json again")
    del record["cells"]
    return StoredRun(record, list(cells))


def checksum(record: Record) -> str:
    """Of everything in a record except its own checksum."""
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _readable(value: Any) -> Any:
    """A record without what no file can hold: the bytes of a path that were not UTF-8, see `terminal.utf8`."""
    if isinstance(value, str):
        return utf8(value).decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value
