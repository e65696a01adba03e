"""Whether test images are among photographs: by file, by pixels, and not by likeness."""

from pathlib import Path

import pytest
from PIL import Image

from rdp_bench.data._images import prepare
from rdp_bench.data.image_hashes import hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.data.photographs import PhotographHashes, shipped
from rdp_bench.errors import DamagedError
from rdp_bench.keys import hash_file, hash_pixels
from rdp_bench.train.photos import Photos, open_photos
from tests.helpers.images import noise
from tests.helpers.paths import ROOT

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Photos]:
    """Ten photographs, some of them large, and a folder that a training opened."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(10):
        pixels = noise(i, 300 if i < 3 else 40, 500 if i < 3 else 48)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder, open_photos(folder, 32, tmp_path_factory.mktemp("cache"))


def found(hashes: PhotographHashes, folder: Path, size: int) -> list[str]:
    """The names of the images of a folder that are among the photographs."""
    data = open_dataset(str(folder), size=size)
    return sorted(Path(each).name for each in hashes.among(data, hash_images(data)))


def test_files_pixels_and_strangers(photos: tuple[Path, Photos], tmp_path: Path) -> None:
    """A copy of a file, the same pixels in another format, large and small; another crop and a JPEG are not found."""
    folder, opened = photos
    images = tmp_path / "0"
    images.mkdir()
    (images / "copy.png").write_bytes((folder / "1.png").read_bytes())
    Image.open(folder / "2.png").save(images / "large.bmp")
    Image.open(folder / "5.png").save(images / "small.bmp")
    Image.open(folder / "6.png").save(images / "compressed.jpg", quality=60)
    Image.open(folder / "7.png").crop((1, 0, 48, 40)).save(images / "cut.png")
    Image.fromarray(noise(99, 48, 48)).save(images / "stranger.png")
    assert found(opened.hashes, tmp_path, 32) == ["copy.png", "large.bmp", "small.bmp"]
    pixels_only = PhotographHashes.of("", 10, opened.short, ())
    assert found(pixels_only, tmp_path, 32) == []


def test_a_training_on_prepared_images(tmp_path: Path) -> None:
    """The photographs are what an evaluation makes of the files: neither files nor whole images agree."""
    (tmp_path / "0").mkdir()
    for i in range(2):
        Image.fromarray(noise(i, 70, 90)).save(tmp_path / "0" / f"{i}.png")
    hashes = PhotographHashes.of("r", 1, 256, [hash_pixels(prepare(tmp_path / "0" / "1.png", 32))])
    assert found(hashes, tmp_path, 32) == ["1.png"]


def test_only_so_many_images_are_looked_up(photos: tuple[Path, Photos], tmp_path: Path) -> None:
    folder, opened = photos
    (tmp_path / "0").mkdir()
    for i in range(3):
        (tmp_path / "0" / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes())
    data = open_dataset(str(tmp_path), size=32)
    assert len(opened.hashes.among(data, hash_images(data)[:2])) == 2


def test_text_and_back(photos: tuple[Path, Photos]) -> None:
    hashes = photos[1].hashes
    assert (hashes.count, hashes.short, len(hashes.prefixes)) == (10, 256, 20)
    assert PhotographHashes.from_json(hashes.to_json(), "x") == hashes
    for bad in ("", "[]", "{}", hashes.to_json().replace('"hashes": "', '"hashes": "AAAA')):
        with pytest.raises(DamagedError, match="x: the hashes of its photographs cannot be read"):
            PhotographHashes.from_json(bad, "x")


def test_a_training_that_goes_on_from_another() -> None:
    def of(digit: str, short: int = 256) -> PhotographHashes:
        return PhotographHashes.of(digit, 1, short, [digit * 64])

    both = of("a").after(of("b"))
    assert (both.count, both.complete, both.prefixes) == (2, True, of("a").prefixes | of("b").prefixes)
    assert of("a").after(of("a")).count == 1
    assert not of("a").after(None).complete
    assert not of("a").after(of("b", 512)).complete
    assert not of("c").after(of("a").after(None)).complete


def test_lists_that_ship() -> None:
    known = shipped()
    assert set(known["declared"].values()) <= known["lists"].keys()
    for record, listed in known["lists"].items():
        assert listed.record == record
        assert len(listed.prefixes) == 2 * listed.count == 2 * 1496


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is missing")
def test_the_list_that_ships_is_of_the_shared_photographs() -> None:
    """Files alone are compared: pixels depend on the version of the JPEG library."""
    (listed,) = shipped()["lists"].values()
    sample = sorted((SHARED / "photos").iterdir())[::100]
    known = [bytes.fromhex(hash_file(path)[:16]) in listed.prefixes for path in sample]
    assert len(known) == 15
    assert all(known)
    data = open_dataset(str(SHARED / "nips17"))
    assert listed.among(data, hash_images(data)[:25]) == []
