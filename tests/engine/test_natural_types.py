"""What other libraries return is converted; what cannot be used fails its own cells, by name."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result

from tests.helpers.commands import ROOT, cli

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
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "natural.toml").write_text(GRID)
    return tmp_path / "natural.toml"


def run(grid: Path, *flags: object) -> Result:
    return cli("run", "--grid", grid, "--plugin", NATURAL, "--out", grid.parent / "out", *flags)


def rows(grid: Path) -> list[dict[str, str]]:
    with (grid.parent / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def values(grid: Path, *flags: object) -> list[str]:
    found = run(grid, *flags)
    assert found.exit_code == 0, found.output
    return [row["value"] for row in rows(grid)]


@pytest.mark.parametrize("form", ["tuple", "list", "hugging-face", "mapping"])
def test_a_model_may_return_its_logits_in_another_form(grid: Path, form: str) -> None:
    expected = values(grid)
    assert values(grid, "--source", f"natural/{form}", "--target", f"natural/{form}") == expected


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("argmax", "returned shape [12], expected logits [12, 5]; return the logits, not their argmax"),
        ("wider", "returned shape [12, 6], expected logits [12, 5]; its outputs are 6 classes, it says classes = 5"),
        ("text", "returned str, expected logits"),
        ("raises", "TypeError: unsupported operand"),
    ],
)
def test_a_bad_target_fails_its_own_cells_by_name(grid: Path, form: str, says: str) -> None:
    expected = values(grid)
    found = run(grid, "--target", f"natural/{form}", "--target", "natural/plain")
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    bad = [row for row in rows(grid) if row["target"] == f"natural/{form}"]
    assert all(row["status"] == "failed" and row["value"] == "" for row in bad)
    assert all(f"model 'natural/{form}'" in row["reason"] and says in row["reason"] for row in bad)
    assert [row["value"] for row in rows(grid) if row["target"] == "natural/plain"] == expected


def test_a_bad_source_is_named(grid: Path) -> None:
    found = run(grid, "--source", "natural/argmax")
    assert found.exit_code == 1
    attacked = next(row for row in rows(grid) if row["attack"] == "fgsm")
    assert "model 'natural/argmax' returned shape [12], expected logits [12, 5]" in attacked["reason"]
    assert next(row for row in rows(grid) if row["attack"] == "clean")["status"] == "done"


@pytest.mark.parametrize("images", ["torch", "hwc", "int64", "pil"])
def test_images_of_other_libraries(grid: Path, images: str) -> None:
    expected = values(grid)
    assert values(grid, "--dataset", f"natural/set(images={images})") == expected


@pytest.mark.parametrize("numbers", ["numpy", "torch", "floats"])
def test_labels_of_other_libraries(grid: Path, numbers: str) -> None:
    expected = values(grid)
    assert values(grid, "--dataset", f"natural/set(numbers={numbers})") == expected
    assert values(grid, "--dataset", f"natural/set(numbers={numbers})", "--limit", 12) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("numbers=halves", "expected a whole number, found 0.5"),
        ("numbers=words", "expected a whole number, found '0'"),
        ("images=float", "image 'image-0' should be uint8 [3, 16, 16], is float64 [3, 16, 16]"),
    ],
)
def test_a_data_set_that_cannot_be_converted_is_named(grid: Path, spec: str, says: str) -> None:
    found = run(grid, "--dataset", f"natural/set({spec})")
    assert found.exit_code == 2
    assert "dataset 'natural/set" in found.output
    assert says in found.output


def test_numpy_scalars_in_records(grid: Path) -> None:
    assert values(grid, "--defense", "none", "--defense", "natural/scalars", "--attack", "natural/attack")
    record = json.loads((grid.parent / "out" / "runs" / "natural.json").read_text())
    assert record["defenses"]["natural/scalars"]["resolved"] == {"level": 3, "flags": {"on": True}}


def test_a_parameter_without_a_form_in_json_is_named(grid: Path) -> None:
    found = run(grid, "--defense", "natural/object")
    assert found.exit_code == 2
    assert "defense 'natural/object' cannot say its parameters: TypeError: object has no form in JSON" in found.output


def test_an_attack_may_return_a_tensor_with_a_gradient(grid: Path) -> None:
    assert values(grid, "--attack", "natural/attack")


@pytest.mark.parametrize(("what", "kind"), [("array", "ndarray"), ("none", "NoneType")])
def test_an_attack_that_returns_no_tensor_is_named(grid: Path, what: str, kind: str) -> None:
    found = run(grid, "--attack", f"natural/attack(what={what})")
    assert found.exit_code == 1
    assert f"natural/attack(what={what}) on natural/plain: returned {kind}, not a tensor" in found.output
    assert {row["status"] for row in rows(grid) if row["attack"] == "clean"} == {"done"}


def test_a_defense_that_raises_is_named(grid: Path) -> None:
    found = run(grid, "--defense", "natural/none", "--defense", "none")
    assert found.exit_code == 1
    assert "defense 'natural/none': TypeError" in found.output
    assert {row["defense"] for row in rows(grid) if row["status"] == "done"} == {"none"}
