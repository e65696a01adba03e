"""Runs on a real Ray cluster: nodes, workers and drivers are killed; nothing is lost, and no bit differs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine.executors import on_ray
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.paths import ROOT
from tests.helpers.slurm import shards, until
from tests.helpers.stores import contents

GRID = f"""
plugins = ["{PLUGIN}"]
[axes]
attacks = ["tiny/sleepy(seconds=1)", "fgsm"]
defenses = ["none", "tiny/dither"]
eps = [8]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that does no jobs and three nodes with room for a worker each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, str]:
    """What a run in one process stores."""
    folder = tmp_path_factory.mktemp("serial")
    (folder / "toy.toml").write_text(GRID.replace("seconds=1", "seconds=0"))
    assert cli(*run(folder)).exit_code == 0
    return contents(folder / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(GRID)
    return tmp_path


def run(folder: Path, *more: str) -> list[str]:
    flags = ("--cache", str(folder / "cache"), "--out", str(folder / "out"), "--batch-size", "1")
    return ["run", str(folder / "toy.toml"), *flags, *more]


def pids(cache: Path) -> list[int]:
    """The processes of the workers that have given a sign of life."""
    return [json.loads(path.read_bytes())["pid"] for path in sorted(cache.glob("notes/*/workers/*.json"))]


def test_dead_workers_nodes_and_drivers_lose_nothing(
    folder: Path, cluster: Any, wanted: dict[Any, str], caplog: pytest.LogCaptureFixture
) -> None:
    cache, before = folder / "cache", set[Path]()
    command = run(folder, "--executor", "ray", "--ray-address", cluster.address, "--workers", "3")
    driver = subprocess.Popen([sys.executable, "-m", "rdp_bench", *command], stderr=subprocess.DEVNULL)
    try:
        until(lambda: shards(cache, "adv"))
        before |= shards(cache)
    finally:
        driver.kill()
        driver.wait()
    written = {path: path.stat().st_mtime_ns for path in before}

    def strike() -> None:
        until(lambda: len(shards(cache, "adv")) >= len(before) + 2)
        os.kill(pids(cache)[-1], signal.SIGKILL)
        until(lambda: len(shards(cache, "adv")) >= len(before) + 3)
        for node in list(cluster.worker_nodes)[:2]:  # one at least has a worker that lives
            cluster.remove_node(node, allow_graceful=False)

    striking = threading.Thread(target=strike)
    striking.start()
    result = cli(*command)  # the same command
    striking.join()
    assert result.exit_code == 0, result.output
    assert "6 of 6 cells done" in result.output
    lost = [record.getMessage() for record in caplog.records if "is lost (" in record.getMessage()]
    assert len(lost) >= 2
    assert all(f"on host {socket.gethostname()} is lost" in text or "of the Ray cluster" in text for text in lost)
    assert {path: path.stat().st_mtime_ns for path in before} == written
    assert contents(cache) == wanted
    status = cli("status", "toy", "--cache", cache)
    assert (status.exit_code, "9 done; 0 workers" in status.output) == (0, True), status.output


def test_a_cluster_without_room_says_so(folder: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    result = cli(*run(folder, "--executor", "ray", "--ray-address", cluster.address))
    assert result.exit_code == 2
    assert "has no room for a worker: one takes 3 CPU" in result.output


def test_workers_that_cannot_take_part_say_why_with_their_host(folder: Path, cluster: Any) -> None:
    """Nobody is left then; the run ends in one line, and the same command in this process does it."""
    plugin = folder / "odd.py"
    plugin.write_text(
        "import os\nfrom rdp_bench import Purifier, defense\n\n"
        '@defense("odd/pid", source="made up")\nclass Pid(Purifier):\n    """Differs between processes."""\n\n'
        "    def purify(self, x, rng):\n        return x\n\n"
        '    def resolved(self):\n        return {"pid": os.getpid()}\n'
    )
    more = ("--plugin", str(plugin), "--defense", "odd/pid,none", "--attack", "fgsm")
    result = cli(*run(folder, *more, "--executor", "ray", "--ray-address", cluster.address))
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1
    assert f"no worker is left: host {socket.gethostname()}: 'odd/pid against clean images' has another key" in line


def test_an_address_where_nothing_answers(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = cli(*run(folder, "--executor", "ray", "--ray-address", address))
    assert result.exit_code == 2
    assert f"--ray-address {address}: nothing answers there, asked from host {socket.gethostname()}" in result.output
    result = cli(*run(folder, "--executor", "ray", "--ray-address", "ray://head:10001"))
    assert result.exit_code == 2
    assert "ray job submit" in result.output


def test_a_head_that_dies_is_one_line(folder: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process a minute later; so the head is asked before Ray is."""
    monkeypatch.setattr(on_ray.time, "sleep", lambda _: None)
    monkeypatch.setattr(on_ray, "LOOK", 0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{closed.getsockname()[1]}"

        def begin(executor: on_ray.RayExecutor) -> None:
            executor._head = gone
            executor._look()

        monkeypatch.setattr(on_ray.RayExecutor, "_begin_worker", begin)
        result = cli(*run(folder, "--executor", "ray", "--ray-address", cluster.address))
    assert result.exit_code == 1
    assert f"error: the Ray cluster {cluster.address} is gone (its head does not answer)" in result.output
    assert "the same command goes on from there" in result.output


def test_without_ray_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli(*run(folder, "--executor", "ray"))
    assert result.exit_code == 2
    assert "pip install 'rdp-bench[ray]'" in result.output
