"""Training photographs: what a folder may hold, which are held out, and what a crop is."""

import logging
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdp_bench.errors import StorageError, UsageError
from rdp_bench.train import photos
from rdp_bench.train.photos import Photos, open_photos


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def fill(folder: Path, count: int = 8, size: tuple[int, int] = (40, 50)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(noise(*size, seed=i)).save(folder / f"good{i}.png")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Crops


def mapped(shapes: list[tuple[int, int]]) -> Photos:
    """Photographs whose pixels say where they are: red the row, green the column, blue which photograph."""
    images = []
    for i, (height, width) in enumerate(shapes):
        rows, columns = np.mgrid[:height, :width]
        images.append(np.stack([rows, columns, np.full_like(rows, i)]).astype(np.uint8))
    return Photos(np.concatenate([x.ravel() for x in images]), shapes, [f"{i}.png" for i in range(len(shapes))], "")


def test_crops_lie_within_photographs_and_are_mirrored_half_the_time() -> None:
    made = mapped([(40, 36), (32, 50), (64, 32)])
    crops = made.crops(1200, 32, rng()).numpy().astype(int)
    assert crops.shape == (1200, 3, 32, 32)
    corners, mirrored, seen = set(), 0, []
    for rows, columns, which in crops:
        flipped = bool(columns[0, 0] > columns[0, 1])
        left = columns[0, -1] if flipped else columns[0, 0]
        across = np.arange(left, left + 32)[:: -1 if flipped else 1]
        assert (columns == across).all()
        assert (rows == (rows[0, 0] + np.arange(32))[:, None]).all()
        assert (which == which[0, 0]).all()
        height, width = made.shapes[which[0, 0]]
        assert rows.max() < height
        assert columns.max() < width
        corners.add((int(which[0, 0]), int(rows[0, 0]), int(left)))
        seen.append(int(which[0, 0]))
        mirrored += flipped
    assert abs(mirrored / 1200 - 0.5) < 0.06
    assert np.abs(np.bincount(seen) / 1200 - 1 / 3).max() < 0.06
    # Every place is reached, the last row and column too.
    assert {c for c in corners if c[0]} == {(1, 0, i) for i in range(19)} | {(2, i, 0) for i in range(33)}


def test_crops_depend_on_the_generator_alone() -> None:
    made = mapped([(40, 36), (32, 50), (64, 32)])
    assert torch.equal(made.crops(6, 32, rng(1)), made.crops(6, 32, rng(1)))
    assert not torch.equal(made.crops(6, 32, rng(1)), made.crops(6, 32, rng(2)))


def test_held_out_photographs_are_never_cropped() -> None:
    made = mapped([(230, 240)] * 30)
    assert len(made.held_out) == 3
    assert sorted(made.held_out + made.training) == list(range(30))
    seen = set(made.crops(3000, 32, rng())[:, 2, 0, 0].tolist())
    assert seen == set(made.training)
    shown = made.validation(64)
    assert shown.shape == (3, 3, 224, 224)
    assert (shown[:, 2, 0, 0] * 255).round().int().tolist() == made.held_out
    # The centre.
    assert (shown[0, 0, 0, 0] * 255).round() == 3
    assert (shown[0, 1, 0, 0] * 255).round() == 8
    assert made.validation(2).shape[0] == 2


def test_who_is_held_out_depends_on_names_alone() -> None:
    made = mapped([(230, 240)] * 30)
    other = mapped([(230, 240)] * 30)
    turned = Photos(other.pixels, other.shapes, other.names[::-1], "")
    assert {made.names[i] for i in made.held_out} == {turned.names[i] for i in turned.held_out}


def test_small_photographs_are_not_held_out_and_without_large_ones_nothing_can_be_validated() -> None:
    made = mapped([(230, 240)] * 2 + [(223, 300)] * 10)
    assert set(made.held_out) <= {0, 1}
    assert len(made.held_out) == 1
    small = mapped([(223, 300)] * 12)
    assert small.held_out == []
    with pytest.raises(UsageError, match=r"224 pixels or more, so none can be held out .* --validation-images 0"):
        small.validation(4)


# Folders


def test_a_folder_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in" / "deep", 9)
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    assert made.names == [f"deep/good{i}.png" for i in range(9)]
    for i in range(9):
        assert (made.image(i) == noise(40, 50, seed=i).transpose(2, 0, 1)).all()
    monkeypatch.setattr(photos, "decode", lambda *_: pytest.fail("decoded again"))
    again = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    assert again.record == made.record
    assert all((again.image(i) == made.image(i)).all() for i in range(9))


def test_a_changed_folder_is_decoded_again(tmp_path: Path) -> None:
    fill(tmp_path / "in", 9)
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    (tmp_path / "in" / "good3.png").unlink()
    assert open_photos(tmp_path / "in", 32, tmp_path / "cache").record != made.record


def test_large_photographs_are_reduced_and_small_ones_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    Image.fromarray(noise(300, 600)).save(tmp_path / "in" / "large.png")
    Image.fromarray(noise(256, 700)).save(tmp_path / "in" / "wide.png")
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    shapes = dict(zip(made.names, made.shapes, strict=True))
    assert (shapes["large.png"], shapes["wide.png"], shapes["good0.png"]) == ((256, 512), (256, 700), (40, 50))
    reduced = Image.fromarray(noise(300, 600)).resize((512, 256), Image.Resampling.BICUBIC)
    assert (made.image(made.names.index("large.png")) == np.asarray(reduced).transpose(2, 0, 1)).all()


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 3.6 billion pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
            crc = zlib.crc32(kind + content)
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc))


