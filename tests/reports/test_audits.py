"""Cards of audits in the report: the section of each, the table and the figure of several, files, damage."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.engine import grid
from rdp_bench.errors import UsageError
from rdp_bench.reports import audits, published, render
from rdp_bench.reports.audit_section import view
from rdp_bench.reports.figures.drawing import ACCENT
from rdp_bench.reports.figures.illusion import illusion
from rdp_bench.reports.tables.audits import sheet, side_by_side
from rdp_bench.results import cards
from rdp_bench.results.cards import AttackFacts, Card, Cost, Finding, Tier
from tests.helpers.commands import cli
from tests.helpers.reports import NASTY, small

ATTACK = AttackFacts("apgd-ce", 4.0, ("white-box(20)",), ("white-box",), 2020.0, {"steps": 100, "loss": NASTY})


def tier(name: str, accuracy: float, low: float, high: float, undefended: float | None = None) -> Tier:
    return Tier(name, accuracy, low, high, accuracy, accuracy, 20, (f"pgd by {name}",), undefended, f"{name}: in words")


def card(defense: str = "jpeg", **more: Any) -> Card:
    """Clean 95 %, transfer 60 %, white-box 5 %; C5 fails."""
    usual: dict[str, Any] = {
        "defense": defense, "target": "effnet-lite2", "dataset": "photos20", "n": 20, "eps": 4.0, "budget": "quick",
        "random": False, "verdict": f"At eps 4 an attacker who knows {defense} leaves 1 to 24 % of images right.",
        "tiers": (
            tier("clean", 95, 76.4, 99.1, 100), tier("transfer", 60, 38.7, 78.1, 10), tier("white-box", 5, 0.9, 23.6, 0)
        ),
        "findings": (
            Finding("C1", "against no defense", "PASS", "all is well"),
            Finding("C5", "the gradient points uphill", "FAIL", "up on 2 of 20", "it is wrong", "look at it"),
            Finding("C12", "enough images", "WARN", "20 images"), Finding("C9", "randomness", "n/a", "deterministic"),
        ),
        "attacks": (ATTACK,), "cost": Cost(4711.0, 12.5, 30, 4), "command": f"rdp-bench audit {defense}",
    }  # fmt: skip
    return Card(**(usual | more))


def text_of(page: str) -> str:
    """A page's text without markup."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)).split())


def test_the_page_has_a_section_per_audit(tmp_path: Path) -> None:
    for each in (card(), card("rdp", names={"rdp": "Ours"}, failed=("white-box: pgd: it broke",))):
        audits.write(each, tmp_path)
    page = render(tmp_path, Store(tmp_path / "store")).read_text()
    sections = re.findall(r'<section id="([^"]+)">', page)
    mine = [cards.name_of(name, "effnet-lite2", "photos20", 4.0, "quick") for name in ("jpeg", "rdp")]
    assert sections == ["audits", *(f"audit_{name}" for name in mine), "reading"]
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    text = text_of(page)
    assert "Ours in front of effnet-lite2" in text
    assert "white-box: pgd: it broke" in text
    for said in ("✗ 1 FAIL", "! 1 WARN", "✓ 1 PASS", "– 1 n/a", "C5 the gradient points uphill", "up on 2 of 20"):
        assert text.count(said) == 2
    assert "At most 4,711 gradients per image; 12.5 minutes, with 4 of 30 jobs from the cache." in text
    assert "rdp-bench audit jpeg" in text
    assert "apgd-ce, ε = 4" in text
    assert "steps 100" in text
    assert "gradients per image 2,020" in text
    assert "Mean error" not in text  # no leaderboard, there is no run
    assert NASTY not in page
    for link in re.findall(r'href="((?:tables|figures)/[^"]+)"', page):
        assert (tmp_path / "report" / link).is_file()


