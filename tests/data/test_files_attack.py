"""Adversarial images crafted elsewhere (`files:FOLDER`): judged as they are, or refused with the image's name."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image

from rdp_bench import plugins, registry
from rdp_bench.data.adversarial import read_array
from rdp_bench.errors import BadImageError
from tests.helpers.commands import PLUGIN, cli

Pixels = NDArray[np.uint8]
EPS = 8

plugins.load((PLUGIN,))
NOISE: Any = registry.dataset.make("tiny/noise")
TWO: Any = registry.model.make("tiny/two")
COUNT = len(NOISE.ids)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def adversarial(index: int, eps: int = EPS) -> Pixels:
    """The image's gradient sign step against tiny/two, in whole levels; `[3, s, s]`."""
    clean = NOISE.image(index).astype(np.int16)
    weight = TWO.weight.reshape(TWO.classes, 3, NOISE.size, NOISE.size)
    away = -weight[NOISE.labels[index]].sign().numpy().astype(np.int16)
    return (clean + eps * away).clip(0, 255).astype(np.uint8)


def png(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path)


def npy(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), image)


def channels_last(path: Path, image: Pixels) -> None:
    npy(path, image.transpose(1, 2, 0))


def fortran(path: Path, image: Pixels) -> None:
    npy(path, np.asfortranarray(image))


def folder(path: Path, save: Callable[[Path, Pixels], None] = png, eps: int = EPS) -> Path:
    for index, id_ in enumerate(NOISE.ids):
        save(path / f"{id_}.png", adversarial(index, eps))
    return path


def run(*args: object, target: str = "tiny/two") -> Result:
    return cli(
        "run", "--grid", "table1", "--plugin", PLUGIN, "--dataset", "tiny/noise", "--target", target, "--eps", EPS,
        "--defense", "none", "--no-progress", *args,
    )  # fmt: skip


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path("rdp-bench-out/results.csv").read_text())))


def error_by_hand(eps: int = EPS) -> float:
    images = torch.stack([torch.from_numpy(adversarial(i, eps)) for i in range(COUNT)]).float() / 255
    labels = torch.tensor(list(NOISE.labels))
    return float((TWO(images).argmax(1) != labels).float().mean()) * 100


@pytest.mark.parametrize("save", [png, npy, channels_last, fortran])
def test_images_are_judged_as_they_are(
    tmp_path: Path, save: Callable[[Path, Pixels], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / "adv", save)
    found = run("--attack", "files:adv")
    assert found.exit_code == 0, found.output
    (row,) = [row for row in rows() if row["attack"] == "files:adv" and row["metric"] == "error"]
    assert (row["source"], row["eps"], row["status"]) == ("elsewhere", "8", "done")
    assert float(row["value"]) == pytest.approx(error_by_hand(), abs=0.1)
    assert 0 < error_by_hand() <= 100
    assert "crafted elsewhere, eps 8" in found.stdout
    assert "files:adv: these adversarial images were crafted elsewhere and read from files" in caplog.text


def test_the_stored_set_is_the_files_pixels_and_is_cached(tmp_path: Path) -> None:
    folder(tmp_path / "adv")
    assert run("--attack", "files:adv").exit_code == 0
    before = rows()
    found = cli("export", "--images", "--to", "images", "--plugin", PLUGIN)
    assert found.exit_code == 0, found.output
    written = sorted(Path("images").rglob("*.png"))
    assert len(written) == COUNT
    for index, path in enumerate(written):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), adversarial(index))
    (tmp_path / "adv").rename(tmp_path / "moved")
    found = run("--attack", "files:moved", "--dry-run")
    assert "everything is cached" in found.output  # the same pixels in another folder
    png(tmp_path / "moved" / "image-3.png", NOISE.image(3))
    assert "everything is cached" not in run("--attack", "files:moved", "--dry-run").output
    assert rows() == before


