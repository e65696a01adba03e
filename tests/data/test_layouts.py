"""Data sets as people have them: each is read with the right labels, or refused with what to do."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rdp_bench import registry
from rdp_bench.data import _images, nips2017
from rdp_bench.data._images import decode
from rdp_bench.data._labelled import Images
from rdp_bench.data.nips2017 import CARDS, EVERY_SECOND, manifest, remarks, subsets
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError, UsageError
from rdp_bench.keys import hash_pixels
from tests.helpers.paths import TESTS

SHARED = TESTS.parent.parent / "shared" / "nips17"


def save(path: Path, seed: int = 0, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(path)
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(spec: object) -> Images:
    found = open_dataset(str(spec), size=8)
    assert isinstance(found, Images)
    return found


def labels(spec: object) -> dict[str, int]:
    found = opened(spec)
    return dict(zip(found.ids, found.labels, strict=True))


# --- NIPS-2017's layout ---


@pytest.mark.parametrize("name", ["images.csv", "dev_dataset.csv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_nips_folder_under_either_name_and_separator(tmp_path: Path, name: str, separator: str) -> None:
    """Kaggle and SSA: images/ and images.csv, whose lines may end in empty columns."""
    save(tmp_path / "images" / "one.png")
    save(tmp_path / "images" / "two.png", 1)
    rows = ("ImageId,TrueLabel,TargetClass,,", "two,1,1000,,", "one,2,7,,")
    write(tmp_path / name, *(row.replace(",", separator) for row in rows))
    found = opened(tmp_path)
    assert (list(found.ids), list(found.labels), list(found.targets)) == (["two", "one"], [0, 1], [999, 6])
    assert opened(tmp_path / name).labels == found.labels


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".bmp"])
def test_nips_images_of_other_suffixes(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "images" / f"one{suffix}")
    write(tmp_path / "dev_dataset.csv", "ImageId,TrueLabel", f"one{suffix},5")
    found = opened(tmp_path)
    assert (list(found.ids), list(found.labels)) == (["one"], [4])
    assert found.paths[0].name == f"one{suffix}"
    assert found.image(0).shape == (3, 8, 8)


def test_two_files_of_one_image(tmp_path: Path) -> None:
    save(tmp_path / "images" / "one.jpg")
    save(tmp_path / "images" / "one.bmp")
    write(tmp_path / "dev_dataset.csv", "ImageId,TrueLabel", "one,5")
    with pytest.raises(
        BadImageError, match=r"line 2: ImageId 'one' has several files \(one\.bmp, one\.jpg\); keep one"
    ):
        opened(tmp_path)
    save(tmp_path / "images" / "one.png")
    assert opened(tmp_path).paths[0].name == "one.png"


def test_two_lists_in_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "images" / "one.png")
    write(tmp_path / "dev_dataset.csv", "ImageId,TrueLabel", "one,5")
    write(tmp_path / "images.csv", "ImageId,TrueLabel", "one,6")
    with pytest.raises(BadImageError, match=r"several lists of labels \(dev_dataset\.csv, images\.csv\); name the one"):
        opened(tmp_path)
    assert labels(tmp_path / "images.csv") == {"one": 5}


# --- the real set ---


def official(folder: Path, ids: list[str], shift: int = 0) -> Path:
    """The set's own rows for these ids; images are random."""
    for seed, id_ in enumerate(ids):
        save(folder / "images" / f"{id_}.png", seed)
    rows = [f"{id_},{manifest()[id_].label + shift},{manifest()[id_].target}" for id_ in ids]
    write(folder / "dev_dataset.csv", "ImageId,TrueLabel,TargetClass", *rows)
    return folder


def test_every_label_shifted_by_one_is_refused(tmp_path: Path) -> None:
    ids = [id_ for id_, known in manifest().items() if known.label < 1000][:3]
    assert opened(official(tmp_path, ids)).name == "nips2017"
    first = manifest()[ids[0]].label
    with pytest.raises(
        BadImageError, match=rf"line 2: TrueLabel {first + 1} of {ids[0]}, but NIPS-2017 DEV has {first}"
    ):
        opened(official(tmp_path, ids, shift=1))


