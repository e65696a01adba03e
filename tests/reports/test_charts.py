"""The figures of error tables, and the examples."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from rdp_bench.api.result import read
from rdp_bench.cache.store import Store
from rdp_bench.reports import examples, render
from rdp_bench.reports.figures import charts, drawing, fonts
from rdp_bench.reports.figures.pareto import pareto
from rdp_bench.reports.figures.sweep import sweep
from rdp_bench.reports.figures.tradeoff import tradeoff
from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.reports.tables.table import error_tables
from rdp_bench.results.rows import load
from tests.helpers.paths import ROOT
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import by_hand, small


def test_figures_hold_the_data(tmp_path: Path) -> None:
    tables = error_tables(small(tmp_path, sources=["a", "b"])[0])
    grid = charts._grid(tables[0])

    assert grid.rows == ["No defense", "JPEG", "RDP"]
    assert grid.columns == [("a", "FGSM"), ("a", "MI-FGSM"), ("b", "FGSM"), ("b", "MI-FGSM")]
    np.testing.assert_allclose(grid.values[1], [95, 65, 95, 65])
    for figure in (charts.heat_map(tables), charts.dot_plot(tables)):
        assert figure.saved["pdf"].startswith(b"%PDF")
        assert Image.open(io.BytesIO(figure.saved["png"])).width > 300
        svg = figure.inline
        assert "MI-FGSM" in svg or "average error" in svg
        assert "http" not in svg
        assert drawing.INK not in svg
        identifiers = re.findall(r' id="([^"]*)"', svg)
        assert len(set(identifiers)) == len(identifiers)


def test_titles_of_panels_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several sources and targets of long names; titles used to run into the next panel's."""
    drawn: list[Any] = []
    save = drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure: (drawn.append(figure), save(figure))[1])
    names = {"sources": ["effnet-lite0", "effnet-lite1", "ensemble"], "targets": ["effnet-lite2-ens", "effnet-lite2"]}
    charts.dot_plot(error_tables(small(tmp_path, **names)[0]))
    titles = [ax._left_title for ax in drawn[0].axes]
    assert "effnet-lite1 ε = 16, target effnet-lite2-ens" in [title.get_text().replace("\n", " ") for title in titles]
    boxes, room = [title.get_window_extent() for title in titles], drawn[0].bbox
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= room.width and box.y1 <= room.height for box in boxes)


LONG = [f"a-purifier-of-a-very-long-name(strength={i})" for i in range(3)]


def texts(figure: Any) -> list[Any]:
    """Every text that is drawn: its box, in pixels, once the layout is settled."""
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(match=Text) if text.get_text() and text.get_visible()]
    return [text for text in shown if text.get_window_extent().width]


