"""`--image-size`: images are resized before they are attacked, and such a run is not that of the usual size."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdp_bench.data.open import open_dataset
from tests.helpers.commands import PLUGIN, cli

GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm"]
defenses = ["none"]
eps = [16]
[profile.embedded]
dataset = "unused"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(GRID)
    for i in range(3):
        (tmp_path / "images" / f"n{i}").mkdir(parents=True)
        noise = np.random.default_rng(i).integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"n{i}" / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"images/n{i}/{i}.png,{i}\n" for i in range(3)))
    return tmp_path / "tiny.toml"


def run(grid: Path, out: str, *flags: Any) -> Any:
    images = grid.parent / "list.csv"
    return cli("run", "--grid", grid, "--plugin", PLUGIN, "--out", grid.parent / out, "--dataset", images, *flags)


def record(grid: Path, out: str) -> Any:
    return json.loads((grid.parent / out / "runs" / "tiny.json").read_text())


def test_images_are_resized_before_they_are_attacked(grid: Path) -> None:
    found = run(grid, "a", "--image-size", 24)
    assert found.exit_code == 0, found.output
    about = record(grid, "a")["dataset"]
    assert (about["size"], about["name"]) == (24, "list-24px")  # printed numbers belong to the name without a size
    with (grid.parent / "a" / "results.csv").open() as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {"list-24px"}
    images = grid.parent / "list.csv"
    done = cli("export", "--out", grid.parent / "a", "--plugin", PLUGIN, "--images", "--dataset", images)
    assert done.exit_code == 0, done.output
    folder = grid.parent / "a" / "export" / "images"
    (made,) = json.loads((folder / "tiny.json").read_text())["sets"]
    adversarial = min((folder / made["folder"]).iterdir())
    with Image.open(adversarial) as image:
        assert image.size == (24, 24)
        small = open_dataset(str(grid.parent / "list.csv"), size=24).image(0).transpose(1, 2, 0)
        moved = np.abs(np.asarray(image).astype(int) - small)
    assert moved.max() == 16  # eps is of the resized image


def test_another_size_is_another_set(grid: Path) -> None:
    keys = []
    for out, size in (("a", 24), ("b", 32), ("c", 24)):
        assert run(grid, out, "--image-size", size).exit_code == 0
        keys.append({cell["eval_key"] for cell in record(grid, out)["cells"]})
    assert not keys[0] & keys[1]
    assert keys[0] == keys[2]


def test_a_grid_may_ask_for_it(grid: Path) -> None:
    grid.write_text(GRID.replace("eps = [16]", "eps = [16]\nimage_size = 24"))
    assert run(grid, "a").exit_code == 0
    assert record(grid, "a")["dataset"]["size"] == 24


def test_the_usual_size_is_the_usual_run(grid: Path) -> None:
    assert run(grid, "a", "--image-size", 299).exit_code == 0
    assert record(grid, "a")["dataset"]["name"] == "list"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image-size", 4), "image size is at least 8 pixels, found 4"),
        (
            ("--image-size", 24, "--dataset", "photos20(size=64)"),
            "photos20(size=64) sets 64 pixels itself; leave out one size",
        ),
        (("--image-size", "x"), "not a valid integer"),
    ],
)
def test_what_cannot_be(grid: Path, flags: tuple[Any, ...], message: str) -> None:
    if "photos20" in str(flags):
        pytest.importorskip("foolbox")
    found = run(grid, "a", *flags)
    assert found.exit_code == 2
    assert message in found.output