def test_a_part_of_the_set_is_named(tmp_path: Path) -> None:
    found = opened(official(tmp_path, [*manifest()][:3]))
    assert found.note == "nips2017: 3 of the set's 1000 images"


def test_a_table_of_more_images_than_there_are_says_the_fix(tmp_path: Path) -> None:
    official(tmp_path, [*manifest()][:3])
    (tmp_path / "images" / f"{[*manifest()][1]}.png").unlink()
    with pytest.raises(BadImageError, match=r"1 of 3 image files are missing.*data get nips2017 --from .* keeps the"):
        opened(tmp_path)


def test_the_named_subset_is_every_second_row() -> None:
    ids = [*manifest()]
    wanted = subsets()[EVERY_SECOND]
    assert len(wanted) == 500
    assert (wanted[0], wanted[1], wanted[-1]) == (ids[0], ids[2], ids[998])
    assert wanted[0] == "0c7ac4a8c9dfa802"


def test_subset_selects_in_the_sets_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six = dict([*manifest().items()][:6])
    monkeypatch.setattr(nips2017, "manifest", lambda: six)
    ids = [*six]
    official(tmp_path, ids[::-1])
    monkeypatch.chdir(tmp_path.parent)
    for path in (str(tmp_path), f"./{tmp_path.name}", f"{tmp_path}/dev_dataset.csv"):
        found = opened(f"{path}(subset={EVERY_SECOND})")
        assert list(found.ids) == [ids[0], ids[2], ids[4]]
        assert list(found.labels) == [six[id_].label - 1 for id_ in found.ids]
        assert list(found.targets) == [six[id_].target - 1 for id_ in found.ids]
        assert found.note == "nips2017: 3 of the set's 6 images (subset every-second)"
    with pytest.raises(UsageError, match=r"unknown subset 'every-secnd' of nips2017\. Did you mean 'every-second'"):
        opened(f"{tmp_path}(subset=every-secnd)")
    official(tmp_path, ids[:4])
    with pytest.raises(BadImageError, match=f"has 3 images, 1 of them are not listed here, the first is {ids[4]}"):
        opened(f"{tmp_path}(subset={EVERY_SECOND})")


def test_copies_are_named_and_cards_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, card = "0c7ac4a8c9dfa802", CARDS[0]
    folder = official(tmp_path, [plain, card])
    found = open_dataset(str(folder))  # 299 pixels: the published hashes are of that size
    a, b = "f" * 64, "e" * 64
    known = {
        id_: nips2017.Known(manifest()[id_].label, manifest()[id_].target, a[:32], b[:16]) for id_ in (plain, card)
    }
    monkeypatch.setattr(nips2017, "manifest", lambda: known)
    assert remarks(found, [a, a])[1:] == []
    (told,) = remarks(found, [b, a])[1:]
    assert told == f"nips2017: 1 of 2 images are of {nips2017.COPY_B}"
    (told,) = remarks(found, [a, "0" * 64])[1:]
    assert told.startswith(f"nips2017: 1 of 2 images have pixels of neither published copy, the first is {card}")
    with pytest.raises(BadImageError, match=rf"{card}: this is the card 'This photo is no longer available' of copy B"):
        remarks(found, [a, b])
    (told,) = remarks(opened(folder), [b, b])
    assert told == "nips2017: at 8 pixels its images cannot be compared with the published copies"


@pytest.mark.shared
def test_the_shared_half_is_the_named_subset() -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/nips17 beside this checkout")
    found = open_dataset(f"{SHARED}(subset={EVERY_SECOND})")
    assert isinstance(found, Images)
    assert found.note == "nips2017: 500 of the set's 1000 images (subset every-second)"
    some = found.first(20)
    assert remarks(some, [hash_pixels(some.image(i)) for i in range(20)]) == [found.note]


# --- lists of labels ---


