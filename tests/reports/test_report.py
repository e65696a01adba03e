"""The report of runs that nobody ran: numbers by hand, shapes, escaping, and what is missing said."""

import base64
import csv
import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdp_bench.cache.store import Store
from rdp_bench.errors import UsageError
from rdp_bench.metrics.stats import wilson
from rdp_bench.reports import examples, render
from rdp_bench.reports.figures import charts, drawing
from rdp_bench.reports.formats import csv_table, latex, markdown
from rdp_bench.reports.summary import findings, grids_not_run, missing, summary_sentences
from rdp_bench.reports.tables.table import AVERAGE, Table, TableCell, all_tables, clean_table, error_tables, slug
from rdp_bench.results.rows import CellKey, Run, load
from tests.helpers.report_fixture import make_run

NASTY = '<script>alert("x")</script>'

OURS = {
    "html", "head", "meta", "title", "link", "style", "body", "main", "nav", "section", "header", "p", "h1", "h2",
    "h3", "figure", "figcaption", "div", "span", "table", "thead", "tbody", "tr", "th", "td", "br", "img", "ul",
    "li", "details", "summary", "label", "input", "output", "code", "dl", "dt", "dd", "script", "a", "svg", "g",
    "h4", "caption", "ol", "b", "small",
    "path", "use", "defs", "text", "clippath", "rect", "image",
}  # fmt: skip
"""Every tag of the page."""

WRONG = {
    ("fgsm", "none"): range(10),
    ("fgsm", "jpeg"): range(19),
    ("fgsm", "rdp"): range(1),
    ("mi-fgsm", "none"): range(14),
    ("mi-fgsm", "jpeg"): range(13),
    ("mi-fgsm", "rdp"): range(2),
    ("clean", "jpeg"): range(3),
}


def by_hand(cell_key: CellKey) -> range:
    """Of 20 images: FGSM 10, 19, 1 wrong; MI-FGSM 14, 13, 2; clean 0, 3, 0."""
    return WRONG.get((cell_key.attack, cell_key.defense), range(0))


def small(out: Path, **more: Any) -> tuple[Run, Store]:
    store = Store(out / "store")
    make_run(out, store, by_hand, **more)
    return load(out, store)[-1], store


