"""A grid file in a folder of its own, run through the command line with a cache beside it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.helpers.commands import PLUGIN, cli


@dataclass(frozen=True)
class GridRuns:
    """Runs of one grid.

    Attributes:
        file: the grid file; OUT is `out` and the cache is `cache` beside it.
        plugins: plugin files that every run loads.
    """

    file: Path
    plugins: Sequence[Path] = (PLUGIN,)

    @classmethod
    def make(
        cls, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, *plugins: Path, name: str = "mine"
    ) -> "GridRuns":
        """Write the grid `text` into `folder` and make `folder`/cache the default cache."""
        monkeypatch.setenv("RDP_BENCH_CACHE", str(folder / "cache"))
        (folder / f"{name}.toml").write_text(text)
        return cls(folder / f"{name}.toml", plugins or (PLUGIN,))

    @property
    def out(self) -> Path:
        return self.file.parent / "out"

    @property
    def cache(self) -> Path:
        return self.file.parent / "cache"

    def run(self, *flags: object) -> Result:
        """`rdp-bench run`, whatever its exit status."""
        plugins = [part for plugin in self.plugins for part in ("--plugin", plugin)]
        return cli("run", self.file, *plugins, "--out", self.out, *flags)

    def done(self, *flags: object) -> Result:
        """`run` that must end without a failure."""
        found = self.run(*flags)
        assert found.exit_code == 0, found.output
        return found

    def rows(self) -> list[dict[str, str]]:
        """The rows of results.csv."""
        return read_rows(self.out)

    def values(self, *flags: object) -> list[str]:
        """Every value of a run that must end without a failure, in order."""
        self.done(*flags)
        return [row["value"] for row in self.rows()]


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of OUT/results.csv."""
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))
