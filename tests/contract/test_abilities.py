"""Optional abilities of entries: defaults of base classes, protocols, and plain functions as attacks."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rdp_bench import Attack, attack, registry
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.local_code import digest_of
from rdp_bench.models.entry_calls import checked
from rdp_bench.protocols import (
    AuxiliaryLogits,
    Classifier,
    Features,
    GatheredLogits,
    Purifier,
    Sampled,
    Source,
    StochasticLogits,
    aims_at_targets,
    classes_of,
    defense_facts,
    note_of,
    only_by_name,
    purifies,
    samples_of,
    targets_of,
)
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.paths import ROOT
from tests.helpers.plans import keys, new_process, plan


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(registry.attack.entries)
    yield
    registry.attack.entries.clear()
    registry.attack.entries.update(before)


# --- attacks


@dataclass(frozen=True)
class Short(Attack):
    """All that an attack needs."""

    strength: float = 0.5
    steps: int = 7

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        return (x + self.strength * eps).clamp(0, 1)


def test_an_attack_is_a_short_dataclass() -> None:
    attack("mine/short", source="s")(Short)
    made = registry.attack.resolve("mine/short(strength=.25)")
    assert made.value == Short(0.25)
    assert made.value.resolved(8.0) == {"strength": 0.25, "steps": 7}
    assert made.value.gradients(8.0) == 7
    assert not aims_at_targets(made.value)
    assert registry.identity(made, 8.0)["params"] == {"strength": 0.25, "steps": 7}


class WithState(Attack):
    """Parameters that no field declares."""

    def __init__(self) -> None:
        self.strength = 0.5


def test_parameters_that_no_field_declares_are_not_left_out_of_the_record() -> None:
    with pytest.raises(TypeError, match="WithState has the attributes strength: make it a frozen dataclass, or define"):
        WithState().resolved(8.0)


def test_an_attack_without_parameters_has_none() -> None:
    class Nothing(Attack):
        """Nothing."""

    assert Nothing().resolved(8.0) == {}
    assert Nothing().gradients(8.0) == 1


def test_a_function_is_an_attack() -> None:
    @attack("mine/brighter", source="s")
    def brighter(source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adds eps."""
        return (x + eps).clamp(0, 1)

    made = registry.attack.resolve("mine/brighter")
    x = toy.images(2)
    found = made.value(toy.source(toy.conv()), x, torch.tensor([0, 1]), 0.1, toy.image_rng(2))
    assert torch.equal(found, (x + 0.1).clamp(0, 1))
    assert made.summary == "Adds eps."
    assert made.value.gradients(8.0) == 1
    assert registry.identity(made, 8.0)["id"] == "mine/brighter"
    with pytest.raises(UsageError, match="unknown parameter"):
        registry.attack.resolve("mine/brighter(steps=3)")


FUNCTION = '''
from rdp_bench import attack
@attack("mine/brighter", source="made up")
def brighter(source, x, y, eps, rng):
    """Adds a share of eps."""
    return (x + SHARE * eps).clamp(0, 1)
SHARE = 0.5
'''


def test_the_code_of_a_function_is_its_identity(tmp_path: Path) -> None:
    found, path = [], tmp_path / "mine.py"
    for text in (FUNCTION, FUNCTION, FUNCTION.replace("0.5", "0.25")):
        path.write_text(text)
        with new_process():
            found.append(keys(plan(tmp_path, path, attacks=("mine/brighter",))))
    assert found[0] == found[1]
    assert not set(found[0].values()) & set(found[2].values())


CELL = """
from dataclasses import dataclass
from rdp_bench import Attack
@dataclass(frozen=True)
class Mine(Attack):
    steps: int = 3
    def __call__(self, source, x, y, eps, rng):
        return x + eps * SHARE
SHARE = 0.5
"""


def test_an_attack_of_a_notebook_is_known_by_its_code() -> None:
    found = []
    for text in (CELL, CELL, CELL.replace("0.5", "0.25"), CELL.replace("steps: int = 3", "steps: int = 4")):
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(text, space)
        found.append(digest_of(space["Mine"]))
    assert found[0] == found[1]
    assert len(set(found)) == 3


# --- classifiers