def entry(table: Table, defense: str, column: str, group: int = 0) -> TableCell:
    (line,) = [line for line in table.groups[group].rows if line.defense == defense]
    return line.cells[table.columns.index(column)]


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but what is saved is empty: for pages whose figures are not looked at."""
    saved = {"svg": b"<svg></svg>", "pdf": b"", "png": b""}
    monkeypatch.setattr(drawing, "save", lambda figure: saved)


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text between tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# --- exhibits ---


def test_error_table_by_hand(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])
    jpeg = entry(table, "jpeg", "FGSM")

    assert table.columns == ["FGSM", "MI-FGSM", AVERAGE]
    assert [line.defense for line in table.groups[0].rows] == ["none", "jpeg", "rdp"]
    assert [e.value for e in table.cells] == pytest.approx([50, 70, 60, 95, 65, 80, 5, 10, 7.5])
    assert (jpeg.low, jpeg.high) == pytest.approx(tuple(100 * end for end in wilson(19, 20)), abs=1e-3)
    # 9, 1, 9 and 12 images speak against no defense, all on one side: 2 / 2^9 ranks second of four.
    assert jpeg.verdict.significantly_worse
    assert jpeg.verdict.p_none == pytest.approx(3 * 2 / 2**9)
    assert not entry(table, "jpeg", "MI-FGSM").verdict.higher_than_undefended
    assert [e.verdict.best for e in table.groups[0].rows[2].cells] == [True] * 3
    # The averages: 40 answers, but 20 images. jpeg errs 9 - 1 more often, on ten images that differ.
    assert entry(table, "jpeg", AVERAGE).verdict.higher_than_undefended


def test_clean_table_has_the_change_to_no_defense(tmp_path: Path) -> None:
    table = clean_table(small(tmp_path)[0])
    assert table

    assert [e.value for e in table.cells] == [100, 85, 100]
    assert entry(table, "none", "t").change is None
    change = entry(table, "jpeg", "t").change
    assert change
    assert change[0] == pytest.approx(-15)
    assert change[1] < -15 < change[2] <= 0


def test_a_tie_is_bold_and_marked(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wrong = {"none": range(12), "hgd": range(2), "rdp": range(3), "jpeg": range(19)}
    make_run(tmp_path, store, lambda cell_key: wrong[cell_key.defense], attacks=["fgsm"], defenses=wrong)
    (table,) = error_tables(load(tmp_path, store)[0])

    assert entry(table, "hgd", "FGSM").symbols == ""
    assert (entry(table, "rdp", "FGSM").bold, entry(table, "rdp", "FGSM").symbols) == (True, "≈")
    assert (entry(table, "jpeg", "FGSM").bold, entry(table, "jpeg", "FGSM").symbols) == (False, "†")
    assert r"\textbf{15.0}\rlap{$^{\approx}$}" in latex.render(table)  # the mark moves no digit
    assert "**15.0**≈" in markdown.render(table)


def test_a_table_in_a_sentence(tmp_path: Path) -> None:
    defenses, attacks = ("none", "jpeg", "fd", "rdp"), ("fgsm",)
    make_run(tmp_path / "a", Store(tmp_path / "s"), lambda place: range(15), attacks=attacks, defenses=defenses)
    alike = findings(all_tables(load(tmp_path / "a", Store(tmp_path / "s"))[-1])[0])
    assert alike.endswith("the undefended target errs on 75.0 %; every defense errs on 75.0 %.")
    wrong = {"none": 15, "jpeg": 2, "fd": 2, "rdp": 12}
    make_run(
        tmp_path / "b",
        Store(tmp_path / "t"),
        lambda cell_key: range(wrong[cell_key.defense]),
        attacks=attacks,
        defenses=defenses,
    )
    two = findings(all_tables(load(tmp_path / "b", Store(tmp_path / "t"))[-1])[0])
    assert two.endswith("the undefended target errs on 75.0 %; JPEG and FD have the lowest error, 10.0 %.")


def test_no_average_over_some_of_the_attacks(tmp_path: Path) -> None:
    gone = CellKey("a", "mi-fgsm", 16.0, "t", "jpeg")
    run, _ = small(tmp_path, states={gone: ("failed", "no weights"), replace(gone, defense="rdp"): ("pending", "")})
    (table,) = error_tables(run)

    assert entry(table, "jpeg", "MI-FGSM") == TableCell("failed", "no weights")
    assert entry(table, "rdp", "MI-FGSM").status == "pending"
    assert entry(table, "jpeg", AVERAGE) == TableCell("failed", "1 of 2 attacks are done")
    assert entry(table, "rdp", AVERAGE) == TableCell("pending", "1 of 2 attacks are done")
    assert entry(table, "none", AVERAGE).value == pytest.approx(60)


def test_targets_and_eps_make_tables_of_their_own(tmp_path: Path) -> None:
    run, _ = small(tmp_path, targets=["t", "u"], eps=[8, 16])
    tables = error_tables(run)

    assert [table.slug for table in tables] == ["table1_t_eps8", "table1_t_eps16", "table1_u_eps8", "table1_u_eps16"]
    assert tables[1].title == "Error under attack: ε = 16, target t"


@pytest.mark.parametrize(
    ("axis", "columns"), [({"targets": ["t", "u"]}, ["t", "u"]), ({"eps": [4, 16]}, ["ε = 4", "ε = 16"])]
)
def test_one_attack_gives_the_columns_to_the_next_axis(
    tmp_path: Path, axis: dict[str, Any], columns: list[str]
) -> None:
    (table,) = error_tables(small(tmp_path, attacks=["fgsm"], **axis)[0])

    assert table.columns == columns


@pytest.mark.usefixtures("blank")
def test_the_papers_numbers_stand_beside_its_cells(tmp_path: Path) -> None:
    five = ["fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"]
    data = {"name": "nips2017", "n": 20, "size": 8, "images": "ab"}
    run, _ = small(tmp_path, dataset=data, sources=["resnet-v2-152"], targets=["incres-v2-ens"], attacks=five)
    table, clean = all_tables(run)

    assert entry(table, "jpeg", "FGSM").paper == 25.5
    assert entry(table, "jpeg", AVERAGE).paper == 40.6
    assert entry(table, "none", "TI-DIM").paper == 49.8
    assert entry(table, "none", AVERAGE).paper is None
    assert entry(clean, "jpeg", "IncRes-v2ens").paper == 97.4
    assert any("1000 images, these over 20" in note for note in table.notes)
    page = render(tmp_path, Store(tmp_path / "store")).read_text("utf-8")
    assert "paper 25.5 (+69.5)" in page  # 95.0 on the 20 images


def test_slugs_are_safe_and_apart() -> None:
    names = ["a/b", "a\\b", "../../etc/passwd", "A", "a", "", ".", "ε", NASTY, "x" * 300, "x" * 301, "a b", "con\0"]
    slugs = [slug(name) for name in names]

    assert len(set(slugs)) == len(slugs)
    assert slug("a-b", "c") != slug("a", "b-c")
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,59}", text) for text in slugs)


# --- formats ---


def test_sheet_in_the_shape_of_the_table(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])

    assert csv_table.shape(table).splitlines() == [
        "source,defense,FGSM,MI-FGSM,Average",
        "a,none,50.0000,70.0000,60.0000",
        "a,jpeg,95.0000,65.0000,80.0000",
        "a,rdp,5.0000,10.0000,7.5000",
    ]
    lines = list(csv.DictReader(io.StringIO(csv_table.tests(table))))
    assert len(lines) == 9
    assert [line["worse_than_none"] for line in lines if line["defense"] == "jpeg"][:2] == ["true", "false"]


def test_markdown_by_hand(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])

    assert markdown.render(table).splitlines()[2:6] == [
        "| Source | Defense | FGSM | MI-FGSM | Average |",
        "| :-- | :-- | --: | --: | --: |",
        "| a | No defense | 50.0 | 70.0 | 60.0 |",
        "|  | JPEG | 95.0† | 65.0 | 80.0† |",
    ]


def test_latex_by_hand(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path, defenses=["none", "r&p", "rdp"])[0])
    text = latex.render(table)

    assert r"R\&P & 0.0 & 0.0" not in text  # r&p errs nowhere here, so it is the best
    assert r"R\&P & \textbf{0.0} & \textbf{0.0} & \textbf{0.0} \\" in text
    assert text.count(r"\midrule") == 1
    assert r"\multicolumn{4}{l}{\emph{a}} \\" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")
def test_latex_compiles_whatever_the_names_are(tmp_path: Path) -> None:
    odd = ["r&p", "100%_#$", r"\input{x}~^{", "[x]", 'ε≈†°–é漢<>|"', "×σ±‡"]
    run, _ = small(tmp_path, sources=[r"a_\b", "[b"], targets=["t%&"], defenses=["none", *odd], grid="my_grid & co")
    body = "".join(latex.render(table) for table in all_tables(run))
    assert "?" not in latex.escape("ε≈†°–“”−×σ±‡")
    compile_latex(tmp_path, body)


@pytest.mark.usefixtures("blank")
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")
def test_every_latex_file_of_a_report_compiles(tmp_path: Path) -> None:
    """All of them in one document, as a paper's author would: attacked tables by eps and target, and the clean one."""
    _, store = small(tmp_path, targets=["t", "u"], eps=[4, 16], sources=["a", "bpda(nrp, a)", "white-box(5)"])
    tables = sorted((render(tmp_path, store).parent / "tables").glob("*.tex"))

    assert len(tables) == 5
    compile_latex(tmp_path, "".join(f"\\input{{{path.as_posix()}}}" for path in tables))


