"""A Slurm with one node on this machine, and waiting for what happens in other processes."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.paths import ROOT

INSTALLED = bool(shutil.which("slurmctld") and shutil.which("munge")) and os.geteuid() == 0


def start() -> None:
    """Start it, unless it runs."""
    subprocess.run([ROOT / ".ci/slurm"], check=True, timeout=120)


def told(*command: str) -> str:
    """What one of Slurm's commands prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(what: Callable[[], object], seconds: float = 240.0) -> None:
    """Return when `what` is true; fail if that takes too long."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def shards(cache: Path, kind: str = "*") -> set[Path]:
    """Every finished batch of a cache."""
    return set(cache.glob(f"{kind}/??/*/*.safetensors"))
