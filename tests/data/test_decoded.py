"""Each image is decoded once, and what is kept of it is checked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdp_bench.data import decoded
from rdp_bench.data.decoded import DecodedImages
from rdp_bench.data.image_hashes import hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError

N, SIZE = 12, 16


class Counting:
    """A data set that counts how often each image is asked for."""

    def __init__(self) -> None:
        self.name, self.size, self.ids, self.labels = "counting", SIZE, [str(i) for i in range(N)], [0] * N
        self.asked: list[int] = []

    def image(self, index: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        self.asked.append(index)
        return np.random.default_rng(index).integers(0, 256, (3, SIZE, SIZE), np.uint8)


@pytest.fixture(params=["memory", "file"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the data set is too large for memory."""
    if request.param == "file":
        monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    return request.param == "file"


def right(images: DecodedImages, low: int, high: int) -> bool:
    wanted = np.stack([np.random.default_rng(i).integers(0, 256, (3, SIZE, SIZE), np.uint8) for i in range(low, high)])
    return np.array_equal(images.batch(low, high), wanted)


def test_each_image_is_decoded_once(tmp_path: Path, large: bool) -> None:
    data = Counting()
    hashes = hash_images(data)
    data.asked.clear()
    images = DecodedImages(data, hashes, tmp_path)
    for _ in range(3):
        for low, high in ((0, 5), (5, 10), (10, 12), (7, 8)):
            assert right(images, low, high)
    assert sorted(data.asked) == list(range(N))
    assert (tmp_path / "decoded").exists() == large
    if large:  # a later run decodes none
        assert right(DecodedImages(data, hashes, tmp_path), 0, N)
        assert len(data.asked) == N


def test_what_is_damaged_or_half_written_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    data = Counting()
    hashes = hash_images(data)
    assert right(DecodedImages(data, hashes, tmp_path), 0, N)
    (path,) = (tmp_path / "decoded").iterdir()
    content = bytearray(path.read_bytes())
    content[3 * SIZE * SIZE * 4 + 7] ^= 1
    path.write_bytes(content[: 3 * SIZE * SIZE * 9 + 100])
    data.asked.clear()
    images = DecodedImages(data, hashes, tmp_path)
    assert right(images, 0, 6)
    assert right(images, 6, N)
    assert data.asked == [4, 9, 10, 11]
    assert bytes(path.read_bytes()) == DecodedImages(data, hashes, tmp_path).batch(0, N).tobytes()


def test_without_a_folder_that_can_be_written_images_are_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    data = Counting()
    hashes = hash_images(data)
    (tmp_path / "decoded").write_text("a file")
    for cache in (None, tmp_path):
        images = DecodedImages(data, hashes, cache)
        assert right(images, 0, 6)
        assert right(images, 6, N)
        assert right(images, 0, 6)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "images" / "0").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIZE, SIZE, 3), i, np.uint8)).save(tmp_path / "images" / "0" / f"{i}.png")
    data = open_dataset(str(tmp_path / "images"), size=SIZE)
    hashes = hash_images(data)
    images = DecodedImages(data, hashes, None)
    images.batch(0, 1)
    Image.fromarray(np.full((SIZE, SIZE, 3), 9, np.uint8)).save(tmp_path / "images" / "0" / "1.png")
    with pytest.raises(BadImageError, match="changed since the run began"):
        images.batch(1, 2)
