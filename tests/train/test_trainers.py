"""The registry of trainers: names stand there once, and the command, the benchmarks and the docs follow."""

import subprocess
import sys

import click
import pytest

from rdp_bench import plugins, registry
from rdp_bench.cli.train import train
from rdp_bench.train import recipes
from tests.helpers import toy_train
from tests.helpers.paths import ROOT

plugins.load()


@pytest.mark.parametrize("name", recipes.TRAINERS)
def test_a_trainer_has_its_registered_name_and_is_documented(name: str) -> None:
    assert recipes.get(name).name == name
    assert f"`{name}`" in (ROOT / "docs" / "training.md").read_text()


def test_the_command_offers_them() -> None:
    argument = next(each for each in train.params if each.name == "name")
    assert isinstance(argument.type, click.Choice)
    assert tuple(argument.type.choices) == tuple(recipes.TRAINERS)


def test_what_is_trained_is_a_defense_or_the_target() -> None:
    assert {name for name in recipes.TRAINERS if name not in registry.defense.entries} == {"ens-adv"}


def test_every_trainer_of_a_defense_has_a_toy_size() -> None:
    assert set(toy_train.NAMES) == set(recipes.TRAINERS) - {"ens-adv"}


def test_their_names_cost_nothing() -> None:
    code = "import sys, rdp_bench.train.recipes; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
