"""Fixtures of the tests of defenses."""

from pathlib import Path

import pytest

from rdp_bench.weights import files as weight_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights, which is also the one files are looked for in."""
    monkeypatch.setattr(weight_files, "_folders", [tmp_path])
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path
