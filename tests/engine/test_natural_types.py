"""What other libraries return is converted; what cannot be used fails its own cells, by name."""

import json
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT
from tests.helpers.grid_runs import GridRuns

NATURAL = ROOT / "tests" / "plugin" / "natural.py"
GRID = """
[axes]
dataset = "natural/set"
eps = [8]
attacks = ["fgsm"]
sources = ["natural/plain"]
defenses = ["none"]
targets = ["natural/plain"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridRuns:
    return GridRuns.make(tmp_path, monkeypatch, GRID, NATURAL, name="natural")


@pytest.mark.parametrize("form", ["tuple", "list", "hugging-face", "mapping"])
def test_a_model_may_return_its_logits_in_another_form(grid: GridRuns, form: str) -> None:
    expected = grid.values()
    assert grid.values("--source", f"natural/{form}", "--target", f"natural/{form}") == expected


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("argmax", "returned shape [12], expected logits [12, 5]; return the logits, not their argmax"),
        ("wider", "returned shape [12, 6], expected logits [12, 5]; its outputs are 6 classes, it says classes = 5"),
        ("text", "returned str, expected logits"),
        ("raises", "TypeError: unsupported operand"),
    ],
)
def test_a_bad_target_fails_its_own_cells_by_name(grid: GridRuns, form: str, says: str) -> None:
    expected = grid.values()
    found = grid.run("--target", f"natural/{form}", "--target", "natural/plain")
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    bad = [row for row in grid.rows() if row["target"] == f"natural/{form}"]
    assert all(row["status"] == "failed" and row["value"] == "" for row in bad)
    assert all(f"model 'natural/{form}'" in row["reason"] and says in row["reason"] for row in bad)
    assert [row["value"] for row in grid.rows() if row["target"] == "natural/plain"] == expected


def test_a_bad_source_is_named(grid: GridRuns) -> None:
    found = grid.run("--source", "natural/argmax")
    assert found.exit_code == 1
    attacked = next(row for row in grid.rows() if row["attack"] == "fgsm")
    assert "model 'natural/argmax' returned shape [1], expected logits [1, 5]" in attacked["reason"]
    assert next(row for row in grid.rows() if row["attack"] == "clean")["status"] == "done"


@pytest.mark.parametrize("images", ["torch", "hwc", "int64", "pil"])
def test_images_of_other_libraries(grid: GridRuns, images: str) -> None:
    expected = grid.values()
    assert grid.values("--dataset", f"natural/set(images={images})") == expected


@pytest.mark.parametrize("numbers", ["numpy", "torch", "floats"])
def test_labels_of_other_libraries(grid: GridRuns, numbers: str) -> None:
    expected = grid.values()
    assert grid.values("--dataset", f"natural/set(numbers={numbers})") == expected
    assert grid.values("--dataset", f"natural/set(numbers={numbers})", "--limit", 12) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("numbers=halves", "expected a whole number, found 0.5"),
        ("numbers=words", "expected a whole number, found '0'"),
        ("images=float", "image 'image-0' should be uint8 [3, 16, 16], is float64 [3, 16, 16]"),
    ],
)
def test_a_data_set_that_cannot_be_converted_is_named(grid: GridRuns, spec: str, says: str) -> None:
    found = grid.run("--dataset", f"natural/set({spec})")
    assert found.exit_code == 2
    assert "dataset 'natural/set" in found.output
    assert says in found.output


def test_numpy_scalars_in_records(grid: GridRuns) -> None:
    assert grid.values("--defense", "none", "--defense", "natural/scalars", "--attack", "natural/attack")
    record = json.loads((grid.out / "runs" / "natural.json").read_text())
    assert record["defenses"]["natural/scalars"]["resolved"] == {"level": 3, "flags": {"on": True}}


def test_a_parameter_without_a_form_in_json_is_named(grid: GridRuns) -> None:
    found = grid.run("--defense", "natural/object")
    assert found.exit_code == 2
    assert "defense 'natural/object' cannot say its parameters: TypeError: object has no form in JSON" in found.output


def test_an_attack_may_return_a_tensor_with_a_gradient(grid: GridRuns) -> None:
    assert grid.values("--attack", "natural/attack")


@pytest.mark.parametrize(("what", "kind"), [("array", "ndarray"), ("none", "NoneType")])
def test_an_attack_that_returns_no_tensor_is_named(grid: GridRuns, what: str, kind: str) -> None:
    found = grid.run("--attack", f"natural/attack(what={what})")
    assert found.exit_code == 1
    assert f"natural/attack(what={what}) on natural/plain: returned {kind}, not a tensor" in found.output
    assert {row["status"] for row in grid.rows() if row["attack"] == "clean"} == {"done"}


def test_a_defense_that_raises_is_named(grid: GridRuns) -> None:
    found = grid.run("--defense", "natural/none", "--defense", "none")
    assert found.exit_code == 1
    assert "defense 'natural/none': TypeError" in found.output
    assert {row["defense"] for row in grid.rows() if row["status"] == "done"} == {"none"}
