"""The README's transcripts are what the commands print, and its commands exist."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from rdp_bench.cli.main import main
from rdp_bench.registry import defense
from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
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
    """Recomputed from the cells of docs/results."""
    cells = pd.read_csv(ROOT / "docs" / "results" / "nips17-500.csv")
    rows = [line.strip("|").split("|") for line in README.splitlines() if re.match(r"\| [\w&-]+ \| \d", line)]
    assert len(rows) == 8
    for name, *numbers in rows:
        mine = cells[cells["defense"] == name.strip()]
        expected = []
        for target in ("effnet-lite2-ens", "effnet-lite2"):
            of_target = mine[mine["target"] == target]
            for source in ("effnet-lite0", "effnet-lite1"):
                errors = of_target[(of_target["source"] == source) & (of_target["metric"] == "error")]["value"]
                assert len(errors) == 5
                expected.append(float(errors.mean()))
            (clean,) = set(of_target[of_target["metric"] == "accuracy"]["value"])
            expected.append(float(clean))
        assert [float(number) for number in numbers] == pytest.approx(expected, abs=0.051), name


def test_the_defense_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n# my_defense\.py\n(.*?)```", README, re.DOTALL)
    (command,) = re.findall(r"^rdp-bench (run .*mine/blur.*)$", README, re.MULTILINE)
    (tmp_path / "my_defense.py").write_text(code)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tiny = ["--plugin", str(ROOT / "tests" / "plugin" / "tiny.py"), "--dataset", "tiny/noise", "--attack", "fgsm"]
    words = [*shlex.split(command), *tiny, "--source", "tiny/one", "--target", "tiny/two"]
    kept = dict(defense.entries)
    try:
        done = CliRunner().invoke(main, words, catch_exceptions=False)
    finally:
        defense.entries = kept
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "rdp-bench-out" / "results.csv")
    assert set(rows["defense"]) == {"none", "rdp", "mine/blur", "mine/blur(radius=2)"}
    assert set(rows["status"]) == {"done"}


def test_every_command_and_flag_of_the_readme_exists() -> None:
    lines = re.findall(r"rdp-bench ((?:run|report|doctor|list|train|export)[^`\n]*)", README)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.partition(" && ")[0])
        command = main.commands[words[0]]
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
