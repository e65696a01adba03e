"""Models by label: where their weights are found, and what a run must know before torch is loaded."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rdp_bench.errors import BadModelError, UsageError, unknown_name, wrap_errors
from rdp_bench.keys import Record, canonical_json, diff_records, known_hash, without_neutral
from rdp_bench.models.card import ABOUT, NUMERICS, Card, cards
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier, parse
from rdp_bench.registry import model, version_with
from rdp_bench.specs import split
from rdp_bench.user_reads import watching

if TYPE_CHECKING:
    from rdp_bench.protocols import Classifier


@dataclass(frozen=True)
class ModelRef:
    """One model, found: its card and the file its weights come from (None: timm's hub).

    The hash of its weights is taken when it is first asked for (while planning). `load` gives those weights or fails.
    """

    card: Card
    file: Path | None

    @property
    def name(self) -> str:
        return self.card.name

    def record(self) -> Record:
        """Identity for cache keys: weights by hash, and everything between pixels and logits."""
        card = {name: value for name, value in asdict(self.card).items() if name not in ABOUT}
        return {
            "card": without_neutral(type(self.card), card),
            "weights": self.weights_hash(),
            "numerics": NUMERICS,
        }

    def weights_hash(self) -> str:
        """sha256 of the weight file, or of the tensors where they come from timm's hub."""
        return self._weights_hash

    @cached_property
    def _weights_hash(self) -> str:
        if self.file is not None:
            return known_hash(self.file)
        from rdp_bench.models import classifier

        return classifier.from_hub(self.card, "cpu").weights_hash

    def load(self, device: str) -> "Classifier":
        """The classifier on `device`; loaded once a process and content of its file.

        Raises:
            BadModelError: the weights changed since their hash was taken, cannot be read, or do not fit.
        """
        from rdp_bench.models import classifier

        return classifier.load(self.card, self.file, self.weights_hash(), device)


@dataclass(frozen=True)
class PluginModelRef:
    """A classifier that a plugin registered; it says its own record. Made anew for every plan."""

    name: str
    _made: dict[str, "Classifier"] = field(default_factory=dict, repr=False, compare=False)
    _versions: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _records: list[Record] = field(default_factory=list, repr=False, compare=False)

    def record(self) -> Record:
        """Identity for cache keys: the entry's, and what the classifier says when it is first made.

        Raises:
            BadModelError: it has said something else before.
        """
        return {"id": model.get(self.name).id, **self._said("cpu")}

    def load(self, device: str) -> "Classifier":
        """The classifier on `device`.

        Raises:
            BadModelError: its record is no longer what it was while planning.
        """
        self._said(device)
        return self._load(device)

    def _load(self, device: str) -> "Classifier":
        from rdp_bench.models.entry_calls import CheckedClassifier, naming_entry

        if device not in self._made:
            with watching() as reads:
                made = model.make(self.name)
                with naming_entry(f"model '{self.name}' cannot be loaded"):
                    move = getattr(made, "to", None)
                    self._made[device] = CheckedClassifier(move(device) if move else made, self.name)
            self._versions[device] = version_with(model.get(self.name), reads, self.name)
        return self._made[device]

    def _said(self, device: str) -> Record:
        made = self._load(device)
        with wrap_errors(f"model '{self.name}' cannot say its record"):
            params = json.loads(canonical_json(made.record()))  # a copy: the classifier may go on changing its own
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
    """A known model whose weights are not here: whatever needs it fails, and says why."""

    card: Card
    reason: str

    @property
    def name(self) -> str:
        return self.card.name

    def record(self) -> Record:
        """Of nothing that could be stored."""
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
        """The source on `device`, ready to be attacked."""
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
    """Looks at each image whose gradients are averaged (EOT)."""


def find(label: str, models_dir: Path | None = None) -> AnyModelRef:
    """The model that `label` names, with its weights located but not loaded.

    Raises:
        UsageError: an unknown name. BadModelError: a known one whose weights are not here.
    """
    if label in model.entries:
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
    """As `find`, but a known model whose weights are not here becomes one that says so when it is needed."""
    try:
        return find(label, models_dir)
    except BadModelError as error:
        if label not in cards():
            raise
        return MissingModel(cards()[label], str(error))


def find_source(label: str, ensembles: dict[str, list[str]], models_dir: Path | None = None) -> SourceSpec:
    """The source that `label` names: a model, a named ensemble of the grid, `a+b`, or any of them behind a defense."""
    if behind := parse(label):
        attacked_defense, inner = behind
        return replace(find_source(inner, ensembles, models_dir), name=label, attacked_defense=attacked_defense)
    names = ensembles.get(label) or split(label, "+")
    if len(set(names)) < len(names):
        raise UsageError(f"source '{label}' names a model twice")
    return SourceSpec(label, tuple(find(name, models_dir) for name in names))


def _local(label: str, models_dir: Path | None) -> Path | None:
    """The weight file for `label` in the user's folder; labels never reach outside it."""
    if models_dir is None:
        return None
    if not models_dir.is_dir():
        raise UsageError(f"--models-dir {models_dir}: no such folder")
    stem = label.removeprefix("timm:")
    found = _files_of(models_dir, stem, cards()[label].files if label in cards() else ())
    if not found and label.startswith("timm:") and (other := _same_weights(stem, models_dir)):
        found = _files_of(models_dir, other)
    if len(found) > 1:
        raise UsageError(
            f"--models-dir {models_dir} holds several files for {label}: keep one of "
            f"{', '.join(str(path.relative_to(models_dir)) for path in found)}"
        )
    return found[0] if found else None


SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
"""Ends of the names of weight files."""


def _files_of(models_dir: Path, stem: str, more: Sequence[str] = ()) -> list[Path]:
    """Weight files called `stem`, or as hubs name them in a folder called so; `more`: other names."""
    wanted = {f"{stem}{suffix}" for suffix in SUFFIXES} | set(more)
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
    """Another name of the weights that timm calls `name`: without the tag where it is the default, or with it."""
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
        names = " or ".join((f"{card.name}.safetensors or .pth", *card.files))
        looked = f"{models_dir} has none" if models_dir else "no --models-dir was given"
        hint = f". To be had: {card.install}" if card.install else ""
        raise BadModelError(f"model {card.name} needs a weight file {names} in --models-dir; {looked}{hint}")
    return None