@pytest.mark.parametrize("name", ["sp dir,x", "a(b)", "a | b", "a >> b+c"])
def test_a_quoted_folder_and_no_warning_of_shared_results(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / name)
    result = run("--attack", f'files:"{name}"', "--out", "out")
    assert result.exit_code == 0, result.output
    assert f"files:{name}: these adversarial images were crafted elsewhere" in caplog.text
    assert "resolved() leaves out" not in caplog.text


def test_the_report_says_that_they_were_crafted_elsewhere(tmp_path: Path) -> None:
    folder(tmp_path / "adv")
    assert run("--attack", "files:adv").exit_code == 0
    found = cli("report")
    assert found.exit_code == 0, found.output
    page = Path("rdp-bench-out/report/index.html").read_text()
    assert "files:adv: these adversarial images were crafted elsewhere and read from files" in page
    assert "1 attack crafted elsewhere, evaluated on 1 target" in page
    assert "crafted on elsewhere" not in page
    record = json.loads(Path("rdp-bench-out/runs/table1.json").read_text())
    assert record["attacks"]["files:adv"]["source"] == "crafted elsewhere"
    assert record["sources"]["elsewhere"]["members"] == []


def test_a_figures_caption_says_so_too(tmp_path: Path) -> None:
    folder(tmp_path / "adv")
    found = run("--grid", "figure3", "--attack", "files:adv")
    assert found.exit_code == 0, found.output
    assert cli("report").exit_code == 0
    assert "under attacks crafted elsewhere, " in Path("rdp-bench-out/report/index.html").read_text()


def change(index: int, by: int) -> Callable[[Path], None]:
    def at(path: Path) -> None:
        image = NOISE.image(index).astype(np.int16)
        image[1, 2, 3] += by if image[1, 2, 3] < 128 else -by
        png(path / f"image-{index}.png", image.astype(np.uint8))

    return at


def jpeg(path: Path) -> None:
    for file in path.glob("*.png"):
        with Image.open(file) as image:
            image.save(file.with_suffix(".jpg"), quality=50)
        file.unlink()


def header_only(path: Path) -> None:
    (path / "image-2.png").unlink()
    with (path / "image-2.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (4, 1 << 30), "fortran_order": False, "descr": "|u1"}  # four gigabytes, says the header
        )  # fmt: skip


def cut(path: Path) -> None:
    (path / "image-2.png").unlink()
    np.save(path / "image-2.npy", adversarial(2))
    content = (path / "image-2.npy").read_bytes()
    (path / "image-2.npy").write_bytes(content[:-5])


def floats(path: Path) -> None:
    (path / "image-2.png").unlink()
    np.save(path / "image-2.npy", adversarial(2) / np.float32(255))


