"""What a paper's author takes from a report: LaTeX for two columns, tables as PDF, parameters of attacks."""

import csv
import io
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.reports.formats import files, latex, markdown, pdf
from rdp_bench.reports.formats.pdf_page import Face, Page
from rdp_bench.reports.tables.leaderboard import as_table, leaderboards
from rdp_bench.reports.tables.parameters import parameters
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.reports.tables.table import Table, error_tables
from rdp_bench.results.rows import Run, load
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import by_hand, small

FIVE = ["fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"]
ELEVEN = ["none", "jpeg", "fd", "bit-red", "tvm", "sr", "r&p", "comdefend", "hgd", "nrp", "rdp"]
FOUR = ["effnet-lite0", "effnet-lite1", "resnet-v2-152", "bpda(nrp, effnet-lite0)"]


def whole(out: Path, **more: Any) -> Run:
    """A run as large as the paper's Table 1."""
    axes = {"sources": FOUR, "attacks": FIVE, "defenses": ELEVEN, "targets": ["effnet-lite2-ens"], **more}
    make_run(out, Store(out / "store"), by_hand, samples=1, **axes)
    return load(out, Store(out / "store"))[0]


needs_latex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")


def compiled(folder: Path, body: str, packages: str = "booktabs") -> str:
    """The log of a two-column document."""
    head = rf"\documentclass[twocolumn]{{article}}\usepackage[margin=19mm]{{geometry}}\usepackage{{{packages}}}"
    (folder / "x.tex").write_text(rf"{head}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:]
    return done.stdout


@needs_latex
def test_latex_fits_a_two_column_page(tmp_path: Path) -> None:
    """LaTeX itself says what sticks out: "Overfull \\hbox"."""
    run = whole(tmp_path)
    (board,), (error, *_) = leaderboards(run), all_tables(run)
    more = parameters(run)
    assert more
    tables = [error, as_table(board), more]
    texts = [*map(latex.render, tables), latex.averages(error)]
    log = compiled(tmp_path, "".join(texts))

    assert "Overfull" not in log
    assert "Overfull" in compiled(tmp_path, texts[0].replace("table*", "table"))  # such a table is wider than a column
    assert [text.count(r"\begin{table*}") for text in texts] == [1, 1, 1, 0]
    assert all(text.count("Bold:") == 1 for text in (texts[0], texts[3]))  # below the table, not in its caption
    assert texts[0].index(r"\end{tabular}") < texts[0].index("Bold:") < texts[0].index(r"\end{table*}")


def test_averages_alone(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path, sources=["a", "b"])[0])
    text = latex.averages(table)

    assert r"Defense & a & b \\" in text
    assert r"No defense & 60.0 & 60.0 \\" in text
    assert r"RDP & \textbf{7.5} & \textbf{7.5} \\" in text
    assert "FGSM" not in text.partition(r"\begin{tabular}")[2].partition(r"\end{tabular}")[0]
    (single,) = error_tables(small(tmp_path / "2", attacks=["fgsm"])[0])
    assert latex.averages(single) == ""


def test_long_sources_become_numbers(tmp_path: Path) -> None:
    (table,) = error_tables(whole(tmp_path))
    text = latex.averages(table)

    assert r"Defense & 1 & 2 & 3 & 4 \\" in text
    assert "4: BPDA(NRP, effnet-lite0)" in text or "4: bpda(nrp, effnet-lite0)" in text


def test_parameters_by_hand(tmp_path: Path) -> None:
    attacks = {
        "fgsm": {"resolved": {"8": {"steps": 1, "alpha": 8 / 255}, "16": {"steps": 1, "alpha": 16 / 255}}},
        "dim": {"resolved": {eps: {"steps": 10, "part": {"prob": 0.7}, "resize_back": False} for eps in ("8", "16")}},
    }
    run, _ = small(tmp_path, attacks=["fgsm", "dim"], eps=[8, 16])
    run.record["attacks"] = attacks
    table = parameters(run)
    assert table

    lines = list(csv.reader(io.StringIO(files.of_table(table)[".csv"].decode())))
    assert lines == [
        ["source", "parameter", "fgsm", "dim"],
        ["ε = 8", "steps", "1", "10"],
        ["ε = 8", "step size α", "0.031373", ""],
        ["ε = 8", "part.prob", "", "0.7"],
        ["ε = 8", "resized back", "", "no"],
        ["ε = 16", "steps", "1", "10"],
        ["ε = 16", "step size α", "0.062745", ""],
        ["ε = 16", "part.prob", "", "0.7"],
        ["ε = 16", "resized back", "", "no"],
    ]
    assert r"step size $\alpha$ & 0.031373 & -- \\" in latex.render(table)
    assert "|  | step size α | 0.062745 | – |" in markdown.render(table)
    assert ".tests.csv" not in files.of_table(table)


