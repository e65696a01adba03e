"""Passes of a defense that a target sees in one call: fewer calls, the same numbers."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.engine.looks import look, together
from rdp_bench.errors import RdpBenchError
from rdp_bench.rng import ImageRng
from tests.helpers import toy

plugins.load()


class Counted:
    """A target whose calls are counted; each image's logits are sums over that image alone, in one order."""

    name, classes = "counted", 5

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        assert zoom > 1
        self.seen.append(len(x))
        return torch.stack([image[:, ::7, ::7].flatten()[: 5 * 9].view(5, 9).sum(1) for image in x])

    def record(self) -> dict[str, Any]:
        return {}


def looked(label: str, samples: int, passes: int) -> tuple[Tensor, list[int], int]:
    x, target = toy.images(3, 40), Counted()
    job = cast("Any", SimpleNamespace(defense=label, defense_samples=samples))
    problems: dict[str, str] = {}
    firsts: list[Tensor] = []
    defense = registry.defense.resolve(label).value
    found, seconds = look(job, defense, x, ImageRng(["a", "b", "c"]), {"t": target}, problems, firsts.append, passes)
    assert not problems
    assert seconds["t"] > 0
    return found["t"], target.seen, len(firsts)


@pytest.mark.parametrize(
    ("label", "samples", "passes", "calls"),
    [
        ("r&p(patterns=7)", 1, 3, [9, 9, 3]),
        ("r&p(patterns=7)", 2, 4, [12, 12, 12, 6]),
        ("r&p", 5, 100, [15]),
    ],
)
def test_passes_in_one_call_are_those_of_calls_of_their_own(
    label: str, samples: int, passes: int, calls: list[int]
) -> None:
    alone, seen, firsts = looked(label, samples, 1)
    assert set(seen) == {3}
    at_once, seen, more = looked(label, samples, passes)
    assert seen == calls
    assert firsts == more == 1
    assert torch.equal(alone, at_once)
    assert alone.shape == ((3, samples, 5) if samples > 1 else (3, 5))


def test_by_hand() -> None:
    """The mean of the softmax outputs of each pass, from its own stream."""
    x = toy.images(3, 40)
    entry, rng = registry.defense.resolve("r&p(patterns=2)").value, ImageRng(["a", "b", "c"])
    each = [Counted()(entry.purify(x, rng.fork(f"pass {number}")), 331 / 299) for number in range(2)]
    found, _, _ = looked("r&p(patterns=2)", 1, 2)
    assert torch.allclose(found, (each[0].softmax(1) + each[1].softmax(1)) / 2, atol=1e-6)


def test_how_many_passes_fill_a_batch() -> None:
    assert [together(n, 64, "cuda") for n in (1, 20, 33, 64, 65)] == [64, 3, 1, 1, 1]
    assert together(1, 64, "cpu") == 1


def test_a_target_that_fails_costs_the_others_nothing() -> None:
    class Broken(Counted):
        def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
            return super().__call__(x, zoom) * torch.nan

    job = cast("Any", SimpleNamespace(defense="r&p", defense_samples=3))
    defense = registry.defense.resolve("r&p").value
    models, problems = {"bad": Broken(), "good": Counted()}, dict[str, str]()
    found, _ = look(job, defense, toy.images(2, 40), ImageRng(["a", "b"]), models, problems, lambda _: None)
    assert list(found) == ["good"]
    assert "NaN" in problems["bad"]
    assert len(models["bad"].seen) == 1  # not asked again
    problems = {"bad": "known"}
    look(job, defense, toy.images(2, 40), ImageRng(["a", "b"]), models, problems, lambda _: None)
    assert len(models["bad"].seen) == 1
    with pytest.raises(RdpBenchError, match="shape"):
        look(
            job, cast("Any", SimpleNamespace(purify=lambda x, _: x[:, :1], passes=1)), toy.images(2, 40),
            ImageRng(["a", "b"]), models, {}, lambda _: None,
        )  # fmt: skip