def test_an_audit_of_other_images_says_what_it_replaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audits.write(card(), tmp_path)
    audits.write(card(), tmp_path)
    assert "replaces" not in caplog.text
    audits.write(replace(card(), failed=("a cell",)), tmp_path)
    assert "replaces" not in caplog.text  # the same command: the defense was edited, or did not fail before
    audits.write(replace(card(), n=1), tmp_path)
    assert "replaces the audit of 20 images by `rdp-bench audit jpeg`" in caplog.text
    assert "by one of 1 image; choose another --out" in caplog.text


def test_another_seed_says_what_it_replaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audits.write(card(), tmp_path)
    other = replace(card(), command="rdp-bench audit jpeg --seed 1")
    audits.write(other, tmp_path)
    assert "replaces" not in caplog.text  # nothing is lost: all numbers are equal
    audits.write(replace(other, verdict="Another."), tmp_path)
    audits.write(card(), tmp_path)
    assert "by `rdp-bench audit jpeg --seed 1`, which had other numbers" in caplog.text


def test_a_card_has_the_cost_of_its_own_audit(tmp_path: Path) -> None:
    """Where everything came from the cache, that of an equal audit; never that of another."""
    costs = [Cost(4_711, minutes, 30, cached) for minutes, cached in ((12.5, 4), (0.2, 30))]
    first, again = (replace(card(), cost=cost) for cost in costs)
    audits.write(first, tmp_path)
    assert audits.write(again, tmp_path)[0].cost == first.cost
    assert audits.write(replace(again, n=3), tmp_path)[0].cost == again.cost


@pytest.mark.parametrize(("one", "other"), [(2.1234567, 2.1234568), (0.1 + 0.2, 0.3)])
def test_audits_at_two_eps_have_two_names(one: float, other: float) -> None:
    assert replace(card(), eps=one).name != replace(card(), eps=other).name


def test_audits_stand_beside_runs_whose_parts_have_no_section(tmp_path: Path) -> None:
    run, store = small(tmp_path)
    audits.write(card(runs=("another",)), tmp_path)
    page = render(tmp_path, store).read_text()
    assert re.findall(r'<section id="([^"]+)">', page)[:2] == [run.grid, "audits"]
    audits.write(card(runs=(run.grid,), grid="mine"), tmp_path)
    assert f'<section id="{run.grid}">' not in render(tmp_path, store).read_text()
    only = render(tmp_path, store, [run.grid]).read_text()
    assert re.findall(r'<section id="([^"]+)">', only)[0] == run.grid
    assert 'id="audits"' not in only
    assert 'id="audits"' in render(tmp_path, store, ["mine"]).read_text()
    with pytest.raises(UsageError, match="unknown run 'other'"):
        render(tmp_path, store, ["other"])


def test_bars_are_where_their_numbers_are() -> None:
    """404 of 420 units are 100 %."""
    drawing = view(card())["drawing"]
    clean, transfer, white = drawing["bars"]
    assert [bar["long"] for bar in (clean, transfer, white)] == [383.8, 242.4, 20.2]
    assert (transfer["low"], transfer["high"], transfer["bare"]) == (164.3, 323.5, 48.4)
    assert (white["name"], white["knows"], white["bare"]) == ("white-box", "in words", 8.0)


def test_the_table_has_every_number_and_the_verdict() -> None:
    found = [card(), card("fd", target="other", tiers=(tier("clean", 90, 70, 97),), findings=())]
    (table,) = side_by_side(found)
    rows = list(csv.DictReader(io.StringIO(sheet(found, table))))
    assert rows[0] == {
        "defense": "jpeg", "target": "effnet-lite2", "dataset": "photos20", "n": "20", "eps": "4", "budget": "quick",
        "clean": "95.0000", "clean_low": "76.4000", "clean_high": "99.1000",
        "transfer": "60.0000", "transfer_low": "38.7000", "transfer_high": "78.1000",
        "white-box": "5.0000", "white-box_low": "0.9000", "white-box_high": "23.6000",
        "worst_tier": "white-box", "worst": "5.0000", "worst_low": "0.9000", "worst_high": "23.6000",
        "failed_checks": "C5", "verdict": "At eps 4 an attacker who knows jpeg leaves 1 to 24 % of images right.",
    }  # fmt: skip
    assert (rows[1]["transfer"], rows[1]["worst_tier"], rows[1]["failed_checks"]) == ("", "", "")
    shown = [[entry.shown for entry in line.cells] for line in table.groups[0].rows]
    assert shown == [
        ["effnet-lite2", "95.0", "60.0", "5.0", "white-box 5.0 (0.9–23.6)", "C5"],
        ["other", "90.0", None, None, None, "none"],
    ]


