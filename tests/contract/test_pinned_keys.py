"""Cache keys that must not change.

Rule: never update an expected value here without a new `keys.KEY_VERSION`. A key that changes by accident voids every
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
    "adv": "973011fd3ee42201bd36919d3befc2c858ad0f9bd12813a7e040c8c6599f8b0b",
    "adv through a defense": "645dc76cfe6d57eed2c2331e809c645bc11ddffdef438f0b795f54d5726ce65c",
    "eval": "8267bf7bd99189b5e4d077f65020ecbf806c33a6938dcbf45c73f096b7a993f0",
    "eval of clean images": "6ff80879e7d6550a56972823edc55b85c1604ce5382d7fb9c42005a771bb79a4",
    "eval of ten draws": "91e330e468a6a589e30a7c915691b1404b89e5b01c30027f7da975bc08b7d236",
    "image_quality": "e539eae48934fc03feab444a75182fef8f44b6ee8b6bb362966544d0bed772f0",
    "sample": "31d1f54e433c9ad1a2f8d4b4eedc8a2bdb58a0866506361b7d4e0300e2a5e3e8",
    "image_quality with lpips": "32a4949fb9224f7507082bd8e49c20e58fbe244f9af3c12b366db2ab8d641552",
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
