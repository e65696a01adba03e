"""Fixtures of the tests of defenses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rdp_bench.specs import FileSearch, files_from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of weights, which is also the one files are looked for in."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    with files_from(FileSearch(models_dir=tmp_path)):
        yield tmp_path
