"""A network whose class numbers are not the data set's is refused or warned of, never given a number in silence."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result

from rdp_bench import plugins
from rdp_bench.metrics.stats import binomial_tail
from rdp_bench.registry import registries
from tests.helpers.commands import cli

PLUGIN = """
import numpy as np
import torch
from rdp_bench import dataset, model

class Net:
    def __init__(self, name, classes, outputs, guess=0):
        self.name, self.classes, self.outputs, self.guess = name, classes, outputs, guess

    def __call__(self, x, zoom=1.0):
        logits = torch.zeros(len(x), self.outputs) + 0 * x.sum()
        logits[:, self.guess] = 1 + x.mean()
        return logits

    def record(self):
        return {"outputs": self.outputs, "guess": self.guess}

@model("sets/in21k", source="made up")
def in21k():
    return Net("sets/in21k", 21843, 21843)

@model("sets/background", source="made up")
def background():
    return Net("sets/background", 1000, 1001)

@model("sets/guess", source="made up")
def guess():
    return Net("sets/guess", 1000, 1000, 999)

@model("sets/one-right", source="made up")
def one_right():
    return Net("sets/one-right", 1000, 1000, 243)  # the label of one of the photos

class Images:
    size, ids, labels = 64, ["0", "1"], [0, 4]

    def __init__(self, name, classes):
        self.name = name
        if classes:
            self.classes = classes

    def image(self, index):
        return np.full((3, 64, 64), 99 + index, np.uint8)

@dataset("sets/counted", source="made up")
def counted():
    return Images("sets/counted", 5)

@dataset("sets/uncounted", source="made up")
def uncounted():
    return Images("sets/uncounted", None)

@model("sets/ten", source="made up")
def ten():
    return Net("sets/ten", 10, 10)
"""
GRID = """
[axes]
dataset = "photos20(size=64)"
defenses = ["none"]
targets = ["sets/one-right"]
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    plugins.load()
    for registry in registries.values():  # each test registers the plugin anew
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    (tmp_path / "sets.py").write_text(PLUGIN)
    (tmp_path / "sets.toml").write_text(GRID)
    return tmp_path / "out"


def run(out: Path, *flags: object) -> Result:
    return cli("run", "--grid", out.parent / "sets.toml", "--plugin", out.parent / "sets.py", "--out", out, *flags)


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open() as file:
        return {row["target"]: row for row in csv.DictReader(file)}


def warnings(out: Path) -> list[str]:
    found: list[str] = json.loads((out / "runs" / "sets.json").read_text())["warnings"]
    return found


def test_a_network_of_other_classes_is_refused_before_anything_runs(out: Path) -> None:
    found = run(out, "--target", "sets/in21k", "--target", "sets/one-right")
    assert found.exit_code == 2
    assert "model 'sets/in21k' has 21843 classes, data set photos20 has labels of 1000" in found.output
    assert not out.exists()


def test_what_is_cached_makes_no_difference(out: Path) -> None:
    """The same images and labels, once as a data set that does not say how many classes it has."""
    assert run(out, "--dataset", "sets/uncounted", "--target", "sets/ten").exit_code == 0
    found = run(out, "--dataset", "sets/counted", "--target", "sets/ten")
    assert found.exit_code == 2
    assert "model 'sets/ten' has 10 classes, data set sets/counted has labels of 5" in found.output


def test_an_audit_says_how_to_name_sources_of_the_same_classes(out: Path) -> None:
    audit = ("audit", "jpeg", "--target", "sets/ten", "--plugin", out.parent / "sets.py", "--out", out,
             "--dataset", "sets/uncounted", "--budget", "quick")  # fmt: skip
    found = cli(*audit)
    assert found.exit_code == 2
    assert "'sets/ten' has 10 classes and 'effnet-lite0' 1000" in found.output
    assert "transfer attacks are crafted on effnet-lite0 unless --source names others" in found.output
    assert not out.exists()
    assert "unless --source" not in cli(*audit, "--source", "sets/guess").output


def test_a_network_that_says_another_width_than_it_has_is_refused(out: Path) -> None:
    found = run(out, "--target", "sets/background")
    assert found.exit_code == 1
    assert "model 'sets/background' returned shape [20, 1001], expected logits [20, 1000]" in found.output
    assert rows(out)["sets/background"]["value"] == ""


def test_accuracy_at_chance_is_warned_of(out: Path) -> None:
    assert run(out, "--target", "sets/guess", "--target", "sets/one-right").exit_code == 0
    (warning,) = warnings(out)  # one right of 20 in 1000 classes is more than chance gives
    assert "sets/guess is right on 0 of 20 images of photos20 without attack or defense" in warning
    assert "no better than guessing (0.1 %)" in warning


def test_few_images_cannot_tell(out: Path) -> None:
    assert run(out, "--target", "sets/guess", "--limit", 9).exit_code == 0
    assert warnings(out) == []


def test_the_tail_of_a_binomial() -> None:
    assert binomial_tail(2, 3, 0.5) == pytest.approx(0.5)
    assert binomial_tail(7, 12, 0.2) == pytest.approx(0.00390, abs=1e-5)
    assert binomial_tail(3, 3, 0.5) > 0.05  # two classes, three images: nothing to tell
