"""Runs on a real Ray cluster: nodes, workers and drivers are killed; nothing is lost, and no bit differs."""

import builtins
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine.executors import on_ray
from tests.helpers.clusters import IMAGES, Gated, serial, until
from tests.helpers.commands import cli
from tests.helpers.paths import ROOT
from tests.helpers.stores import contents


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


def handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that does no jobs and three nodes with room for a worker each."""
    import ray
    from ray.cluster_utils import Cluster

    before = handlers()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()
    for number, handler in before.items():  # a node that a process starts leaves its own
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> Gated:
    return Gated(tmp_path)


def test_dead_workers_nodes_and_drivers_lose_nothing(
    run: Gated, cluster: Any, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    more = ("--executor", "ray", "--ray-address", cluster.address, "--workers", "3")
    run.let(3)
    driver = run.start(*more)
    try:
        until(lambda: len(run.crafted()) == 3)
    finally:
        driver.kill()
        driver.communicate()
    until(lambda: not run.pids())  # its workers end with it

    def lost() -> list[str]:
        texts = [record.getMessage() for record in list(caplog.records)]
        return [text for text in texts if "is lost (" in text]

    problems: list[BaseException] = []

    def strike() -> None:
        try:
            run.let(2)
            until(lambda: len(run.crafted()) == 5 and len(run.busy()) == 3)
            os.kill(run.busy()[0], signal.SIGKILL)
            until(lambda: len(lost()) == 1)
            for node in list(cluster.worker_nodes)[:2]:  # one at least has a worker that lives
                cluster.remove_node(node, allow_graceful=False)
            until(lambda: len(lost()) >= 2)
        except BaseException as error:
            problems.append(error)
        finally:
            run.let(IMAGES)

    from ray.experimental import tqdm_ray

    striking = threading.Thread(target=strike)
    striking.start()
    before = handlers()
    result = cli(*run.command(*more))  # the same command
    striking.join()
    assert handlers() == before  # Ray would leave its own
    tqdm_ray.instance()  # as Ray does for each message that it prints
    assert isinstance(builtins.print, types.BuiltinFunctionType)
    assert not problems
    assert result.exit_code == 0, result.output
    assert "4 of 4 cells done" in result.output
    assert any(f"on host {socket.gethostname()} is lost" in text for text in lost())
    assert run.left >= 5 - 2  # the five images that were finished are not crafted again; two tokens may die with a node
    assert contents(run.cache) == serial(tmp_path_factory.mktemp("serial"))
    status = cli("status", "toy", "--cache", run.cache)
    assert (status.exit_code, "done; 0 workers" in status.output) == (0, True), status.output


def test_a_cluster_without_room_says_so(run: Gated, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    result = cli(*run.command("--executor", "ray", "--ray-address", cluster.address))
    assert result.exit_code == 2
    assert "has no room for a worker: one takes 3 CPU" in result.output


def test_workers_that_cannot_take_part_say_why_with_their_host(run: Gated, cluster: Any) -> None:
    """Nobody is left then; the run ends in one line, and the same command in this process does it."""
    plugin = run.folder / "odd.py"
    plugin.write_text(
        "import os\nfrom rdp_bench import Purifier, defense\n\n"
        '@defense("odd/pid", source="made up")\nclass Pid(Purifier):\n    """Differs between processes."""\n\n'
        "    def purify(self, x, rng):\n        return x\n\n"
        '    def resolved(self):\n        return {"pid": os.getpid()}\n'
    )
    more = ("--plugin", str(plugin), "--defense", "odd/pid,none", "--attack", "fgsm")
    result = cli(*run.command(*more, "--executor", "ray", "--ray-address", cluster.address))
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1
    assert f"no worker is left: host {socket.gethostname()}: 'odd/pid against clean images' has another key" in line


def test_an_address_where_nothing_answers(run: Gated) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = cli(*run.command("--executor", "ray", "--ray-address", address))
    assert result.exit_code == 2
    assert f"--ray-address {address}: nothing answers there, asked from host {socket.gethostname()}" in result.output
    result = cli(*run.command("--executor", "ray", "--ray-address", "ray://head:10001"))
    assert result.exit_code == 2
    assert "ray job submit" in result.output


def test_a_head_that_dies_is_one_line(run: Gated, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process a minute later; so the head is asked before Ray is."""
    import ray

    monkeypatch.setattr(on_ray.time, "sleep", lambda _: None)
    monkeypatch.setattr(on_ray, "LOOK", 0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{closed.getsockname()[1]}"

        def begin(executor: on_ray.RayExecutor) -> None:
            executor._head = gone
            executor._look()

        monkeypatch.setattr(on_ray.RayExecutor, "_begin_worker", begin)
        result = cli(*run.command("--executor", "ray", "--ray-address", cluster.address))
    ray.shutdown()  # in truth the head lives; what is connected to a dead one is left alone
    assert result.exit_code == 1
    assert f"error: the Ray cluster {cluster.address} is gone (its head does not answer)" in result.output
    assert "the same command computes the rest" in result.output


def test_without_ray_the_error_says_what_to_install(run: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli(*run.command("--executor", "ray"))
    assert result.exit_code == 2
    assert "pip install '.[ray]' in the checkout" in result.output
