"""`--executor` and its flags, `[run]` of a grid, `--shard`, and `rdp-bench status`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import rdp_bench
from rdp_bench.cache.store import Store
from rdp_bench.engine.executors import board as boards
from rdp_bench.errors import UsageError
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process

GRID = f"""
plugins = ["{PLUGIN}"]
[axes]
attacks = ["fgsm", "tiny/sleepy(broken=true)"]
defenses = ["none"]
eps = [8]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
limit = 4
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with new_process():
        yield


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(GRID)
    return path


def said(toy: Path, *flags: str) -> tuple[int, str]:
    result = cli("run", toy, "--cache", toy.parent / "cache", "--out", toy.parent / "out", *flags)
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--executor", "rays"), "unknown executor 'rays'. Did you mean 'ray'? Known: ray, serial, slurm"),
        (("--workers", "0"), "--workers 0: expected auto or a number above 0"),
        (("--workers", "many"), "--workers many: expected auto or a number above 0"),
        (("--workers", "4"), "the executor is serial, which has one worker"),
        (("--ray-address", "head:6379"), "--ray-address belongs to --executor ray; the executor is serial"),
        (("--executor", "ray", "--slurm", "time=1"), "--slurm belongs to --executor slurm; the executor is ray"),
        (("--shard", "3"), "--shard 3: expected i/n with i from 1 to n, like 2/8"),
        (("--shard", "9/8"), "--shard 9/8: expected i/n with i from 1 to n, like 2/8"),
        (("--shard", "0/8"), "--shard 0/8: expected i/n with i from 1 to n, like 2/8"),
        (("--shard", "1/8", "--executor", "ray"), "--executor ray divides the work itself; use one of them"),
        (("--shard", "1/8", "--fresh"), "--fresh deletes what the other workers of --shard have finished"),
        (("--executor", "slurm", "--no-wait", "--fresh"), "use it without --no-wait"),
        (("--executor", "slurm", "--slurm", "gpu"), "--slurm gpu: expected options of sbatch"),
        (("--executor", "slurm", "--device", "cuda:7"), "--device cuda:7: workers use the GPU that they are given"),
    ],
)
def test_what_no_run_can_have_is_refused(toy: Path, flags: tuple[str, ...], text: str) -> None:
    code, output = said(toy, *flags)
    assert code == 2
    assert text in output
    assert not (toy.parent / "cache").exists()


def test_a_grid_says_where_it_runs_and_a_flag_says_otherwise(toy: Path) -> None:
    toy.write_text(GRID + '[run]\nexecutor = "elsewhere"\n')
    assert "unknown executor 'elsewhere'" in said(toy)[1]
    assert "1 failed" in said(toy, "--executor", "serial")[1]
    toy.write_text(GRID + '[run]\nexecuter = "ray"\n')
    assert "Did you mean 'executor'?" in said(toy)[1]
    toy.write_text(GRID + '[run]\nworkers = "some"\n')
    assert "--workers some: expected auto or a number above 0" in said(toy)[1]
    toy.write_text(GRID + '[run]\nworkers = "2"\n')
    assert "--workers 2: expected auto or a number above 0, found a text" in said(toy)[1]


@pytest.mark.parametrize("run", ['executor = "slurm"\nslurm = "time=5"', 'executor = "ray"\nray_address = "h:1"'])
@pytest.mark.parametrize("flags", [("--executor", "serial"), ("--shard", "1/1")])
def test_options_of_the_grids_executor_go_with_it(toy: Path, run: str, flags: tuple[str, ...]) -> None:
    toy.write_text(f"{GRID}[run]\n{run}\nworkers = 8\n")
    output = said(toy, *flags)[1]
    assert "fgsm" in output
    assert "belongs to" not in output
    assert "executor slurm" not in output
    assert "unknown executor 'elsewhere'" in said(toy, "--executor", "elsewhere")[1]


