"""Transfer error against white-box error: points by hand, and which leaderboards are pairs."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.reports.figures.attackers import attackers, pairs, points
from rdp_bench.reports.tables.leaderboard import Leaderboard, leaderboards
from rdp_bench.results.rows import CellKey, load
from tests.helpers.report_fixture import make_run
from tests.helpers.reports import by_hand


def wrong(key: CellKey) -> Iterable[int]:
    """Transfer as by hand; attacked through itself, no defense and RDP lose all 20 images, JPEG 15."""
    if not key.source.startswith("white-box"):
        return by_hand(key)
    return range(15) if key.defense == "jpeg" else range(20)


def boards(out: Path, **more: Any) -> list[Leaderboard]:
    store = Store(out / "store")
    make_run(out, store, wrong, **{"sources": ("a", "white-box(5)"), **more})
    return [board for run in load(out, store) for board in leaderboards(run)]


def test_a_point_is_a_defense_with_both_errors(tmp_path: Path) -> None:
    ((transfer, white),) = pairs(boards(tmp_path))
    figure = attackers(transfer, white)
    assert figure is not None
    assert figure.csv is not None
    rows = list(csv.DictReader(io.StringIO(figure.csv)))
    assert {row["defense"]: (float(row["transfer_error"]), float(row["white_box_error"])) for row in rows} == {
        "none": (60.0, 100.0), "jpeg": (80.0, 75.0), "rdp": (7.5, 100.0),
    }  # fmt: skip
    for row in rows:
        for kind in ("transfer", "white_box"):
            assert float(row[f"{kind}_error_low"]) <= float(row[f"{kind}_error"]) <= float(row[f"{kind}_error_high"])
    for name in ("RDP", "JPEG", "No defense", "error under transfer attacks"):
        assert name in figure.saved["svg"].decode()


def test_two_runs_are_a_pair_on_the_same_images_only(tmp_path: Path) -> None:
    first = boards(tmp_path / "a", sources=("a",))
    second = boards(tmp_path / "b", sources=("white-box",), grid="table4")
    assert len(list(pairs([*first, *second]))) == 1
    other = {"name": "photos20", "n": 20, "size": 8, "images": "cd" * 32}
    assert not list(pairs([*first, *boards(tmp_path / "c", sources=("white-box",), dataset=other)]))


@pytest.mark.parametrize("change", [{"eps": (8,)}, {"targets": ("u",)}])
def test_other_settings_are_no_pair(tmp_path: Path, change: dict[str, Any]) -> None:
    first = boards(tmp_path / "a", sources=("a",))
    assert not list(pairs([*first, *boards(tmp_path / "b", sources=("white-box",), **change)]))


def test_what_one_of_the_two_lacks_is_no_point(tmp_path: Path) -> None:
    first = boards(tmp_path / "a", sources=("a",))
    second = boards(tmp_path / "b", sources=("white-box",), defenses=("none", "rdp"))
    ((transfer, white),) = pairs([*first, *second])
    assert [point["defense"] for point in points(transfer, white)] == ["rdp", "none"]
    (alone,) = boards(tmp_path / "c", sources=("white-box",), defenses=("none",))
    assert attackers(transfer, alone) is None
