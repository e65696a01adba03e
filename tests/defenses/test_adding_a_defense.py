"""Adding a defense: one file where nothing is trained; else its class names its network, and one line its trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Generator, Tensor, nn

from rdp_bench import Learned, registry
from rdp_bench.cli.main import main
from rdp_bench.engine import grid
from rdp_bench.errors import RdpBenchError
from rdp_bench.protocols import Purifier
from rdp_bench.rng import ImageRng
from rdp_bench.train import recipes
from rdp_bench.train.recipe import Recipe, Step
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train
from tests.helpers.learned import image_rng, photo


class Gain(nn.Module):
    """One number."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@dataclass(frozen=True)
class Toy(Learned):
    """Multiplies by a learned number."""

    kind: ClassVar[str] = "toy-gain"
    network: ClassVar[str] = f"{__name__}:Gain"


class ToyRecipe(Recipe):
    """Brings the number to 1."""

    name = "toy-gain"
    uses_features = False
    loss_weights: ClassVar = {"pix": 1.0}
    defaults: ClassVar = {
        "compact": {"steps": 20, "batch": 2, "crop": 32, "rate": 0.1, "schedule": "constant"},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        self.net_args = {"start": 0.5}
        return {"gain": Gain(**self.net_args)}

    def defense(self) -> Toy:
        return Toy()

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        return clean

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:
        yield "main", self.total({"pix": (self.nets["gain"](inputs) - clean).abs().mean()})


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a contributor writes: `@defense` on the class, the recipe's module, and its line in `TRAINERS`."""
    monkeypatch.setattr(registry.defense, "entries", dict(registry.defense.entries))
    registry.defense("toy-gain", source="tests")(Toy)
    module = ModuleType("rdp_bench.train.recipes.toy_gain")
    module.ToyRecipe = ToyRecipe  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    monkeypatch.setitem(recipes.TRAINERS, "toy-gain", "toy_gain:ToyRecipe")


def test_a_learned_defense_is_trained_and_used_by_its_name(tmp_path: Path, added: None) -> None:
    kind = recipes.get("toy-gain")
    training = toy_train.Training(kind(kind.settings("compact", {}), "cpu"), toy_train.photos(), tmp_path)
    training.run()
    file = tmp_path / "toy-gain.safetensors"
    assert weight_files.read_metadata(file)["defense"] == "toy-gain"
    for label in (f"toy-gain(weights={file})", f"purifier:{file}"):
        value = registry.defense.resolve(label).value
        assert isinstance(value, Purifier)
        x = photo(2, 32)
        gain = float(weight_files.read_tensors(file)["gain"])
        assert gain == pytest.approx(1, abs=0.2)
        assert torch.allclose(value.purify(x, image_rng(2)), (x * gain).clamp(0, 1), atol=1e-3)
        assert value.resolved()["net"] == {"start": 0.5}


def test_a_defense_that_names_no_network_says_what_to_do() -> None:
    @dataclass(frozen=True)
    class Nothing(Learned):
        kind: ClassVar[str] = "nothing"

    with pytest.raises(RdpBenchError, match="Nothing has no network: set `network` to 'module:class', or override"):
        Nothing().build()


@dataclass(frozen=True)
class Invert(Purifier):
    """Inverts every pixel."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return 1 - x


def test_a_training_free_defense_is_its_decorated_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.defense, "entries", dict(registry.defense.entries))
    registry.defense("invert", source="tests")(Invert)
    x = photo(1, 32)
    assert torch.equal(registry.defense.resolve("invert").value.purify(x, image_rng(1)), 1 - x)
    listed = CliRunner().invoke(main, ["list", "defenses"])
    assert "Inverts every pixel." in listed.output
    everything = grid.load("table1", "embedded", {"defenses": ("none", "*")})[0]
    assert "invert" in grid.settle(everything, None).axes.defenses


LEARNED = [
    name
    for name, entry in registry.defense.entries.items()
    if isinstance(entry.factory, type) and issubclass(entry.factory, Learned)
]


@pytest.mark.parametrize("name", LEARNED)
def test_every_learned_defense_builds_its_network_and_has_its_own_name(name: str) -> None:
    entry = registry.defense.make(name)
    assert isinstance(entry, Learned)
    assert entry.kind == name
    with torch.device("meta"):
        assert isinstance(entry.build(), nn.Module)


def test_there_are_learned_defenses() -> None:
    assert {"rdp", "nrp", "hgd", "comdefend", "sr"} <= set(LEARNED)
    assert toy.images(1, 8).shape == (1, 3, 8, 8)