def test_a_poisoned_folder_trains_on_what_is_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    fill(folder)
    good = (folder / "good0.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "flipped.png").write_bytes(good[:200] + bytes([good[200] ^ 255]) + good[201:])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "page.png").write_text("<html>404</html>")
    bomb(folder / "bomb.png")
    Image.fromarray(noise(20, 300)).save(folder / "tiny.png")
    Image.fromarray(noise(1, 1)).save(folder / "dot.png")
    Image.fromarray(noise(40, 40)[..., 0]).save(folder / "grey.png")
    Image.fromarray(noise(40, 40)).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.dstack([noise(40, 40), noise(40, 40)[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(noise(40, 40)).convert("P").save(folder / "palette.png")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(folder / "deep.png")
    Image.fromarray(noise(40, 40)).save(folder / "loud.JPG")
    (folder / "readme.txt").write_text("no photograph")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        made = open_photos(folder, 32, tmp_path / "cache")
    extra = {"grey.png", "cmyk.jpg", "alpha.png", "palette.png", "deep.png", "loud.JPG"}
    assert set(made.names) == {f"good{i}.png" for i in range(8)} | extra
    grey = made.image(made.names.index("grey.png"))
    assert grey.shape == (3, 40, 40)
    assert (grey == noise(40, 40)[None, ..., 0]).all()
    said = caplog.text
    for name, why in (
        ("cut.png", "damaged or truncated"),
        ("flipped.png", "damaged or truncated"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "not an image of a known format"),
        ("page.png", "not an image of a known format"),
        ("bomb.png", "too large to decode safely"),
    ):
        assert any(name in line and why in line for line in said.splitlines()), (name, said)
    assert "left out: 2 photographs smaller than the crop of 32: dot.png (1 x 1), tiny.png (300 x 20)" in said
    assert made.crops(50, 32, rng()).shape == (50, 3, 32, 32)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    fill(folder)
    record = open_photos(folder, 32, tmp_path / "cache").record
    Image.fromarray(noise(40, 40)).save(folder / "umlaut.png")
    (folder / "umlaut.png").rename(folder / os.fsdecode(b"\xfc.png"))
    made = open_photos(folder, 32, tmp_path / "cache")
    assert made.names == [f"good{i}.png" for i in range(8)]
    assert made.record == record
    assert "left out: \\udcfc.png: its name is not UTF-8" in caplog.text


@pytest.mark.parametrize("kind", ["nothing", "seven", "small", "bad"])
def test_too_few_usable_photographs_are_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    fill(folder, {"nothing": 0, "seven": 7}.get(kind, 8), (31, 50) if kind == "small" else (40, 50))
    if kind == "bad":
        for path in folder.iterdir():
            path.write_bytes(b"\xff\xd8\xff")
    usable = 7 if kind == "seven" else 0
    files = {"nothing": 0, "seven": 7}.get(kind, 8)
    for _ in range(2):  # from the files, then from the cache
        with pytest.raises(UsageError) as error:
            open_photos(folder, 32, tmp_path / "cache")
        assert f"{files} image files, {usable} usable; training needs at least 8" in str(error.value)
        assert "a shorter side of 32 pixels or more" in str(error.value)


def test_no_folder_and_too_large_a_crop(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_photos(tmp_path / "gone", 32, tmp_path)
    fill(tmp_path / "in", 8, (300, 300))
    with pytest.raises(UsageError, match="a shorter side of 320 pixels or more"):
        open_photos(tmp_path / "in", 320, tmp_path / "cache")
    assert open_photos(tmp_path / "in", 288, tmp_path / "cache").crops(3, 288, rng()).shape == (3, 3, 288, 288)
    assert open_photos(tmp_path / "in", 256, tmp_path / "cache").crops(3, 256, rng()).shape == (3, 3, 256, 256)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*cache.* another folder"):
        open_photos(tmp_path / "in", 32, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "record cut"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    fill(tmp_path / "in")
    made = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    before = [np.array(made.image(i)) for i in range(8)]
    shard = sorted((tmp_path / "cache").rglob("*.safetensors"))[3]
    whole = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(whole[:500])
    elif damage == "gone":
        shard.unlink()
    elif damage == "flipped":
        shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    else:
        next((tmp_path / "cache").rglob("record.json")).write_text("{")
    again = open_photos(tmp_path / "in", 32, tmp_path / "cache")
    assert all((again.image(i) == before[i]).all() for i in range(8))
    assert (again.names, again.shapes) == (made.names, made.shapes)


def test_nothing_is_left_over(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    open_photos(tmp_path / "in", 32, tmp_path / "cache")
    left = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == {"rdp-bench-cache.json", "record.json", *(f"{i:06d}-{i + 1:06d}.safetensors" for i in range(8))}
