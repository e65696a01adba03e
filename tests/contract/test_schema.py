"""Files are read against their schema; what is wrong is said in one line with the field, the want and the find."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from rdp_bench import schema
from rdp_bench.engine import grid
from rdp_bench.errors import UsageError
from rdp_bench.models import card


@dataclass(frozen=True)
class Inner:
    label: str
    n: int = 1


@dataclass(frozen=True)
class Outer:
    eps: Annotated[tuple[float, ...], "a list of numbers, like [8, 16]"]
    limit: Annotated[int | None, "a whole number"] = None
    inner: tuple[Inner, ...] = ()
    one: Inner | None = None
    named: dict[str, Inner] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def test_what_fits_is_read_with_the_types_of_its_fields() -> None:
    raw = {"eps": [8, 2.5], "inner": [{"label": "a"}], "named": {"x": {"label": "b", "n": 2}}, "free": {"any": [1]}}
    made = schema.read(raw, Outer, "file")
    assert made == Outer((8.0, 2.5), None, (Inner("a"),), None, {"x": Inner("b", 2)}, {"any": [1]})
    assert all(isinstance(eps, float) for eps in made.eps)
    assert schema.read(schema.plain(made), Outer, "file") == made


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"eps": 16}, "file x: 'eps' is a list of numbers, like [8, 16], found 16"),
        ({"eps": [8, "a"]}, "file x: 'eps' is a list of numbers, like [8, 16], found [8, 'a']"),
        ({"eps": [8, True]}, "file x: 'eps' is a list of numbers, like [8, 16], found [8, True]"),
        ({"eps": [], "limit": True}, "file x: 'limit' is a whole number, found True"),
        ({"eps": [], "limit": 5.5}, "file x: 'limit' is a whole number, found 5.5"),
        ({"eps": [], "limt": 5}, "unknown field 'limt' of file x. Did you mean 'limit'? Known: eps, free, inner"),
        ({"eps": [], "inner": [{"label": "a", "m": 1}]}, "unknown field 'm' of file x. Known: label, n"),
        ({"eps": [], "one": {"labl": "a"}}, "unknown field 'labl' of file x. Did you mean 'label'?"),
        ({"eps": [], "named": {"x": {"labl": "a"}}}, "unknown field 'labl' of file x. Did you mean 'label'?"),
        ({"eps": [], "inner": [{"label": 3}]}, "file x: 'inner[0].label' is a text, found 3"),
        ({"eps": [], "inner": [{"label": "a"}, {"n": 3}]}, "file x: the field 'label' of 'inner[1]' is missing"),
        ({}, "file x: the field 'eps' is missing"),
        ([], "file x: '' is a table"),
        ({"eps": [], "free": 3}, "file x: 'free' is a table, found 3"),
        ({"eps": [], "one": "a" * 500}, "file x: 'one' is a table or nothing, found 'aaaa"),
    ],
)
def test_what_does_not_fit_is_said(raw: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        schema.read(raw, Outer, "file x")
    text = str(caught.value)
    assert text.startswith(says)
    assert "\n" not in text
    assert len(text) < 250
    assert "`" not in text


def test_model_cards_name_the_card_and_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"summary": "s", "arch": "a", "weights": "hub", "input_size": 8, "mean": [0.5], "std": [0.5]}
    for change, says in (
        ({"lisence": "MIT"}, "unknown field 'lisence' of model card m. Did you mean 'licence'?"),
        ({"input_size": "8"}, "model card m: 'input_size' is a whole number, found '8'"),
        ({"accuracy": [{"dataset": "d", "n": 1}]}, "model card m: the field 'percent' of 'accuracy[0]' is missing"),
    ):
        monkeypatch.setattr(card.tomllib, "loads", lambda _, change=change: {"m": {**good, **change}})
        card.cards.cache_clear()
        with pytest.raises(UsageError, match=says.replace("[", r"\[").replace("?", r"\?")):
            card.cards()
    monkeypatch.undo()
    card.cards.cache_clear()
    assert card.cards()["effnet-lite0"].known_accuracy("photos20", 20) == 90


GRID = """
title = "T"
plugins = ["mine.py"]
[axes]
dataset = "mine/set"
targets = ["mine/net"]
defenses = ["none", "*", "mine/gone?"]
"""


def test_a_grid_is_read_before_its_plugins_are_loaded(tmp_path: Path) -> None:
    """Nothing that it names is resolved: no such data set, network or defense is registered."""
    (tmp_path / "mine.toml").write_text(GRID)
    made, plugins = grid.load(str(tmp_path / "mine.toml"), "embedded", {})
    assert plugins == (tmp_path / "mine.py",)
    assert made.axes.defenses == ("none", "*", "mine/gone?")
    assert made.axes.dataset == "mine/set"


def test_settling_a_grid_twice_changes_nothing() -> None:
    from rdp_bench import plugins

    plugins.load()
    made, _ = grid.load("table1", "embedded", {"defenses": ("none", "*")})
    settled = grid.settle(made, None)
    assert "*" not in settled.axes.defenses
    assert "jpeg" in settled.axes.defenses
    assert grid.settle(settled, None) == settled
