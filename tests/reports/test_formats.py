"""Tables as CSV, LaTeX and Markdown."""

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rdp_bench.reports import render
from rdp_bench.reports.formats import csv_table, latex, markdown, text
from rdp_bench.reports.formats.pdf_page import Face
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.reports.tables.table import error_tables
from tests.helpers.reports import NASTY, small


def test_sheet_in_the_shape_of_the_table(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])

    assert csv_table.shape(table).splitlines() == [
        "source,defense,fgsm,mi-fgsm,average",
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


def test_markdown_below_a_table_is_text(tmp_path: Path) -> None:
    (table,) = error_tables(small(tmp_path)[0])
    text = markdown.render(replace(table, caption="<img src=x> [click](javascript:x)"))
    assert "<img" not in text
    assert r"&lt;img src=x&gt; \[click\](javascript:x)" in text


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
    letters = "ε≈†°–“”−×σ±‡ Öäüéçñàôøłßœæžş β-VAE λΓΩθ → ²"
    assert "?" not in latex.escape(letters)
    body += latex.escape(letters)
    compile_latex(tmp_path, body)


def test_names_in_any_script_are_told_apart_in_every_format(tmp_path: Path) -> None:
    """LaTeX holds each letter, with its code for pdflatex; PDF has codes for what its font lacks."""
    names = ["净化", "净水", "日本語", "हिन्दी", "ΑΒ", "🔥"]
    (table,) = error_tables(small(tmp_path, defenses=["none", *names], attacks=["fgsm"])[0])
    tex = latex.render(table)
    assert tex.startswith("% \\usepackage{booktabs}\n% pdflatex prints some letters of this table as their codes;")
    assert "\\rdpletter{51C0}{净}\\rdpletter{5316}{化} & " in tex
    rows = [line.partition(" & ")[0] for line in tex.splitlines() if line.endswith(r"\\") and "rdpletter" in line]
    assert len(set(rows)) == len(names)
    assert [re.sub(r"\\rdpletter{[0-9A-F]+}{(.)}", r"\1", row) for row in rows] == names
    assert [Face.of("STIXGeneral", frozenset(name)).clean(name) for name in names[:2]] == [
        "[U+51C0][U+5316]", "[U+51C0][U+6C34]"
    ]  # fmt: skip
    assert "rdpletter" not in latex.render(error_tables(small(tmp_path / "plain")[0])[0])
    lines = text.render(table).splitlines()
    wide, narrow = (next(line for line in lines if line.startswith(name)) for name in ("净化", "ΑΒ"))
    assert len(narrow) == len(wide) + 2  # two letters, each two columns


@pytest.mark.usefixtures("blank")
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here")
def test_every_latex_file_of_a_report_compiles(tmp_path: Path) -> None:
    """All of them in one document, as a paper's author would: attacked tables by eps and target, and the clean one."""
    _, store = small(tmp_path, targets=["t", "u"], eps=[4, 16], sources=["a", "bpda(nrp, a)", "white-box(5)"])
    tables = sorted((render(tmp_path, store).parent / "tables").glob("*.tex"))

    # Of each target and eps one with its averages, and its leaderboard at the larger eps; clean, and parameters.
    assert len(tables) == 4 * 2 + 2 * 2 + 2
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
