"""A published run again: its grid from the record, what differs on this machine, and whether the predictions agree."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rdp_bench.data.image_hashes import digest
from rdp_bench.engine.grid import Axes, Grid, from_axes
from rdp_bench.engine.plan import Plan, PlannedCell
from rdp_bench.engine.record import header
from rdp_bench.environment import PACKAGES, versions
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.keys import KEY_VERSION, Record, diff_records, hash_file
from rdp_bench.results.predictions import Predictions
from rdp_bench.results.record import CellResult, read_run
from rdp_bench.results.rows import load_run
from rdp_bench.specs import CellKey

_LETTERS = 40
"""Of a value that differs, as many are printed: enough of a hash."""


@dataclass(frozen=True)
class Agreement:
    """One cell of both runs.

    Attributes:
        cell: the cell.
        differing: on how many images a prediction differs.
        images: how many images both have.
        errors: how many images are wrong: published, and here (mean over the draws of a random defense).
    """

    cell: CellKey
    differing: int
    images: int
    errors: tuple[float, float]

    def __str__(self) -> str:
        published, here = (f"{100 * count / self.images:.1f} %" for count in self.errors)
        images = "1 image" if self.differing == 1 else f"{self.differing} images"
        return f"{self.cell}: differs by {images} of {self.images}; error {published} published, {here} here"


@dataclass(frozen=True)
class Published:
    """A run record that somebody published, with its predictions.

    Attributes:
        path: OUT/runs/<grid>.json.
        record: the record, without its cells.
        cells: the cells.
        predictions: those in OUT/predictions.
    """

    path: Path
    record: Record
    cells: Mapping[CellKey, CellResult]
    predictions: Predictions

    @classmethod
    def read(cls, path: Path) -> "Published":
        """Read a record.

        Raises:
            UsageError: it is no run record, was edited, or was written before records held what a repetition needs.
        """
        stored = read_run(path)
        record = stored.header
        if not record.get("request"):
            raise UsageError(f"{path} does not hold the request of its run (an earlier version wrote it); run the grid")
        return cls(path, record, {cell.key: cell for cell in stored.cells}, Predictions(path, record, None))

    @property
    def request(self) -> Record:
        """What the run was asked to do."""
        found: Record = self.record["request"]
        return found

    def grid(self, changes: Mapping[str, Any], plugins: tuple[Path, ...]) -> Grid:
        """The grid of the run, with `changes` to its axes; relative file names start in the current folder.

        Raises:
            UsageError: a plugin of the run is not among `plugins`.
        """
        self._require_plugins(plugins)
        axes = self.request["axes"]
        found = from_axes(self.record["grid"], self.record["title"], axes, self.record["profile"], changes)
        return replace(found, names=self.record.get("names", {}), plugins=plugins)

    def _require_plugins(self, plugins: tuple[Path, ...]) -> None:
        """Plugins are code: they are loaded if the user names them, never because a record does."""
        given = {path.name for path in plugins} | {hash_file(path) for path in plugins if path.is_file()}
        missing = [each for each in self.request.get("plugins", ()) if not given & {each["name"], each["sha256"]}]
        if missing:
            files = ", ".join(f"{each['name']} (sha256 {each['sha256'][:12]})" for each in missing)
            flags = " ".join(f"--plugin PATH/{each['name']}" for each in missing)
            raise UsageError(f"the run used plugins that are not loaded: {files}. Add {flags}")

    def refuse_other_images(self, plan: Plan) -> None:
        """Compare the images of `plan` with those of the run.

        Raises:
            UsageError: neither list of images begins with the other.
        """
        if digest(plan.image_hashes, plan.dataset.labels) == self.record["dataset"]["images"]:
            return
        file, name = self.predictions.file, self.record["dataset"]["name"]
        if file is not None:
            theirs = list(zip(file.image_hashes, file.label.tolist(), strict=True))
            here = list(zip(plan.image_hashes, plan.dataset.labels, strict=True))
            common = min(len(theirs), len(here))
            if len(theirs) != len(here) and theirs[:common] == here[:common]:
                return
            same = sum(a == b for a, b in zip(theirs, here, strict=False))
            detail = f"{same} of its {len(theirs)} images and labels are the same, in the same place"
        else:
            detail = f"the hash of its {self.record['dataset']['n']} images and labels differs"
            if plan.n != self.record["dataset"]["n"]:
                raise UsageError(
                    f"the published predictions cannot be read ({self._readable}), so that {plan.n} images cannot be "
                    f"compared with the {self.record['dataset']['n']} of the run; leave out --limit"
                )
        raise UsageError(
            f"{plan.grid.axes.dataset} does not hold the images of the run ({name}): {detail}. "
            "Name the data set of the run with --dataset"
        )

    def differences(self, plan: Plan) -> list[str]:
        """What of the run cannot be the same here, one line each: identities first, then versions of packages."""
        found: list[str] = []
        if (theirs := self.request["key_format"]) != KEY_VERSION:
            found.append(f"key format: {theirs} in the record, {KEY_VERSION} here")
        hashes = {hash_file(path): path.name for path in plan.grid.plugins}
        found += [
            f"plugin {each['name']}: sha256 {each['sha256'][:12]} in the record, another file here"
            for each in self.request.get("plugins", ())
            if each["sha256"] not in hashes
        ]
        if self.predictions.file is None:
            found += self._by_record(plan)
        for key, planned in plan.cells.items():
            cell = self.cells.get(key)
            if cell and cell.eval_key != planned.eval.key and self.predictions.file:
                found += self._why(key, cell, planned)
        if plan.seed != self.record["seed"]:
            found.append(f"seed: {self.record['seed']} in the record, {plan.seed} here")
        if plan.precision != (precision := self.record.get("precision", "float32")):
            found.append(f"precision: {precision} in the record, {plan.precision} here")
        axes = self.record["axes"]
        for name in ("norm", "defense_samples"):
            asked, chosen = axes.get(name, getattr(Axes, name)), getattr(plan.grid.axes, name)
            if asked != chosen:
                found.append(f"{name.replace('_', ' ')}: {asked} in the record, {chosen} here")
        here, there = versions(), self.record["environment"]
        found += [
            f"{name}: {there[name]} in the record, {here.get(name, 'absent')} here"
            for name in ("python", *PACKAGES)
            if name in there and there[name] != here.get(name)
        ]
        return list(dict.fromkeys(found))

    def _by_record(self, plan: Plan) -> Iterator[str]:
        """Weights, versions and parameters that differ from those in the record, where the keyed facts are lost."""
        here = header(plan, "")
        for kind, fields in (("models", ("sha256",)), *((k, ("version", "resolved")) for k in ("attacks", "defenses"))):
            for name, said in here[kind].items():
                there = self.record[kind].get(name)
                if there:
                    facts = ({each: about.get(each) for each in fields} for about in (there, said))
                    lines = diff_records(*map(_tables, facts))
                    yield from (f"{kind.removesuffix('s')} {name}: {line}" for line in _shortened(lines))

    def _why(self, key: CellKey, cell: CellResult, planned: PlannedCell) -> Iterator[str]:
        """Why a cell has another key here."""
        file = self.predictions.file
        records = file.about["records"] if file else {}
        named = {"target": f"model {key.target}", "defense": f"defense {key.defense}"}
        yield from _named(planned.eval.record, records.get(cell.eval_key), named, f"cell {key}")
        if planned.job.craft and cell.adv_key != planned.job.craft.key:
            named = {"source": f"source {key.source}", "attack": f"attack {key.attack}"}
            yield from _named(planned.job.craft.record, records.get(cell.adv_key), named, f"cell {key}")

    @cached_property
    def _readable(self) -> str:
        """Why the published predictions cannot be read; empty if they can."""
        return "" if self.predictions.file else self.predictions.problem or "the record names no predictions"

    def compare(self, out: Path, plan: Plan) -> tuple[list[Agreement], dict[CellKey, str]]:
        """Every published cell that is done, beside that of the run in `out`.

        Returns:
            The cells that could be compared, and why others could not.
        """
        run = load_run(out / "runs" / f"{plan.grid.name}.json", plan.store)
        here = {cell.key: cell for cell in run.cells}
        agreements: list[Agreement] = []
        lacking: dict[CellKey, str] = {}
        for key, cell in self.cells.items():
            if key not in here or cell.status != "done":
                continue
            if key not in run.wrong or run.stored is None:
                lacking[key] = here[key].reason or run.unread.get(key, "it is not done here")
                continue
            try:
                theirs, ours = self.predictions.published(cell), run.stored.evaluated(here[key])
            except RdpBenchError as error:
                lacking[key] = self._readable or str(error)
                continue
            agreements.append(_agreement(key, theirs, ours))
        return agreements, lacking


def _agreement(key: CellKey, theirs: Any, ours: Any) -> Agreement:
    images = min(len(theirs["label"]), len(ours["label"]))
    both = [arrays["predicted"].reshape(len(arrays["label"]), -1)[:images] for arrays in (theirs, ours)]
    draws = min(each.shape[1] for each in both)
    first, second = (each[:, :draws] for each in both)
    label = theirs["label"][:images, None]
    errors = tuple(float((each != label).mean(1).sum()) for each in (first, second))
    return Agreement(key, int((first != second).any(1).sum()), images, (errors[0], errors[1]))


def _named(here: Record, there: Record | None, named: Mapping[str, str], otherwise: str) -> Iterator[str]:
    """The differences between the facts behind two keys, by the name of the entry that they belong to."""
    if there is None:
        yield f"{otherwise}: its key differs"
        return
    for name, what in named.items():
        for line in _shortened(diff_records(_tables(there[name]), _tables(here[name]))):
            yield f"{what}: {line}"
    if here["device"] != there["device"]:
        yield f"device: {there['device']} in the record, {here['device']} here"


def _tables(value: Any) -> Any:
    """Lists of records as records by number, so that `diff_records` looks into them."""
    if isinstance(value, dict):
        return {name: _tables(item) for name, item in value.items()}
    if isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
        return {str(number): _tables(item) for number, item in enumerate(value, 1)}
    return list(value) if isinstance(value, tuple) else value


def _shortened(lines: Iterable[str]) -> Iterator[str]:
    """`diff_records` with the record first: "weights: 12ab... in the record, 34cd... here"."""
    for line in lines:
        name, _, values = line.partition(": ")
        here, _, there = values.partition(" -> ")
        here, there = (value if len(value) <= _LETTERS else f"{value[:12]}..." for value in (here, there))
        yield f"{name}: {there} in the record, {here} here"
