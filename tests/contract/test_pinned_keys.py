"""Cache keys that must not change.

Rule: never update an expected value here without a new `keys.KEY_VERSION`, or a new version of what the records below
contain (`card.NUMERICS`, an entry, a part). A key that changes by accident voids every
cache; a key that stays the same although its meaning changed gives one thing another's numbers. If a test here fails,
something that was added must be left out where it is neutral (`keys.neutral`), or moved out of the record; only where
all keys are meant to change, bump `KEY_VERSION` and then write the new values.

The records are made by the real code from entries, images, a model card and a weight file that are the same everywhere.
"""

from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import keys, plugins, registry
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.attacks.parts import Momentum
from rdp_bench.cache.store import Store
from rdp_bench.engine.grid import Axes, Grid
from rdp_bench.engine.plan import Plan
from rdp_bench.metrics import lpips
from rdp_bench.models.card import Card
from rdp_bench.models.defended import parse
from rdp_bench.models.zoo import ModelRef, SourceSpec

plugins.load()

PINNED = {
    "adv": "21eed64eddd3cf090554da1d46d5f735fbf5e8425c3636a28a703b866ad76b95",
    "adv through a defense": "394fd45e4f227c270805d0a39935aebef8bca263c9547e7609b5265d7c6f9c8e",
    "eval": "89da84476fc92dd5d2a5baac653f67a8bc5c23fffbd91b0260ad798f4d105e5b",
    "eval of clean images": "273dbed8f7e92f8db9142dd0c8765a4cba7b308ee34c340c6eb9e03fdf08eff3",
    "eval of ten draws": "26c5f6d162421ba58c9491f479248ed63222cc13d4fa31f62ceb080d120a97ca",
    "image_quality": "ce98718d970a1e5fc50d95c59fa6e6dbff3c74e4b079cd9d8a2069b989b8935b",
    "sample": "7fee9df9b79226c555a1a2d5cd8098a0fdf1d8225a4a8bb91afbf4aa0344e1b4",
    "image_quality with lpips": "746a2fb3e10bc3a79de6c0640f6193a1f9e085d0100d1dc8831411f9934df747",
}


class Images:
    """Three images, known by their hashes alone."""

    name, size = "three", 8
    ids = ("a", "b", "c")
    labels = (0, 1, 2)


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, card: type = Card, attack: Any = None) -> dict[str, str]:
    """The keys, with another class of model cards, or of the momentum of mi-fgsm, if given."""
    file = folder / "net.safetensors"
    file.write_bytes(b"the weights of a network")
    net = ModelRef(
        card("net", "A network", "timm_net", "file", 224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), kwargs={"depth": 3}),
        file,
    )
    behind = parse("bpda(tvm(weight=.1), net, 5)")
    assert behind
    defenses = {name: registry.defense.resolve(name) for name in ("none", "bit-red(bits=4)", "r&p")}
    attacks = {"mi-fgsm": registry.attack.resolve("mi-fgsm")}
    if attack:
        attacks["mi-fgsm"] = registry.Resolved("mi-fgsm", GradientSign((attack(momentum=1.0),)), "", "", "1", "mi-fgsm")
    sources = {"net": SourceSpec("net", (net,)), "behind": SourceSpec("behind", (net, net), behind[0])}
    axes = Axes(dataset="three", targets=("net",), defenses=tuple(defenses), image_quality=True)
    grid = Grid("g", "G", "embedded", axes)
    monkeypatch.setattr(lpips, "record", lambda: None)
    made = Plan(grid, Store(folder), 0, "cpu", Images(), ["aa", "bb", "cc"], attacks, defenses, sources, {"net": net})  # type: ignore[arg-type]
    adversarial = made.set_record("net", "mi-fgsm", 16.0)
    purified = made.purified_record(adversarial, "bit-red(bits=4)")
    records = {
        "adv": adversarial,
        "adv through a defense": made.set_record("behind", "mi-fgsm", 4.5),
        "eval": made.eval_record(purified, net),
        "eval of clean images": made.eval_record(made.purified_record(None, "none"), net),
        "eval of ten draws": made.eval_record(made.purified_record(adversarial, "r&p"), net, 10),
        "image_quality": made.image_quality_record(purified),
        "sample": made.sample_record(keys.key_of(purified)),
    }
    monkeypatch.setattr(lpips, "record", lambda: {"net": "alex", "weights": ["aa", "bb"]})
    records["image_quality with lpips"] = replace(made).image_quality_record(purified)
    return {name: keys.key_of(record) for name, record in records.items()}


def test_keys_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys.KEY_VERSION == 2
    assert found(tmp_path, monkeypatch) == PINNED
    assert len(set(PINNED.values())) == len(PINNED)


def with_field(kind: type) -> type:
    """`kind` with a field more, as a later version of this package may have it."""
    own = {name: value for name, value in vars(kind).items() if name == "__module__"}
    added = [("added", float, keys.neutral(0.0))]
    return make_dataclass(kind.__name__, added, bases=(kind,), frozen=True, namespace=own)


def test_a_new_neutral_field_of_attacks_and_model_cards_changes_no_pinned_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(tmp_path, monkeypatch, with_field(Card), with_field(Momentum)) == PINNED


def test_a_new_field_that_is_not_neutral_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = make_dataclass("Card", [("added", float, 0.0)], bases=(Card,), frozen=True)
    new = found(tmp_path, monkeypatch, kind)
    unchanged = {name for name in PINNED if new[name] == PINNED[name]}
    assert unchanged == set()  # all depend on the model
