"""The results book: its table, its published runs, its figures, and that the format of submissions is documented."""

import csv
import json
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from rdp_bench.audits.verify import problems_of_cards
from rdp_bench.errors import UsageError
from rdp_bench.keys import hash_file
from rdp_bench.reports import published, published_page
from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.reports.tables.registry import all_tables
from rdp_bench.results.cards import Card, Tier
from rdp_bench.results.submission import Cells, Submission, SubmittedClaim, read_submission
from rdp_bench.results.verify import Verified
from tests.helpers.paths import ROOT
from tests.helpers.reports import small

BOOK = ROOT / "docs" / "results"
RUNS = BOOK / "runs"


# --- published runs --------------------------------------------------------------------------------------


def test_every_published_run_is_verified() -> None:
    """Numbers, hashes, claims, names, sizes and kinds of files of every folder: the leaderboard grows by files."""
    broken = {run.name: run.problems for run in published.shipped(RUNS, problems_of_cards) if run.problems}
    assert not broken, "rdp-bench results docs/results/runs/NAME says more; docs/results/submitting.md has the rules"


def test_the_page_of_published_runs_is_up_to_date() -> None:
    page = runpy.run_path(str(BOOK / "published.py"))
    assert (BOOK / "published.md").read_text("utf-8") == page["text"](), "python docs/results/published.py"


def test_the_tables_of_audits_are_up_to_date() -> None:
    page = runpy.run_path(str(BOOK / "audits.py"))
    assert (BOOK / "audits.md").read_text("utf-8") == page["text"](), "python docs/results/audits.py"
    assert "| RDP | 94 (84–98) | 52 (39–65) | 68 (54–79) | 4 (1–13) | 28 (17–42) | 0 (0–7) |" in page["text"]()
    assert (BOOK / "audits.csv").read_bytes() == page["figure"]().files["csv"], "python docs/results/audits.py"


def test_the_tables_of_the_exhibits_are_up_to_date() -> None:
    found = runpy.run_path(str(BOOK / "pages.py"))["pages"]()
    wrong = [page.name for page, text in found.items() if page.read_text("utf-8") != text]
    assert not wrong, "python docs/results/pages.py"
    assert "|  | RDP | **45.0** | **58.0** | 61.0≈ | **57.0** | **68.0** |" in found[BOOK / "modern.md"]


def test_the_figures_of_the_exhibits_are_up_to_date() -> None:
    figures = runpy.run_path(str(BOOK / "pages.py"))["figures"]()
    assert figures
    for name, figure in figures.items():
        assert (BOOK / f"{name}.csv").read_bytes() == figure.files["csv"], "python docs/results/pages.py"
        assert (BOOK / f"{name}.svg").is_file()


def test_a_page_asks_in_vain_for_a_table_that_no_run_has() -> None:
    table = runpy.run_path(str(BOOK / "pages.py"))["table"]
    with pytest.raises(UsageError, match="has no table table9: its tables are table1_effnet-lite2-ens_eps16, "):
        table("table9", "photos20-table1")


@pytest.mark.parametrize("name", ["predictions/table1.0123456789abcdef.safetensors", "runs/table1.json", "results.csv"])
def test_git_ignores_nothing_that_is_published(name: str) -> None:
    """Without predictions, a clone has no numbers."""
    found = subprocess.run(["git", "check-ignore", "-v", f"docs/results/runs/mine/{name}"], cwd=ROOT, check=False)
    assert found.returncode == 1


