"""The report and the comparison in a real browser: quiet, complete, usable by keyboard, on a phone and in the dark."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.reports import audits, render
from rdp_bench.reports.compare import render as render_comparison
from rdp_bench.results.rows import CellKey
from tests.helpers.chromium import PATH, Chromium
from tests.helpers.report_fixture import make_run
from tests.reports.test_audits import card

pytestmark = pytest.mark.skipif(PATH is None, reason="neither chromium nor chrome is on the PATH")

WORDY = "a-network-with-a-name-that-is-longer-than-any-telephone-is-wide-and-cannot-be-broken"
PAGES = ("index.html", "compare.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs with everything that a page can have, and a comparison of two."""
    out = tmp_path_factory.mktemp("out")
    store = Store(out / "store")
    states = {
        CellKey("a", "fgsm", 16.0, WORDY, "jpeg"): ("failed", "out of memory " * 20),
        CellKey("a", "fgsm", 16.0, "t", "jpeg"): ("pending", ""),
    }

    def wrong(cell_key: CellKey) -> range:
        return range({"none": 12, "jpeg": 15, "rdp": 3}.get(cell_key.defense, 7) if cell_key.attack != "clean" else 1)

    one = {"targets": ["t", WORDY], "defenses": ["none", "jpeg", "nrp", "rdp"], "attacks": ["fgsm", "dim", "ti-dim"]}
    checks = [{"passed": False, "text": f"accuracy of {WORDY}"}, {"passed": True, "text": "fine"}]
    for seed, folder in enumerate(("out", "other")):
        make_run(
            out / folder, store, wrong, size=32, states=states, seed=seed, warnings=["careful"], checks=checks, **one
        )  # type: ignore[arg-type]
        make_run(out / folder, store, wrong, size=32, grid="figure4", title="Figure 4", eps=[1, 4, 16])
    for each in (card(), card(WORDY, target=WORDY, verdict="long " * 40, failed=(f"white-box: {WORDY}",))):
        audits.write(each, out / "out")
    render(out / "out", store)
    render_comparison((out / "out", out / "other"), store, out / "out")
    return out / "out" / "report"


