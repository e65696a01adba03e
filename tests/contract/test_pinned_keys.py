"""Cache keys that must not change.

Rule: never update an expected value here without a new `keys.KEY_VERSION`. A key that changes by accident voids every
cache; a key that stays the same although its meaning changed gives one thing another's numbers. If a test here fails,
something that was added must be left out where it is neutral (`keys.neutral`), or moved out of the record; only where
all keys are meant to change, bump `KEY_VERSION` and then write the new values.

The records are made by the real code from entries, images, a model card and a weight file that are the same everywhere.
"""

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import keys, plugins, registry
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.cache.store import Store
from rdp_bench.engine.grid import Axes, Grid
from rdp_bench.engine.plan import Plan
from rdp_bench.metrics import lpips
from rdp_bench.models.card import Card
from rdp_bench.models.defended import parse
from rdp_bench.models.zoo import ModelRef, SourceSpec

plugins.load()

PINNED = {
    "adv": "52229d1f9db625ef8e2c99e97021c8155ce85a72961e9b8b8ee529c71634c242",
    "adv through a defense": "d33407a6029232611fede373bc75573f25096f2412f4ab5fd0720844575ea7ca",
    "eval": "5f9104da60e76f48e2b776516bbfde765f0a6b5343c3e024d6e7c80058349a71",
    "eval of clean images": "6ff80879e7d6550a56972823edc55b85c1604ce5382d7fb9c42005a771bb79a4",
    "eval of ten draws": "f02e79962140ab3e6fcf3337c2cb8ad24dd044f986b2cc7ddddc90313574d70f",
    "image_quality": "597ce1f2bc2eb78c1a9fabe979c59063b25476c202e68d1e484089112aa130b7",
    "sample": "474f1b8ce97fb9add18f08704148e48e4435bd5483c95412578be5fe58785a1c",
    "image_quality with lpips": "dc0bc01301db57470500ad8be2154d37b32976bdb0458273a072299764eff45d",
}


class Images:
    """Three images, known by their hashes alone."""

    name, size = "three", 8
    ids = ("a", "b", "c")
    labels = (0, 1, 2)


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, card: type = Card, attack: Any = None) -> dict[str, str]:
    """The keys, with another class of model cards or another attack in place of mi-fgsm if given."""
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
        attacks["mi-fgsm"] = registry.Resolved("mi-fgsm", attack(momentum=1.0), "", "", "1", "mi-fgsm")
    sources = {"net": SourceSpec("net", (net,)), "behind": SourceSpec("behind", (net, net), behind[0])}
    grid = Grid("g", "G", "embedded", Axes(dataset="three", targets=("net",), defenses=tuple(defenses)))
    made = Plan(grid, Store(folder), 0, "cpu", Images(), ["aa", "bb", "cc"], attacks, defenses, sources, {"net": net})  # type: ignore[arg-type]
    adversarial = made.set_record("net", "mi-fgsm", 16.0)
    purified = made.purified_record(adversarial, "bit-red(bits=4)")
    monkeypatch.setattr(lpips, "record", lambda: None)
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
    records["image_quality with lpips"] = made.image_quality_record(purified)
    return {name: keys.key_of(record) for name, record in records.items()}


def test_keys_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys.KEY_VERSION == 2
    assert found(tmp_path, monkeypatch) == PINNED
    assert len(set(PINNED.values())) == len(PINNED)


def with_field(kind: type) -> type:
    """`kind` with a field more, as a later version of this package may have it."""
    own = {name: value for name, value in vars(kind).items() if name in ("identity", "__module__")}
    added = [("added", float, keys.neutral(0.0))]
    return make_dataclass(kind.__name__, added, bases=(kind,), frozen=True, namespace=own)


def test_a_new_neutral_field_of_attacks_and_model_cards_changes_no_pinned_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(tmp_path, monkeypatch, with_field(Card), with_field(GradientSign)) == PINNED


def test_a_new_field_that_is_not_neutral_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = make_dataclass("Card", [("added", float, 0.0)], bases=(Card,), frozen=True)
    new = found(tmp_path, monkeypatch, kind)
    unchanged = {name for name in PINNED if new[name] == PINNED[name]}
    assert unchanged == set()  # all depend on the model
