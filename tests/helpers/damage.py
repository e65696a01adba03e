"""A small cache of every kind of artefact, and ways to damage it."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rdp_bench.cache.files import Location
from rdp_bench.cache.url import UrlPath
from rdp_bench.cli.main import main
from tests.helpers.commands import PLUGIN, cli

GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
dataset = "tiny/files"
sources = ["tiny/one"]
targets = ["tiny/one", "tiny/two"]
image_quality = true
samples = 2
"""


class Toy:
    """A folder with images, a grid, its results and its cache."""

    def __init__(self, folder: Path, count: int = 6) -> None:
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        (folder / "tiny.toml").write_text(GRID)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def record(self) -> Path:
        return self.out / "runs" / "tiny.json"

    def command(self, name: str, *args: object) -> Result:
        """`rdp-bench NAME` on this folder."""
        plugins = ("--plugin", PLUGIN, "--plugin", PLUGIN.with_name("files.py")) if name in ("run", "export") else ()
        command = [name, "--out", self.out, "--cache", self.cache, *plugins, *args]
        images = str((self.folder / "images").resolve())
        return CliRunner().invoke(main, [str(part) for part in command], env={"TINY_IMAGES": images})

    def run(self, *args: object) -> Result:
        return self.command("run", "--grid", self.folder / "tiny.toml", "--batch-size", 3, *args)

    def verify(self) -> Result:
        return cli("cache", "verify", "--cache", self.cache)

    def values(self) -> list[tuple[str, ...]]:
        """The numbers of results.csv."""
        with (self.out / "results.csv").open() as file:
            names = ("source", "attack", "defense", "target", "metric", "value", "status")
            return [tuple(row[name] for name in names) for row in csv.DictReader(file)]

    def predictions(self) -> list[tuple[str, ...]]:
        """What `export` wrote."""
        with (self.out / "export" / "predictions.csv").open() as file:
            return [tuple(row) for row in csv.reader(file)]

    def shards(self, kind: str = "*") -> list[Path]:
        return sorted(self.cache.glob(f"{kind}/??/*/*.safetensors"))

    def copy(self, to: Path) -> "Toy":
        """The same results and cache, elsewhere; the images and the grid stay where they are."""
        other = object.__new__(Toy)
        other.folder = to
        for name in ("out", "cache"):
            shutil.copytree(self.folder / name, to / name)
        for name in ("images", "tiny.toml"):
            (to / name).symlink_to(self.folder / name)
        return other


def flip(path: Location, bit: int) -> None:
    """Flip one bit of a file; a negative one counts from the end."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    overwrite(path, bytes(data))


def overwrite(path: Location, content: bytes) -> None:
    """Give a file or object other content."""
    if isinstance(path, UrlPath):
        path.put(content)
    else:
        path.write_bytes(content)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Let `change` alter the content of a JSON file, as somebody with an editor would."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forbid_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """From now on the system refuses every change below `folder`, as on a read-only file system; what was tried."""
    tried: list[str] = []

    def guard(module: Any, name: str, writes: Callable[..., bool]) -> None:
        real = getattr(module, name)

        def guarded(path: Any, *args: Any, **more: Any) -> Any:
            inside = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder)
            if inside and writes(path, *args, **more):
                tried.append(str(path))
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(module, name, guarded)

    def opens_for_writing(_: Any, mode: str = "r", *args: Any, **more: Any) -> bool:
        return any(letter in mode for letter in "wax+")

    for name in ("unlink", "replace", "rename", "link", "rmdir"):
        guard(os, name, lambda *_, **__: True)
    guard(os, "mkdir", lambda path, *_, **__: not Path(path).exists())
    guard(io, "open", opens_for_writing)
    return tried


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and the time of its last change."""
    return {str(path.relative_to(folder)): _state(path) for path in sorted(folder.rglob("*"))}


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return (found.st_size if path.is_file() else 0, found.st_mtime_ns)
