"""Trainings and what they leave on disk: photographs by content, checkpoints, one training per folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rdp_bench.cli import main
from rdp_bench.errors import DamagedError, RdpBenchError, UsageError
from rdp_bench.train.loop import only_training
from rdp_bench.train.photos import open_photos
from tests.helpers import toy_train


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_train.install(monkeypatch.setitem)


def fill(folder: Path, seed: int = 0) -> None:
    """Eight uncompressed photographs: equal names, equal sizes and equal dates whatever the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        image = np.random.default_rng(8 * seed + i).integers(0, 256, (40, 50, 3), np.uint8)
        path = folder / f"{i}.bmp"
        Image.fromarray(image).save(path)
        os.utime(path, ns=(10**18, 10**18))


def test_photographs_are_known_by_content(tmp_path: Path) -> None:
    """Two folders of equal names, sizes and dates; the second was trained on the first one's pixels."""
    fill(tmp_path / "one", 1)
    fill(tmp_path / "two", 2)
    one, two = (open_photos(tmp_path / name, 32, tmp_path / "cache") for name in ("one", "two"))
    assert one.record != two.record
    for name, made in (("one", one), ("two", two)):
        with Image.open(tmp_path / name / "3.bmp") as image:
            assert (made.image(3) == np.asarray(image).transpose(2, 0, 1)).all()
    os.utime(tmp_path / "one" / "3.bmp")
    assert open_photos(tmp_path / "one", 32, tmp_path / "cache").record == one.record  # a date is no content


def flip(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])


def test_a_flipped_bit_is_never_trained_on(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        flip(path)
    with pytest.raises(DamagedError, match="does not have the hash"):
        made.crops(4, 32, torch.Generator())


def cache(*arguments: Any) -> str:
    found = CliRunner().invoke(main.main, ["cache", *map(str, arguments)])
    return f"{found.exit_code} {found.output}"


def test_the_cache_commands_know_photographs(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    root = tmp_path / "cache"
    made = open_photos(tmp_path / "in", 32, root)
    assert f"photos {made.record[:12]}" in cache("ls", "--cache", root)
    assert "1 artefacts checked, 0 damaged" in cache("verify", "--cache", root)
    flip(next(root.rglob("000002-000003.safetensors")))
    assert "1 artefacts checked, 1 damaged" in cache("verify", "--cache", root)
    assert (open_photos(tmp_path / "in", 32, root).image(2) == made.image(2)).all()
    assert "1 artefacts deleted" in cache("prune", "--all", "--cache", root)
    assert not list(root.rglob("*.safetensors"))


def test_photographs_of_all_sizes_are_healthy_and_a_damaged_one_alone_is_deleted(tmp_path: Path) -> None:
    folder, root = tmp_path / "in", tmp_path / "cache"
    fill(folder)
    for name, size in (("landscape", (60, 45)), ("portrait", (45, 60)), ("small", (50, 20))):
        Image.new("RGB", size, (9, 8, 7)).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no image")
    made = open_photos(folder, 32, root)
    shards = set(root.rglob("*.safetensors"))
    assert len(shards) == 12
    for _ in range(2):
        assert "1 artefacts checked, 0 damaged" in cache("verify", "--cache", root)
        made.stored.drop_damaged()  # type: ignore[attr-defined]
        assert set(root.rglob("*.safetensors")) == shards
    landscape = made.stored._path(8, 9)  # type: ignore[attr-defined]
    flip(landscape)
    assert "1 artefacts checked, 1 damaged" in cache("verify", "--cache", root)
    assert set(root.rglob("*.safetensors")) == shards - {landscape}


def test_a_killed_decoding_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.train import photos

    fill(tmp_path / "in")
    usual, count = photos.decode, [0]

    def struck(path: Path) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return usual(path)

    monkeypatch.setattr(photos, "decode", struck)
    with pytest.raises(KeyboardInterrupt):
        open_photos(tmp_path / "in", 32, tmp_path / "cache")
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    assert count[0] == 5 + 4
    assert len(made.names) == 8


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append(f"fsync {os.fstat(handle).st_size > 1000}")
        sync(handle)

    def renamed(self: Path, to: Path) -> Path:
        order.append(f"rename to {to.name}")
        return replace(self, to)

    training = toy_train.training(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    training.save()
    assert order == ["fsync True", "rename to checkpoint.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


HOLD = """
import sys, time
from pathlib import Path
from rdp_bench.train.loop import only_training
with only_training(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_two_trainings_into_one_folder_are_refused_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another training is writing there"), only_training(tmp_path):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with only_training(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_second_training(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    arguments = ["train", "sr", "--images", tmp_path / "in", "--size", "tiny", "--out", tmp_path / "out", "--steps", 3,
                 "--validation-images", 0, "--cache", tmp_path / "cache"]  # fmt: skip
    with only_training(tmp_path / "out"):
        found = CliRunner().invoke(main.main, list(map(str, arguments)))
    assert found.exit_code != 0
    assert "another training is writing there" in f"{found.output}{found.exception}"
    assert not list((tmp_path / "out").iterdir())
    assert CliRunner().invoke(main.main, list(map(str, arguments))).exit_code == 0


def test_a_checkpoint_is_not_unpickled_by_an_unsafe_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = toy_train.training(tmp_path)
    training.save()
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(RdpBenchError, match=r"Install torch 2\.6"):
        training.resume()
