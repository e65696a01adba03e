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

from rdp_bench import plugins
from rdp_bench.cache.store import Store
from rdp_bench.engine import grid
from rdp_bench.engine.executors import on_slurm
from rdp_bench.engine.executors.board import Board
from rdp_bench.engine.executors.on_slurm import minutes, parse, wants_gpu
from rdp_bench.engine.executors.spec import spec_of
from rdp_bench.engine.plan import make_plan
from rdp_bench.errors import UsageError
from tests.helpers import clusters
from tests.helpers.clusters import IMAGES, Gated, serial, told, until
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process
from tests.helpers.stores import contents


@pytest.fixture(scope="module")
def _slurm() -> None:
    if not clusters.SLURM:
        pytest.skip("needs Slurm (apt-get install slurm-wlm munge), started as root")
    clusters.start_slurm()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gated:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Gated(tmp_path, '[run]\nexecutor = "slurm"\nworkers = 2\n')


def array(run: Gated) -> str:
    """The number of the array, once it is submitted."""
    until(lambda: list(run.cache.glob("notes/*/array.json")))
    (note,) = run.cache.glob("notes/*/array.json")
    return str(json.loads(note.read_bytes())["id"])


def state(job: str) -> str:
    return told("squeue", "--noheader", "--jobs", job, "--format", "%T")


@pytest.fixture
def _none_left() -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--name", "rdp-bench-toy"], check=False)


@pytest.mark.usefixtures("_slurm", "_none_left")
def test_workers_are_requeued_at_their_time_limit_and_killed(
    run: Gated, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run.let(2)
    driver = run.start()
    number = array(run)
    until(lambda: len(run.crafted()) == 2 and run.busy("*-0") and run.busy("*-1"))
    # What Slurm sends before the time is up: the worker requeues itself.
    told("scancel", "--signal=USR2", f"{number}_0")
    until(lambda: state(f"{number}_0") != "RUNNING")
    os.kill(run.busy("*-1")[0], signal.SIGKILL)  # as the out-of-memory killer does
    run.let(IMAGES)  # only one worker is left, and does what the other had begun
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    assert "4 of 4 cells done" in output
    assert run.left >= 1  # of the two images that were finished; one token may die with the requeued worker
    assert contents(run.cache) == serial(tmp_path_factory.mktemp("serial"))
    status = cli("status", run.grid, "--cache", run.cache)
    assert (status.exit_code, "done; 0 workers" in status.output) == (0, True), status.output


@pytest.mark.usefixtures("_slurm", "_none_left")
def test_nobody_waits_and_a_cancelled_array_is_one_line(run: Gated, tmp_path_factory: pytest.TempPathFactory) -> None:
    run.let(2)
    result = cli(*run.command("--no-wait"))
    assert result.exit_code == 0, result.output
    assert "of 2 workers does the rest; see: rdp-bench status" in result.output
    number = array(run)
    until(lambda: len(run.crafted()) == 2 and run.busy())
    status = cli("status", run.folder / "out", "--cache", run.cache)
    assert " running, " in status.output
    assert f"worker slurm-{number}-" in status.output
    # The same command follows the array, and submits no other.
    driver = run.start()
    lines = iter(driver.stdout or ())
    assert any("following it" in line for line in lines)
    told("scancel", number)
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert driver.wait() == 1
    assert f"Slurm array {number} has ended and " in line
    assert "the same command computes the rest" in line
    assert len(run.crafted()) == 2
    run.let(IMAGES)
    assert cli(*run.command("--executor", "serial", "--workers", "auto")).exit_code == 0
    assert run.left == 2  # of the images that were finished
    assert contents(run.cache) == serial(tmp_path_factory.mktemp("serial"))


def test_what_a_handler_of_signals_raises_fails_no_cell(run: Gated) -> None:
    """submitit's raised within the attack when Slurm ended the worker while it requeued itself."""
    script = run.folder / "worker.py"
    script.write_text(
        "import os, signal, sys, threading\nfrom rdp_bench.engine.executors.on_slurm import ArrayWorker\n\n"
        "def handle(*_):\n    raise ValueError('scontrol was killed')\n\n"
        "signal.signal(signal.SIGUSR2, handle)\nArrayWorker(sys.argv[1], 0, 1)()\n"
    )
    with new_process():
        plugins.load((PLUGIN, PLUGIN.parent / "gate.py"))
        chosen, _ = grid.load(str(run.grid), "embedded", {})
        made = make_plan(chosen, Store(run.cache), seed=0, device="cpu", limit=None, models_dir=None)
        made.store.mark()
        spec = spec_of(made, limit=None, batch_size=1, models_dir=None)
        board = Board(made.store, spec.plan)
        board.begin(made, {})
        board.keep("spec.json", spec.json())
    worker = subprocess.Popen([sys.executable, script, board.folder / "spec.json"], stderr=subprocess.PIPE, text=True)
    until(lambda: run.busy())
    worker.send_signal(signal.SIGUSR2)
    _, errors = worker.communicate(timeout=120)
    assert "ValueError: scontrol was killed" in errors
    assert board.failures() == {}


@pytest.mark.usefixtures("_slurm")
def test_what_sbatch_refuses_is_one_line(run: Gated) -> None:
    result = cli(*run.command("--slurm", "partition=nowhere"))
    assert result.exit_code == 2
    assert "--slurm: sbatch refused the array: " in result.output
    assert "invalid partition" in result.output
    assert "Traceback" not in result.output


def test_without_slurm_the_error_names_the_host(run: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = cli(*run.command())
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
