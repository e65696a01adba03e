"""What a run exports is what was measured, pixel for pixel."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.commands import PLUGIN, cli

GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
[profile.embedded]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(GRID)
    folder = tmp_path / "out"
    assert cli("run", "--grid", tmp_path / "tiny.toml", "--plugin", PLUGIN, "--out", folder).exit_code == 0
    return folder


def test_predictions_give_the_tables_numbers_back(out: Path) -> None:
    found = cli("export", "--out", out, "--plugin", PLUGIN)
    assert found.exit_code == 0, found.output
    with (out / "export" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (out / "results.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(rows) == 12 * len(cells)
    for cell in cells:
        mine = [row for row in rows if all(row[k] == cell[k] for k in ("source", "attack", "defense", "target"))]
        right = 100 * sum(int(row["correct"]) for row in mine) / len(mine)
        assert float(cell["value"]) == pytest.approx(right if cell["metric"] == "accuracy" else 100 - right, abs=1e-4)
        assert [row["id"] for row in mine] == [f"image-{i}" for i in range(12)]
        assert all((row["label"] == row["predicted"]) == (row["correct"] == "1") for row in mine)


def test_images_are_the_adversarial_ones(out: Path) -> None:
    assert cli("export", "--out", out, "--plugin", PLUGIN, "--images").exit_code == 0
    record = json.loads((out / "export" / "images" / "tiny.json").read_text())
    (made,) = record["sets"]
    assert (made["source"], made["attack"], made["eps"]) == ("tiny/one", "fgsm", 8)
    files = sorted((out / "export" / "images" / made["folder"]).iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(12)]
    from rdp_bench.registry import dataset

    data = dataset.resolve("tiny/noise").value
    for i, file in enumerate(files):
        with Image.open(file) as image:
            pixels = np.asarray(image).transpose(2, 0, 1).astype(int)
        moved = np.abs(pixels - data.image(i))
        assert moved.max() == 8  # FGSM moves nearly every pixel by eps
        assert (moved[(data.image(i) > 8) & (data.image(i) < 247)] == 8).mean() > 0.9


def test_another_data_set_is_refused(out: Path) -> None:
    found = cli("export", "--out", out, "--plugin", PLUGIN, "--dataset", "photos20")
    assert found.exit_code == 2
    assert "does not hold the images and labels of the run tiny" in found.output


def test_nothing_to_export(tmp_path: Path) -> None:
    found = cli("export", "--out", tmp_path)
    assert found.exit_code == 2
    assert "holds no run" in found.output


@pytest.mark.parametrize(
    ("flags", "why"),
    [((), "--no-predictions leaves nothing to export"), (("--images", "--parquet"), "--parquet is a format of")],
)
def test_flags_without_an_effect_are_refused(flags: tuple[str, ...], why: str, tmp_path: Path) -> None:
    found = cli("export", "--out", tmp_path, "--no-predictions", *flags)
    assert (found.exit_code, why in found.output) == (2, True)
