"""The page of a report: sections, escaping, what is partial, missing or not run."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.errors import UsageError
from rdp_bench.reports import render
from rdp_bench.reports.summary import PROFILES, grids_not_run, missing, setting, summary_sentences
from rdp_bench.results.record import sealed
from rdp_bench.results.rows import CellKey, given_name, shown_names
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import NASTY, by_hand, small

OURS = {
    "html", "head", "meta", "title", "link", "style", "body", "main", "nav", "section", "header", "p", "h1", "h2",
    "h3", "figure", "figcaption", "div", "span", "table", "thead", "tbody", "tr", "th", "td", "br", "img", "ul",
    "li", "details", "summary", "label", "input", "output", "code", "dl", "dt", "dd", "script", "a", "svg", "g",
    "h4", "caption", "ol", "b", "small",
    "path", "use", "defs", "text", "clippath", "rect", "image",
}  # fmt: skip
"""Every tag of the page."""


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


def test_a_grid_without_a_run_is_named(tmp_path: Path) -> None:
    _, store = small(tmp_path)
    with pytest.raises(UsageError, match=r"unknown run 'table2'\. Did you mean 'table1'"):
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
            for end in (".csv", ".tests.csv", ".tex", ".md", ".pdf")
        ),
        "tables/table1_t_eps16.averages.tex",
        *(
            f"tables/table1_{kind}{end}"
            for kind in ("leaderboard_t_eps16", "attack-parameters")
            for end in (".csv", ".tex", ".md", ".pdf")
        ),
        *(
            f"figures/table1_{name}.{end}"
            for name in ("heat", "dots", "tradeoff-t-eps16")
            for end in ("svg", "png", "pdf")
        ),
        "figures/table1_tradeoff-t-eps16.csv",
    }
    for said in ("a word of caution", "Made up.", "small substitute", "All 9 cells are done", "ab" * 32, "resolved"):
        assert (said in text) == (said != "resolved")
    assert "<dt>steps</dt><dd>10</dd>" in text  # what an attack resolved to
    assert re.search(r'<tr class="bare"><th scope="row">No defense</th>', text)
    assert "nan" not in Tags(text).text.lower().split()


def test_page_fetches_nothing(tmp_path: Path) -> None:
    """Links lead to parts of the page and to files beside it, each of which is there."""
    _, store = small(tmp_path)
    page = render(tmp_path, store)
    text = page.read_text("utf-8")
    links = [str(attributes["href"]) for tag, attributes in Tags(text).tags if tag == "a"]
    beside = [link for link in links if not link.startswith("#")]

    assert {page.parent / link for link in beside} == {
        path for path in page.parent.rglob("*.*") if path.parent != page.parent
    }
    assert all(re.fullmatch(r"(tables|figures)/[\w.-]+", link) for link in beside)
    for tag, attributes in Tags(text).tags:
        for name, value in attributes.items():
            if tag != "a" and name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
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
        grid='..evil<img src=x onerror=alert(1)>"',  # what a file can be called: a record has its grid's name
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

    assert "7 of 9 cells are done, 1 failed and 1 pending" in text
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

    assert "0 of 9 cells are done, 9 pending" in text
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
    assert {link[1:] for link in linked if link and link[0] == "#"} <= identifiers


@pytest.mark.usefixtures("blank")
def test_the_cross_check_stands_before_any_number(tmp_path: Path) -> None:
    checks = [{"passed": True, "text": "as published"}, {"passed": False, "text": "<b>off</b>"}]
    checks += [{"passed": None, "text": "not measured"}]
    _, store = small(tmp_path, checks=checks)
    text = render(tmp_path, store).read_text("utf-8")

    assert "Of 3 published numbers for these networks, 1 agrees, 1 does not, 1 was not measured." in text
    assert "Do not trust the numbers below" in text
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
    assert left_out["reason"].endswith("this run lacks: FD, Bit-Red, TVM, SR, R&P, ComDefend, HGD, NRP")


def test_grids_without_a_run_come_with_their_command(tmp_path: Path) -> None:
    command = "rdp-bench run --grid table1 --limit=6 --defense jpeg --out 'my out' --attack fgsm"
    run, _ = small(tmp_path, command=command)
    titles = {title.partition(":")[0]: text for title, text in grids_not_run([run])}

    assert grids_not_run([small(tmp_path / "own", grid="mine")[0]]) == []
    assert "Table 1" not in titles
    assert titles["Table 3"] == "rdp-bench run --grid table3 --limit 6 --out 'my out'"


def test_a_grid_of_ones_own_is_not_called_a_substitute_for_the_papers(tmp_path: Path) -> None:
    """Its networks and images need not be those of the package."""
    assert setting(small(tmp_path / "built in", grid="table1")[0]) == PROFILES["embedded"]
    assert setting(small(tmp_path / "own", grid="mine")[0]) == "A custom setting, not the paper's."


def test_names_of_one_run_are_not_those_of_another(tmp_path: Path, blank: None) -> None:
    """`first` calls no defense "Rounding", and a defense "No defense"; `second` names nothing."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.toml").write_text(
            f'title = "{name}"\n[axes]\ndataset = "tiny/noise"\nsources = ["tiny/one"]\ntargets = ["tiny/two"]\n'
            'attacks = ["fgsm"]\neps = [8]\ndefenses = ["none", "tiny/round"]\n'
        )
        run = (
            "run",
            tmp_path / f"{name}.toml",
            "--plugin",
            PLUGIN,
            "--cache",
            tmp_path / "cache",
            "--out",
            tmp_path / "o",
        )
        assert cli(*run).exit_code == 0
    record = tmp_path / "o" / "runs" / "first.json"
    said = {**json.loads(record.read_text()), "names": {"none": "Rounding", "tiny/round": "No defense"}}
    del said["sha256"]
    record.write_text(sealed(said))
    assert cli("report", "--out", tmp_path / "o", "--cache", tmp_path / "cache").exit_code == 0

    def rows(name: str) -> list[str]:
        (table,) = (tmp_path / "o" / "report" / "tables").glob(f"{name}_tiny*.md")
        return [line.split("|")[2].strip() for line in table.read_text().splitlines() if line.startswith("| ")][2:]

    assert rows("first") == ["Rounding", "No defense"]
    assert rows("second") == ["No defense", "tiny/round"]


def test_names_that_contradict_each_other_are_not_used() -> None:
    with shown_names({"a": "Ours", "b": "B"}, {"a": "Theirs", "c": "B", "d": "D"}):
        assert [given_name(label) for label in "abcd"] == ["a", "b", "c", "D"]