def test_the_page_links_what_a_published_run_contains(tmp_path: Path) -> None:
    """A run that follows the rules; errors by hand: RDP 1 and 2 of 20, no defense 10 and 14."""
    folder = tmp_path / "runs" / "toy"
    run, _ = small(tmp_path / "made")
    line = published.PublishedRun(folder, [], read_submission(ROOT / "docs" / "examples" / "claims.json"))
    line.lines = [{**each, "name": "toy", "claims_hold": 2, "claims": 2, "verified": "yes"}
                  for each in published._lines(run)]  # fmt: skip
    page = published_page.render([line], Path("docs/results/runs"), "# Published runs")
    (row,) = [text for text in page.splitlines() if text.startswith("| [toy]")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["[toy](#toy)", "table1", "20", "t", "transfer, ε = 16"]
    assert cells[5].startswith("RDP 7.5 (")
    assert cells[6:] == ["60.0 (the best is lower)", "yes, 2 of 2 claims hold"]
    files = "[results.csv](runs/toy/results.csv), [claims.json](runs/toy/claims.json), <https://example.org/paper>"
    assert files in page
    assert "\ntable1: 20 images of photos20, 2 defenses, 2025-01-01" in page
    assert "## toy" in page


def test_what_a_repetition_needs_is_in_its_command(tmp_path: Path) -> None:
    """Weight files that no package has, for which `run` asks; those of packages need no flag."""
    cards = {"t": {"weights": "package:x.pth"}, "u_1": {"weights": "file"}}
    run, _ = small(tmp_path / "made", targets=["t", "u_1"])
    found = published.PublishedRun(tmp_path, [], read_submission(ROOT / "docs" / "examples" / "claims.json"))
    for name, models, flag in (("packages", {"t": cards["t"]}, ""), ("files", cards, " --models-dir weights")):
        run.record["models"] = models
        found.verified = [Verified("table1", (), run=run)]
        (command,) = published.repeat_commands(found, Path("runs") / name)
        assert command == f"rdp-bench run --from runs/{name}/runs/table1.json{flag} --out again"
        page = "\n".join(published_page._section(found, Path("runs")))
        assert ("of u\\_1):" in page) is bool(flag)
    assert "](README.md#images)" in page
    assert "\n## Images\n" in (BOOK / "README.md").read_text("utf-8")


def test_audits_are_counted_by_target_and_dated_by_the_last(tmp_path: Path) -> None:
    """Two defenses in front of one target, one of another; finished on three days."""

    def of(defense: str, target: str) -> Card:
        tier = Tier("transfer", 50.0, 30.0, 70.0, 50.0, 50.0, 20, ("fgsm",))
        return Card(
            defense, target, "photos20", 20, 4.0, "quick", random=False, verdict="", tiers=(tier,), findings=(),
            runs=(f"{defense}-{target}",),
        )  # fmt: skip

    runs = {}
    for name, day in {"jpeg-t": "2025-01-02", "fd-t": "2025-01-03", "jpeg-u": "2025-01-01"}.items():
        runs[name], _ = small(tmp_path / name)
        runs[name].record["finished"] = f"{day}T00:00:00+00:00"
    lines = list(published._of_audits([of("jpeg", "t"), of("fd", "t"), of("jpeg", "u")], runs))
    assert [(line["target"], line["defenses"], line["date"]) for line in lines] == [
        ("t", 2, "2025-01-03"), ("u", 1, "2025-01-01")
    ]  # fmt: skip
    words = published_page._about(lines)
    assert words.startswith("audit: 20 images of photos20, 2 defenses on t and 1 defense on u, 2025-01-03")


def test_one_is_not_counted_as_several(tmp_path: Path) -> None:
    run, _ = small(tmp_path, n=1, samples=1, defenses=["none", "jpeg"])
    (line,) = published._lines(run)
    assert published_page._about([line]).startswith("table1: 1 image of photos20, 1 defense, ")
    captions = [table.caption for table in all_tables(run)] + [board.what for board in leaderboards(run)]
    assert len([text for text in captions if "1 image of photos20" in text]) == 3
    assert not [text for text in captions if "1 images" in text or "all 1" in text]


# --- the format ------------------------------------------------------------------------------------------


def test_every_field_is_documented() -> None:
    named = set(re.findall(r"`([a-z ]+)`", (BOOK / "submitting.md").read_text()))
    kinds = (Submission, SubmittedClaim, Cells)
    assert {each.name for kind in kinds for each in fields(kind)} <= named
    assert {"equal", "at most", "at least", "lower", "higher"} <= named


def test_the_example_is_a_submission() -> None:
    path = ROOT / "docs" / "examples" / "claims.json"
    assert len(read_submission(path).claims) == 2
    assert "docs/examples/claims.json" in (BOOK / "submitting.md").read_text()


def test_the_limits_are_those_of_the_page() -> None:
    text = " ".join((BOOK / "submitting.md").read_text().split())
    assert f"{published.LARGEST_RUN // 10**6} MB (all folders together {published.LARGEST_ALL // 10**6} MB)" in text


# --- the table of the first page -------------------------------------------------------------------------

NAMES = {"No defense": "none", "TVM": "tvm", "SR": "sr", "HGD": "hgd", "R&amp;P": "r&p", "NRP": "nrp", "RDP": "rdp"}


def test_the_table_of_the_first_page_is_that_of_the_cells() -> None:
    with (RUNS / "nips17-500-table1" / "results.csv").open() as file:
        cells = list(csv.DictReader(file))
    target, seen = "", 0
    for line in (BOOK / "README.md").read_text().splitlines():
        row = re.fullmatch(r"\| ([^|]*) \| ([^|]+) \| \**([\d.]+)\** \(.*\) \| ([\d.]+)†? \(.*\) \|", line)
        if not row:
            continue
        target = row[1].partition(",")[0].strip() or target
        mine = [cell for cell in cells if (cell["target"], cell["defense"]) == (target, NAMES[row[2]])]
        errors = [float(cell["value"]) for cell in mine if cell["source"] != "-" and cell["metric"] == "error"]
        (clean,) = {float(cell["value"]) for cell in mine if cell["metric"] == "accuracy"}
        assert len(errors) == 15
        assert float(row[3]) == pytest.approx(sum(errors) / 15, abs=0.051)
        assert float(row[4]) == pytest.approx(clean, abs=0.051)
        seen += 1
    assert seen == 14


# --- figures ---------------------------------------------------------------------------------------------


def test_figures_are_drawn_from_published_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point has the mean error of results.csv, and the folder is as it was."""
    out = RUNS / "photos20-table1"
    before = sorted(out.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["figures.py", str(out), "--to", str(tmp_path)])
    runpy.run_path(str(BOOK / "figures.py"), run_name="__main__")
    assert sorted(out.rglob("*")) == before
    with (out / "results.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["metric"] == "error"]
    for target in ("effnet-lite2-ens", "effnet-lite2"):
        name = f"photos20-table1_table1-tradeoff-{target}-eps16"
        assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".csv", ".svg", ".png", ".pdf"}
        with (tmp_path / f"{name}.csv").open() as file:
            points = {row["defense"]: float(row["mean_error"]) for row in csv.DictReader(file)}
        assert set(points) == {"none", "jpeg", "r&p", "nrp", "rdp"}
        for defense, error in points.items():
            values = [float(row["value"]) for row in cells if (row["target"], row["defense"]) == (target, defense)]
            assert len(values) == 5
            assert error == pytest.approx(sum(values) / 5, abs=1e-3)


def test_published_runs_have_the_weights_that_ship() -> None:
    """Labels name no file, so readers take the default ones."""
    shipped = ROOT / "data" / "weights"
    seen = set()
    for path in sorted(RUNS.glob("*/runs/*.json")):
        for label, about in json.loads(path.read_text("utf-8"))["defenses"].items():
            file = shipped / f"{label}.safetensors"
            if file.is_file():
                seen.add(label)
                assert about["resolved"]["weights"] == hash_file(file), f"{path.relative_to(RUNS)}: {label}"
    assert {"comdefend", "hgd", "nrp", "rdp", "sr"} <= seen
