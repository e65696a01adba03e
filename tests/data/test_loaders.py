"""Loaders of the built-in formats: the right images and labels, or an error that says where."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from rdp_bench import registry
from rdp_bench.data._labelled import Images
from rdp_bench.data.image_hashes import batch
from rdp_bench.data.imagefolder import imagenet_synsets
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError
from tests.helpers.images import noise, save, table

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
    (["ImageId,TrueLabel", "one,1", "two,2", "one,1"], r"line 4: ImageId 'one' is repeated, first on line 2"),
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
    (["path,label", "0.png,1", "1.png,1", "0.png,1"], r"line 4: path '0\.png' is repeated, first on line 2"),
    (["path,label", "0.png,1", "x/../0.png,2"], r"line 3: path 'x/\.\./0\.png' is repeated, first as '0\.png'"),
    (["0.png,1"], r"needs one column 'path' in its first line, found: 0\.png, 1"),
    (["path:label", "0.png:1"], r"needs one column 'path' in its first line, found: path:label"),
    (["path,label,label", "0.png,1,2"], r"needs one column 'label'"),
    (["path,label", "0.png,1", "9.png,1"], r"1 of 2 image files are missing, the first is .*9\.png"),
])  # fmt: skip
def test_bad_csv_says_where(listed: Path, rows: list[str], message: str) -> None:
    table(listed, *rows)
    with pytest.raises(BadImageError, match=r"four\.csv.*" + message):
        open_dataset(str(listed))
