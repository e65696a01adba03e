"""Datasets: the right pixels, the right labels, or an error that says which file and what to do."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rdp_bench import registry
from rdp_bench.data import _images
from rdp_bench.data import image_hashes as prints_module
from rdp_bench.data._images import decode, prepare
from rdp_bench.data._labelled import Images
from rdp_bench.data.image_hashes import batch, digest, hash_images, repeated
from rdp_bench.data.imagefolder import imagenet_synsets
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError, UsageError
from rdp_bench.keys import hash_many, hash_pixels
from tests.helpers.paths import ROOT

SHARED = ROOT.parent / "shared" / "nips17"
Pixels = NDArray[np.uint8]


def noise(seed: int = 0, height: int = 8, width: int = 8) -> Pixels:
    """Random `[height, width, 3]`: no two rows, columns or channels alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: Pixels | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path, **options)
    return path


def hwc(path: Path, size: int = 8) -> Pixels:
    """The prepared image with its channels last, as Pillow has them."""
    image = prepare(path, size)
    assert image.shape == (3, size, size)
    assert image.dtype == np.uint8
    return image.transpose(1, 2, 0)


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def nips(tmp_path: Path) -> Path:
    """Three images in NIPS-2017's layout, labelled with ImageNet's first, second and last class."""
    folder = tmp_path / "mine"
    for seed, name in enumerate(("one", "two", "three")):
        save(folder / "images" / f"{name}.png", noise(seed))
    table(folder / "dev_dataset.csv", "ImageId,TrueLabel,TargetClass", "two,1,1000", "one,2,7", "three,1000,1")
    return folder


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A CSV of four images, labelled 0, 1, 2, 3."""
    for seed in range(4):
        save(tmp_path / f"{seed}.png", noise(seed))
    return table(tmp_path / "four.csv", "path,label", *(f"{i}.png,{i}" for i in range(4)))


# --- decoding ----------------------------------------------------------------------------------------------


def test_square_image_is_used_pixel_for_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    np.testing.assert_array_equal(hwc(path), noise())


def test_channels_come_first_and_are_contiguous(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    image = prepare(save(tmp_path / "red.png", red), 8)
    assert image.flags.c_contiguous
    assert [int(channel.max()) for channel in image] == [200, 0, 0]


@pytest.mark.parametrize("suffix", ["bmp", "tif", "ppm", "webp"])
def test_other_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(hwc(path), noise())


# What `numpy` does to an upright image so that each EXIF value stores it; the loader must undo it.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = noise(height=5, width=9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(STORED[orientation](upright)), exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(path)), upright)


def test_orientation_of_a_tiff_is_applied_once(tmp_path: Path) -> None:
    upright = noise(height=5, width=9)
    path = save(tmp_path / "a.tif", np.ascontiguousarray(STORED[6](upright)), tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(np.asarray(decode(path)), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\xff\xff", b"Exif\0\0no TIFF header"])
def test_damaged_exif_leaves_the_pixels_as_stored(tmp_path: Path, exif: bytes) -> None:
    path = save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(hwc(path), noise())


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise()[..., 0]
    np.testing.assert_array_equal(hwc(save(tmp_path / "a.png", grey)), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_not_composed(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, channels), np.uint8)
    expected = pixels[..., :3] if channels == 4 else np.repeat(pixels[..., :1], 3, 2)
    np.testing.assert_array_equal(hwc(save(tmp_path / "a.png", pixels)), expected)


def test_palette_is_looked_up_and_its_transparency_dropped(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((3, 2), 1)
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    expected = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    expected[2, 3] = (40, 50, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(hwc(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_rounded(tmp_path: Path, suffix: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    deep[0, :6] = (0, 128, 129, 257, 65535, 65535 - 129)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    expected = np.round(deep / 257).astype(np.uint8)
    assert expected[0, :6].tolist() == [0, 0, 1, 1, 255, 254]
    np.testing.assert_array_equal(hwc(path), np.stack([expected] * 3, 2))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_range_are_refused(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((8, 8), 7, kind)).save(path)
    with pytest.raises(BadImageError, match=r"deep\.tif: 32-bit pixels"):
        prepare(path, 8)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = noise()[..., 0] > 127
    Image.fromarray(bits).convert("1").save(tmp_path / "a.png")
    np.testing.assert_array_equal(hwc(tmp_path / "a.png"), np.where(bits, 255, 0)[..., None].repeat(3, 2))


def test_cmyk(tmp_path: Path) -> None:
    cyan = np.zeros((8, 8, 4), np.uint8)
    cyan[..., 0] = 255
    Image.fromarray(cyan, "CMYK").save(tmp_path / "a.jpg", quality=100)
    error = np.abs(hwc(tmp_path / "a.jpg").astype(int) - (0, 255, 255))
    assert error.max() <= 3


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert hwc(tmp_path / "a.gif").reshape(-1, 3).max(0).tolist() == [255, 0, 0]


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (7, 7), (5, 6), (9, 14), (14, 9), (64, 8), (1, 3)])
def test_resize_and_crop_are_torchvisions(tmp_path: Path, height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    path = save(tmp_path / "a.png", noise(height=height, width=width))
    image = Image.fromarray(noise(height=height, width=width))
    expected = transforms.CenterCrop(16)(transforms.Resize(16, transforms.InterpolationMode.BICUBIC)(image))
    np.testing.assert_array_equal(hwc(path, 16), np.asarray(expected))


def test_the_centre_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert hwc(save(tmp_path / "a.png", wide)).min() == 255


def damaged(name: str) -> bytes:
    file = io.BytesIO()
    big = Image.fromarray(noise(height=64, width=64))
    big.save(file, "JPEG" if "jpg" in name else "PNG")
    content = bytearray(file.getvalue())
    if name.startswith("cut"):
        return bytes(content[: len(content) * 2 // 3])
    if name.startswith("flipped"):
        content[len(content) // 2] ^= 4
        return bytes(content)
    return {"empty.png": b"", "text.png": b"<html>404</html>", "ghost.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}[name]


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "flipped.png", "empty.png", "text.png", "ghost.png"])
def test_unreadable_image_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(name))
    with pytest.raises(BadImageError, match=re.escape(str(path))):
        prepare(path, 8)


def test_flipped_bits_of_a_png_are_found_or_harmless(tmp_path: Path) -> None:
    """Smooth images pack so well that a flipped bit often decodes, to other pixels."""
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([y, x, x * y // 7], 2).astype(np.uint8)
    path = save(tmp_path / "a.png", smooth)
    content = path.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            found = np.asarray(decode(path))
        except BadImageError:
            continue
        np.testing.assert_array_equal(found, smooth, err_msg=f"byte {at}")


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone\.png: cannot be read \(No such file"):
        prepare(tmp_path / "gone.png", 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("allowed", [40, 20, 63])  # Pillow itself refuses from twice the limit on
def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
    with pytest.raises(BadImageError, match=r"bomb\.png: too large"):
        decode(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    decode(path)


def test_long_thin_image_is_refused_before_it_is_blown_up(tmp_path: Path) -> None:
    path = save(tmp_path / "line.png", np.zeros((1, 20_000, 3), np.uint8))
    with pytest.raises(BadImageError, match=r"line\.png: 20000 x 1 is too long and thin"):
        prepare(path, 299)


# --- photos20 ----------------------------------------------------------------------------------------------

# What the photos show, by eye and by foolbox's own labels: 243 bull mastiff, 559 folding chair, ...
PHOTOS20 = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305)


def test_photos20() -> None:
    photos = open_dataset("photos20", size=64)
    assert photos.name == "photos20"
    assert tuple(photos.labels) == PHOTOS20
    assert photos.ids[0] == "imagenet_00_243"
    assert photos.ids[19] == "imagenet_19_305"
    everything = batch(photos, 0, 20)
    assert everything.shape == (20, 3, 64, 64)
    assert len({image.tobytes() for image in everything}) == 20


def test_photos20_is_registered_with_its_summary() -> None:
    entry = registry.dataset.get("photos20")
    assert "20 labelled ImageNet photos" in entry.summary
    assert "foolbox" in entry.source


@pytest.mark.parametrize(("spec", "size", "expected"), [
    ("photos20", None, 299),
    ("photos20", 224, 224),
    ("photos20(size=32)", None, 32),
    ("photos20(size=32)", 224, 32),
])  # fmt: skip
def test_size_of_a_registered_dataset(spec: str, size: int | None, expected: int) -> None:
    photos = open_dataset(spec, size=size, limit=1)
    assert photos.size == expected
    assert photos.image(0).shape == (3, expected, expected)


def test_missing_foolbox_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.setattr("rdp_bench.data.photos20.find_spec", lambda _: None)
    with pytest.raises(BadImageError, match="pip install foolbox"):
        open_dataset("photos20")


# --- NIPS-2017 ---------------------------------------------------------------------------------------------


def test_nips_labels_are_counted_from_0(nips: Path) -> None:
    found = open_dataset(str(nips), size=8)
    assert isinstance(found, Images)
    assert list(found.ids) == ["two", "one", "three"]  # the file's order, not the folder's
    assert list(found.labels) == [0, 1, 999]
    assert list(found.targets) == [999, 6, 0]
    np.testing.assert_array_equal(found.image(0).transpose(1, 2, 0), noise(1))
    np.testing.assert_array_equal(found.image(1).transpose(1, 2, 0), noise(0))


def test_limit_cuts_targets_too(nips: Path) -> None:
    found = open_dataset(str(nips), limit=2)
    assert isinstance(found, Images)
    assert (list(found.labels), list(found.targets)) == ([0, 1], [999, 6])


def test_nips_is_opened_by_its_csv_too(nips: Path) -> None:
    """The plain CSV reader would take its labels as 0-based."""
    assert open_dataset(str(nips / "dev_dataset.csv")) == open_dataset(str(nips / "dev_dataset.csv"), limit=9)
    assert list(open_dataset(str(nips / "dev_dataset.csv")).labels) == [0, 1, 999]


def test_only_the_competitions_own_ids_are_called_nips2017(nips: Path) -> None:
    assert open_dataset(str(nips)).name == "mine"
    save(nips / "images" / "0c7ac4a8c9dfa802.png")
    table(nips / "dev_dataset.csv", "ImageId,TrueLabel", "0c7ac4a8c9dfa802,306")
    found = open_dataset(str(nips))
    assert isinstance(found, Images)
    assert (found.name, found.targets) == ("nips2017", ())


@pytest.mark.parametrize(("rows", "message"), [
    (["ImageId,TrueLabel", "one,0"], r"line 2: TrueLabel 0 is outside 1\.\.1000"),
    (["ImageId,TrueLabel", "one,1", "two,1001"], r"line 3: TrueLabel 1001 is outside"),
    (["ImageId,TrueLabel", "one,-1"], r"line 2: TrueLabel -1 is outside"),
    (["ImageId,TrueLabel", "one,3.0"], r"line 2: TrueLabel '3\.0' is not a whole number"),
    (["ImageId,TrueLabel", "one,"], r"line 2: 'TrueLabel' is empty"),
    (["ImageId,TrueLabel,TargetClass", "one,3,0"], r"line 2: TargetClass 0 is outside"),
    (["ImageId,Label", "one,3"], r"needs one column 'TrueLabel' in its first line, found: ImageId, Label"),
    (["ImageId,TrueLabel", "one,1", "two,2", "one,1"], r"line 4: ImageId 'one' is there already, on line 2"),
    (["ImageId,TrueLabel", "one,1,5"], r"line 2: 3 cells under 2 columns"),
    (["ImageId,TrueLabel"], r"no rows"),
    ([], r"found: nothing"),
    (["ImageId,TrueLabel", "one,1", "lost,2"], r"1 of 2 image files are missing, the first is .*lost\.png"),
])  # fmt: skip
def test_bad_nips_table_says_where(nips: Path, rows: list[str], message: str) -> None:
    table(nips / "dev_dataset.csv", *rows)
    with pytest.raises(BadImageError, match=r"dev_dataset\.csv.*" + message):
        open_dataset(str(nips))


def test_nips_without_its_images_folder(tmp_path: Path) -> None:
    table(tmp_path / "dev_dataset.csv", "ImageId,TrueLabel", "one,1")
    with pytest.raises(BadImageError, match="images/"):
        open_dataset(str(tmp_path))


def test_csv_of_a_spreadsheet_is_read(nips: Path) -> None:
    (nips / "dev_dataset.csv").write_bytes(b'\xef\xbb\xbfImageId, TrueLabel\r\n"one", 2\r\n\r\n,\r\ntwo.png,1\r\n')
    found = open_dataset(str(nips))
    assert (list(found.ids), list(found.labels)) == (["one", "two"], [1, 0])


def test_csv_in_another_encoding_is_named(nips: Path) -> None:
    (nips / "dev_dataset.csv").write_bytes("ImageId,TrueLabel\none,1".encode("utf-16"))
    with pytest.raises(BadImageError, match=r"dev_dataset\.csv: cannot be read as a CSV in UTF-8"):
        open_dataset(str(nips))


# --- ImageFolder -------------------------------------------------------------------------------------------

# Three synsets whose ImageNet ids anyone can look up: tench, bull mastiff, toilet tissue.
SYNSETS = {"n01440764": 0, "n02108422": 243, "n15075141": 999}


def test_synset_folders_are_imagenet_ids(tmp_path: Path) -> None:
    """Sorted order would say 0, 1, 2."""
    for seed, name in enumerate(SYNSETS):
        save(tmp_path / name / "a.JPEG.png", noise(seed))
    found = open_dataset(str(tmp_path), size=8)
    assert dict(zip(found.ids, found.labels, strict=True)) == {f"{k}/a.JPEG.png": v for k, v in SYNSETS.items()}
    np.testing.assert_array_equal(found.image(1).transpose(1, 2, 0), noise(1))


def test_timms_list_agrees_with_timm() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    names, theirs = imagenet_synsets(), ImageNetInfo()
    assert [theirs.index_to_label_name(label) for label in names.values()] == list(names)
    assert {name: names[name] for name in SYNSETS} == SYNSETS


def test_numbered_folders_are_ids_not_ranks(tmp_path: Path) -> None:
    for name in ("9", "10", "007", "999"):
        save(tmp_path / name / "a.png")
    found = open_dataset(str(tmp_path))
    assert list(found.labels) == [7, 9, 10, 999]


@pytest.mark.parametrize("name", ["tenhc", "1000", "-1", "n00004475", "n0144076", "²", "train"])
def test_unknown_class_folder_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / "n01440764" / "a.png")
    save(tmp_path / name / "a.png")
    with pytest.raises(BadImageError, match=rf"{re.escape(str(tmp_path))}: class folder '{name}' is neither"):
        open_dataset(str(tmp_path))


def test_limit_keeps_many_classes(tmp_path: Path) -> None:
    for name in ("3", "1", "2"):
        for image in ("b", "a"):
            save(tmp_path / name / f"{image}.png")
    save(tmp_path / "1" / "deep" / "er" / "c.PNG")
    found = open_dataset(str(tmp_path))
    assert list(found.ids) == ["1/a.png", "2/a.png", "3/a.png", "1/b.png", "2/b.png", "3/b.png", "1/deep/er/c.PNG"]
    assert list(open_dataset(str(tmp_path), limit=3).labels) == [1, 2, 3]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "1" / "a.png")
    save(tmp_path / "1" / "._a.png")
    save(tmp_path / "1" / ".thumbs" / "a.png")
    save(tmp_path / ".ipynb_checkpoints" / "a.png")
    table(tmp_path / "1" / "notes.txt", "hello")
    assert list(open_dataset(str(tmp_path)).ids) == ["1/a.png"]


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no images: expected"):
        open_dataset(str(tmp_path))
    (tmp_path / "3").mkdir()
    with pytest.raises(BadImageError, match="no images in its 1 class folders"):
        open_dataset(str(tmp_path))


def test_folder_without_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(BadImageError, match="images without labels: expected"):
        open_dataset(str(tmp_path))


# --- CSV ---------------------------------------------------------------------------------------------------


def test_csv_paths_are_beside_it_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "here" / "sub" / "a.png", noise(1))
    elsewhere = save(tmp_path / "there" / "b.png", noise(2))
    file = table(tmp_path / "here" / "my list.csv", "note,label,path", f"x,999,{elsewhere}", '"y, z",0,./sub/a.png')
    monkeypatch.chdir(tmp_path)
    found = open_dataset(str(file.relative_to(tmp_path)), size=8)
    monkeypatch.chdir("/")
    assert found.name == "my list"
    assert list(found.ids) == [elsewhere.as_posix(), "sub/a.png"]
    assert list(found.labels) == [999, 0]
    np.testing.assert_array_equal(found.image(0).transpose(1, 2, 0), noise(2))
    np.testing.assert_array_equal(found.image(1).transpose(1, 2, 0), noise(1))


@pytest.mark.parametrize(("rows", "message"), [
    (["path,label", "0.png,1000"], r"line 2: label 1000 is outside 0\.\.999"),
    (["path,label", "0.png,-1"], r"line 2: label -1 is outside"),
    (["path,label", "0.png,tench"], r"line 2: label 'tench' is not a whole number"),
    (["path,label", "0.png,1_0"], r"line 2: label '1_0' is not a whole number"),
    (["path,label", ",1"], r"line 2: 'path' is empty"),
    (["path,label", "0.png,1", "1.png,1", "0.png,1"], r"line 4: path '0\.png' is there already, on line 2"),
    (["path,label", "0.png,1", "x/../0.png,2"], r"line 3: path 'x/\.\./0\.png' is there already as '0\.png'"),
    (["0.png,1"], r"needs one column 'path' in its first line, found: 0\.png, 1"),
    (["path:label", "0.png:1"], r"needs one column 'path' in its first line, found: path:label"),
    (["path,label,label", "0.png,1,2"], r"needs one column 'label'"),
    (["path,label", "0.png,1", "9.png,1"], r"1 of 2 image files are missing, the first is .*9\.png"),
])  # fmt: skip
def test_bad_csv_says_where(listed: Path, rows: list[str], message: str) -> None:
    table(listed, *rows)
    with pytest.raises(BadImageError, match=r"four\.csv.*" + message):
        open_dataset(str(listed))


# --- open_dataset ------------------------------------------------------------------------------------------


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown dataset 'photo20'\. Did you mean 'photos20'\?.*folder"):
        open_dataset("photo20")
    with pytest.raises(UsageError, match=r"'photos20'.*'sise'|'sise'.*Did you mean 'size'"):
        open_dataset("photos20(sise=3)")


def test_registered_name_goes_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "photos20" / "7" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("photos20").ids) == 20
    assert list(open_dataset("./photos20").ids) == ["7/a.png"]


def test_missing_path_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "imagenet-val").mkdir()
    with pytest.raises(BadImageError, match=r"no such folder or file\. Did you mean '.*imagenet-val'\?"):
        open_dataset(str(tmp_path / "imagenet-vall"))
    with pytest.raises(BadImageError, match=r"no dataset at 'mine\.csv'"):
        open_dataset("mine.csv")


def test_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"a\.png: a dataset is a folder or a \.csv file"):
        open_dataset(str(save(tmp_path / "a.png")))


@pytest.mark.parametrize(("limit", "n"), [(1, 1), (3, 3), (4, 4), (99, 4), (None, 4)])
def test_limit(listed: Path, limit: int | None, n: int) -> None:
    found = open_dataset(str(listed), limit=limit)
    assert list(found.labels) == list(range(n))
    assert len(found.ids) == n
    with pytest.raises(IndexError):
        found.image(n)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_1_is_refused(listed: Path, limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit must be at least 1, found {limit}"):
        open_dataset(str(listed), limit=limit)


def test_limit_needs_only_its_own_files(listed: Path) -> None:
    (listed.parent / "3.png").unlink()
    assert len(open_dataset(str(listed), limit=3).ids) == 3


@pytest.mark.parametrize("spec", ["photos20", "four.csv"])
def test_size_below_1_is_refused(listed: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(listed.parent)
    with pytest.raises(UsageError, match="size must be at least 1, found 0"):
        open_dataset(spec, size=0)


def test_nothing_is_decoded_on_opening(listed: Path, nips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "decode", lambda path: pytest.fail(f"decoded {path}"))
    for spec in (str(listed), str(nips), "photos20"):
        open_dataset(spec)


@dataclass
class Stranger:
    """A plugin's dataset: two flat images, without files."""

    name: str = "stranger"
    size: int = 8
    ids: Sequence[str] = ("a", "b")
    labels: Sequence[int] = (5, 6)
    threads: set[int] = field(default_factory=set)

    def image(self, index: int) -> Pixels:
        return np.full((3, self.size, self.size), self.labels[index], np.uint8)


