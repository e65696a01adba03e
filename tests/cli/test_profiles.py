"""`doctor` says per profile whether it can be run, or what it lacks."""

from pathlib import Path

import pytest

from rdp_bench import plugins
from rdp_bench.cli.profiles import lacking
from rdp_bench.data import open as data_open
from tests.helpers.commands import cli


def test_ready_or_what_is_missing() -> None:
    output = cli("doctor").output
    assert "left out of '*'" not in output
    profiles = output[output.index("profiles\n") :].splitlines()
    assert profiles[1].split() == ["embedded", "ready"]
    assert profiles[2].split()[:2] == ["paper", "lacks"]
    assert any(
        line.startswith("    data set nips2017: ") and "rdp-bench data get nips2017" in line for line in profiles
    )
    assert int(profiles[2].split()[2].removesuffix(":")) == len(profiles) - 3


def test_what_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugins.load()
    assert lacking("embedded", None) == {}

    def gone(label: str) -> None:
        raise data_open.BadImageError(f"{label} is gone")

    monkeypatch.setattr(data_open, "open_dataset", gone)
    assert lacking("embedded", None) == {"data set photos20": "photos20 is gone"}
