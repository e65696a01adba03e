"""Runs on clusters: a grid whose crafting a test lets go on batch by batch, and waiting for other processes."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.commands import PLUGIN, cli
from tests.helpers.paths import ROOT
from tests.helpers.stores import Row, contents, rows

SLURM = bool(shutil.which("slurmctld") and shutil.which("munge")) and os.geteuid() == 0
"""Whether a Slurm can be started here."""

IMAGES = 12
"""Of the grid, one a batch."""


def start_slurm() -> None:
    """Start Slurm with this machine as its only node, unless it runs."""
    subprocess.run([ROOT / ".ci/slurm"], check=True, timeout=120)


def told(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(what: Callable[[], object], seconds: float = 300.0) -> None:
    """Return when `what` is true; fail where that never comes."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


class Gated:
    """A run of an attack that crafts as many images as `let` allows."""

    def __init__(self, folder: Path, more: str = "", name: str = "tokens") -> None:
        self.folder, self.tokens = folder, folder / name
        self.tokens.mkdir()
        self.grid = folder / "toy.toml"
        self._write(str(self.tokens), more)
        self._count = 0

    def _write(self, tokens: str, more: str = "") -> None:
        self.grid.write_text(
            f'plugins = ["{PLUGIN}", "{PLUGIN.parent / "gate.py"}"]\n[axes]\nattacks = ["gate/sign(folder={tokens})"]\n'
            'defenses = ["none", "tiny/dither"]\neps = [8]\ndataset = "tiny/noise"\nsources = ["tiny/one"]\n'
            f'targets = ["tiny/two"]\n{more}'
        )

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def let(self, images: int) -> None:
        """Allow so many images more."""
        for _ in range(images):
            self._count += 1
            (self.tokens / f"{self._count}.token").touch()

    @property
    def left(self) -> int:
        """How many tokens nobody has taken."""
        return len(list(self.tokens.glob("*.token")))

    def command(self, *more: str) -> list[str]:
        flags = ("--cache", str(self.cache), "--out", str(self.folder / "out"), "--batch-size", "1")
        return ["run", str(self.grid), *flags, *more]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        """The run in a process of its own."""
        command = [sys.executable, "-m", "rdp_bench", *self.command(*more)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def crafted(self) -> set[Row]:
        """The images of the set that are stored."""
        return {row for row in rows(self.cache) if row[0] == "adv"} if self.cache.exists() else set()

    def pids(self, pattern: str = "*") -> list[int]:
        """The processes of the workers that live."""
        return [note["pid"] for note in self._notes(pattern)]

    def busy(self, pattern: str = "*") -> list[int]:
        """Those of them that craft."""
        return [note["pid"] for note in self._notes(pattern) if str(note.get("job", "")).startswith("gate/sign")]

    def _notes(self, pattern: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.cache.glob(f"notes/*/workers/{pattern}.json")):
            with contextlib.suppress(FileNotFoundError):  # the worker has ended meanwhile
                found.append(json.loads(path.read_bytes()))
        return [note for note in found if Path(f"/proc/{note['pid']}").exists()]

    def ungated(self) -> None:
        """From now on the attack waits for nothing; keys stay as they are."""
        self._write("")


def serial(folder: Path) -> dict[Any, str]:
    """What a run in one process stores."""
    run = Gated(folder)
    run.ungated()
    result = cli(*run.command())
    assert result.exit_code == 0, result.output
    return contents(run.cache)
