"""Test images that weights were trained on: found in the file, in a list that ships, or not known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import registry
from rdp_bench.audits.training_images import DATED, STARTED, overlap, photographs_of, weight_files
from rdp_bench.data.photographs import PhotographHashes, shipped
from rdp_bench.engine.plan import Plan
from rdp_bench.weights import files
from tests.helpers import learned, plans


def of(plan: Plan, defense: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = overlap(registry.defense.resolve(defense).value, plan).get("files", [])
    return found


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plans.plan(tmp_path)


def test_a_file_that_was_trained_on_test_images_is_named(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    learned.ours(file, "nrp")
    about, state = files.read_metadata(file), files.read_tensors(file)
    assert of(plan, f"nrp(weights={file})") == [
        {"name": "mine.safetensors", "reason": "it holds no hashes of its photographs"}
    ]
    hashes = PhotographHashes.of("r", 9, 256, [plan.image_hashes[1], plan.image_hashes[3], "ab" * 32])
    files.save(file, state, about, photographs=hashes.to_json())
    expected = {"name": "mine.safetensors", "n": 9, "ids": [plan.dataset.ids[1], plan.dataset.ids[3]], "but": ""}
    assert of(plan, f"jpeg >> nrp(weights={file})") == [expected]
    files.save(file, state, about, photographs=hashes.after(None).to_json())
    assert of(plan, f"nrp(weights={file})") == [{**expected, "but": STARTED}]
    files.save(file, state, about, photographs="{}")
    (damaged,) = of(plan, f"nrp(weights={file})")
    assert "cannot be read" in damaged["reason"]


def test_a_defense_without_weights_has_none(plan: Plan) -> None:
    assert overlap(registry.defense.resolve("jpeg").value, plan) == {}


CERTAIN = {"rdp.safetensors", "nrp.safetensors", "hgd.safetensors"}
"""They hold their list themselves, and so do the weights with which their training began."""


@pytest.mark.parametrize(
    "name",
    ["rdp", "nrp", "hgd", "sr", "comdefend", "adp", "fixed(diffpure)", "tvm >> rdp"],
)
def test_weights_that_ship_have_a_list(name: str) -> None:
    """The older ones are not said to be certain: cards hashed dates, or the training began with other weights."""
    (path,) = weight_files(registry.defense.resolve(name).value)
    listed, why = photographs_of(path)
    assert listed is not None
    assert replace(listed, complete=True) in shipped()["lists"].values()
    doubt = STARTED if path.name in {"comdefend.safetensors", "denoiser.safetensors"} else DATED
    assert why == ("" if path.name in CERTAIN else doubt)
    data = files.read_metadata(path)["card"]["data"]
    assert listed.count == data["photographs"] + data["held_out"]
