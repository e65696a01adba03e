"""eps: one parser, its units, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rdp_bench.budgets import parse_eps
from rdp_bench.errors import UsageError
from tests.helpers.commands import PLUGIN, cli

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
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "eps.toml").write_text(GRID.format(eps="[16]"))
    return tmp_path / "eps.toml"


def run(grid: Path, *flags: object) -> Result:
    return cli("run", "--grid", grid, "--plugin", PLUGIN, "--out", grid.parent / "out", *flags)


def attacked(grid: Path) -> dict[str, str]:
    with (grid.parent / "out" / "results.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["attack"] != "clean")


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


def test_a_fraction_of_one_is_refused_on_the_command_line_and_in_grids(grid: Path) -> None:
    found = run(grid, "--eps", "0.031")
    assert (found.exit_code, "did you mean 8?" in found.output) == (2, True)
    grid.write_text(GRID.format(eps="[0.031]"))
    found = run(grid)
    assert (found.exit_code, "did you mean 8?" in found.output) == (2, True)
    assert not (grid.parent / "out").exists()


def test_a_fraction_of_255_is_accepted_on_the_command_line_and_in_grids(grid: Path) -> None:
    assert run(grid, "--eps", "8").exit_code == 0
    whole = attacked(grid)
    assert run(grid, "--eps", "8/255").exit_code == 0
    assert attacked(grid) == whole
    grid.write_text(GRID.format(eps='["8/255"]'))
    assert run(grid).exit_code == 0
    assert attacked(grid) == whole
    assert whole["eps"] == "8"


def test_a_list_of_grids_takes_fractions_too(grid: Path) -> None:
    suite = grid.with_name("both.toml")
    suite.write_text('title = "Both"\ngrids = ["eps.toml"]')
    found = run(suite, "--eps", "16/255")
    assert found.exit_code == 0, found.output
    assert "did you mean 16?" in run(suite, "--eps", "0.0627").output


def test_eps_between_two_levels_is_said_to_be_floored(grid: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(grid, "--eps", "8.5").exit_code == 0
    (warning,) = json.loads((grid.parent / "out" / "runs" / "eps.json").read_text())["warnings"]
    assert "eps 8.5 is between two levels" in warning
    assert "at most 8/255" in warning
    assert warning in caplog.text


@pytest.mark.parametrize("attack", ["mi-fgsm(alpha=0.0078)", "I(10,0.004)"])
def test_a_step_as_a_fraction_of_one_is_refused(grid: Path, attack: str) -> None:
    found = run(grid, "--attack", attack)
    assert found.exit_code == 2
    assert "alpha is in /255" in found.output
