"""Results in Python without a cache: loaded where they were moved to, reported, compared; and the success rate."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import rdp_bench as rb
from rdp_bench import RdpBenchError, plugins
from rdp_bench.errors import StorageError
from rdp_bench.results.rows import COLUMNS
from rdp_bench.results.verify import verify
from tests.helpers.commands import PLUGIN


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> rb.Result:
    plugins.load((PLUGIN,))
    return rb.evaluate(
        defenses=["none", "tiny/round"], attacks="fgsm", sources="tiny/one", targets="tiny/two", dataset="tiny/noise",
        eps=16, success=True, device="cpu", cache=tmp_path_factory.mktemp("cache"),
    )  # fmt: skip


@pytest.fixture
def moved(made: rb.Result, tmp_path: Path) -> rb.Result:
    """The folder that `report` wrote, moved, read where no cache is."""
    made.report(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    return rb.load_results(tmp_path / "moved", cache=tmp_path / "none")


def test_a_moved_folder_has_the_same_numbers(made: rb.Result, moved: rb.Result, tmp_path: Path) -> None:
    assert moved.failed == {}
    pd.testing.assert_frame_equal(moved.to_dataframe(), made.to_dataframe())
    assert moved.table() == made.table()
    assert not (tmp_path / "none").exists()


def test_columns_are_documented() -> None:
    text = rb.Result.to_dataframe.__doc__ or ""
    assert all(f"`{column}`" in text for column in COLUMNS)
    page = Path(__file__).parents[2].joinpath("docs", "python.md").read_text()
    assert all(f"`{column}`" in page for column in COLUMNS)


def test_a_moved_folder_is_reported_elsewhere_and_verified(moved: rb.Result, tmp_path: Path) -> None:
    page = moved.report(tmp_path / "second")
    assert page == tmp_path / "second" / "report" / "index.html"
    assert [found.problems for found in verify(tmp_path / "second")] == [()]


def test_a_later_report_leaves_nothing_of_the_one_before(moved: rb.Result, tmp_path: Path) -> None:
    moved.report(tmp_path / "third")
    usual = {"attacks": "fgsm", "sources": "tiny/one", "targets": "tiny/two", "dataset": "tiny/noise"}
    rb.evaluate(**usual, eps=8, device="cpu", cache=tmp_path / "cache").report(tmp_path / "third")
    assert [found.problems for found in verify(tmp_path / "third")] == [()]


def test_a_report_that_cannot_be_written_says_where(made: rb.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"cannot write {tmp_path / 'file'}"):
        made.report(tmp_path / "file")


def test_two_folders_are_compared(moved: rb.Result, tmp_path: Path) -> None:
    other = Path(shutil.copytree(moved.folder, tmp_path / "other"))
    for second in (other, str(other), rb.load_results(other, cache=tmp_path / "none")):
        page = moved.compare(second, tmp_path / "page")
        assert "4 cells are in both, 4 could be compared" in page.read_text()
    shutil.rmtree(other / "predictions")
    with pytest.raises(RdpBenchError, match="0 of 4 cells of both runs could be compared"):
        moved.compare(other, tmp_path / "page")


def test_the_success_rate_counts_what_was_right_before(made: rb.Result) -> None:
    """Against the definition, image by image."""
    (run,) = made.runs
    wrong = {(key.attack, key.defense): flags for key, flags in run.wrong.items()}
    csv = pd.read_csv(made.folder / "results.csv")
    for defense in ("none", "tiny/round"):
        right = [i for i in range(12) if not wrong["clean", defense][i]]
        flipped = [i for i in right if wrong["fgsm", defense][i]]
        row = csv[(csv["metric"] == "success") & (csv["defense"] == defense)]
        assert row["n"].item() == len(right) > 0
        assert row["value"].item() == pytest.approx(100 * len(flipped) / len(right), abs=1e-3)


def test_a_result_whose_folder_holds_another_run_is_refused(tmp_path: Path) -> None:
    """Else it would be compared, or reported, with the numbers of the later one."""
    plugins.load((PLUGIN,))
    usual = {"attacks": "fgsm", "sources": "tiny/one", "targets": "tiny/two", "dataset": "tiny/noise", "eps": 16}
    first, second = (
        rb.evaluate({"mine": lambda x, by=by: x * by}, **usual, out=tmp_path / "out", cache=tmp_path / "cache")
        for by in (0.9, 0.3)
    )
    for call in (lambda: first.compare(second, tmp_path / "compared"), lambda: first.report(tmp_path / "report")):
        with pytest.raises(rb.UsageError, match=r"evaluate\.json is of a later run than this result"):
            call()
    assert second.report(tmp_path / "report").is_file()
