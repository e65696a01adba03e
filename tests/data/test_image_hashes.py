"""Pixel hashes and the index that keeps them; batches of the hashed pixels."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdp_bench.data import _images
from rdp_bench.data import image_hashes as prints_module
from rdp_bench.data._labelled import Images
from rdp_bench.data.image_hashes import batch, digest, hash_images, repeated
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError
from rdp_bench.keys import hash_many, hash_pixels
from tests.helpers.images import noise, save, table
from tests.helpers.paths import ROOT

SHARED = ROOT.parent / "shared" / "nips17"


def by_hand(*seeds: int) -> list[str]:
    return [hash_pixels(np.ascontiguousarray(noise(seed).transpose(2, 0, 1))) for seed in seeds]


def test_fingerprints_are_hashes_of_pixels_in_order(listed: Path, tmp_path: Path) -> None:
    four = open_dataset(str(listed), size=8)
    assert hash_images(four) == by_hand(0, 1, 2, 3)
    assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)
    assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)


def test_unchanged_files_are_not_decoded_again(listed: Path, tmp_path: Path, decoded: list[str]) -> None:
    hash_images(open_dataset(str(listed), size=8, limit=2), tmp_path / "cache")
    assert sorted(decoded) == ["0.png", "1.png"]
    decoded.clear()
    hash_images(open_dataset(str(listed), size=8), tmp_path / "cache")
    assert len(decoded) == 3  # the two new ones, and one as a probe
    assert {"2.png", "3.png"} < set(decoded)
    decoded.clear()
    hash_images(open_dataset(str(listed), size=8, limit=2), tmp_path / "cache")
    hash_images(open_dataset(str(listed), size=8), tmp_path / "cache")
    assert len(decoded) == 2  # a limit did not forget the others


@pytest.mark.parametrize("keep", ["nothing", "mtime"])
def test_changed_file_is_read_again(listed: Path, tmp_path: Path, keep: str) -> None:
    """Same name and same size in bytes: stored uncompressed, other pixels. With `cp -p`, even the same mtime."""
    path = save(tmp_path / "0.png", noise(0), compress_level=0)
    four = open_dataset(str(listed), size=8)
    assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)
    before = path.stat()
    save(path, noise(9), compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (keep == "nothing")))
    assert path.stat().st_size == before.st_size
    assert hash_images(four, tmp_path / "cache") == by_hand(9, 1, 2, 3)


def test_index_is_for_one_size(listed: Path, tmp_path: Path) -> None:
    eight = hash_images(open_dataset(str(listed), size=8), tmp_path / "cache")
    four = open_dataset(str(listed), size=4)
    assert hash_images(four, tmp_path / "cache") == hash_images(four)
    assert hash_images(open_dataset(str(listed), size=8), tmp_path / "cache") == eight


def test_index_is_for_one_decoder(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    four = open_dataset(str(listed), size=8)
    hash_images(four, tmp_path / "cache")
    monkeypatch.setattr(prints_module, "decoder", lambda: "pillow 99, libjpeg 9")
    decoded.clear()
    hash_images(four, tmp_path / "cache")
    assert len(decoded) == 4
    assert re.fullmatch(r"pillow \d+\.\d+\.\d+\S*, libjpeg \S+", _images.decoder())


def index_of(cache: Path) -> Path:
    (file,) = (cache / "pixels").iterdir()
    return file


def poison_hash(file: Path) -> None:
    text = file.read_text()
    (hashed,) = by_hand(2)
    assert text.count(hashed) == 1
    file.write_text(text.replace(hashed, "0" * 64))


def poison_all_with_a_fitting_checksum(file: Path) -> None:
    content = json.loads(file.read_text())
    for entry in content["entries"].values():
        entry[1] = "0" * 64
    content["sha256"] = prints_module._checksum(content["settings"], content["entries"])
    file.write_text(json.dumps(content))


def poison_with_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


POISON: dict[str, Callable[[Path], object]] = {
    "a hash": poison_hash,
    "all hashes": poison_all_with_a_fitting_checksum,
    "half a file": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "bytes": lambda file: file.write_bytes(b"\xff\x00\xfe"),
    "a list": lambda file: file.write_text("[]"),
    "null": lambda file: file.write_text("null"),
    "no entries": lambda file: file.write_text('{"settings": {}, "entries": 3, "sha256": ""}'),
    "a folder": poison_with_a_folder,
}


@pytest.mark.parametrize("how", POISON)
def test_poisoned_index_is_made_again(listed: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    four = open_dataset(str(listed), size=8)
    hash_images(four, tmp_path / "cache")
    assert not caplog.records
    file = index_of(tmp_path / "cache")
    POISON[how](file)
    assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)
    assert str(file) in caplog.text
    caplog.clear()
    if how != "a folder":  # cannot be written over; every run reads all images, and says so
        assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)
        assert not caplog.records


def test_nothing_of_a_poisoned_index_is_kept(listed: Path, tmp_path: Path) -> None:
    hash_images(open_dataset(str(listed), size=8), tmp_path / "cache")
    file = index_of(tmp_path / "cache")
    poison_all_with_a_fitting_checksum(file)
    hash_images(open_dataset(str(listed), size=8, limit=2), tmp_path / "cache")
    assert "0" * 64 not in file.read_text()


def test_index_under_another_datasets_name_is_not_used(
    listed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    four = open_dataset(str(listed), size=8)
    hash_images(four, tmp_path / "cache")
    ours = index_of(tmp_path / "cache")
    hash_images(open_dataset(str(listed), size=4), tmp_path / "cache")
    (theirs,) = set((tmp_path / "cache" / "pixels").iterdir()) - {ours}
    ours.write_bytes(theirs.read_bytes())
    assert hash_images(four, tmp_path / "cache") == by_hand(0, 1, 2, 3)
    assert "it belongs to other settings" in caplog.text


def test_damaged_image_is_named_by_fingerprints(listed: Path, tmp_path: Path) -> None:
    four = open_dataset(str(listed), size=8)
    (tmp_path / "2.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadImageError, match=r"2\.png"):
        hash_images(four, tmp_path / "cache")
    (tmp_path / "2.png").unlink()
    with pytest.raises(BadImageError, match=r"2\.png: cannot be read"):
        hash_images(four, tmp_path / "cache")


def test_repeated_pixels_are_allowed_and_told(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 1)):
        save(tmp_path / f"{name}.png", noise(seed))
    listed = table(tmp_path / "list.csv", "path,label", *(f"{name}.png,3" for name in "abcd"))
    found = open_dataset(str(listed), size=8)
    image_hashes = hash_images(found, tmp_path / "cache")
    assert image_hashes == by_hand(1, 2, 1, 1)
    assert repeated(found, image_hashes) == [("c.png", "a.png"), ("d.png", "a.png")]


def test_one_file_under_two_names_has_two_fingerprints(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(1))
    found = open_dataset(str(table(tmp_path / "list.csv", "path,label", "a.png,3", f"{path},4")), size=8)
    assert hash_images(found, tmp_path / "cache") == by_hand(1, 1)


def test_digest_is_of_pixels_and_labels_in_order(listed: Path) -> None:
    four = open_dataset(str(listed), size=8)
    image_hashes = by_hand(0, 1, 2, 3)
    whole = digest(image_hashes, four.labels)
    assert whole == hash_many([*image_hashes, "0", "1", "2", "3"])
    table(listed, "path,label", "0.png,0", "1.png,1", "2.png,2", "3.png,4")
    assert digest(image_hashes, open_dataset(str(listed)).labels) != whole
    assert digest([image_hashes[1], image_hashes[0], *image_hashes[2:]], four.labels) != whole


def test_batch(listed: Path) -> None:
    four = open_dataset(str(listed), size=8)
    found = batch(four, 1, 4, by_hand(0, 1, 2, 3))
    assert found.shape == (3, 3, 8, 8)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), [noise(1), noise(2), noise(3)])
    assert batch(four, 2, 2).shape == (0, 3, 8, 8)
    for low, high in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(IndexError, match=f"has 4 images, asked for {low}..{high}"):
            batch(four, low, high)


def test_batch_of_other_pixels_than_fingerprinted_is_refused(listed: Path, tmp_path: Path) -> None:
    four = open_dataset(str(listed), size=8)
    image_hashes = hash_images(four)
    save(tmp_path / "2.png", noise(9))
    batch(four, 0, 2, image_hashes)
    with pytest.raises(BadImageError, match=r"image '2\.png' changed since the run began"):
        batch(four, 0, 4, image_hashes)


@pytest.fixture(scope="module")
def real() -> Images:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: half of the NIPS-2017 DEV set, which this repository may not carry")
    found = open_dataset(str(SHARED))
    assert isinstance(found, Images)
    return found


@pytest.mark.shared
def test_real_nips2017_is_read_pixel_for_pixel(real: Images, tmp_path: Path) -> None:
    assert (real.name, real.size, len(real.ids)) == ("nips2017", 299, 500)
    image_hashes = hash_images(real, tmp_path)
    images = batch(real, 0, 500, image_hashes)
    assert images.shape == (500, 3, 299, 299)
    for path, image in zip(real.paths, images, strict=True):
        with Image.open(path) as expected:
            assert np.array_equal(np.asarray(expected), image.transpose(1, 2, 0)), path
    assert repeated(real, image_hashes) == []


@pytest.mark.shared
def test_real_nips2017_labels(real: Images) -> None:
    with (SHARED / "dev_dataset.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(real.ids) == [row["ImageId"] for row in rows]
    assert [label + 1 for label in real.labels] == [int(row["TrueLabel"]) for row in rows]
    assert [target + 1 for target in real.targets] == [int(row["TargetClass"]) for row in rows]
    assert 0 <= min(real.labels) <= max(real.labels) <= 999
    assert not any(label == target for label, target in zip(real.labels, real.targets, strict=True))


@pytest.mark.shared
def test_real_nips2017_is_fully_known_the_second_time(real: Images, tmp_path: Path, decoded: list[str]) -> None:
    some = real.first(50)
    first = hash_images(some, tmp_path)
    decoded.clear()
    assert hash_images(some, tmp_path) == first
    assert len(decoded) == 1
