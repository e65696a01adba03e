"""eps: one parser, its units, and what it refuses."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import rdp_bench as rb
from rdp_bench import plugins
from rdp_bench.budgets import parse_eps
from rdp_bench.errors import UsageError
from tests.helpers.commands import PLUGIN
from tests.helpers.grid_runs import GridRuns

GRID = """
[axes]
dataset = "tiny/noise"
eps = {eps}
attacks = ["fgsm"]
sources = ["tiny/one"]
defenses = ["none"]
targets = ["tiny/one"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridRuns:
    return GridRuns.make(tmp_path, monkeypatch, GRID.format(eps="[16]"), name="eps")


def attacked(grid: GridRuns) -> dict[str, str]:
    return next(row for row in grid.rows() if row["attack"] != "clean")


@pytest.mark.parametrize(
    ("value", "eps"), [(8, 8), (16.0, 16), ("8", 8), ("8/255", 8), (" 8 / 255 ", 8), ("2.5/255", 2.5), (1, 1), (0, 0)]
)
def test_eps_in_levels(value: Any, eps: float) -> None:
    assert parse_eps(value) == eps


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.031, r"eps 0\.031 is in /255 and would be 0\.031/255; did you mean 8\?"),
        ("0.0157", r"did you mean 4\?"),
        (".99", r"did you mean 252\?"),
        (1e-9, r"did you mean 1\?"),
        ("0.5/255", "below one level"),
        ("8/256", "a fraction is of 255"),
        ("256", "not within 0 and 255"),
        (-1, "not within 0 and 255"),
        ("nan", "expected a number like 8"),
        ("inf/255", "expected a number like 8"),
        ("8/0", "expected a number like 8"),
        ("eight", "expected a number like 8"),
        (True, "expected a number like 8"),
    ],
)
def test_what_eps_refuses(value: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_eps(value)


@pytest.mark.parametrize(("value", "eps"), [(3.0, 3.0), ("0.5", 0.5), ("128/255", 128 / 255), (300, 300)])
def test_eps_of_an_l2_budget(value: Any, eps: float) -> None:
    assert parse_eps(value, "l2") == eps


def test_digits_that_arithmetic_leaves_are_shown_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in results.csv, in names of files, and where the page shows the call."""
    monkeypatch.setattr(logging.getLogger("rdp_bench"), "propagate", True)
    plugins.load((PLUGIN,))

    def broken(x: Tensor) -> Tensor:
        raise ValueError("it is blue")

    result = rb.evaluate(
        {"broken": broken, "same": lambda x: x}, attacks=["fgsm", "mi-fgsm"], sources="tiny/one", targets="tiny/two",
        dataset="tiny/noise", norm="l2", eps=[0.1 + 0.2, 128 / 255], success=True, device="cpu",
        cache=tmp_path / "cache", out=tmp_path / "out",
    )  # fmt: skip
    page = result.report(tmp_path / "out")
    shown = re.sub(r"(?s)<svg.*?</svg>|rdp_bench\.evaluate\([^<]*|<dd>[^<]*</dd>|<[^>]*>", " ", page.read_text("utf-8"))
    texts = [
        str(each) for each in (result.table(), result.leaderboard(), result.markdown(), result.failed, caplog.text)
    ]
    texts += [re.sub(r"\\label{[^}]*}", "", result.latex()), shown]
    texts += [figure.read_text("utf-8") for figure in (tmp_path / "out" / "report" / "figures").glob("*.svg")]
    assert sum("0.3 (L2)" in text for text in texts) >= 6
    assert not [text for text in texts if "0.3000" in text or "0.5019607" in text]
    assert set(result.to_dataframe()["eps"]) == {0.0, 0.1 + 0.2, 128 / 255}


def test_two_eps_that_are_shown_alike_are_refused(grid: GridRuns) -> None:
    found = grid.run("--norm", "l2", "--eps", "0.3", "--eps", "0.30000000000000004")
    assert found.exit_code == 2
    assert "the axis 'eps' lists 0.3 twice" in found.output


def test_a_fraction_of_one_is_refused_on_the_command_line_and_in_grids(grid: GridRuns) -> None:
    found = grid.run("--eps", "0.031")
    assert (found.exit_code, "did you mean 8?" in found.output) == (2, True)
    grid.file.write_text(GRID.format(eps="[0.031]"))
    found = grid.run()
    assert (found.exit_code, "did you mean 8?" in found.output) == (2, True)
    assert not (grid.out).exists()


def test_a_fraction_of_255_is_accepted_on_the_command_line_and_in_grids(grid: GridRuns) -> None:
    assert grid.run("--eps", "8").exit_code == 0
    whole = attacked(grid)
    assert grid.run("--eps", "8/255").exit_code == 0
    assert attacked(grid) == whole
    grid.file.write_text(GRID.format(eps='["8/255"]'))
    assert grid.run().exit_code == 0
    assert attacked(grid) == whole
    assert whole["eps"] == "8"


def test_a_list_of_grids_takes_fractions_too(grid: GridRuns) -> None:
    suite = grid.file.with_name("both.toml")
    suite.write_text('title = "Both"\ngrids = ["eps.toml"]')
    found = GridRuns(suite).run("--eps", "16/255")
    assert found.exit_code == 0, found.output
    assert "did you mean 16?" in GridRuns(suite).run("--eps", "0.0627").output


def test_eps_between_two_levels_is_said_to_be_floored(grid: GridRuns, caplog: pytest.LogCaptureFixture) -> None:
    assert grid.run("--eps", "8.5").exit_code == 0
    (warning,) = json.loads((grid.out / "runs" / "eps.json").read_text())["warnings"]
    assert "eps 8.5 is between two levels" in warning
    assert "at most 8/255" in warning
    assert warning in caplog.text


@pytest.mark.parametrize(
    ("attack", "flags"),
    [
        ("i-fgsm(step_ratio=.001)", ()),
        ("PGD(5, .03)", ("--eps", "8")),
        ("i-fgsm(step_ratio=.001)", ("--norm", "l2", "--eps", "1")),
    ],
)
def test_steps_too_short_to_change_a_pixel_are_refused(grid: GridRuns, attack: str, flags: tuple[str, ...]) -> None:
    found = grid.run("--attack", attack, *flags)
    assert found.exit_code == 2, found.output
    assert "change no 8-bit pixel" in found.output


@pytest.mark.parametrize("attack", ["mi-fgsm(alpha=0.0078)", "I(10,0.004)"])
def test_a_step_as_a_fraction_of_one_is_refused(grid: GridRuns, attack: str) -> None:
    found = grid.run("--attack", attack)
    assert found.exit_code == 2
    assert "alpha is in /255" in found.output
