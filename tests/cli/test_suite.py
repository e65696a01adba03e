"""A grid of grids: every grid runs, what they share is made once, and one that fails stops no other."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rdp_bench import plugins
from rdp_bench.cache.store import Store
from rdp_bench.cli import suite
from rdp_bench.cli.main import main
from rdp_bench.engine import grid, worker
from rdp_bench.engine.jobs import Job
from rdp_bench.errors import StorageError, UsageError
from tests.helpers.paths import TESTS

PLUGIN = TESTS / "plugin" / "tiny.py"
AXES = """
title = "TITLE"
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [16]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids `a`, `b` (shares a's set, adds one), `clean` (attacks nobody), and `all` that lists them."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("grids").mkdir()
    write("a", AXES)
    write("b", AXES.replace('"fgsm"', '"fgsm", "i-fgsm"').replace('"tiny/two"', '"tiny/one"'))
    write("clean", AXES.replace('"fgsm"', "").replace('["tiny/one"]', "[]"))
    Path("all.toml").write_text('title = "All"\ngrids = ["grids/a.toml", "grids/b.toml", "grids/clean.toml"]')


def write(name: str, text: str) -> None:
    (Path("grids") / f"{name}.toml").write_text(text.replace("TITLE", f"Grid {name}"))


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["run", "--grid", "all.toml", "--plugin", str(PLUGIN), *map(str, args)])


def record(name: str) -> dict[str, Any]:
    """The record of a grid's run."""
    found: dict[str, Any] = json.loads(Path(f"rdp-bench-out/runs/{name}.json").read_text())
    return found


def results() -> dict[str, set[tuple[str, ...]]]:
    """What is in results.csv, by grid."""
    found: dict[str, set[tuple[str, ...]]] = {}
    with Path("rdp-bench-out/results.csv").open() as file:
        for row in csv.DictReader(file):
            place = tuple(row[name] for name in ("attack", "defense", "target", "status"))
            found.setdefault(row["grid"], set()).add(place)
    return found


def test_every_grid_runs_and_what_they_share_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    call = worker.Worker.__call__

    def noted(self: Any, job: Job) -> None:
        done.append(str(job))
        call(self, job)

    monkeypatch.setattr(worker.Worker, "__call__", noted)
    found = run()
    assert found.exit_code == 0, found.output
    assert [name for name in done if name.endswith("on tiny/one")] == ["fgsm on tiny/one", "i-fgsm on tiny/one"]
    assert {name: len(rows) for name, rows in results().items()} == {"a": 4, "b": 6, "clean": 2}
    assert {row[-1] for rows in results().values() for row in rows} == {"done"}
    assert {path.stem for path in Path("rdp-bench-out/runs").iterdir()} == {"a", "b", "clean"}
    for line in ("[2/3] Grid b", "a      4 of 4 cells done; ", "3 of 3 grids finished without failures, "):
        assert line in found.output
    assert "error %" not in found.output  # tables are for the report
    done.clear()
    again = run()
    assert (again.exit_code, done) == (0, [])


def test_a_dry_run_adds_up_and_counts_shared_work_once() -> None:
    found = run("--dry-run")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    # b has a's FGSM set and needs its other target; clean images behind both defenses are a's too.
    assert [line.partition(", about")[0] for line in lines[:3]] == [
        "a      4 cells on 12 images; 1 sets and 4 evaluations to run",
        "b      6 cells on 12 images; 1 sets and 6 evaluations to run",
        "clean  2 cells on 12 images; 0 sets and 0 evaluations to run",
    ]
    assert lines[3].startswith("estimated time: ")
    assert not Path("rdp-bench-out").exists()
    assert not any(kind == "adv" for kind, _ in Store(Path("cache")).everything())


@pytest.mark.parametrize(
    ("break_", "status", "said"),
    [
        (("tiny/noise", "no/such/folder"), 2, "b      not run: unknown dataset 'no/such/folder'"),
        (
            ('"fgsm", "i-fgsm"', '"fgsm", "tiny/bad"'),
            1,
            "b      4 of 6 cells done, 2 failed: its adversarial set failed: attack 'tiny/bad': ValueError: tiny/bad",
        ),
    ],
)
def test_a_failing_grid_stops_no_other_and_the_worst_status_wins(
    break_: tuple[str, str], status: int, said: str
) -> None:
    text = Path("grids/b.toml").read_text()
    write("b", text.replace(*break_))
    if status == 1:
        Path("bad.py").write_text(BAD)
    found = run(*(("--plugin", "bad.py") if status == 1 else ()))
    assert found.exit_code == status, found.output
    assert said in found.output
    assert "2 of 3 grids finished without failures" in found.output
    assert {"a", "clean"} <= set(results())


def test_nor_does_one_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    perform = suite.perform

    def broken(plan: Any, *rest: Any) -> Any:
        if plan.grid.name == "a":
            raise ZeroDivisionError("a plugin's own")
        return perform(plan, *rest)

    monkeypatch.setattr(suite, "perform", broken)
    found = run()
    assert found.exit_code == 1
    assert "a      not run: ZeroDivisionError: a plugin's own" in found.output
    assert set(results()) == {"b", "clean"}