class Able(toy.Toy):
    """A classifier with every ability."""

    def logits_and_aux(self, x: Tensor, zoom: float = 1.0) -> tuple[Tensor, Tensor]:
        return self(x, zoom), self(x, zoom)

    def logits_of_gathered(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
        return self(x, zoom)[:, :1]  # too few

    def features(self, x: Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[Tensor]:
        return [x.mul_(0)]  # writes into its input

    def stochastic_logits(self, x: Tensor, rng: ImageRng, zoom: float = 1.0) -> Tensor:
        return self(x, zoom).argmax(1)  # no logits


ABILITIES = (AuxiliaryLogits, GatheredLogits, Features, StochasticLogits)


def able() -> Any:
    return checked(Able(lambda x: x.mean((2, 3)), 3), "mine/net")


def test_a_checked_classifier_has_the_abilities_of_its_own_and_no_others() -> None:
    assert all(isinstance(able(), ability) for ability in ABILITIES)
    plain = checked(toy.conv(), "mine/net")
    assert not any(isinstance(plain, ability) for ability in ABILITIES)
    with pytest.raises(AttributeError):
        plain.features  # noqa: B018
    assert plain.seen == []  # attributes of its own still can be read


def test_every_optional_method_is_checked_and_gets_a_copy() -> None:
    x, maps = toy.images(2), torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(RdpBenchError, match=r"logits_of_gathered of model 'mine/net' returned shape \[2, 1\]"):
        able().logits_of_gathered(x, maps, maps)
    with pytest.raises(RdpBenchError, match=r"stochastic_logits of model 'mine/net' returned shape \[2\]"):
        able().stochastic_logits(x, toy.image_rng(2))
    before = x.clone()
    able().features(x)
    assert torch.equal(x, before)
    assert [out.shape for out in able().logits_and_aux(x)] == [(2, 3)] * 2


def test_samples_of_a_source() -> None:
    @dataclass
    class Plain:
        name: str = "plain"
        members: list[Classifier] = field(default_factory=list)

    assert not isinstance(Plain(), Sampled)
    assert samples_of(Plain()) == 1
    assert samples_of(toy.source(toy.conv())) == 1


# --- defenses and data sets


def test_what_defenses_say() -> None:
    class Bare:
        random, passes = True, 3

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x

        def resolved(self) -> dict[str, Any]:
            return {}

    class Shown(Purifier):
        purifies = False

    class Costly(Purifier):
        only_by_name = True

    assert [only_by_name(each) for each in (Bare(), Purifier(), Costly())] == [False, False, True]
    assert purifies(Bare())
    assert purifies(Purifier())
    assert not purifies(Shown())
    assert defense_facts(Bare()) == {
        "random": True, "passes": 3, "differentiable": None, "backward": None, "scale": None,
    }  # fmt: skip
    assert defense_facts(Purifier())["backward"] == "identity"


def test_what_data_sets_say() -> None:
    class Bare:
        name, size, ids, labels = "bare", 8, ("a",), (0,)

        def image(self, index: int) -> Any:
            raise NotImplementedError

    class Full(Bare):
        targets, classes, note = (3,), 10, "damaged"

    assert (targets_of(Bare()), classes_of(Bare()), note_of(Bare())) == ((), None, "")
    assert (targets_of(Full()), classes_of(Full()), note_of(Full())) == ((3,), 10, "damaged")


def test_no_ability_is_asked_for_by_a_string() -> None:
    """No optional attribute of an entry is read with getattr or hasattr, but for timm's networks and axes of grids."""
    names = {
        "stochastic_logits", "logits_of_gathered", "logits_and_aux", "features", "with_norm", "aims_at_targets",
        "samples", "targets", "classes", "purifies", "only_by_name", "note", "load", "parts", "to",
    }  # fmt: skip
    asked = {
        f"{path.name}: {node.args[1].value}"
        for folder in ("rdp_bench", "attacks", "defenses", "data", "reports")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        if isinstance(node.args[1], ast.Constant)
    }
    assert "classifier.py: num_classes" in asked  # the search finds what is there
    assert not {each for each in asked if each.partition(": ")[2] in names}


def test_the_first_images_of_a_data_set_say_what_all_say() -> None:
    """A limit dropped the note that every report must show."""

    @registry.dataset("mine/noted", source="s")
    class Noted:
        name, size, ids, labels = "mine/noted", 8, ("a", "b"), (0, 1)
        targets, classes, note = (1, 0), 10, "damaged"

        def image(self, index: int) -> Any:
            return np.zeros((3, 8, 8), np.uint8)

    try:
        for limit in (None, 1):
            found = open_dataset("mine/noted", limit=limit)
            assert (note_of(found), classes_of(found), targets_of(found)[0]) == ("damaged", 10, 1)
    finally:
        del registry.dataset.entries["mine/noted"]
