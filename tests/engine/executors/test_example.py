"""The executor of docs/extend/executor.md: processes of its own, one of which dies."""

import os
import signal
from importlib.metadata import EntryPoint
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import pytest

from docs.examples.executor import Processes
from rdp_bench.engine import executors
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.slurm import shards, until
from tests.helpers.stores import contents


def test_processes_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("processes", f"{Processes.__module__}:Processes", executors.GROUP)
    monkeypatch.setattr(executors, "entry_points", lambda group: [point] if group == executors.GROUP else [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(name: str, seconds: float, *more: str) -> Path:
        grid = tmp_path / "toy.toml"
        grid.write_text(
            f'plugins = ["{PLUGIN}"]\n[axes]\nattacks = ["tiny/sleepy(seconds={seconds})"]\ndefenses = ["none"]\n'
            'eps = [8]\ndataset = "tiny/noise"\nsources = ["tiny/one"]\ntargets = ["tiny/two"]\n'
        )
        folder = tmp_path / name
        flags = ("--cache", folder / "cache", "--out", folder / "out", "--batch-size", "1", *more)
        result = cli("run", grid, *flags)
        assert result.exit_code == 0, result.output
        assert "2 of 2 cells done" in result.output
        return folder / "cache"

    def strike() -> None:
        until(lambda: len(shards(tmp_path / "spread/cache", "adv")) > 2)
        os.kill(active_children()[0].pid or 0, signal.SIGKILL)

    striking = Thread(target=strike)
    striking.start()
    spread = run("spread", 0.2, "--executor", "processes", "--workers", "2")
    striking.join()
    assert contents(spread) == contents(run("serial", 0.0))