def pickled(path: Path) -> None:
    (path / "image-2.png").unlink()
    np.save(path / "image-2.npy", np.array([{"a": 1}], object), allow_pickle=True)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one level too far": (change(5, 9), r"1 of 12 images are farther than eps 8/255 .* image-5\.png, by 9/255"),
    "missing": (lambda path: (path / "image-4.png").unlink(), r"1 of 12 images of tiny/noise have no file: image-4\."),
    "none": (lambda path: [each.unlink() for each in path.iterdir()], "12 of 12 images.*: image-0, image-1, image-2, "),
    "another size": (
        lambda path: png(path / "image-4.png", np.zeros((3, 32, 32), np.uint8)),
        r"image-4\.png: 32 x 32 pixels, the clean images have 16 x 16; adversarial images are not resized",
    ),
    "jpeg": (jpeg, r"images are farther than eps 8/255 .*\.jpg, by \d+/255; JPEG and WebP change pixels: save PNG"),
    "two files": (lambda path: npy(path / "image-4", adversarial(4)), r"'image-4' has several files .*; keep one"),
    "clean images": (
        lambda path: [png(path / f"image-{i}.png", NOISE.image(i)) for i in range(12)],
        r"every image equals the clean one; wrong folder\?",
    ),
    "header of four gigabytes": (header_only, r"image-2\.npy: expected uint8 .*found uint8 \[4, 1073741824\]"),
    "cut": (cut, r"image-2\.npy: 763 bytes of pixels, its header says 768"),
    "floats": (floats, r"image-2\.npy: expected uint8 .*found float32 \[3, 16, 16\]; save floats"),
    "pickle": (pickled, r"image-2\.npy: expected uint8 .*found object"),
    "no array": (lambda path: (path / "image-2.png").rename(path / "image-2.npy"), r"cannot be read as a \.npy file"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_bad_files_are_refused_by_name(tmp_path: Path, how: str) -> None:
    spoil, message = BAD[how]
    spoil(folder(tmp_path / "adv"))
    found = run("--attack", "files:adv")
    assert found.exit_code == 2, found.output
    assert re.search(message, found.stderr), found.stderr
    assert not Path("rdp-bench-out").exists()


def test_exactly_eps_is_accepted_and_a_jpeg_within_it(tmp_path: Path) -> None:
    folder(tmp_path / "adv")
    (tmp_path / "adv" / "image-4.png").unlink()
    flat = NOISE.image(4)
    png(tmp_path / "adv" / "image-4.webp", flat)
    with Image.fromarray(np.ascontiguousarray(flat.transpose(1, 2, 0))) as image:
        image.save(tmp_path / "adv" / "image-4.webp", lossless=True)
    assert run("--attack", "files:adv").exit_code == 0


@pytest.mark.parametrize(("args", "message"), [
    (["--attack", "files:nowhere"], "attack 'files:nowhere': no such folder"),
    (["--attack", "files:adv", "--source", "tiny/one"], "crafted elsewhere, not on tiny/one"),
    (["--attack", "tiny/sleepy", "--source", "elsewhere"], "source 'elsewhere' goes with files of adversarial images"),
    (["--attack", "files:adv", "--attack", "fgsm", "--source", "elsewhere"], "source 'elsewhere' goes with files"),
])  # fmt: skip
def test_requests_that_cannot_be_meant(tmp_path: Path, args: list[str], message: str) -> None:
    folder(tmp_path / "adv")
    found = run(*args)
    assert found.exit_code == 2, found.output
    assert message in found.stderr


def test_files_that_change_after_planning_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.engine.worker import Worker

    folder(tmp_path / "adv")
    craft = Worker._craft

    def late(self: Worker, job: Any) -> None:
        png(tmp_path / "adv" / "image-7.png", NOISE.image(7))
        craft(self, job)

    monkeypatch.setattr(Worker, "_craft", late)
    found = run("--attack", "files:adv")
    assert found.exit_code == 1
    assert "image 'image-7' changed since the run began" in found.stderr


def test_a_subset_of_a_larger_folder(tmp_path: Path) -> None:
    folder(tmp_path / "adv")
    found = run("--attack", "files:adv", "--limit", "3")
    assert found.exit_code == 0, found.output
    assert {row["n"] for row in rows()} == {"3"}


def test_an_array_reads_as_it_was_saved(tmp_path: Path) -> None:
    image = adversarial(0)
    for save in (npy, channels_last, fortran):
        save(tmp_path / "a", image)
        np.testing.assert_array_equal(read_array(tmp_path / "a.npy", NOISE.size), image)
    with pytest.raises(BadImageError, match="expected uint8"):
        read_array(tmp_path / "a.npy", 15)


def test_an_exported_set_is_read_back(tmp_path: Path) -> None:
    """Also in part; a folder of numbered files without the record of an export is refused."""
    assert run("--source", "tiny/two", "--attack", "fgsm").exit_code == 0
    before = {(row["attack"], row["value"]) for row in rows() if row["metric"] == "error"}
    plugin = ("--plugin", PLUGIN)
    assert cli("export", "--images", "--to", "exported", *plugin).exit_code == 0
    (record,) = (tmp_path / "exported" / "images").glob("*.json")
    (one,) = json.loads(record.read_text())["sets"]
    label = f"files:exported/images/{one['folder']}"
    assert run("--attack", label, "--limit", 5).exit_code == 0
    assert run("--attack", label).exit_code == 0
    assert {(row["attack"], row["value"]) for row in rows() if row["metric"] == "error"} == {
        (label, value) for _, value in before
    }
    record.unlink()
    assert "have no file" in run("--attack", label).output
