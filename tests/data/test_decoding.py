"""Decoding: the right pixels, or an error that names the file."""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdp_bench.data._images import decode, prepare
from rdp_bench.errors import BadImageError
from tests.helpers.images import Pixels, hwc, noise, save


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