def test_the_browser_would_notice(browser: Chromium, tmp_path: Path) -> None:
    """Without this, the next test could not fail."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); nothing.here()</script>")
    browser.open(page)

    assert any("127.0.0.1:9" in url for url in browser.requests)
    assert len(browser.complaints) >= 2


@pytest.mark.parametrize("name", PAGES)
def test_quiet_and_alone(browser: Chromium, report: Path, name: str) -> None:
    browser.screen(1440, 900)
    browser.open(report / name)
    browser.ask("new Promise(done => setTimeout(done, 200))")

    assert browser.complaints == []
    assert {url.partition(":")[0] for url in browser.requests[1:]} <= {"data"}
    assert browser.requests[0] == (report / name).as_uri()
    assert (report / name).stat().st_size < 5_000_000


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
def test_no_sideways_scroll(browser: Chromium, report: Path, name: str, width: int) -> None:
    browser.screen(width, 844)
    browser.open(report / name)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")

    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.querySelector('h2').getBoundingClientRect().top") > 0


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as large as Table 1, of 20 images, whose defenses are close to each other."""
    out = tmp_path_factory.mktemp("answered")
    defenses = ["none", "jpeg", "fd", "bit-red", "tvm", "sr", "r&p", "comdefend", "hgd", "nrp", "rdp"]
    of = {name: i for i, name in enumerate(defenses)}

    def wrong(cell_key: CellKey) -> range:
        i = of[cell_key.defense]
        return range(i % 2 if cell_key.attack == "clean" else 9 - i // 2 if i else 19)

    attacks = ["fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"]
    names = {"hgd": "A purifier with a rather long name"}
    make_run(out, Store(out / "store"), wrong, sources=["a", "b"], defenses=defenses, attacks=attacks, names=names)
    return render(out, Store(out / "store"))


PLACES = """
  Object.fromEntries(Object.entries({
    table: ".board", figure: ".answer svg", box: ".answer .scroll", claims: ".claims", first: ".board tbody tr",
  }).map(([name, which]) => {
    const {left, right, top, bottom} = document.querySelector(which).getBoundingClientRect();
    return [name, {left, right, top, bottom}];
  }))
"""


def test_the_first_screen_says_which_defense_helps(browser: Chromium, answered: Path) -> None:
    browser.screen(1400, 900)
    browser.open(answered)
    wide = browser.ask(PLACES)
    assert browser.ask("document.documentElement.scrollWidth") <= 1400
    assert wide["table"]["right"] < wide["figure"]["left"]
    assert abs(wide["box"]["top"] - wide["figure"]["top"]) < 20
    assert max(wide["table"]["bottom"], wide["figure"]["bottom"]) < 900
    assert wide["table"]["right"] <= wide["box"]["right"] + 1  # nothing of it is hidden
    assert wide["claims"]["top"] > wide["table"]["bottom"]
    heads = browser.ask("[...document.querySelectorAll('.board thead th')].map(h => h.textContent)")
    assert heads == ["Defense", "Mean error", "Against none", "Worst attack", "Clean accuracy", "ms"]
    names = browser.ask("[...document.querySelectorAll('.board tbody th')].map(h => h.textContent)")
    assert (names[0], names[-1], len(names)) == ("RDP", "No defense", 11)

    browser.screen(390, 844)
    browser.open(answered)
    narrow = browser.ask(PLACES)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert narrow["first"]["bottom"] < 844
    assert narrow["figure"]["top"] > narrow["table"]["bottom"]
    assert narrow["figure"]["right"] <= 390


@pytest.mark.parametrize("width", [390, 1400])
def test_no_label_of_the_figure_covers_another(browser: Chromium, answered: Path, width: int) -> None:
    browser.screen(width, 900)
    browser.open(answered)
    found = browser.ask("""(() => {
      const svg = document.querySelector(".answer svg");
      const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
      const room = svg.getBoundingClientRect(), bad = [];
      boxes.forEach(([text, a], i) => {
        if (a.left < room.left - 1 || a.right > room.right + 1) bad.push(text);
        for (const [other, b] of boxes.slice(0, i)) {
          const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          // A line box is taller than its letters.
          const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) - 0.35 * a.height;
          if (wide > 0 && tall > 0) bad.push(text + " / " + other);
        }
      });
      return [boxes.length, bad];
    })()""")
    assert found[0] > 11
    assert found[1] == []


def test_contents_are_folded_where_they_would_be_in_the_way(browser: Chromium, report: Path) -> None:
    for width, shown in ((390, False), (1440, True)):
        browser.screen(width, 844)
        browser.open(report / "index.html")
        assert browser.ask("document.querySelector('.contents details').open") is shown
        assert browser.ask("document.querySelector('main').getBoundingClientRect().top") < 100
    # Beside the numbers it stays in sight.
    browser.ask("scrollTo(0, 2000)")
    assert 0 <= browser.ask("document.querySelector('.contents').getBoundingClientRect().top") < 10


def test_contents_work_by_keyboard(browser: Chromium, report: Path) -> None:
    browser.screen(1440, 900)
    browser.open(report / "index.html")
    reached = []
    for _ in range(4):
        browser.press("Tab", 9)
        reached.append(browser.ask("document.activeElement.textContent.trim()"))
        outline = browser.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert reached[0] == "To the numbers"
    assert "Warnings" in reached
    assert reached[-1].startswith("Leaderboard")
    browser.press("Enter", 13, "\r")
    assert browser.ask("document.querySelector(location.hash).getBoundingClientRect().top") < 100


@pytest.mark.parametrize(("name", "column"), [("index.html", "seconds"), ("compare.html", "difference")])
def test_tables_sort_by_click_and_by_keyboard(browser: Chromium, report: Path, name: str, column: str) -> None:
    browser.screen(1440, 900)
    browser.open(report / name)
    browser.ask("document.querySelectorAll('main details').forEach(d => d.open = true)")
    prepare = """
      window.table = document.querySelector("table.sortable");
      window.heads = [...table.tHead.rows[0].cells];
      window.at = heads.findIndex(h => h.textContent === "attack");
      window.column = () => [...table.tBodies[0].rows].map(r => r.cells[at].textContent);
      column()
    """
    before = browser.ask(prepare)
    browser.ask("heads[at].querySelector('button').click()")
    assert browser.ask("column()") == sorted(before, key=str.lower)
    assert browser.ask("heads[at].ariaSort") == "ascending"
    browser.ask("heads[at].querySelector('button').focus()")
    browser.press(" ", 32, " ")
    assert browser.ask("column()") == sorted(before, key=str.lower, reverse=True)
    assert browser.ask("heads[at].ariaSort") == "descending"
    browser.press("Enter", 13, "\r")
    assert browser.ask("heads[at].ariaSort") == "ascending"
    numbers = browser.ask(
        f"at = heads.findIndex(h => h.textContent === '{column}'); heads[at].querySelector('button').click(); column()"
    )
    values = [float(text.replace("−", "-").replace("±", "")) for text in numbers if text]
    assert values == sorted(values)


def test_rows_are_filtered_by_words(browser: Chromium, report: Path) -> None:
    browser.open(report / "index.html")
    found = browser.ask("""(() => {
      const input = document.querySelector("#table1 input");
      input.value = "rdp ti-dim";
      input.dispatchEvent(new Event("input"));
      const rows = [...document.querySelector("#table1 table.sortable").tBodies[0].rows];
      return [rows.filter(r => !r.hidden).length, document.querySelector("#table1 output").textContent];
    })()""")
    assert found == [2, "2 of 32"]


@pytest.mark.parametrize("name", PAGES)
def test_dark_is_dark_and_both_can_be_read(browser: Chromium, report: Path, name: str) -> None:
    seen: dict[bool, Any] = {}
    for dark in (False, True):
        browser.screen(1440, 900, dark)
        browser.open(report / name)
        seen[dark] = browser.ask("""(() => {
          const page = getComputedStyle(document.documentElement).backgroundColor;
          const all = [...document.querySelectorAll("h2, p, a, td, th, text, .by, .ci, .verdict, .remark, .v")];
          const ink = e => getComputedStyle(e)[e.tagName === "text" ? "fill" : "color"];
          // Numbers in a heat map's cells, which test_charts compares with their cells.
          const cells = ["rgb(1, 1, 1)", "rgb(254, 254, 254)"];
          return [page, [...new Set(all.map(ink))].filter(i => !cells.includes(i))];
        })()""")
    assert luminance(seen[False][0]) > 0.9
    assert luminance(seen[True][0]) < 0.05
    for page, inks in seen.values():
        assert len(inks) >= 2
        for ink in inks:
            light, dim = sorted((luminance(page), luminance(ink)), reverse=True)
            assert (light + 0.05) / (dim + 0.05) >= 4.5, (page, ink)  # WCAG AA


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    parts = [float(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_screen_reader_needs(browser: Chromium, report: Path, name: str) -> None:
    browser.screen(1440, 900)
    browser.open(report / name)
    levels = browser.ask("[...document.querySelectorAll('h1, h2, h3, h4, h5')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    bare = browser.ask("[...document.querySelectorAll('table')].filter(t => !t.caption?.textContent.trim()).length")
    assert bare == 0
    assert browser.ask("[...document.querySelectorAll('th:not([scope])')].length") == 0
    assert browser.ask("document.querySelectorAll('main table').length") > 0
    assert browser.ask("[...document.querySelectorAll('img')].filter(i => !i.alt).length") == 0
    drawn = "[...document.querySelectorAll('svg')].map(s => s.role + ' ' + s.ariaLabel)"
    assert all(text.startswith("img ") and len(text) > 10 for text in browser.ask(drawn))
    nameless = browser.ask("""
      [...document.querySelectorAll('a[href], button, input, summary, [tabindex]')].filter(e =>
        !(e.ariaLabel || e.labels?.[0]?.textContent || e.textContent).trim()).map(e => e.outerHTML.slice(0, 200))
    """)
    assert nameless == []
    twice = "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
    assert browser.ask(twice) == 0
    assert browser.ask("document.documentElement.lang") == "en"
    assert browser.ask("document.querySelectorAll('main').length") == 1


def test_print_leaves_the_contents_out_and_cuts_no_table(browser: Chromium, report: Path) -> None:
    browser.screen(700, 900)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.open(report / "index.html")
    overflow = "[...document.querySelectorAll('.exhibit .scroll')].map(s => getComputedStyle(s).overflowX)"
    assert set(browser.ask(overflow)) == {"visible"}
    assert browser.ask("document.querySelector('.contents ol').offsetParent") is None
    browser.call("Emulation.setEmulatedMedia", media="")
