"""The README's transcripts are what the commands print, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from rdp_bench.cli.main import main
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


def test_there_are_transcripts_to_check() -> None:
    assert len(TRANSCRIPTS) >= 2


def test_every_command_and_flag_of_the_readme_exists() -> None:
    lines = re.findall(r"rdp-bench ((?:run|report|doctor|list|cache|train|export)[^`\n]*)", README)
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
