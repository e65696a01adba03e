"""Entries may write into what they are lent: no other result changes, and no check is fooled."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import PLUGIN, ROOT
from tests.helpers.grid_runs import GridRuns

CARELESS = ROOT / "tests" / "plugin" / "careless.py"
GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["i-fgsm(steps=3)"]
sources = ["tiny/one"]
defenses = ["none"]
targets = ["tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridRuns:
    return GridRuns.make(tmp_path, monkeypatch, GRID, PLUGIN, CARELESS)


def of(grid: GridRuns, cache: str, *flags: object) -> list[str]:
    """Every value of a run with a cache of its own, in order."""
    return grid.values("--cache", grid.file.parent / cache, *flags)


def both(grid: GridRuns, monkeypatch: pytest.MonkeyPatch, *flags: object) -> tuple[list[str], list[str]]:
    """Values with entries that write into their input, and with entries that do not."""
    careless = of(grid, "careless", *flags)
    monkeypatch.setattr(plugin(), "IN_PLACE", False)
    return careless, of(grid, "careful", *flags)


def plugin() -> Any:
    return next(module for name, module in sys.modules.items() if name.startswith("rdp_bench_plugin_careless"))


def test_a_target_does_not_change_what_the_next_one_sees(grid: GridRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = of(grid, "alone", "--target", "tiny/two")
    careless, careful = both(grid, monkeypatch, "--target", "careless/net", "--target", "tiny/two")
    assert careless[1::2] == alone
    assert careless == careful


@pytest.mark.parametrize(
    "flags", [("--defense", "careless/dim", "--defense-samples", 4), ("--defense", "careless/dim(count=3)")]
)
def test_each_draw_and_pass_of_a_defense_gets_the_image_itself(
    grid: GridRuns, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...]
) -> None:
    careless, careful = both(grid, monkeypatch, *flags)
    assert careless == careful


@pytest.mark.parametrize("source", ["careless/net", "careless/net+tiny/one", "tiny/one+careless/net"])
def test_a_source_that_writes_into_its_input(grid: GridRuns, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    careless, careful = both(grid, monkeypatch, "--source", source)
    assert careless == careful


@pytest.mark.parametrize("label", ["bpda({}, tiny/one)", "exact({}, tiny/one)", "bpda({}, careless/net, 3)"])
def test_gradients_through_a_defense_that_writes_into_its_input(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rdp_bench import plugins
    from rdp_bench.attacks.presets import compose
    from rdp_bench.models import zoo
    from tests.helpers import toy

    plugins.load((PLUGIN, CARELESS))
    source = zoo.find_source(label.format("careless/dim"), {}).load("cpu")
    x, sets = toy.images(4, 16), []
    for in_place in (True, False):
        monkeypatch.setattr(plugin(), "IN_PLACE", in_place)
        sets.append(compose("I(3)|SI(2)")(source, x, torch.arange(4), 16 / 255, toy.image_rng(4)))
    assert torch.equal(x, toy.images(4, 16))
    assert torch.equal(*sets)
    assert float((sets[0] - x).abs().max()) > 15 / 255


def test_an_attack_that_writes_into_its_input_does_not_pass_the_eps_check(grid: GridRuns) -> None:
    found = grid.run("--attack", "careless/shift")
    assert found.exit_code == 1
    assert "moved a pixel by 127" in found.output
    assert "allowed 16/255" in found.output
