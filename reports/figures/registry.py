"""The figures of a report by name. A new one is a module in this folder and a line here.

Grids check the names that they ask for against `FIGURES`. Loads neither matplotlib nor numpy; a figure's module is
imported when it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rdp_bench.cache.store import Store
    from rdp_bench.reports.figures.drawing import ReportFigure
    from rdp_bench.reports.figures.sample_images import SampleImages
    from rdp_bench.reports.tables.table import Table
    from rdp_bench.results.cards import Card
    from rdp_bench.results.rows import Run


@dataclass(frozen=True)
class FigureInput:
    """What figures are drawn from."""

    run: "Run"
    store: "Store"
    tables: "list[Table]"
    """The tables of errors that have a number; at least one."""

    @cached_property
    def samples(self) -> "SampleImages":
        """The images that the run keeps."""
        from rdp_bench.reports.figures.sample_images import SampleImages

        return SampleImages(self.run, self.store)


@dataclass(frozen=True)
class AuditInput:
    """What figures of audits are drawn from."""

    cards: "Sequence[Card]"


@dataclass(frozen=True)
class FigureKind:
    """A registered figure."""

    function: str
    """"module:function" in this package; returns a `ReportFigure`, or None if there is nothing to show."""
    of: Literal["run", "tables", "samples", "cards"]
    """What the function takes: the field of `FigureInput`, or "cards" of `AuditInput`."""
    usual: bool = False
    """Drawn for runs whose grid names no figures."""
    pictures: bool = False
    """Shows images of the run, which makes the section of examples superfluous."""

    def draw(self, given: FigureInput | AuditInput) -> "ReportFigure | None":
        """The figure, or None if there is nothing to show."""
        module, _, function = self.function.partition(":")
        draw = getattr(import_module(f"{__package__}.{module}"), function)
        drawn: ReportFigure | None = draw(getattr(given, self.of))
        return drawn


FIGURES: dict[str, FigureKind] = {
    "heat": FigureKind("charts:heat_map", "tables", usual=True),
    "dots": FigureKind("charts:dot_plot", "tables", usual=True),
    "sweep": FigureKind("sweep:sweep", "run", usual=True),
    "pareto": FigureKind("pareto:pareto", "run", usual=True),
    "spectra": FigureKind("spectra:spectra", "samples", pictures=True),
    "gallery": FigureKind("gallery:gallery", "samples", pictures=True),
    "error-maps": FigureKind("error_maps:error_maps", "samples", pictures=True),
    "branches": FigureKind("branches:branches", "samples", pictures=True),
    "ablation": FigureKind("ablation:ablation", "tables"),
    "illusion": FigureKind("illusion:illusion", "cards"),
}
"""By the name that a grid's `figures` uses, in the order of the report."""


def draw_audits(cards: "Sequence[Card]") -> "list[ReportFigure]":
    """The figures of audits; one that has nothing to show is left out."""
    drawn = [kind.draw(AuditInput(cards)) for kind in FIGURES.values() if kind.of == "cards"]
    return [figure for figure in drawn if figure]


def draw_figures(run: "Run", store: "Store", tables: "list[Table]") -> "list[ReportFigure]":
    """The figures that the run's grid names, or else the usual ones; one that has nothing to show is left out."""
    attacked = [table for table in tables if table.metric == "error" and table.done]
    if not attacked:
        return []
    given = FigureInput(run, store, attacked)
    names = run.record.get("figures") or [name for name, kind in FIGURES.items() if kind.usual]
    drawn = [FIGURES[name].draw(given) for name in names if name in FIGURES]
    return [figure for figure in drawn if figure]