def test_objects_of_this_process_cannot_be_sent_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'mine' is an object of this process, which workers elsewhere do not have"):
        rdp_bench.evaluate(
            {"mine": lambda x: x}, attacks="fgsm", sources="effnet-lite0", targets="effnet-lite1", dataset="photos20",
            eps=8, cache=tmp_path / "cache", executor="ray",
        )  # fmt: skip
    with pytest.raises(UsageError, match="unknown executor 'nowhere'"):
        rdp_bench.evaluate(grid="table1", cache=tmp_path / "cache", executor="nowhere")


def test_status_counts_from_the_cache_alone(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = toy.parent / "cache"
    assert "has no notes of a run" in cli("status", "--cache", cache).output
    said(toy, "--batch-size", "2", "--shard", "1/2")
    said(toy, "--batch-size", "2")
    result = cli("status", toy, "--cache", cache)
    assert result.exit_code == 1
    assert "6 jobs: 4 done, 2 failed; 0 workers" in result.output
    assert "failed: tiny/sleepy(broken=true) on tiny/one: " in result.output
    assert "this attack is broken" in result.output
    # A worker that lives, and one that does not.
    (board,) = boards.boards(Store(cache))
    board.beat("alive", {"job": "fgsm on tiny/one", "number": 3, "low": 0, "high": 2, "images": 1, "host": "far"})
    output = cli("status", toy.parent / "away" / ".." / "out", "--cache", cache).output
    assert "worker alive on far: fgsm on tiny/one, images 0 to 2, 1 stored" in output
    now = boards.time.time()
    monkeypatch.setattr(boards.time, "time", lambda: now + boards.EXPIRES + 1)
    assert "0 workers" in cli("status", "--cache", cache).output
    assert "has no notes of a run of table1" in cli("status", "table1", "--cache", cache).output
    # A note that somebody has edited is none.
    (note,) = cache.glob("notes/*/run.json")
    note.write_text(note.read_text().replace('"time": ', '"time": null, "then": '))
    assert "has no notes of a run" in cli("status", "--cache", cache).output
    assert "this attack is broken" in said(toy)[1]  # and the run goes on


def test_an_executor_of_a_plugin(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group `rdp_bench.executors`, as docs/extend/executor.md describes it."""
    from importlib.metadata import EntryPoint

    from rdp_bench.engine import executors

    point = EntryPoint("turns", "tests.helpers.pools:TakingTurns", executors.GROUP)
    monkeypatch.setattr(executors, "entry_points", lambda group: [point] if group == executors.GROUP else [])
    code, output = said(toy, "--executor", "turns", "--no-wait", "--attack", "fgsm")
    assert (code, "--no-wait: executor turns needs this process until the end" in output) == (2, True), output
    code, output = said(toy, "--executor", "turns", "--workers", "2", "--attack", "fgsm")
    assert (code, "2 of 2 cells done" in output) == (0, True), output
    for wrong, text in (
        ("Nothing", "made a NoneType, which has neither workers, send, wait and close (a Pool) nor submit, alive"),
        ("Exploding", "the executor failed: RuntimeError: cluster exploded. Finished batches are kept"),
        ("Mumbling", "the executor gave 'well', which is no event"),
    ):
        bad = EntryPoint("turns", f"tests.helpers.pools:{wrong}", executors.GROUP)
        monkeypatch.setattr(executors, "entry_points", lambda group, bad=bad: [bad] if group == executors.GROUP else [])
        output = said(toy, "--executor", "turns", "--attack", "mi-fgsm")[1]
        assert text in output
    bad = EntryPoint("turns", "tests.helpers.pools:NoSuch", executors.GROUP)
    monkeypatch.setattr(executors, "entry_points", lambda group: [bad] if group == executors.GROUP else [])
    code, output = said(toy, "--executor", "turns", "--attack", "fgsm", "--defense", "tiny/round,none")
    assert (code, "executor turns = tests.helpers.pools:NoSuch: " in output) == (2, True), output