BAD = """
from rdp_bench import attack

@attack("tiny/bad", source="made up")
class Bad:
    def __call__(self, source, x, y, eps, draws):
        raise ValueError("tiny/bad cannot")
    def resolved(self, eps): return {}
    def gradients(self, eps): return 1
"""


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StorageError("disk full")])
def test_ctrl_c_and_a_full_disk_stop_all(monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    started = []

    def perform(plan: Any, *_: object) -> None:
        started.append(plan.grid.name)
        raise stop

    monkeypatch.setattr(suite, "perform", perform)
    found = run()
    assert found.exit_code == (130 if isinstance(stop, KeyboardInterrupt) else 1)
    assert started == ["a"]


def test_flags_select_what_each_grid_has() -> None:
    assert run("--attack", "i-fgsm", "--defense", "none", "--limit", 3, "--out", "out").exit_code == 0
    Path("out").rename("rdp-bench-out")
    assert results() == {
        "b": {("clean", "none", "tiny/one", "done"), ("i-fgsm", "none", "tiny/one", "done")},
        "clean": {("clean", "none", "tiny/two", "done")},  # attacks nobody: the flag says nothing about it
    }
    left = run("--attack", "i-fgsm", "--dry-run")
    assert "skipped (nothing matches the filters): a\n" in left.output


def test_an_image_size_is_that_of_every_grid() -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("black.png")
    Path("list.csv").write_text("path,label\nblack.png,0\n")
    found = run("--image-size", 24, "--dataset", "list.csv", "--attack", "fgsm", "--defense", "none")
    assert found.exit_code == 0, found.output
    assert {record(name)["dataset"]["size"] for name in ("a", "b", "clean")} == {24}


def test_a_baseline_can_be_selected() -> None:
    write("a", AXES + 'baselines = ["tiny/one"]\n')
    assert run("--target", "tiny/one", "--limit", 2, "--attack", "fgsm").exit_code == 0
    assert results()["a"] == {
        ("clean", "none", "tiny/one", "done"), ("fgsm", "none", "tiny/one", "done"),
    }  # fmt: skip
    assert (
        "skipped (nothing matches the filters): a, clean\n"
        in run("--target", "tiny/one", "--attack", "i-fgsm", "--dry-run").output
    )


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (7, 3)])
def test_a_smaller_number_of_images_of_a_grid_stands(asked: int, used: int) -> None:
    write("a", AXES + "limit = 3\n")
    dry = run("--limit", asked, "--dry-run").output
    assert f"on {used} images" in dry.partition("\nb ")[0]
    assert f"on {asked} images" in dry.partition("\nb ")[2]
    run("--limit", asked)
    assert record("a")["dataset"]["n"] == used
    assert record("b")["dataset"]["n"] == asked


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--attack", "i-fgms"), "unknown attack 'i-fgms'. Did you mean 'i-fgsm'?"),
        (("--defense", "jpeg"), "unknown defense 'jpeg'. Known: none, tiny/round. With a suite, options select"),
        (("--eps", 4), "unknown eps '4'. Known: 16"),
        (("--target", "tiny/two", "--attack", "i-fgsm", "--defense", "none", "--source", "tiny/one"), None),
    ],
)
def test_flags_that_select_nothing_are_refused(flags: tuple[str, ...], message: str | None) -> None:
    if message is None:  # each is known, but no grid has all
        Path("all.toml").write_text('grids = ["grids/a.toml", "grids/b.toml"]\ntitle = ""')
        message = "no grid of the suite matches all filters together"
    found = run(*flags)
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids = []", r"'grids' is a list of names and paths ending in \.toml, found \[\]"),
        ("grids = 3", r"'grids' is a list"),
        ('grids = ["grids/a.toml"]\n[axes]', "unknown key 'axes' of grid all, which lists grids"),
        ('grids = ["grids/gone.toml"]', r"grid file grids/gone\.toml does not exist"),
        ('grids = ["tabel1"]', "unknown grid 'tabel1'. Did you mean 'table1'?"),
        ('grids = ["grids/a.toml", "grids/../grids/a.toml"]', "grid all: a is listed twice"),
        ('grids = ["grids/../all.toml"]', r"grid all: the suite includes itself \(grids/\.\./all\.toml\)"),
        ('grids = ["grids/two.toml"]', r"grid two: the suite includes itself \(.*\.\./all\.toml\)"),
    ],
)
def test_bad_lists_are_refused(text: str, message: str) -> None:
    write("two", 'grids = ["../all.toml"]')
    Path("all.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        grid.expand_suite("all.toml")


def test_a_name_for_no_label_of_any_grid_is_refused() -> None:
    found = run("--name", "jpgr=Ours")
    assert found.exit_code == 2
    assert "unknown label to name 'jpgr'" in found.output
    assert not Path("rdp-bench-out").exists()
    assert run("--name", "i-fgsm=Iterated", "--dry-run").exit_code == 0  # a label of one of the grids


def test_a_list_may_hold_lists_and_built_in_names() -> None:
    Path("more.toml").write_text('grids = ["all.toml", "table2"]')
    assert grid.expand_suite("more.toml") == ["grids/a.toml", "grids/b.toml", "grids/clean.toml", "table2"]
    assert grid.expand_suite("table1") == ["table1"]


@pytest.mark.parametrize("profile", ["embedded", "paper"])
def test_the_papers_list_holds_every_grid_of_the_paper(profile: str) -> None:
    plugins.load()
    names = grid.expand_suite("paper")
    ours_alone = {"paper", "adaptive", "audit", "diffusion", "table1-eps", "table1-modern"}
    assert set(names) == set(grid.builtin()) - ours_alone
    for name in names:
        assert any(True for _ in grid.load(name, profile, {})[0].cells())
