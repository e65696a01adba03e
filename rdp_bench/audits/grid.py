"""A grid of audits: a TOML file with a table `[audit]`, or what the command line names. No torch.

title = "Two defenses, audited"

[audit]
defenses = ["jpeg", "r&p"]
targets = ["effnet-lite2"]
eps = [4]
budget = "quick"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from rdp_bench import schema
from rdp_bench.audits.parts import Subject
from rdp_bench.audits.run import parts_of
from rdp_bench.budgets import parse_eps
from rdp_bench.engine.grid import Grid, Names, Text, based_on, expand_wildcards, read_table
from rdp_bench.engine.options import Placement
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.specs import FileSearch, plain, show_level


@dataclass(frozen=True)
class AuditAxes:
    """What is audited: every defense before every target at every eps; the schema of `[audit]` in a file."""

    defenses: Names = ()
    targets: Names = ("effnet-lite2",)
    sources: Names = ()  # of the transfer attacks; empty: embedded networks that are not the target
    dataset: Text = "photos20"
    eps: Annotated[tuple[float | str, ...], "a list of numbers, like [4, 8]"] = (4.0,)  # L-infinity, in /255
    budget: Text = "quick"
    limit: Annotated[int | None, "a whole number"] = None  # at most this many images
    image_size: Annotated[int | None, "a whole number"] = None


@dataclass(frozen=True)
class AuditGrid:
    """Audits that one command performs."""

    name: str
    axes: AuditAxes
    title: str = ""
    plugins: tuple[Path, ...] = ()
    """Plugin files that it asks for."""
    names: Mapping[str, str] = field(default_factory=dict)
    """How reports write labels."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Where jobs are done, by field of `options.Placement`."""

    def extend(self, more: Mapping[str, Sequence[str]]) -> AuditGrid:
        """With more labels at the end of its axes; those that it has already are not repeated.

        Raises:
            UsageError: an axis that no audit has, or sources beside those that the budget chooses.
        """
        refuse_others(more)
        if "sources" in more and not self.axes.sources:
            raise UsageError(
                f"--source +{more['sources'][0]}: grid {self.name} leaves the sources to the budget, so that there is "
                "no list to add to; name all of them, without +"
            )
        found: dict[str, Any] = {}
        for axis, labels in more.items():
            have = list(getattr(self.axes, axis))
            known = {_read(axis, label) for label in have}
            found[axis] = (*have, *(label for label in labels if _read(axis, label) not in known))
        return replace(self, axes=replace(self.axes, **found))

    def subjects(self, models_dir: Path | None = None) -> list[Subject]:
        """What is audited, in order. Every plugin must be loaded.

        Raises:
            UsageError: an axis is empty or names something twice, or an eps or budget that no audit can have.
        """
        axes = self.axes
        defenses = expand_wildcards(axes.defenses, FileSearch(models_dir=models_dir))
        levels = [parse_eps(eps) for eps in axes.eps]
        for axis, values in {
            "defenses": defenses,
            "targets": axes.targets,
            "eps": [show_level(eps) for eps in levels],
        }.items():
            if not values:
                raise UsageError(f"grid {self.name}: the axis '{axis}' of the audit is empty")
            labels = [plain(str(value)) for value in values]
            if twice := [label for label in labels if labels.count(label) > 1]:
                raise UsageError(f"grid {self.name}: the axis '{axis}' of the audit lists {twice[0]} twice")
        if axes.limit is not None and axes.limit < 1:
            raise UsageError(f"grid {self.name}: limit is {axes.limit}; at least one image is needed")
        return [
            Subject(defense, target, axes.dataset, eps, axes.budget, axes.sources, models_dir, axes.image_size)
            for target in axes.targets
            for eps in levels
            for defense in defenses
        ]

    def parts(self, subject: Subject, limit: int | None = None) -> Iterator[tuple[str, Grid]]:
        """The parts of one audit, each as a grid that runs as this one says.

        Args:
            subject: one of `subjects`.
            limit: images that the command asks for.
        """
        images = limit or self.axes.limit or subject.settings.limit
        for part, grid in parts_of(subject, self.name):
            yield (
                part,
                replace(
                    grid, axes=replace(grid.axes, limit=images), names=self.names, run=self.run, plugins=self.plugins
                ),
            )


@dataclass(frozen=True)
class _AuditFile:
    """A file of audits; `audit` and each profile are read as `AuditAxes` once they are merged."""

    title: Text = ""
    audit: Annotated[dict[str, Any], "a table"] = field(default_factory=dict)
    profile: Annotated[dict[str, dict[str, Any]], "a table of profiles"] = field(default_factory=dict)
    plugins: Annotated[tuple[str, ...], "a list of paths"] = ()
    names: Annotated[dict[str, str], "a table of texts"] = field(default_factory=dict)
    run: Annotated[dict[str, Any], "a table"] = field(default_factory=dict)


def load(name: str, profile: str, changes: Mapping[str, Any]) -> AuditGrid:
    """The grid of audits `name` (built in, or a path ending in .toml) under `profile`, with `changes` to its axes.

    Raises:
        UsageError: an unknown name, key or profile, a value of the wrong type, or an axis that no audit has.
    """
    name, table, folder = read_table(name)
    file = schema.read(table, _AuditFile, f"grid {name}", "key of {}, which holds audits".format)
    if file.profile and profile not in file.profile:
        raise unknown_name(f"profile of grid {name}", profile, file.profile)
    values = {**file.audit, **file.profile.get(profile, {})}
    axes = schema.read(values, AuditAxes, f"grid {name}", "axis of {}".format)
    if "dataset" in values:
        axes = replace(axes, dataset=based_on(axes.dataset, folder))
    schema.read(file.run, Placement, f"[run] of grid {name}", "key of {}".format)
    plugins = tuple(folder / each for each in file.plugins)
    return AuditGrid(name, changed(axes, changes), file.title or name, plugins, file.names, file.run)


def changed(axes: AuditAxes, changes: Mapping[str, Any]) -> AuditAxes:
    """`axes` with `changes` to them.

    Raises:
        UsageError: an axis that no audit has.
    """
    refuse_others(changes)
    kept = {axis: value for axis, value in changes.items() if axis != "baselines"}
    return replace(axes, **kept)


def refuse_others(given: Mapping[str, Any]) -> None:
    """Refuse what is `given` for an axis of other grids.

    Raises:
        UsageError: the flag of the axis.
    """
    for axis, flag in NOT_OURS.items():
        if axis in given:
            raise UsageError(f"--{flag} is not for an audit: its budget says which attacks, norm and draws it uses")


def _read(axis: str, label: float | str) -> float | str:
    return parse_eps(label) if axis == "eps" else plain(label)


NOT_OURS = {"attacks": "attack", "norm": "norm", "defense_samples": "defense-samples", "success": "success"}
"""Axes of other grids, and their flags."""
