"""Models by label: their weight files, and their identity before torch is imported."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.errors import BadModelError, UsageError, unknown_name, wrap_errors
from rdp_bench.keys import Record, canonical_json, diff_records, known_hash, without_neutral
from rdp_bench.models.card import ABOUT, NUMERICS, Card, cards, convert_first
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier, parse
from rdp_bench.registry import model, version_with
from rdp_bench.specs import FileSearch, files_from, split
from rdp_bench.user_reads import watching

if TYPE_CHECKING:
    from rdp_bench.protocols import Classifier

IMAGENET = 1000
"""Classes of the networks that have a card."""


@dataclass(frozen=True)
class ModelRef:
    """A model whose weights were located: its card and its weight file (None: timm's hub).

    The weights are hashed at the first use of the hash (while planning). `load` returns exactly these weights or fails.
    """

    card: Card
    file: Path | None

    @property
    def name(self) -> str:
        return self.card.name

    def record(self) -> Record:
        """Return the identity for cache keys: the hash of the weights, and everything between pixels and logits."""
        card = {name: value for name, value in asdict(self.card).items() if name not in ABOUT}
        return {
            "card": without_neutral(type(self.card), card),
            "weights": self.weights_hash(),
            "numerics": NUMERICS,
        }

    @property
    def classes(self) -> int | None:
        """The number of its classes, if that is known before it is loaded."""
        return IMAGENET if self.card.sha256 and self.card.sha256 == self.weights_hash() else None

    def weights_hash(self) -> str:
        """Return the sha256 of the weight file, or of the tensors if they come from timm's hub."""
        return self._weights_hash

    @cached_property
    def _weights_hash(self) -> str:
        if self.file is not None:
            return known_hash(self.file)
        from rdp_bench.models import classifier

        return classifier.from_hub(self.card, "cpu").weights_hash

    def load(self, device: str) -> "Classifier":
        """Return the classifier on `device`; it is loaded once per process and content of its file.

        Raises:
            BadModelError: the weights changed since they were hashed, cannot be read, or do not fit.
        """
        from rdp_bench.models import classifier

        return classifier.load(self.card, self.file, self.weights_hash(), device)


@dataclass(frozen=True)
class PluginModelRef:
    """A classifier that a plugin registered and that returns its own record. It is created again for every plan."""

    name: str
    _made: dict[str, "Classifier"] = field(default_factory=dict, repr=False, compare=False)
    _versions: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _records: list[Record] = field(default_factory=list, repr=False, compare=False)

    def record(self) -> Record:
        """Return the identity for cache keys: that of the entry, and the record of the classifier.

        Raises:
            BadModelError: the record differs from an earlier one.
        """
        return {"id": model.get(self.name).id, **self._said("cpu")}

    @property
    def classes(self) -> int:
        """The number of its classes."""
        return self._load("cpu").classes

    def load(self, device: str) -> "Classifier":
        """Return the classifier on `device`.

        Raises:
            BadModelError: its record changed since planning.
        """
        self._said(device)
        return self._load(device)

    def _load(self, device: str) -> "Classifier":
        from rdp_bench.models.entry_calls import checked, naming_entry
        from rdp_bench.protocols import Movable

        if device not in self._made:
            with watching() as reads:
                made = model.make(self.name)
                with naming_entry(f"model '{self.name}' cannot be loaded"):
                    self._made[device] = checked(made.to(device) if isinstance(made, Movable) else made, self.name)
            self._versions[device] = version_with(model.get(self.name), reads, self.name)
        return self._made[device]

    def _said(self, device: str) -> Record:
        made = self._load(device)
        with wrap_errors(f"model '{self.name}' returned no valid record"):
            params = json.loads(canonical_json(made.record()))  # a copy, because the classifier may change its own
        said = {"version": self._versions[device], "params": params}
        if self._records and said != self._records[0]:
            what = "; ".join(diff_records(said, self._records[0])[:2])
            raise BadModelError(f"model {self.name}: its record changed since planning ({what}); run again")
        self._records[:] = [said]
        return self._records[0]

    @property
    def card(self) -> Card:
        entry = model.get(self.name)
        return Card(self.name, entry.summary, "plugin", f"plugin {entry.origin}", 0, (), ())


@dataclass(frozen=True)
class MissingModel:
    """A known model whose weights are missing: `load` fails with the reason."""

    card: Card
    reason: str
    classes: None = None
    """Its classes are not counted: nothing is computed with it."""

    @property
    def name(self) -> str:
        return self.card.name

    def record(self) -> Record:
        """Return a record under which nothing is ever stored."""
        return {"missing": self.name}

    def load(self, device: str) -> "Classifier":  # noqa: ARG002 - one signature for all
        raise BadModelError(self.reason)


AnyModelRef = ModelRef | PluginModelRef | MissingModel


@dataclass(frozen=True)
class SourceSpec:
    """An attack's source before it is loaded: a label and one or more members."""

    name: str
    members: tuple[AnyModelRef, ...]
    attacked_defense: AttackedDefense | None = None

    def record(self) -> Record:
        members = {"members": [member.record() for member in self.members]}
        return {**members, "attacked_defense": self.attacked_defense.record()} if self.attacked_defense else members

    def load(self, device: str) -> "LoadedSource":
        """Return the source on `device`."""
        members: tuple[Classifier, ...] = tuple(member.load(device) for member in self.members)
        if self.attacked_defense is None:
            return LoadedSource(self.name, members)
        return LoadedSource(
            self.name,
            tuple(DefendedClassifier(one, self.attacked_defense) for one in members),
            self.attacked_defense.samples,
        )


@dataclass(frozen=True)
class LoadedSource:
    """Classifiers whose logits an attack averages (see `protocols.Source`)."""

    name: str
    members: Sequence["Classifier"]
    samples: int = 1
    """Number of gradients per image that an attack averages (EOT)."""


def find(label: str, models_dir: Path | None = None) -> AnyModelRef:
    """Return the model of a label, with its weights located but not loaded.

    Args:
        label: a built-in model, `timm:NAME`, a plugin's model, or the name of a file in `models_dir`.
        models_dir: the folder that is searched first (`--models-dir`).

    Raises:
        UsageError: the name is unknown.
        BadModelError: the weights of a known model are missing, or have a format that must be converted first.
    """
    if label in model.entries:
        if label in cards():
            raise UsageError(f"model {label} is built in, and {model.get(label).origin} registers another; rename it")
        return PluginModelRef(label)
    local = _local(label, models_dir)
    if label in cards():
        card = cards()[label]
        return ModelRef(card, local or _installed(card, models_dir))
    if label.startswith("timm:") or local:
        from rdp_bench.models import classifier

        return ModelRef(classifier.timm_card(label, pretrained=local is None), local)
    raise unknown_name("model", label, [*cards(), *model.entries], "Any timm model works as timm:<name>")


def find_or_missing(label: str, models_dir: Path | None = None) -> AnyModelRef:
    """Return the model as `find` does, or a `MissingModel` if a built-in model's weights are missing."""
    try:
        return find(label, models_dir)
    except BadModelError as error:
        if label not in cards():
            raise
        return MissingModel(cards()[label], str(error))


def find_source(label: str, ensembles: Mapping[str, Sequence[str]], files: FileSearch | None = None) -> SourceSpec:
    """The source that `label` names.

    Args:
        label: a model, a named ensemble of the grid, `a+b`, or any of them behind a defense.
        ensembles: the models of each named ensemble.
        files: where the weights of models and of the defense are looked for; None: from the current folder.
    """
    files = files or FileSearch()
    with files_from(files):
        behind = parse(label)
    if behind:
        attacked_defense, inner = behind
        found = find_source(inner, ensembles, files)
        if found.attacked_defense:
            first, last = attacked_defense.defense.label, found.attacked_defense.defense.label
            raise UsageError(
                f"source '{label}': {inner} is behind a defense already; write both as a chain, like "
                f"{attacked_defense.mode}({first} >> {last}, MODEL)"
            )
        return replace(found, name=label, attacked_defense=attacked_defense)
    if label in ensembles and (_of_models(label) or _local(label, files.models_dir)):
        raise UsageError(f"the grid's ensemble '{label}' has the name of a model or of several; give it another")
    names = ensembles.get(label) or split(label, "+")
    if len(set(names)) < len(names):
        raise UsageError(f"source '{label}' names a model twice")
    return SourceSpec(label, tuple(find(name, files.models_dir) for name in names))


def _of_models(label: str) -> bool:
    """Whether a label is that of a model, or of several, like `a+b`."""
    return label in cards() or label in model.entries or label.startswith("timm:") or len(split(label, "+")) > 1


def _local(label: str, models_dir: Path | None) -> Path | None:
    """Return the weight file for `label` in the user's folder, or None; a label cannot point outside the folder."""
    if models_dir is None:
        return None
    if not models_dir.is_dir():
        raise UsageError(f"--models-dir {models_dir}: no such folder")
    stem = label.removeprefix("timm:")
    found = _files_of(models_dir, stem)
    if not found and label.startswith("timm:") and (other := _same_weights(stem, models_dir)):
        found = _files_of(models_dir, other)
    if len(found) > 1:
        raise UsageError(
            f"--models-dir {models_dir} contains several files for {label}: keep one of "
            f"{', '.join(str(path.relative_to(models_dir)) for path in found)}"
        )
    if not found and label in cards():
        for name in cards()[label].legacy_files:
            if (models_dir / name).is_file():
                raise BadModelError(
                    f"model {label}: {models_dir / name} has a format that models do not load. "
                    f"{convert_first(models_dir / name, label)}"
                )
    return found[0] if found else None


SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
"""Suffixes of weight files."""


def _files_of(models_dir: Path, stem: str) -> list[Path]:
    """Weight files named `stem`, or a hub's file names in a folder named `stem`."""
    wanted = {f"{stem}{suffix}" for suffix in SUFFIXES}
    found = []
    for path in sorted(models_dir.iterdir()):
        if path.name in wanted and not path.is_dir():
            found.append(path)
        elif path.name == stem and path.is_dir():
            found += [
                inside for name in ("model.safetensors", "pytorch_model.bin") if (inside := path / name).is_file()
            ]
    return found


def _same_weights(name: str, models_dir: Path) -> str | None:
    """Return the other name of the weights `name` of timm: without the default tag, or with it."""
    arch, _, tag = name.partition(".")
    if not any(path.name.startswith(arch) for path in models_dir.iterdir()):
        return None
    import timm

    config = timm.get_pretrained_cfg(arch, allow_unregistered=True) if timm.is_model(arch) else None
    default = config.tag if config else None
    if not default or tag not in ("", default):
        return None
    return arch if tag else f"{arch}.{default}"


def _installed(card: Card, models_dir: Path | None) -> Path | None:
    kind, _, where = card.weights.partition(":")
    if kind in ("package", "shipped"):
        if kind == "shipped":
            path: Path | None = Path(str(files("rdp_bench.data").joinpath("weights", where)))
        else:
            package, _, inside = where.partition("/")
            spec = importlib.util.find_spec(package)
            path = Path(spec.origin).parent / inside if spec and spec.origin else None
        if path is None or not path.is_file():
            raise BadModelError(f"model {card.name}: its weights are not installed. Try: {card.install}")
        if card.sha256 and known_hash(path) != card.sha256:
            raise BadModelError(
                f"model {card.name}: {path.name} has sha256 {known_hash(path)[:12]}..., the card says "
                f"{card.sha256[:12]}.... Reinstall: {card.install} --force-reinstall"
            )
        return path
    if kind == "file":
        looked = f"{models_dir} has none" if models_dir else "no --models-dir was given"
        hint = f". Download {card.install}" if card.install else ""
        if card.legacy_files:
            hint += f". {convert_first(card.legacy_files[0], card.name)}"
        raise BadModelError(
            f"model {card.name} needs a weight file {card.name}.safetensors or .pth in --models-dir; {looked}{hint}"
        )
    return None
