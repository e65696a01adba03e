"""What goes wrong around a run: lost files, entries that raise, folders of somebody else's. One line, nothing lost."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rdp_bench.cache import locations
from rdp_bench.data.imagefolder import imagefolder
from rdp_bench.errors import BadImageError
from rdp_bench.registry import registries
from rdp_bench.reports import render
from tests.helpers.commands import PLUGIN, cli
from tests.reports.test_report import small

GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""
BROKEN = """
from dataclasses import dataclass
from rdp_bench import Purifier, defense, model

@defense("broken/made", source="made up")
@dataclass(frozen=True)
class Made(Purifier):
    "Cannot be made."
    def __post_init__(self):
        raise RuntimeError("no driver")
    def purify(self, x, draws):
        return x

@defense("broken/asked", source="made up")
@dataclass(frozen=True)
class Asked(Purifier):
    "Cannot say its parameters."
    def resolved(self):
        raise KeyError("level")
    def purify(self, x, draws):
        return x

@defense("broken/empty", source="made up")
@dataclass(frozen=True)
class Empty(Purifier):
    "Returns nothing."
    def purify(self, x, draws):
        pass

@model("broken/net", source="made up")
def net():
    "Has no weights."
    raise FileNotFoundError("net.pth")
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(GRID)
    return tmp_path / "out"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin whose entries are forgotten afterwards."""
    for registry in registries.values():
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return path


def run(out: Path, *args: object) -> Result:
    return cli("run", "--grid", out.parent / "tiny.toml", "--plugin", PLUGIN, "--out", out, *args)


def values(out: Path) -> list[str]:
    with (out / "results.csv").open() as file:
        return [row["value"] for row in csv.DictReader(file)]


# --- the cache ---


def test_a_lost_set_is_made_again_and_export_says_that_it_is_lost(out: Path) -> None:
    assert run(out).exit_code == 0
    before = values(out)
    shutil.rmtree(out.parent / "cache" / "adv")
    found = cli("export", "--images", "--out", out, "--plugin", PLUGIN)
    assert found.exit_code == 1
    assert "1 adversarial sets are not in the cache; run the grid again" in found.output
    assert "about" in run(out, "--dry-run").output  # the set is not called cached
    assert run(out).exit_code == 0
    assert values(out) == before
    assert cli("export", "--images", "--out", out, "--plugin", PLUGIN).exit_code == 0
    assert len(list((out / "export" / "images").rglob("*.png"))) == 12


@pytest.mark.parametrize("content", [None, "{", "[]", '{"n": 1}'])
def test_a_record_that_is_lost_is_written_again(out: Path, content: str | None) -> None:
    assert run(out).exit_code == 0
    records = sorted((out.parent / "cache").glob("*/??/*/record.json"))
    before = [path.read_text() for path in records]
    for path in records:
        path.unlink()
        if content:
            path.write_text(content)
    assert cli("cache", "ls").exit_code == 0
    assert run(out).exit_code == 0
    assert [path.read_text() for path in records] == before
    assert cli("export", "--out", out, "--plugin", PLUGIN).exit_code == 0


def test_cache_commands_are_careful(out: Path) -> None:
    assert run(out).exit_code == 0
    for days in ("-1", "nan"):
        assert cli("cache", "prune", "--older-than", days).exit_code == 2
    assert list((out.parent / "cache").glob("eval/??/*/*.safetensors"))
    assert "no such folder" in cli("cache", "verify", "--cache", out.parent / "typo").output


# --- OUT ---


def test_a_narrower_run_says_what_it_replaces(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(out)
    assert "leave" not in caplog.text
    run(out, "--defense", "none")
    assert "2 cells of the previous run of tiny are removed from" in caplog.text
    caplog.clear()
    run(out)
    assert "leave" not in caplog.text  # a wider one loses nothing
    run(out, "--limit", 5)
    assert "4 cells of the previous run of tiny are removed from" in caplog.text  # the same cells, on fewer images
    caplog.clear()
    run(out)
    assert "leave" not in caplog.text


@pytest.mark.parametrize("text", ['{"of": "somebody else"}', '{"grid": "figure4", "cells": []}', "not JSON"])
def test_a_record_that_is_of_no_such_run_is_kept(out: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    record = out / "runs" / "tiny.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    assert run(out).exit_code == 0
    (kept,) = record.parent.glob("tiny.json.*")
    assert kept.read_text() == text
    assert str(kept) in caplog.text
    assert json.loads(record.read_text())["grid"] == "tiny"


def test_no_undefended_row_is_warned_of(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(out)
    assert "no undefended row" not in caplog.text
    run(out, "--defense", "tiny/round")
    assert "no undefended row to compare with; add none to the defenses" in caplog.text


def test_a_sheet_that_is_no_text_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "results.csv").write_bytes(b"grid,\xe9\n")
    found = run(out)
    assert found.exit_code == 2
    assert "results.csv cannot be read" in found.output
    assert (out / "results.csv").read_bytes() == b"grid,\xe9\n"


def test_a_report_takes_its_own_old_files_away_and_no_others(tmp_path: Path) -> None:
    _, store = small(tmp_path, targets=["t"])
    render(tmp_path, store)
    tables = tmp_path / "report" / "tables"
    (tables / "mine.csv").write_text("mine")
    assert (tables / "table1_t_eps16.csv").exists()
    (tmp_path / "report" / ".written.json").write_text(
        json.dumps(
            [*json.loads((tmp_path / "report" / ".written.json").read_text()), "tables/../../results.csv", "figures/.."]
        )
    )
    (tmp_path / "results.csv").write_text("kept")
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "report" / "figures").mkdir(exist_ok=True)
    _, store = small(tmp_path, targets=["u"])
    render(tmp_path, store)
    assert not (tables / "table1_t_eps16.csv").exists()
    assert (tables / "table1_u_eps16.csv").exists()
    assert (tables / "mine.csv").read_text() == "mine"
    assert (tmp_path / "results.csv").exists()


# --- entries that raise, and anything else ---


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--defense", "broken/made"), "defense 'broken/made' cannot be made: RuntimeError: no driver"),
        (("--defense", "broken/asked"), "defense 'broken/asked' cannot say its parameters: KeyError: 'level'"),
        (("--target", "broken/net"), "model 'broken/net' cannot be made: FileNotFoundError: net.pth"),
    ],
)
def test_entries_that_cannot_be_made_are_named(out: Path, broken: Path, flags: tuple[str, ...], says: str) -> None:
    found = run(out, "--plugin", broken, *flags)
    assert found.exit_code == 2
    assert f"error: {says}" in found.output


def test_a_defense_that_returns_nothing_fails_its_own_cells(out: Path, broken: Path) -> None:
    found = run(out, "--plugin", broken, "--defense", "none", "--defense", "broken/empty")
    assert found.exit_code == 1
    assert "defense 'broken/empty' returned NoneType, not a tensor" in found.output
    assert "2 of 4 cells done" in found.output


def test_a_plugin_that_exits_is_a_plugin_that_cannot_be_loaded(out: Path) -> None:
    (out.parent / "exits.py").write_text("raise SystemExit(0)")
    found = run(out, "--plugin", out.parent / "exits.py")
    assert (found.exit_code, "cannot be loaded: SystemExit" in found.output) == (2, True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "a/file"), "error: a/file: Permission denied\n"),
        (ZeroDivisionError("by zero"), "error: ZeroDivisionError: by zero (rdp-bench -v says where)\n"),
    ],
)
def test_whatever_is_raised_is_one_line(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(locations, "default_root", fail)
    found = cli("doctor")
    assert (found.exit_code, found.stderr) == (1, says)


def test_a_wrong_folder_of_weights_is_named(out: Path) -> None:
    found = cli("doctor", "--models-dir", out)
    assert (found.exit_code, found.stderr) == (2, f"error: --models-dir {out}: no such folder\n")


def test_a_class_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, closed = os.scandir, tmp_path / "1"
    closed.mkdir()

    def scandir(path: Path) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadImageError, match=r"1: cannot be listed \(Permission denied\)"):
        imagefolder(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("axes = 3", "'axes' is a table, found 3"),
        ("[profile]\nembedded = 3", "'profile' is a table of profiles, found {'embedded': 3}"),
        ('plugins = "x.py"', "'plugins' is a list of paths"),
        ('title = ["x"]', "'title' is a text"),
        ("[axes]\nensembles = {a = [1, 2]}", "'ensembles' is a table of lists of models"),
        ("[axes]\neps = 16", "'eps' is a list of numbers, like [8, 16], found 16"),
    ],
)
def test_grids_of_wrong_types_say_what_is_wanted(out: Path, text: str, says: str) -> None:
    (out.parent / "tiny.toml").write_text(text)
    found = run(out)
    assert found.exit_code == 2
    assert says in found.output


def test_a_grid_in_latin_1_is_not_valid(out: Path) -> None:
    (out.parent / "tiny.toml").write_bytes(GRID.encode() + b"# caf\xe9\n")
    assert "not valid TOML" in run(out).output