@pytest.mark.parametrize(("changes", "message"), [
    ({"ids": ()}, "no images"),
    ({"ids": ("a", "a")}, "id 'a' is there twice"),
    ({"labels": (5,)}, "2 ids but 1 labels"),
    ({"labels": (5, 1000)}, "image 'b' has label 1000"),
])  # fmt: skip
def test_registered_dataset_is_checked(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
    registry.dataset("test/stranger", source="this file")(lambda: Stranger(**changes))  # type: ignore[arg-type]
    with pytest.raises(BadImageError, match=f"dataset 'stranger': {message}"):
        open_dataset("test/stranger")


def test_registered_dataset_without_files_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
    registry.dataset("test/stranger", source="this file")(Stranger)
    found = open_dataset("test/stranger", limit=1)
    assert batch(found, 0, 1).tolist() == np.full((1, 3, 8, 8), 5).tolist()
    assert hash_images(found, tmp_path) == [hash_pixels(found.image(0))]
    with pytest.raises(IndexError):
        found.image(1)
    assert open_dataset("test/stranger(size=4)").image(0).shape == (3, 4, 4)


def test_image_of_another_shape_is_named() -> None:
    wrong = Stranger(labels=(5, 6))
    wrong.image = lambda index: np.zeros((8, 8, 3), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(BadImageError, match=r"image 'a' should be uint8 \[3, 8, 8\], is uint8 \[8, 8, 3\]"):
        batch(wrong, 0, 1)


# --- fingerprints and batches ------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, as it goes on."""
    names: list[str] = []

    def noted(path: Path) -> Image.Image:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(_images, "decode", noted)
    return names


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
    whole = digest(four, image_hashes)
    assert whole == hash_many([*image_hashes, "0", "1", "2", "3"])
    table(listed, "path,label", "0.png,0", "1.png,1", "2.png,2", "3.png,4")
    assert digest(open_dataset(str(listed)), image_hashes) != whole
    assert digest(four, [image_hashes[1], image_hashes[0], *image_hashes[2:]]) != whole


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


# --- lightness ---------------------------------------------------------------------------------------------

HEAVY = "{'numpy', 'PIL', 'torch', 'timm', 'foolbox', 'pandas'}"


def loaded_by(code: str) -> str:
    """What of `HEAVY` is loaded after `code` ran in a fresh interpreter."""
    code = f"{code}\nimport sys\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loaders_and_opening_datasets_loads_nothing_heavy(nips: Path) -> None:
    names = sorted(path.stem for path in (ROOT / "data").glob("*.py"))
    assert {"photos20", "nips2017", "open"} < set(names)
    imports = "\n".join(f"import rdp_bench.data.{name}" for name in names if name != "__init__")
    opened = f"from rdp_bench.data.open import open_dataset as o\no('photos20'); o({str(nips)!r})"
    assert loaded_by(f"{imports}\n{opened}") == "[]"


def test_the_test_of_lightness_can_fail() -> None:
    assert loaded_by("import PIL") == "['PIL']"


def test_reading_images_loads_no_torch() -> None:
    code = "from rdp_bench.data.open import open_dataset as o\no('photos20', size=8).image(0)"
    assert loaded_by(code) == "['PIL', 'numpy']"


# --- the real NIPS-2017 images -----------------------------------------------------------------------------


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