def refuse_crops(figure: Any) -> None:
    """Every text is within the figure, and no title of a panel runs into another."""
    found = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    width, height = figure.bbox.size
    assert found
    assert [name for name, box in found if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height] == []
    titles = [text.get_window_extent() for ax in figure.axes for text in (ax.title, ax._left_title) if text.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


@pytest.mark.parametrize("draw", ["sweep", "heat", "dots", "pareto", "tradeoff"])
def test_long_names_are_neither_cropped_nor_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: str) -> None:
    drawn: list[Any] = []
    save = drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure: (save(figure), drawn.append(figure))[0])
    defenses = ["none", *LONG, "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW"]
    cost = {
        "processor": "x", "device": "cpu", "threads": 1, "batch": 1, "size": 8, "target": "t", "forward_ms": 1.0,
        "defenses": {name: {"ratio": 1.0 + i} for i, name in enumerate(defenses)},
    }  # fmt: skip
    store = Store(tmp_path / "store")
    make_run(
        tmp_path / "out", store, lambda p: range(3 + 4 * defenses.index(p.defense) - int(p.eps) // 4), samples=1,
        defenses=defenses, eps=(4, 8), targets=["a-target-of-a-long-name", "a-target-of-a-long-name-too"],
        attacks=["fgsm", "mi-fgsm(steps=100, decay=0.5)", "mi-fgsm(steps=100, decay=0.7)"], cost=cost,
    )  # fmt: skip
    (run,) = load(tmp_path / "out", store)
    made = {
        "sweep": lambda: sweep(run),
        "heat": lambda: charts.heat_map(error_tables(run)),
        "dots": lambda: charts.dot_plot(error_tables(run)),
        "pareto": lambda: pareto(run),
        "tradeoff": lambda: tradeoff(leaderboards(run)[0]),
    }[draw]()
    assert made is not None
    (figure,) = drawn
    refuse_crops(figure)
    names = {text.get_text().partition(" (")[0] for text in texts(figure)}
    assert len({name for name in names if name.startswith("a-pur")}) == len(LONG)


def test_the_plot_of_many_panels_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    targets = ["effnet-lite2", "effnet-lite2-ens", "a-target-of-a-very-long-name-indeed", "another"]
    make_run(
        tmp_path / "out", store, lambda p: range(7), samples=1, defenses=["none", *LONG], eps=(8, 16), targets=targets
    )
    figure = read(tmp_path / "out", store).plot()
    assert len(figure.axes) == 8
    assert figure.get_figwidth() < 20
    refuse_crops(figure)
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert min(box.width for box in boxes) > 1.5 * figure.dpi
    for ax in figure.axes:
        assert len({text.get_text() for text in ax.get_yticklabels()}) == 4


def test_a_figure_says_which_panels_it_leaves_out(tmp_path: Path) -> None:
    tables = error_tables(small(tmp_path, sources=["a", "b"], targets=["t", "u", "v", "w"])[0])
    assert "Shown are the first 6 of 8 panels" in charts.dot_plot(tables).caption
    assert "Shown" not in charts.heat_map(tables).caption


@given(st.lists(st.text("abcMW净()=1", min_size=1, max_size=60), min_size=1, max_size=12, unique=True))
def test_shortened_names_stay_apart(names: list[str]) -> None:
    found = drawing.shorten(names, 14)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert all(drawing.span(name) <= 14 for name in found.values())


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    tables = error_tables(small(tmp_path)[0])

    for draw in (charts.dot_plot, charts.heat_map):
        assert draw(tables).saved["svg"] == draw(tables).saved["svg"]


def test_a_heat_map_shows_its_numbers_unless_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = error_tables(small(tmp_path)[0])

    def numbers(figure: drawing.ReportFigure) -> list[str]:
        return re.findall(r">(\d+)</text>", figure.inline)

    shown = numbers(charts.heat_map(tables))
    assert sorted(shown) == sorted(["50", "70", "95", "65", "5", "10", "0", "50", "100"])  # and the colour bar's
    monkeypatch.setattr(charts, "_NUMBERED", 5)
    assert sorted(numbers(charts.heat_map(tables))) == sorted(["0", "50", "100"])


def test_numbers_keep_their_colours_on_the_page(tmp_path: Path) -> None:
    """White and INK become the page's own colours there, so that letters in those colours would vanish."""
    svg = charts.heat_map(error_tables(small(tmp_path)[0])).inline
    colours = dict(re.findall(r"<text [^>]*?fill: (\S+?)[;\"][^>]*>(95|5)<", svg))
    assert colours == {"#fefefe": "95", "#010101": "5"}


def test_numbers_can_be_read_on_every_cell() -> None:
    """WCAG AA: a contrast of at least 4.5, for all percentages; luminance by seaborn's formula."""
    from matplotlib import colormaps
    from seaborn.utils import relative_luminance

    for percent in range(101):
        cell = relative_luminance(colormaps[charts._MAP](percent / 100))
        assert charts.luminance(colormaps[charts._MAP](percent / 100)) == pytest.approx(cell, abs=1e-3)
        number = relative_luminance(charts._DARK if cell > charts._MIDDLE else charts._LIGHT)
        light, dim = max(cell, number), min(cell, number)
        assert (light + 0.05) / (dim + 0.05) >= 4.5, percent


def test_dots_are_sorted_by_their_mean_over_the_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RDP 2, JPEG 7, none 12 of 20 on one source; JPEG above none on the other, but not on average."""
    drawn: list[Any] = []
    save = drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure: (drawn.append(figure), save(figure))[1])
    wrong = {
        ("a", "jpeg"): 7,
        ("b", "jpeg"): 13,
        ("a", "none"): 12,
        ("b", "none"): 12,
        ("a", "rdp"): 2,
        ("b", "rdp"): 3,
    }
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, lambda p: range(wrong.get((p.source, p.defense), 0)), sources=["a", "b"])
    charts.dot_plot(error_tables(load(tmp_path, store)[0]))

    first, second = drawn[0].axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["RDP", "JPEG", "No defense"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first is on top
    assert [tuple(map(float, at)) for at in second.collections[1].get_offsets()] == [(15, 0), (65, 1), (60, 2)]


def test_a_report_loads_neither_seaborn_nor_pandas(tmp_path: Path) -> None:
    small(tmp_path)
    code = f"""
import sys
from pathlib import Path
from rdp_bench.cache.store import Store
from rdp_bench.reports import render
render(Path({str(tmp_path)!r}), Store(Path({str(tmp_path / "store")!r})))
print({{'seaborn', 'pandas', 'scipy', 'torch', 'matplotlib'}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "{'matplotlib'}"


def test_examples_show_the_attack_that_hurts_most(tmp_path: Path) -> None:
    run, store = small(tmp_path, defenses=["none", "jpeg", "sr"])
    got = examples.examples(run, store)
    tiles = got.rows[0].images

    assert got.caption.startswith("MI-FGSM on a, ε = 16")
    assert [tile.name for tile in tiles] == ["Clean", "Attacked", "Perturbation ×8", "JPEG", "SR"]
    assert [tile.right for tile in tiles] == [True, False, None, False, True]
    assert tiles[1].predicted_class == 1000
    pictures = [Image.open(io.BytesIO(base64.b64decode(tile.uri.partition(",")[2]))) for tile in tiles]
    assert {picture.size for picture in pictures} == {(8, 8)}  # sr's is shrunk
    noise = np.asarray(pictures[2]).astype(int)
    # +-16 becomes 0 and 256 - clipped - around 128, up to what JPEG loses.
    assert np.abs(noise[::2, 1::2] - 255).mean() < 12
    assert np.abs(noise[::2, ::2]).mean() < 12


def test_a_crowded_page_has_one_strip_a_run(tmp_path: Path) -> None:
    run, store = small(tmp_path, size=64)
    alone, among = (examples.examples(run, store, crowded) for crowded in (False, True))
    assert [found.index for found in alone.rows] == [0, 1]
    assert [found.index for found in among.rows] == [0]
    assert [tile.name for tile in among.rows[0].images] == [tile.name for tile in alone.rows[0].images]
    assert len(among.rows[0].images[1].uri) < len(alone.rows[0].images[1].uri)


def test_a_missing_sample_is_a_gap_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record = make_run(tmp_path, store, by_hand)
    for cell in record["cells"]:
        if cell["defense"] == "jpeg":
            store.delete("sample", cell["sample_key"])
    (run,) = load(tmp_path, store)
    tiles = {tile.name: tile for tile in examples.examples(run, store).rows[0].images}

    assert tiles["JPEG"].uri == ""
    assert "run the grid again" in tiles["JPEG"].reason
    assert tiles["RDP"].uri


@pytest.mark.usefixtures("blank")
def test_without_clean_pictures_the_page_says_so(tmp_path: Path) -> None:
    run, store = small(tmp_path, clean=False)

    assert "No images" in examples.examples(run, store).reason
    assert "No images" in render(tmp_path, store).read_text("utf-8")


def test_letters_that_the_font_lacks_are_numbers_in_png_and_pdf(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    names = ["净化", "淨化", "Γ-net", "净化 a"]
    (table,) = error_tables(small(tmp_path, defenses=["none", *names])[0])
    drawn: list[Figure] = []
    number = fonts.number
    fonts.warn_once.cache_clear()
    monkeypatch.setattr(fonts, "number", lambda figure: (drawn.append(figure), number(figure))[1])
    saved = charts.dot_plot([table]).saved
    (figure,) = drawn  # as the PNG was drawn, the last of the three
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "[1]", "[2]", "Γ-net", "[1] a", "No defense"
    ]  # fmt: skip
    assert all(name in saved["svg"].decode() for name in names)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        "PNG and PDF figures have numbers for letters that matplotlib's fonts lack: [1] is 净化, [2]"
    )
    assert not [str(one.message) for one in recwarn if "Glyph" in str(one.message)]
