"""The executor of docs/extend/executor.md: processes of its own, one of which dies."""

import os
import signal
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread

import pytest

from docs.examples.executor import Processes
from rdp_bench.engine import executors
from tests.helpers.clusters import IMAGES, Gated, serial, until
from tests.helpers.commands import cli
from tests.helpers.stores import contents


def test_processes_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("processes", f"{Processes.__module__}:Processes", executors.GROUP)
    monkeypatch.setattr(executors, "entry_points", lambda group: [point] if group == executors.GROUP else [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "serial").mkdir()
    run = Gated(tmp_path)
    run.let(2)
    killed: list[int] = []

    def strike() -> None:
        try:
            until(lambda: len(run.crafted()) == 2 and run.busy())
            os.kill(run.busy()[0], signal.SIGKILL)
            killed.append(1)
        finally:
            run.let(IMAGES)

    striking = Thread(target=strike)
    striking.start()
    result = cli(*run.command("--executor", "processes", "--workers", "2"))
    striking.join()
    assert killed
    assert result.exit_code == 0, result.output
    assert "4 of 4 cells done" in result.output
    assert contents(run.cache) == serial(tmp_path / "serial")
