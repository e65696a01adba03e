"""CIFAR-10 in each of its layouts, against torchvision's reader, against Pillow and pyarrow, and damaged."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rdp_bench import registry
from rdp_bench.data.cifar10 import Cifar10
from rdp_bench.data.image_hashes import hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.engine import grid
from rdp_bench.errors import BadImageError, UsageError
from rdp_bench.keys import hash_pixels
from tests.helpers.paths import ROOT

pa = pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install '.[parquet]'")

# Alex Krizhevsky's batches.meta.txt.
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LABELS = [3, 8, 8, 0, 6, 9, 1]

Pixels = NDArray[np.uint8]


def pixels(n: int = len(LABELS), seed: int = 0) -> Pixels:
    """Images `[n, 32, 32, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def binary(file: Path, images: Pixels, labels: list[int]) -> Path:
    """A batch as the data set's page describes it: a label, then 1024 red, 1024 green and 1024 blue bytes, by rows."""
    content = b""
    for image, label in zip(images, labels, strict=True):
        content += bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def png(image: Pixels, file: Path) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
    return file.read_bytes()


def parquet(file: Path, images: Pixels, labels: list[Any], column: str = "img", names: Any = NAMES) -> Path:
    """A shard as the Hugging Face library writes it."""
    cells = [{"bytes": png(image, file.parent / "one.png"), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(cells, kind), "label": pa.array(labels)})
    features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    said = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": said}), file)
    (file.parent / "one.png").unlink(missing_ok=True)
    return file


def everything(found: Any) -> Pixels:
    """Images `[n, 32, 32, 3]`."""
    return np.stack([found.image(i) for i in range(len(found.ids))]).transpose(0, 2, 3, 1)


def test_binary_agrees_with_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision reads the version for Python of the same images: five training batches and one of test images."""
    from torchvision.datasets import CIFAR10

    meta: dict[str, Any] = {"label_names": NAMES}
    batches = {f"data_batch_{i}": (pixels(4, i), [(i + k) % 10 for k in range(4)]) for i in range(1, 6)}
    batches["test_batch"] = (pixels(), LABELS)
    python = tmp_path / "torchvision" / "cifar-10-batches-py"
    python.mkdir(parents=True)
    for name, (images, labels) in batches.items():
        binary(tmp_path / "bin" / "cifar-10-batches-bin" / f"{name}.bin", images, labels)
        data = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels}
        (python / name).write_bytes(pickle.dumps(data))
    (python / "batches.meta").write_bytes(pickle.dumps(meta))
    (tmp_path / "bin" / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for split, train in (("test", False), ("train", True)):
        theirs = CIFAR10(str(tmp_path / "torchvision"), train=train)
        ours = open_dataset(f"cifar10({tmp_path / 'bin'}, split={split})")
        np.testing.assert_array_equal(everything(ours), theirs.data)
        assert list(ours.labels) == theirs.targets
        assert list(Cifar10.class_names) == theirs.classes
    assert ours.name == "cifar10-train"
    assert list(ours.ids)[:2] == ["train-00000", "train-00001"]
    with pytest.raises(BadImageError, match=r"is the version for Python, a pickle.*refused.*binary version"):
        open_dataset(f"cifar10({tmp_path / 'torchvision'})")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadImageError, match="pickle"):
        open_dataset(f"cifar10({tmp_path})")
    assert not (tmp_path / "ran").exists()


def test_all_layouts_give_the_same_hashes(tmp_path: Path) -> None:
    images = pixels()
    binary(tmp_path / "bin" / "test_batch.bin", images, LABELS)
    (tmp_path / "hub" / "plain_text").mkdir(parents=True)
    parquet(tmp_path / "hub" / "plain_text" / "test-00000-of-00002.parquet", images[:4], LABELS[:4])
    parquet(tmp_path / "hub" / "plain_text" / "test-00001-of-00002.parquet", images[4:], LABELS[4:], "img")
    parquet(tmp_path / "own.parquet", images, LABELS, "image")
    for i, (image, label) in enumerate(zip(images, LABELS, strict=True)):
        png(image, tmp_path / "named" / "test" / NAMES[label] / f"{i}.png")
        png(image, tmp_path / "numbered" / str(label) / f"{i}.png")
    expected = [hash_pixels(image.transpose(2, 0, 1).copy()) for image in images]
    for where in ("bin", "bin/test_batch.bin", "hub", "own.parquet"):
        found = open_dataset(f"cifar10({tmp_path / where})")
        assert hash_images(found) == expected, where
        assert list(found.labels) == LABELS
        assert list(found.ids) == [f"test-{i:05d}" for i in range(len(LABELS))]
        assert "7 images, not the 10,000" in found.note  # type: ignore[attr-defined]
        assert (found.name, found.size, found.classes) == ("cifar10", 32, 10)  # type: ignore[attr-defined]
    order = [3, 6, 0, 4, 1, 5, 2]  # the first of every class in the order of classes, then the second
    for where in ("named", "named/test", "numbered"):
        found = open_dataset(f"cifar10({tmp_path / where})")
        assert hash_images(found) == [expected[i] for i in order], where
        assert list(found.labels) == [LABELS[i] for i in order]
    assert open_dataset(f"cifar10({tmp_path / 'named'})").ids[0] == "airplane/3.png"


def test_foolbox_photos_of_cifar10(tmp_path: Path) -> None:
    """Real images: foolbox has 20, with their labels in their names."""
    from importlib.util import find_spec

    spec = find_spec("foolbox")
    assert spec is not None
    assert spec.origin is not None
    for file in (Path(spec.origin).parent / "data").glob("cifar10_*.png"):
        png(np.asarray(Image.open(file).convert("RGB")), tmp_path / file.stem.rpartition("_")[2] / file.name)
    found = open_dataset(f"cifar10({tmp_path})")
    assert len(found.ids) == 20
    assert all(int(id_.rpartition("_")[2].removesuffix(".png")) == label
               for id_, label in zip(found.ids, found.labels, strict=True))  # fmt: skip


def test_limit_and_size(tmp_path: Path) -> None:
    """Enlarged as Pillow does it; above all, not silently left at 32."""
    binary(tmp_path / "test_batch.bin", pixels(), LABELS)
    found = open_dataset(f"cifar10({tmp_path})", size=64, limit=2)
    assert list(found.labels) == LABELS[:2]
    expected = Image.fromarray(pixels()[1]).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found.image(1).transpose(1, 2, 0), np.asarray(expected))
    with pytest.raises(UsageError, match="size must be at least 32, found 16"):
        open_dataset(f"cifar10({tmp_path}, size=16)")


def test_a_path_in_a_grid_starts_at_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary(tmp_path / "grids" / "mine" / "test_batch.bin", pixels(), LABELS)
    file = tmp_path / "grids" / "mine.toml"
    file.write_text(
        '[profile.embedded]\ndataset = "cifar10(mine)"\nsources = ["tiny/one"]\ntargets = ["tiny/one"]\n'
        'attacks = ["fgsm"]\ndefenses = ["none"]\neps = [8]\n'
    )
    monkeypatch.chdir(ROOT)
    loaded = grid.settle(grid.load(str(file), "embedded", {})[0], None)
    assert list(open_dataset(loaded.axes.dataset).labels) == LABELS
    given = grid.settle(grid.load(str(file), "embedded", {"dataset": "cifar10(mine)"})[0], None)
    assert given.axes.dataset == "cifar10(mine)"  # from the command line: from the current folder


@pytest.mark.parametrize(("change", "message"), [
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"test_batch\.bin: 21,510 bytes are not whole records"),
    (lambda file: file.write_bytes(b""), r"test_batch\.bin: 0 bytes are not whole records"),
    (lambda file: binary(file, pixels(2), [3, 10]), r"test_batch\.bin, record 1: label 10 is outside 0\.\.9"),
    (lambda file: (file.parent / "batches.meta.txt").write_text("apple\nfish\n"), "the classes are apple, fish"),
    (lambda file: file.rename(file.with_name("data_batch_1.bin")), r"test_batch\.bin: cannot be read"),
    (lambda file: png(pixels(1)[0], file.parent / "cat" / "a.png"), "holds the binary version and class folders"),
])  # fmt: skip
def test_bad_binary(tmp_path: Path, change: Any, message: str) -> None:
    change(binary(tmp_path / "test_batch.bin", pixels(), LABELS))
    with pytest.raises(BadImageError, match=message):
        open_dataset(f"cifar10({tmp_path})")


@pytest.mark.parametrize(("file", "image", "message"), [
    ("cat/b.png", np.zeros((32, 31, 3), np.uint8), r"cat/b\.png: 31 x 32 pixels; images of CIFAR-10 are 32 x 32"),
    ("dogg/b.png", None, r"class folder 'dogg' is no class of CIFAR-10\. Did you mean 'dog'\?"),
    ("3/b.png", None, "folders '3' and 'cat' are the same class"),
    ("cat/b.jpg", None, r"b\.jpg: expected PNG files"),
])  # fmt: skip
def test_bad_folders(tmp_path: Path, file: str, image: Pixels | None, message: str) -> None:
    png(pixels(1)[0], tmp_path / "cat" / "a.png")
    assert hash_images(open_dataset(f"cifar10({tmp_path})"))
    png(pixels(1)[0] if image is None else image, tmp_path / file)
    with pytest.raises(BadImageError, match=message):
        hash_images(open_dataset(f"cifar10({tmp_path})"))


def one_row(file: Path, **columns: Any) -> None:
    pq.write_table(pa.table({name: [value] for name, value in columns.items()}), file)


CELL = {"bytes": b"", "path": "a.png"}


@pytest.mark.parametrize(("change", "message"), [
    (lambda file: one_row(file, img=CELL), r"no column 'label'; found: img"),
    (lambda file: one_row(file, picture=CELL, label=1), r"no column 'img' or 'image'; found: picture, label"),
    (lambda file: one_row(file, img=CELL, label=1), "record 0: no bytes of an image"),
    (lambda file: one_row(file, img={"bytes": b"GIF", "path": ""}, label=1), "record 0: not an image"),
    (lambda file: parquet(file, pixels(2), [1, 10]), "record 1: label 10 is outside"),
    (lambda file: parquet(file, pixels(2), [None, 1]), "record 0: label None is outside"),
    (lambda file: parquet(file, pixels(2), [0.5, 1]), r"record 0: label 0\.5 is outside"),
    (lambda file: parquet(file, np.zeros((1, 8, 8, 3), np.uint8), [1]), "record 0: 8 x 8 pixels"),
    (lambda file: parquet(file, pixels(1), [1], names=NAMES[::-1]), "its classes are truck, ship"),
    (lambda file: file.write_bytes(file.read_bytes()[:-9]), "damaged, truncated, or not a parquet file"),
    (lambda file: file.rename(file.with_name("test-00000-of-00002.parquet")), "1 of 2 parquet files"),
    (lambda file: file.rename(file.with_name("train-00000-of-00001.parquet")), "no test-00000-of-00001.parquet"),
])  # fmt: skip
def test_bad_parquet(tmp_path: Path, change: Any, message: str) -> None:
    file = parquet(tmp_path / "test-00000-of-00001.parquet", pixels(), LABELS)
    assert hash_images(open_dataset(f"cifar10({tmp_path})"))
    change(file)
    with pytest.raises(BadImageError, match=message):
        hash_images(open_dataset(f"cifar10({tmp_path})"))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(tmp_path / "a.parquet", pixels(1), [1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadImageError, match=r"pip install '\.\[parquet\]' in the checkout"):
        open_dataset(f"cifar10({file})")


@pytest.mark.parametrize(("label", "message"), [
    ("cifar10", r"needs its folder or file: cifar10\(PATH\)"),
    ("cifar10(gone)", "gone: no such folder or file"),
    ("cifar10(empty)", "holds no known layout"),
    ("cifar10(empty, split=valid)", "expected 'test' or 'train'"),
])  # fmt: skip
def test_bad_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_dataset(label)


def test_it_is_listed() -> None:
    assert registry.dataset.get("cifar10").summary == (
        "CIFAR-10 in a folder or file that you have, as in cifar10(PATH)."
    )