def test_settings_are_not_mixed() -> None:
    found = [card(), card("rdp", eps=8.0), card("fd", n=10), card("nrp", budget="full"), card("sr")]
    tables = side_by_side(found)
    assert [[line.defense for line in table.groups[0].rows] for table in tables] == [
        ["jpeg", "sr"], ["rdp"], ["fd"], ["nrp"]
    ]  # fmt: skip
    assert len({table.slug for table in tables}) == 4


def test_the_figure_plots_transfer_error_against_white_box_error() -> None:
    figure = illusion([card(), card("rdp", tiers=(tier("clean", 90, 70, 97), tier("transfer", 80, 60, 90)))])
    assert figure is not None
    rows = list(csv.DictReader(io.StringIO(figure.csv or "")))
    assert [row["defense"] for row in rows] == ["jpeg", "none"]  # rdp has no white-box tier
    assert {name: float(rows[0][name]) for name in rows[0] if "error" in name} == pytest.approx({
        "transfer_error": 40, "transfer_error_low": 21.9, "transfer_error_high": 61.3,
        "white_box_error": 95, "white_box_error_low": 76.4, "white_box_error_high": 99.1,
    })  # fmt: skip
    assert (float(rows[1]["transfer_error"]), float(rows[1]["white_box_error"])) == (90, 100)
    drawn = ET.fromstring(figure.saved["svg"])
    words = ["".join(each.itertext()).strip() for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"JPEG", "No defense", "error under transfer attacks, %", "error under white-box attacks, %"} <= {*words}
    width, height = (float(drawn.get(side, "").removesuffix("pt")) for side in ("width", "height"))
    uses = [each for each in drawn.iter("{http://www.w3.org/2000/svg}use") if ACCENT in each.get("style", "")]
    (place,) = [(float(each.get("x", "")) / width, float(each.get("y", "")) / height) for each in uses]
    assert place == pytest.approx((0.5, 0.08), abs=0.06)  # 40 % to the right, at 95 % of the height
    assert illusion([card(tiers=())]) is None


def test_two_targets_are_two_panels() -> None:
    figure = illusion([card(), card(target="other"), card("rdp", target="other")])
    assert figure is not None
    assert figure.saved["svg"].decode().count("error under transfer attacks") == 2
    setting = "ε = 4, photos20, budget quick"  # of both: said once, in the caption
    assert figure.caption.endswith(f" {setting}.")
    assert "photos20" not in figure.saved["svg"].decode()
    several = illusion([card(), card(target="other", eps=8)])
    assert several is not None
    assert setting not in several.caption
    assert several.saved["svg"].decode().count("photos20") == 2


