"""Arrays of a real Slurm: workers killed, requeued and cancelled in the middle; nothing is lost, no bit differs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdp_bench.engine.executors import on_slurm
from rdp_bench.engine.executors.on_slurm import minutes, parse, wants_gpu
from rdp_bench.errors import UsageError
from tests.helpers import slurm
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.paths import ROOT
from tests.helpers.slurm import shards, told, until
from tests.helpers.stores import contents

GRID = f"""
plugins = ["{PLUGIN}"]
[axes]
attacks = ["tiny/sleepy(seconds=0.4)", "fgsm"]
defenses = ["none", "tiny/dither"]
eps = [8]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
[run]
executor = "slurm"
workers = 2
"""


@pytest.fixture(scope="module")
def _slurm() -> None:
    if not slurm.INSTALLED:
        pytest.skip("needs Slurm (apt-get install slurm-wlm munge), started as root")
    slurm.start()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(GRID)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return path


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[object, str]:
    """What a run in one process stores."""
    folder = tmp_path_factory.mktemp("serial")
    (folder / "toy.toml").write_text(GRID.replace("seconds=0.4", "seconds=0"))
    result = cli(*run(folder / "toy.toml", folder), "--executor", "serial", "--workers", "1")
    assert result.exit_code == 0, result.output
    return dict(contents(folder / "cache"))


def run(grid: Path, folder: Path, *more: str) -> list[str]:
    return [
        "run",
        str(grid),
        "--cache",
        str(folder / "cache"),
        "--out",
        str(folder / "out"),
        "--batch-size",
        "1",
        *more,
    ]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rdp_bench", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def array(cache: Path) -> str:
    """The number of the array, once it is submitted."""
    until(lambda: list(cache.glob("notes/*/array.json")))
    (note,) = cache.glob("notes/*/array.json")
    return str(json.loads(note.read_bytes())["id"])


@pytest.fixture
def _none_left() -> Iterator[None]:
    yield
    for number in told("squeue", "--noheader", "--format", "%A").split():
        subprocess.run(["scancel", number], check=False)


def pids(cache: Path, index: int) -> list[int]:
    """The process of a worker of the array."""
    notes = [json.loads(path.read_bytes()) for path in cache.glob(f"notes/*/workers/*-{index}.json")]
    return [note["pid"] for note in notes if "pid" in note]


@pytest.mark.usefixtures("_slurm", "_none_left")
def test_workers_are_requeued_at_their_time_limit_killed_and_cancelled(
    tmp_path: Path, toy: Path, wanted: dict[object, str]
) -> None:
    cache = tmp_path / "cache"
    driver = started(run(toy, tmp_path))
    number = array(cache)
    until(lambda: len(shards(cache, "adv")) > 1 and pids(cache, 0) and pids(cache, 1))
    before = shards(cache)
    # What Slurm sends before the time is up: the worker requeues itself.
    told("scancel", "--signal=USR2", f"{number}_0")
    until(lambda: told("squeue", "--noheader", "--jobs", f"{number}_0", "--format", "%T") != "RUNNING")
    os.kill(pids(cache, 1)[0], signal.SIGKILL)  # the out-of-memory killer
    until(lambda: told("squeue", "--noheader", "--jobs", f"{number}_0", "--format", "%T") == "RUNNING")
    assert before <= shards(cache)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    assert "6 of 6 cells done" in output
    assert contents(cache) == wanted
    status = cli("status", toy, "--cache", cache)
    assert (status.exit_code, "9 jobs: 9 done" in status.output) == (0, True), status.output


@pytest.mark.usefixtures("_slurm", "_none_left")
def test_nobody_waits_and_a_cancelled_array_is_one_line(tmp_path: Path, toy: Path, wanted: dict[object, str]) -> None:
    cache = tmp_path / "cache"
    toy.write_text(GRID.replace("seconds=0.4", "seconds=10"))  # it is never done by itself
    result = cli(*run(toy, tmp_path, "--no-wait"))
    assert result.exit_code == 0, result.output
    assert "of 2 workers does the rest; see: rdp-bench status" in result.output
    number = array(cache)
    until(lambda: shards(cache, "adv"))
    status = cli("status", tmp_path / "out", "--cache", cache)
    assert " running, " in status.output
    assert f"worker slurm-{number}-" in status.output
    # The same command follows the array, and submits no other.
    driver = started(run(toy, tmp_path))
    assert driver.stdout
    until(lambda: "following it" in driver.stdout.readline())  # type: ignore[union-attr]
    told("scancel", number)
    output, _ = driver.communicate(timeout=120)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert driver.returncode == 1
    assert f"Slurm array {number} has ended and " in line
    assert "the same command goes on from there" in line
    before = {path: path.stat().st_mtime_ns for path in shards(cache)}
    toy.write_text(GRID.replace("seconds=0.4", "seconds=0"))
    assert cli(*run(toy, tmp_path, "--executor", "serial", "--workers", "auto")).exit_code == 0
    assert contents(cache) == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.usefixtures("_slurm")
def test_what_sbatch_refuses_is_one_line(tmp_path: Path, toy: Path) -> None:
    result = cli(*run(toy, tmp_path, "--slurm", "partition=nowhere"))
    assert result.exit_code == 2
    assert "--slurm: sbatch refused the array: " in result.output
    assert "invalid partition" in result.output
    assert "Traceback" not in result.output


def test_without_slurm_the_error_names_the_host(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = cli(*run(toy, tmp_path))
    assert result.exit_code == 2
    assert f"host {on_slurm.socket.gethostname()} has no sbatch; run on a login node" in result.output


def test_options_of_sbatch() -> None:
    text = "partition=gpu, time=4:00:00,gres=gpu:1,--mail-user=a@b,nodelist=n1,n2"
    assert parse(text) == {
        "partition": "gpu", "time": "4:00:00", "gres": "gpu:1", "mail_user": "a@b", "nodelist": "n1,n2",
    }  # fmt: skip
    assert wants_gpu(text)
    assert not wants_gpu("partition=gpu,time=10")
    for bad in ("gpu", "=1", "array=0-3"):
        with pytest.raises(UsageError, match="--slurm"):
            parse(bad)
    assert [minutes(each) for each in ("90", "0:30", "1:00:01", "2-1:30")] == [90, 1, 61, 2970]
    with pytest.raises(UsageError, match="days-hours"):
        minutes("soon")
