"""A log file gets a line per finished job, a terminal does not, and --no-progress is silent."""

from pathlib import Path

import pytest

from rdp_bench.cli import lines
from rdp_bench.engine.jobs import CraftJob
from tests.helpers.commands import PLUGIN, cli

GRID = """
[axes]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
"""


def run(folder: Path, *args: object) -> list[str]:
    (folder / "mine.toml").write_text(GRID)
    result = cli(
        "run", folder / "mine.toml", "--plugin", PLUGIN, "--cache", folder / "cache", "--out", folder / "out", *args
    )
    assert result.exit_code == 0, result.output
    return [line for line in result.stderr.splitlines() if line.startswith("[")]


def test_a_line_per_job(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert [line.partition("] ")[0] for line in found] == [f"[{i}/4" for i in range(1, 5)]
    assert found[0].startswith("[1/4] tiny/round against clean images: 12 images done, ")
    assert "fgsm on tiny/one: 12 images done" in found[1]
    assert run(tmp_path) == []


def test_silence_on_request(tmp_path: Path) -> None:
    assert run(tmp_path, "--no-progress") == []


def test_a_line_per_minute_of_a_long_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: now[0])
    written: list[str] = []
    follow = lines.JobLines(written.append)
    jobs = [CraftJob(key, {}, "a", "fgsm", 8.0) for key in ("k1", "k2")]
    follow.start(jobs)
    for _ in range(5):
        now[0] += 25
        follow(jobs[0], 10)
    follow(jobs[1], 10)
    follow.close()
    assert written == [
        "[1/2] fgsm on a: 30 images so far, 1 min since the start",
        "[1/2] fgsm on a: 50 images done, 2 min since the start",
        "[2/2] fgsm on a: 10 images done, 2 min since the start",
    ]


def test_a_line_comes_before_the_numbers_that_its_job_completes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GRID)
    result = cli(
        "run", tmp_path / "mine.toml", "--plugin", PLUGIN, "--cache", tmp_path / "cache", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert 0 < result.output.index("[4/4]") < result.output.index("error % of")