def test_an_audit_is_no_figure_of_cells(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(
        '[axes]\nfigures = ["illusion"]\ndefenses = ["none"]\ndataset = "photos20"\ntargets = ["effnet-lite2"]\n'
    )
    with pytest.raises(UsageError, match="figure 'illusion' is drawn of audits"):
        grid.load(str(tmp_path / "g.toml"), "embedded", {})


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw | {"verdict": "All is well."},
        lambda raw: raw | {"format": 99},
        lambda raw: {name: value for name, value in raw.items() if name != "tiers"},
        lambda raw: [],
    ],
)
def test_an_edited_card_is_left_out_and_named(change: Any, tmp_path: Path) -> None:
    audits.write(card("rdp"), tmp_path)
    _, (path, *_) = audits.write(card(), tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    lost: list[str] = []
    page = render(tmp_path, Store(tmp_path / "store"), complain=lost.append).read_text()
    assert len(lost) == 1
    assert str(path) in lost[0]
    assert "RDP in front of" in page
    assert "JPEG in front of" not in page
    found = cli("report", "--out", tmp_path, "--cache", tmp_path / "store")
    assert (found.exit_code, str(path) in found.output) == (1, True)


def test_a_copied_card_is_left_out(tmp_path: Path) -> None:
    _, (path, *_) = audits.write(card(), tmp_path)
    (path.parent / "copy.json").write_bytes(path.read_bytes())
    lost: list[str] = []
    assert cards.load(tmp_path, lost.append) == [card()]
    assert lost == [f"{path.parent / 'copy.json'} is the card of another audit, {path.stem}; move it away"]


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = card(names={"a": "b"}, runs=("x",))
    written, files = audits.write(made, tmp_path)
    assert written == made == cards.read(files[0])
    assert sorted(path.suffix for path in files) == [".html", ".json", ".md", ".tex"]


def test_a_card_from_the_cache_keeps_what_it_took(tmp_path: Path) -> None:
    audits.write(card(), tmp_path)
    again, _ = audits.write(card(cost=Cost(4711.0, 0.1, 30, 30)), tmp_path)
    assert again.cost == Cost(4711.0, 12.5, 30, 4)
    changed, _ = audits.write(card(cost=Cost(4711.0, 0.2, 30, 29)), tmp_path)
    assert changed.cost == Cost(4711.0, 0.2, 30, 29)


def test_names_are_neither_paths_nor_markup(tmp_path: Path) -> None:
    nasty = card(
        f"../../{NASTY}|", target="../t", dataset="/etc/passwd", verdict=NASTY, command=f"rdp-bench {NASTY}",
        findings=(Finding("C1", NASTY, "FAIL", f"{NASTY}|", NASTY, NASTY),), failed=(NASTY,),
        tiers=(replace(tier("clean", 90, 70, 97), title=NASTY, attacks=(NASTY,)),),
    )  # fmt: skip
    assert re.fullmatch("[a-z0-9-]+", nasty.name)
    _, files = audits.write(nasty, tmp_path / "out")
    assert {path.parent for path in files} == {tmp_path / "out" / "audit"}
    page = render(tmp_path / "out", Store(tmp_path / "store"))
    markdown = next(path for path in files if path.suffix == ".md").read_text()
    for text in (page.read_text(), files[-1].read_text(), markdown.replace("\n    rdp-bench", "").split("\n\nCost")[0]):
        assert NASTY not in text
    assert all(line.count("|") - line.count("\\|") == 6 for line in markdown.splitlines() if line.startswith("| C1"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit", "report"}


def test_different_audits_have_different_files() -> None:
    several = [
        card(), card("rdp"), card(target="a"), card(dataset="x/a"), card(dataset="y/a"), card(eps=4.5), card(eps=45.0),
        card(budget="full"), card("JPEG"), card("jpeg(quality=75)"), card("jpeg-quality-75"),
    ]  # fmt: skip
    assert len({each.name for each in several}) == len(several)


def test_the_latex_of_a_card_is_escaped() -> None:
    text = audits.latex(card("r&p_1"))
    assert r"r\&p\_1" in text
    assert text.count("%") == text.count(r"\%") + 1  # the comment of the first line


def test_audits_that_share_the_lowest_error_are_all_named(tmp_path: Path) -> None:
    run, _ = small(tmp_path)
    kept = Tier("white-box", 20.0, 10.0, 30.0, 20.0, 20.0, 50, ("pgd",))
    tiers = {"jpeg": kept, "rdp": kept, "fd": replace(kept, accuracy=4.0)}
    found = [card(name, tiers=(each,), runs=("table1",)) for name, each in tiers.items()]
    (line,) = published._of_audits(found, {"table1": run})
    assert (line["best"], line["mean_error"]) == ("jpeg; rdp", 80.0)
    assert published.best_in_words(line) == "JPEG, RDP 80.0 (70.0 to 90.0)"
    (line,) = published._of_audits(found[:2], {"table1": run})
    assert line["best"] == ""