def test_transfer_attacks_labels(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    save(tmp_path / "images" / "b.png", 1)
    write(tmp_path / "labels.csv", "filename,label,targeted_label", "b.png,7,0", "a.png,3,999")
    found = opened(tmp_path)
    assert (list(found.ids), list(found.labels), list(found.targets)) == (["b.png", "a.png"], [7, 3], [0, 999])
    assert found.name == tmp_path.name
    assert found.image(0).shape == (3, 8, 8)


def test_label_base_is_asked_for_where_it_cannot_be_known(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    table = write(tmp_path / "val_rs.csv", "filename,label", "a.png,7", "b.png,3")
    with pytest.raises(BadImageError, match=r"val_rs\.csv: do its labels count from 0 or from 1\?.*label_base=0"):
        opened(table)
    assert labels(f"{table}(label_base=1)") == {"a.png": 6, "b.png": 2}
    assert labels(f"{table}(label_base=0)") == {"a.png": 7, "b.png": 3}
    write(table, "filename,label", "a.png,1000", "b.png,3")
    assert labels(table) == {"a.png": 999, "b.png": 2}
    write(table, "filename,label", "a.png,0", "b.png,3")
    assert labels(table) == {"a.png": 0, "b.png": 3}
    write(table, "filename,label", "a.png,0", "b.png,1000")
    with pytest.raises(BadImageError, match=r"line 3: label 1000 is outside 0\.\.999"):
        opened(table)
    with pytest.raises(UsageError, match="label_base is 0 or 1, found 2"):
        opened(f"{table}(label_base=2)")
    with pytest.raises(UsageError, match=r"unknown parameter 'lable_base' of .*Did you mean 'label_base'"):
        opened(f"{table}(lable_base=1)")


def test_targets_count_as_the_labels_do(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    table = write(tmp_path / "x.csv", "image,label,target", "a.png,1000,5")
    assert list(opened(table).targets) == [4]
    table = write(tmp_path / "x.csv", "path,label,TargetClass", "a.png,10,5")
    assert list(opened(table).targets) == [5]
    write(tmp_path / "x.csv", "path,label,TargetClass", "a.png,10,1000")
    with pytest.raises(BadImageError, match="line 2: TargetClass 1000 is outside"):
        opened(table)


def test_synsets_do_not_say_from_where_targets_count(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    table = write(tmp_path / "x.csv", "image,label,target", "a.png,n01440764,5", "b.png,n01443537,7")
    with pytest.raises(BadImageError, match="count from 0 or from 1"):
        opened(table)
    found = opened(f"{table}(label_base=1)")
    assert (list(found.labels), list(found.targets)) == ([0, 1], [4, 6])
    write(table, "image,label,target", "a.png,n01440764,5", "b.png,n01443537,1000")
    found = opened(table)
    assert (list(found.labels), list(found.targets)) == ([0, 1], [4, 999])


def test_synsets_as_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert labels(write(tmp_path / "x.csv", "filename;label", "a.png;n02108422")) == {"a.png": 243}


def test_kaggles_validation_set(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / "ILSVRC/Data/CLS-LOC/val" / f"ILSVRC2012_val_0000000{number}.JPEG", number)
    write(
        tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString",
        "ILSVRC2012_val_00000002,n15075141 1 2 3 4 n15075141 5 6 7 8 ", "ILSVRC2012_val_00000001,n01751748 1 2 3 4 ",
    )  # fmt: skip
    assert labels(tmp_path) == {"ILSVRC2012_val_00000002.JPEG": 999, "ILSVRC2012_val_00000001.JPEG": 65}
    assert opened(tmp_path).image(1).shape == (3, 8, 8)
    write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString", "ILSVRC2012_val_00000002,n00000001 1 2 3 4")
    with pytest.raises(
        BadImageError, match="line 2: PredictionString names one of ImageNet's 1000 synsets, found n0000"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("place", [".", "images", "val"])
def test_flat_validation_images_with_a_list(tmp_path: Path, place: str) -> None:
    for number in (1, 2):
        save(tmp_path / place / f"ILSVRC2012_val_0000000{number}.JPEG", number)
    one, two = "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"
    write(tmp_path / "val.txt", f"{one} 65", f"{two} 970")
    assert labels(tmp_path) == {one: 65, two: 970}
    write(tmp_path / "val.txt", f"{one} 66", f"{two} 971")  # counts from 1: image 1 is a sea snake, 65
    assert labels(tmp_path) == {one: 65, two: 970}
    write(tmp_path / "val.txt", f"{one} n01751748", f"{two} n09193705")
    assert labels(tmp_path) == {one: 65, two: 970}
    write(tmp_path / "val.txt", f"{two} 970")
    with pytest.raises(BadImageError, match="count from 0 or from 1"):
        opened(tmp_path)
    assert labels(f"{tmp_path}(label_base=0)") == {two: 970}
    (tmp_path / "val.txt").unlink()
    write(tmp_path / "imagenet_2012_validation_synset_labels.txt", "n01751748", "n09193705")
    assert labels(tmp_path) == {one: 65, two: 970}


@pytest.mark.parametrize(("name", "lines"), [
    ("ILSVRC2012_validation_ground_truth.txt", ["490", "361"]),
    ("val.txt", ["ILSVRC2012_val_00000001.JPEG 490", "ILSVRC2012_val_00000002.JPEG 361"]),
])  # fmt: skip
def test_the_development_kits_numbers_are_refused(tmp_path: Path, name: str, lines: list[str]) -> None:
    """They are 1..1000 too, in another order: every label would be wrong, and none out of range."""
    save(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    write(tmp_path / name, *lines)
    with pytest.raises(BadImageError, match=r"differ from those of networks.*take Caffe's val\.txt"):
        opened(tmp_path)


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "set" / "tench" / "a.png")
    with pytest.raises(UsageError, match="subset does not apply here; only NIPS-2017 DEV"):
        opened(f"{tmp_path}/set(subset=every-second)")
    save(tmp_path / "images" / "one.png")
    write(tmp_path / "images.csv", "ImageId,TrueLabel", "one,5")
    with pytest.raises(UsageError, match="label_base does not apply here; its format defines it"):
        opened(f"{tmp_path}(label_base=0)")


def test_a_folder_whose_name_ends_in_parentheses(tmp_path: Path) -> None:
    save(tmp_path / "mine(size=4)" / "tench" / "a.png")
    assert opened(tmp_path / "mine(size=4)").size == 8
    assert opened(f"{tmp_path}/mine(size=4)(size=5)").size == 5


def test_images_csv_of_path_and_label_is_a_plain_list(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    write(tmp_path / "images.csv", "path,label", "a.png,5")
    assert labels(tmp_path) == {"a.png": 5}


def test_the_named_subset_without_the_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="fetch it: rdp-bench data get nips2017"):
        opened(f"nips2017(subset={EVERY_SECOND})")


@dataclass
class Targeted:
    """A plugin's data set with targets."""

    targets: Sequence[int]
    name: str = "targeted"
    size: int = 8
    ids: Sequence[str] = ("a", "b", "c")
    labels: Sequence[int] = (1, 2, 3)

    def image(self, index: int) -> NDArray[np.uint8]:
        return np.full((3, 8, 8), index, np.uint8)


def test_targets_of_a_plugin_are_checked_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def targets(*given: int, limit: int | None = None) -> list[int]:
        monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
        registry.dataset.entries.pop("test/targeted", None)
        registry.dataset("test/targeted", source="this file")(lambda: Targeted(given))
        found: list[int] = list(getattr(open_dataset("test/targeted", limit=limit), "targets"))  # noqa: B009
        return found

    assert targets(7, 8, 9) == [7, 8, 9]
    assert targets(7, 8, 9, limit=2) == [7, 8]
    assert targets() == []
    with pytest.raises(BadImageError, match="dataset 'test/targeted': 3 ids but 2 targets"):
        targets(7, 8)
    with pytest.raises(BadImageError, match=r"image 'b' has target 1000, outside 0\.\.999"):
        targets(7, 1000, 9)


# --- class folders ---


def test_folders_by_class_name(tmp_path: Path) -> None:
    names = {"tench": 0, "Great_White-Shark": 2, "n02108422": 243, "toilet tissue, toilet paper, bathroom tissue": 999}
    for name in names:
        save(tmp_path / name / "a.png")
    assert labels(tmp_path) == {f"{name}/a.png": label for name, label in names.items()}


def test_a_class_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "crane" / "a.png")
    with pytest.raises(
        BadImageError, match="'crane' is the name of 2 classes; call it by its synset: n02012849 or n03126707"
    ):
        opened(tmp_path)


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "7" / "a.png")
    save(tmp_path / "007" / "a.png")
    with pytest.raises(BadImageError, match="folders '007' and '7' are the same class 7; merge them"):
        opened(tmp_path)


def test_numbered_folders_from_1(tmp_path: Path) -> None:
    for name in ("1", "1000"):
        save(tmp_path / name / "a.png")
    with pytest.raises(BadImageError, match=r"'1000'.*1\.\.1000: add \(label_base=1\)"):
        opened(tmp_path)
    assert labels(f"{tmp_path}(label_base=1)") == {"1/a.png": 0, "1000/a.png": 999}


def test_plain_class_folders_say_the_fix(tmp_path: Path) -> None:
    save(tmp_path / "cta" / "a.png")
    with pytest.raises(BadImageError, match=r"'cta' is neither .* rename them, or write a CSV of path,label"):
        opened(tmp_path)


def test_files_that_are_left_out_of_class_folders_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "0" / "a.png")
    assert labels(str(tmp_path)) == {"0/a.png": 0}
    assert caplog.text == ""
    for name in ("0/b.heic", "3/c.svg", "3/d.npy", "3/.hidden"):
        write(tmp_path / name, "")
    save(tmp_path / "loose.png")
    assert labels(str(tmp_path)) == {"0/a.png": 0}
    assert f"{tmp_path}: 4 files left out (0/b.heic, 3/c.svg, 3/d.npy and 1 more)" in caplog.text
    caplog.clear()
    assert labels(str(tmp_path)) == {"0/a.png": 0}
    assert caplog.text == ""  # once


def test_a_list_of_another_name_beside_images_is_named(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    table = write(tmp_path / "x.csv", "Filename,Label", "a.png,0")
    with pytest.raises(BadImageError, match=f"if the list is x.csv, name it: --dataset {table}"):
        opened(tmp_path)
    assert labels(str(table)) == {"a.png": 0}  # columns in any case


# --- hostile input ---


@pytest.mark.parametrize("name", ["../../secret", "/etc/secret", "images/../../secret", "../x", "a\0b", "..\\x"])
def test_no_row_reads_outside_the_folder(tmp_path: Path, name: str) -> None:
    secret = save(tmp_path / "secret.png")
    save(tmp_path / "a" / "b" / "images" / "one.png")
    folder = tmp_path / "a" / "b"
    name = name.replace("/etc/secret", str(secret.with_suffix("")))
    for table, header, row in (
        ("dev_dataset.csv", "ImageId,TrueLabel", f"{name},5"),
        ("labels.csv", "filename,label", f"{name}.png,5"),
        ("LOC_val_solution.csv", "ImageId,PredictionString", f"{name},n01440764 1 2 3 4"),
        ("val.txt", f"{name}.png 5", "one.png 0"),
    ):
        path = write(folder / table, header, row)
        number = 1 if table == "val.txt" else 2
        with pytest.raises(BadImageError, match=rf"{table}, line {number}: .* is absolute or leaves the data set's"):
            opened(folder)
        path.unlink()


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """In another process, which a test can give up on."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


OPEN = """
import sys
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import RdpBenchError
try:
    found = open_dataset(sys.argv[1], size=8)
    print(list(found.ids), found.image(0).shape)
except RdpBenchError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["dev_dataset.csv", "images/one.png"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str) -> None:
    save(tmp_path / "images" / "one.png")
    write(tmp_path / "dev_dataset.csv", "ImageId,TrueLabel", "one,5")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in run(OPEN, tmp_path).stdout


def test_a_fifo_in_a_class_folder_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "tench" / "b.png")
    os.mkfifo(tmp_path / "tench" / "a.png")
    assert run(OPEN, tmp_path).stdout == "['tench/b.png'] (3, 8, 8)\n"


def test_decoding_a_fifo_or_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    code = OPEN.replace("found = open_dataset(sys.argv[1], size=8)", "decode(Path(sys.argv[1]))").replace(
        "import sys", "import sys\nfrom pathlib import Path\nfrom rdp_bench.data._images import decode"
    )
    for name in ("a.png", "b.png"):
        assert "not a regular file (a FIFO, socket, device or folder)" in run(code, tmp_path / name).stdout


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(_images.LARGEST + 1)
    with pytest.raises(BadImageError, match=r"1,073,741,825 bytes, more than the 1,073,741,824 that are read"):
        decode(path)