def texts_of(content: bytes) -> str:
    """The text of a PDF of `pdf_page`, by its own map from glyphs to letters."""
    streams = [zlib.decompress(found) for found in re.findall(rb"stream\n(.*?)\nendstream", content, re.DOTALL)]
    letters: dict[str, dict[str, str]] = {}
    maps = [stream for stream in streams if b"begincmap" in stream]
    names = re.findall(rb"/Subtype /Type0 /BaseFont /(\w+)", content)
    for name, stream in zip(names, maps, strict=True):
        pairs = re.findall(rb"^<(\w{4})> <(\w+)>$", stream, re.MULTILINE)
        letters[name.decode()] = {a.decode(): bytes.fromhex(b.decode()).decode("utf-16-be") for a, b in pairs}
    drawn = re.findall(rb"BT /(\w+) [^<]*<(\w*)>", streams[-1])
    lines = []
    for font, glyphs in drawn:
        text = glyphs.decode()
        lines.append("".join(letters[font.decode()][text[i : i + 4]] for i in range(0, len(text), 4)))
    return "\n".join(lines)


def test_pdf_holds_the_table(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path, defenses=["none", "r&p", "rdp", "漢<b>"], sources=["ε≈†‡°"])[0])
    content = pdf.render(table)
    text = texts_of(content)

    for said in ("R&P", "No defense", "50.0", "70.0", "ε≈†‡°", "[U+6F22]<b>", "MI-FGSM"):
        assert said in text
    assert table.legend[:30] in text.replace("\n", " ")
    assert content == pdf.render(table)


def test_pdf_is_what_the_standard_says() -> None:
    """Every object is where the cross-reference table says; a letter is as wide as in the font file."""
    from fontTools.ttLib import TTFont

    face = Face.of("STIXGeneral", "")
    page = Page(100, 50)
    page.text(10, 20, "Wi", face, 10)
    content = page.file()
    start = int(content.rpartition(b"startxref\n")[2].split()[0])
    assert content[start:].startswith(b"xref\n0 ")
    places = re.findall(rb"(\d{10}) 00000 n ", content[start:])
    for number, at in enumerate(places, 1):
        assert content[int(at) :].startswith(b"%d 0 obj\n" % number)
    font = TTFont(io.BytesIO(face.data))
    cmap, widths = font.getBestCmap(), font["hmtx"]
    expected = sum(widths[cmap[ord(letter)]][0] for letter in "Wi") / font["head"].unitsPerEm * 10
    assert face.width("Wi", 10) == pytest.approx(expected)


@needs_latex
def test_latex_reads_the_pdf(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])
    (tmp_path / "table.pdf").write_bytes(pdf.render(table))
    log = compiled(tmp_path, r"\includegraphics[width=\linewidth]{table.pdf}", "graphicx")

    assert "<./table.pdf>" in log
    assert "pdfTeX warning" not in log


def test_every_table_has_its_legend_in_every_format(tmp_path: Path) -> None:
    def formats(table: Table) -> list[str]:
        return [latex.render(table), markdown.render(table), texts_of(pdf.render(table)).replace("\n", " ")]

    (table, clean) = all_tables(small(tmp_path)[0])
    assert all(text.count("significantly worse than no defense") == 1 for text in formats(table))
    assert all("significantly worse" not in text for text in formats(clean))  # it has no such mark


def test_parameters_name_the_norm_every_level_and_small_values(tmp_path: Path) -> None:
    run, _ = small(tmp_path, attacks=["fgsm"])
    run.record["axes"]["norm"] = "l2"
    made = {eps: {"alpha": alpha, "tolerance": 2.5e-7} for eps, alpha in (("1", 0.5), ("2", 0.5), ("3", 0.25))}
    run.record["attacks"] = {"fgsm": {"resolved": made}}
    table = parameters(run)
    assert table
    assert table.caption.startswith("Resolved parameters of the attacks at ε = 1 (L2), 2 (L2), 3 (L2).")
    assert [(group.source, [line.cells[0].text for line in group.rows]) for group in table.groups] == [
        ("ε = 1 (L2), 2 (L2)", ["0.5", "2.5e-07"]), ("ε = 3 (L2)", ["0.25", "2.5e-07"])
    ]  # fmt: skip


def test_a_pdf_is_as_wide_as_the_names_in_it(tmp_path: Path) -> None:
    source = "+".join(f"a-network-of-a-long-name-{i}" for i in range(8))
    (table,) = error_tables(small(tmp_path, sources=[source], targets=["t" * 90])[0])
    found = re.search(rb"/MediaBox \[0 0 ([\d.]+)", pdf.render(table))
    assert found
    face = Face.of("STIXGeneral", "")
    assert float(found[1]) >= max(face.width(source, 9), face.width("t" * 90, 9)) + 11.9


def test_a_star_at_the_start_of_a_row_is_no_part_of_the_break_before_it(tmp_path: Path) -> None:
    text = latex.render(error_tables(small(tmp_path, defenses=["none", "*mine"])[0])[0])
    assert "\n{*}mine & " in text
