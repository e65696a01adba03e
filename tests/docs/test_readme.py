"""The README's transcripts are what the commands print, and its commands exist."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from rdp_bench.cli.main import main
from rdp_bench.reports.tables.leaderboard import leaderboards
from rdp_bench.results.rows import load_run
from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "docs" / "results"
TRANSCRIPTS = re.findall(r"```console\n\$ rdp-bench (.*)\n((?:.*\n)*?)```", README)


@pytest.mark.parametrize(("command", "output"), TRANSCRIPTS, ids=lambda text: text.split("\n")[0][:40])
def test_transcripts_are_true(command: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, shlex.split(command))
    assert found.exit_code == 0
    # Entries of plugins that other tests loaded are not the README's.
    shown = [line for line in found.stdout.splitlines() if "/" not in line.split(" ")[0]]
    number = re.compile(r"\b\d+\.\d\b")
    expected = output.splitlines()
    assert [number.sub("N", " ".join(line.split())) for line in shown] == [
        number.sub("N", " ".join(line.split())) for line in expected
    ]
    # Another number of threads rounds otherwise, which may turn one of the four images.
    numbers = [[float(value) for line in lines for value in number.findall(line)] for lines in (shown, expected)]
    assert all(abs(a - b) <= 25 for a, b in zip(*numbers, strict=True))


def test_there_is_a_transcript_to_check() -> None:
    assert TRANSCRIPTS


def test_the_averages_are_those_of_the_results() -> None:
    """Averages are recomputed from the cells of a published run, clean accuracies also with Wilson's formula."""
    folder = RESULTS / "runs" / "nips17-500-table1"
    cells = pd.read_csv(folder / "results.csv")
    boards = {board.target: board for board in leaderboards(load_run(folder / "runs" / "table1.json", None))}
    rows = [line.strip("|").split("|") for line in README.splitlines() if re.match(r"\| [\w&-]+ \| \d", line)]
    assert len(rows) == 11
    for name, *shown in rows:
        of_defense = cells[cells["defense"] == name.strip()]
        expected: list[float] = []
        for target in ("effnet-lite2-ens", "effnet-lite2"):
            mine = of_defense[of_defense["target"] == target]
            errors = mine[(mine["source"] != "-") & (mine["metric"] == "error")]["value"]
            assert len(errors) == 15
            (mean,) = [each.mean for each in boards[target].standings if each.defense == name.strip()]
            assert mean.low is not None
            assert mean.high is not None
            (clean,) = set(mine[mine["metric"] == "accuracy"]["value"])
            expected += [float(errors.mean()), mean.low, mean.high, clean, *wilson(clean / 100, 500)]
        numbers = [float(number) for cell in shown for number in re.findall(r"\d+\.\d", cell)]
        assert numbers == pytest.approx(expected, abs=0.051), name


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval in percent (Wilson 1927, equation 4)."""
    z = 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return 100 * low, 100 * high


def run(code: str, folder: Path) -> str:
    """What the code prints in a new interpreter."""
    (folder / "code.py").write_text(code.replace('"photos20"', '"photos20(size=32)", limit=1'))
    found = subprocess.run(
        [sys.executable, "code.py"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RDP_BENCH_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_python_runs_as_printed(tmp_path: Path) -> None:
    lines, ours = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    shown = run(f"{lines}print(*adv.shape, float((adv - x).abs().max()) * 255, *pure.shape)", tmp_path)
    assert shown.split()[:4] == ["1", "3", "32", "32"]
    assert 15.9 < float(shown.split()[4]) < 16.001
    assert shown.split()[5:] == ["1", "3", "32", "32"]
    latex = run(ours, tmp_path)
    assert re.search(r"^ *(.* & )?ours & +[\d\\]", latex, re.MULTILINE), latex
    assert r"\begin{tabular}" in latex


def test_every_command_and_flag_of_the_readme_exists() -> None:
    lines = re.findall(r"rdp-bench ((?:run|report|doctor|list|train|export|audit|results)[^`\n]*)", README)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.partition(" && ")[0])
        command = main.get_command(click.Context(main), words[0])
        assert command, line
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
