"""Which figures a run gets: those that its grid names, or else those of every table of errors."""

from typing import TYPE_CHECKING

from rdp_bench.budgets import LINF
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.sample_images import SampleImages
from rdp_bench.reports.tables.table import Table
from rdp_bench.results.rows import Run

if TYPE_CHECKING:
    from rdp_bench.cache.store import Store

USUAL = ("heat", "dots", "sweep", "pareto")
NAMES = (*USUAL, "spectra", "gallery", "error-maps", "branches", "ablation")


def draw_figures(run: Run, store: "Store", tables: list[Table]) -> list[ReportFigure]:
    """The run's figures in order; one that has nothing to show is left out."""
    names = run.record.get("figures") or USUAL
    attacked = [table for table in tables if table.metric == "error" and table.done]
    drawn = [_draw(name, run, store, attacked) for name in names if name in NAMES]
    return [figure for figure in drawn if figure]


def _draw(name: str, run: Run, store: "Store", attacked: list[Table]) -> ReportFigure | None:
    from rdp_bench.reports.figures import ablation, branches, charts, error_maps, gallery, spectra, sweep
    from rdp_bench.reports.figures.pareto import pareto

    kept = SampleImages(run, store)
    if not attacked:
        return None
    match name:
        case "heat":
            return charts.heat_map(attacked)
        case "dots":
            return charts.dot_plot(attacked)
        case "sweep":
            return sweep.sweep(run)
        case "pareto":
            return pareto(run)
        case "spectra":
            return spectra.spectra(kept)
        case "gallery":
            return gallery.gallery(kept)
        case "error-maps" if run.norm != LINF:
            return None  # its scale is twice eps in levels
        case "error-maps":
            return error_maps.error_maps(kept)
        case "branches":
            return branches.branches(kept)
        case _:
            return ablation.ablation(attacked)