def compile_latex(folder: Path, body: str) -> None:
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    (folder / "x.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-1500:]


def test_markdown_keeps_its_columns_whatever_the_names_are(tmp_path: Path) -> None:
    run, _ = small(tmp_path, sources=["a|b\n*c*"], defenses=["none", NASTY, "x_`y`"])
    lines = markdown.render(error_tables(run)[0]).splitlines()[2:7]

    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert "<script" not in "".join(lines)


# --- figures ---


def test_figures_hold_the_data(tmp_path: Path) -> None:
    tables = error_tables(small(tmp_path, sources=["a", "b"])[0])
    rows, columns, values = charts._grid(tables[0])

    assert rows == ["No defense", "JPEG", "RDP"]
    assert columns == [("a", "FGSM"), ("a", "MI-FGSM"), ("b", "FGSM"), ("b", "MI-FGSM")]
    np.testing.assert_allclose(values[1], [95, 65, 95, 65])
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


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    tables = error_tables(small(tmp_path)[0])

    assert charts.dot_plot(tables).saved["svg"] == charts.dot_plot(tables).saved["svg"]


# --- examples ---


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

    assert "No pictures" in examples.examples(run, store).reason
    assert "No pictures" in render(tmp_path, store).read_text("utf-8")


# --- the page ---


def test_a_grid_without_a_run_is_named(tmp_path: Path) -> None:
    _, store = small(tmp_path)
    with pytest.raises(UsageError, match=r"unknown run of grid 'table2'\. Did you mean 'table1'"):
        render(tmp_path, store, ["table2"])


def test_page_and_its_files(tmp_path: Path) -> None:
    _, store = small(tmp_path, warnings=["a word of caution"], note="Made up.")
    page = render(tmp_path, store)
    text = page.read_text("utf-8")
    names = {path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*.*")}

    assert page == tmp_path / "report" / "index.html"
    assert names == {
        "index.html",
        ".written.json",
        "tables/table1_claims.csv",
        *(
            f"tables/table1_{kind}{end}"
            for kind in ("t_eps16", "clean")
            for end in (".csv", ".tests.csv", ".tex", ".md")
        ),
        *(f"figures/table1_{name}.{end}" for name in ("heat", "dots") for end in ("svg", "png", "pdf")),
    }
    for said in ("a word of caution", "Made up.", "small stand-in", "All 9 cells are done", "ab" * 32, "resolved"):
        assert (said in text) == (said != "resolved")
    assert "ε 16.steps" in text  # what an attack resolved to
    assert re.search(r'<tr class="bare"><th scope="row">No defense</th>', text)
    assert "nan" not in Tags(text).text.lower().split()


def test_page_fetches_nothing(tmp_path: Path) -> None:
    _, store = small(tmp_path)
    text = render(tmp_path, store).read_text("utf-8")

    for tag, attributes in Tags(text).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert (value or "").startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import|https?://|<link(?![^>]*data:)|fetch\(|<iframe", text)


def test_no_name_becomes_markup_or_a_path(tmp_path: Path) -> None:
    evil = "../../../evil" + NASTY
    store = Store(tmp_path / "deep" / "er" / "store")
    out = tmp_path / "deep" / "er" / "out"
    gone = CellKey(NASTY, "fgsm", 16.0, evil, NASTY)
    make_run(
        out,
        store,
        by_hand,
        grid=evil,
        title=NASTY,
        note=NASTY,
        profile=NASTY,
        warnings=[NASTY],
        command=NASTY,
        environment={NASTY: NASTY},
        sources=[NASTY],
        targets=[evil],
        attacks=["fgsm", NASTY],
        defenses=["none", NASTY, "rdp"],
        states={gone: ("failed", NASTY)},
    )
    before = {path for path in tmp_path.rglob("*") if "report" not in path.parts}
    text = render(out, store).read_text("utf-8")
    page = Tags(text)

    assert text.count("<script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert NASTY in page.text
    assert html.escape("<script>", quote=False) in text
    assert {tag for tag, _ in page.tags} <= OURS
    assert {path for path in tmp_path.rglob("*") if "report" not in path.parts} == before
    assert all(re.fullmatch(r"[a-z0-9._-]+", path.name) for path in (out / "report").rglob("*"))


@pytest.mark.usefixtures("blank")
def test_a_partial_run_says_so(tmp_path: Path) -> None:
    states = {
        CellKey("a", "fgsm", 16.0, "t", "jpeg"): ("failed", "out of memory"),
        CellKey("a", "mi-fgsm", 16.0, "t", "rdp"): ("pending", ""),
    }
    run, store = small(tmp_path, states=states, finished=None)
    text = " ".join(summary_sentences(run))
    page = render(tmp_path, store).read_text("utf-8")

    assert "of 9 cells 7 are done, 1 failed and 1 pending" in text
    assert "out of memory" in page
    assert "not yet" in page


@pytest.mark.usefixtures("blank")
def test_a_run_with_nothing_done_still_has_a_page(tmp_path: Path) -> None:
    class All(dict[CellKey, tuple[str, str]]):
        def get(self, key: CellKey, default: Any = None) -> Any:
            return ("pending", "")

    states = All({CellKey("", "", 0, "", ""): ("", "")})
    _, store = small(tmp_path, states=states, finished=None)
    text = render(tmp_path, store).read_text("utf-8")

    assert "0 are done, 9 pending" in text
    assert "No undefended attack is done yet." in text


@pytest.mark.usefixtures("blank")
def test_grids_are_sections_and_only_picks_some(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, by_hand, grid="table1", title="The first")
    make_run(tmp_path, store, by_hand, grid="table2", title="The second", attacks=[])
    both = Tags(render(tmp_path, store).read_text("utf-8"))
    one = Tags(render(tmp_path, store, ["table2"]).read_text("utf-8"))

    sections = [attributes["id"] for tag, attributes in both.tags if tag == "section"]
    assert sections == ["table1", "table2", "not-run", "reading"]
    identifiers = [attributes["id"] for _, attributes in both.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert "The first" not in one.text
    with pytest.raises(UsageError, match="Did you mean 'table1'"):
        render(tmp_path, store, ["tabel1"])


def test_contents_lead_to_everything(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, by_hand, grid="table1", warnings=["careful"], checks=[{"passed": True, "text": "fine"}])
    make_run(tmp_path, store, by_hand, grid="figure4", attacks=["fgsm"], eps=[4, 16])
    page = Tags(render(tmp_path, store).read_text("utf-8"))

    headings = [attributes.get("id") for tag, attributes in page.tags if tag in ("h3", "section")]
    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert None not in headings
    assert {f"#{name}" for name in headings} <= set(linked)
    identifiers = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in linked if link} <= identifiers


@pytest.mark.usefixtures("blank")
def test_the_cross_check_stands_before_any_number(tmp_path: Path) -> None:
    checks = [{"passed": True, "text": "as published"}, {"passed": False, "text": "<b>off</b>"}]
    checks += [{"passed": None, "text": "not measured"}]
    _, store = small(tmp_path, checks=checks)
    text = render(tmp_path, store).read_text("utf-8")

    assert "Of 3 numbers that others published for these networks, 1 agrees, 1 does not, 1 was not measured." in text
    assert "no number below is to be trusted" in text
    assert "&lt;b&gt;off" in text
    assert text.index("as published") < text.index('class="paper-like claims"') < text.index('class="exhibit"')


def test_what_is_missing_is_counted_with_its_reason(tmp_path: Path) -> None:
    states = {
        CellKey("a", "fgsm", 16.0, "t", "jpeg"): ("failed", "out of memory"),
        CellKey("a", "mi-fgsm", 16.0, "t", "jpeg"): ("failed", "out of memory"),
        CellKey("a", "mi-fgsm", 16.0, "t", "rdp"): ("pending", ""),
    }
    failed, pending, left_out = missing(small(tmp_path, states=states)[0])

    assert (failed["count"], failed["reason"]) == (2, "cells failed: out of memory")
    assert failed["which"] == "source a; attack FGSM, MI-FGSM; eps 16; defense JPEG"
    assert (pending["count"], pending["reason"]) == (1, "cell pending: not run yet")
    assert left_out["reason"].endswith("in this run: FD, Bit-Red, TVM, SR, R&P, ComDefend, HGD, NRP")


def test_grids_without_a_run_come_with_their_command(tmp_path: Path) -> None:
    command = "rdp-bench run --grid table1 --limit=6 --defense jpeg --out 'my out' --attack fgsm"
    run, _ = small(tmp_path, command=command)
    titles = {title.partition(":")[0]: text for title, text in grids_not_run([run])}

    assert "Table 1" not in titles
    assert titles["Table 3"] == "rdp-bench run --grid table3 --limit 6 --out 'my out'"
