"""Different things have different keys, and one thing has one key, whatever it is called."""

from collections.abc import Iterator
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import registry
from rdp_bench.attacks import gradient_sign
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.attacks.parts import ALWAYS, WORDS, Ball, Momentum, Nesterov, Part, Restarts, Smoothing, Steps
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.models.card import Card
from rdp_bench.models.zoo import ModelRef
from tests.helpers.plans import keys, new_process, plan

HEAD = """
from dataclasses import dataclass
from rdp_bench import Purifier, attack, defense, model
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.attacks.parts import Momentum
"""
OVERWRITING = '''
@defense("mine/keep", source="made up")
@dataclass(frozen=True)
class Keep(Purifier):
    """Returns its input."""
    type: str = "linf"
    version: int = 3
    passes_: int = 1
    def purify(self, x, draws):
        return x

@defense("mine/black", source="made up")
@dataclass(frozen=True)
class Black(Purifier):
    """Returns black images."""
    type: str = "linf"
    version: int = 3
    passes_: int = 1
    def purify(self, x, draws):
        return x * 0
'''
HELPER = '''
def made(name, factor):
    @defense(name, source="made up")
    @dataclass(frozen=True)
    class Made(Purifier):
        """Made by a function."""
        def purify(self, x, draws):
            return x * factor
made("mine/keep", 1)
made("mine/black", 0)
'''
CLASS_ATTRIBUTE = '''
@dataclass(frozen=True)
class Base(Purifier):
    """Its factor is a class attribute."""
    factor = 1
    def purify(self, x, draws):
        return x * self.factor

@defense("mine/keep", source="made up")
def keep():
    """Returns its input."""
    return type("Base", (Base,), {})()

@defense("mine/black", source="made up")
def black():
    """Returns black images."""
    return type("Base", (Base,), {"factor": 0})()
'''
ATTACKS = '''
def made(name, sign):
    @attack(name, source="made up")
    @dataclass(frozen=True)
    class Made:
        """Made by a function."""
        type: str = "linf"
        version: int = 1
        def __call__(self, source, x, y, eps, draws):
            return (x + sign * eps).clamp(0, 1)
        def resolved(self, eps):
            return {"type": self.type, "version": self.version}
        def gradients(self, eps):
            return 1
made("mine/keep", 0)
made("mine/black", -1)
'''
MODELS = '''
def made(name, sign):
    class Made:
        """Made by a function."""
        classes = 5
        def __init__(self):
            self.name = name
        def __call__(self, x, zoom=1.0):
            return sign * x.flatten(1)[:, :5]
        def record(self):
            return {"plugin": "it", "id": "it", "version": 1, "weights": "none"}
    model(name, source="made up")(Made)
made("mine/keep", 1)
made("mine/black", -1)
'''


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with new_process():
        yield


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        (OVERWRITING, "defenses"), (HELPER, "defenses"), (CLASS_ATTRIBUTE, "defenses"), (ATTACKS, "attacks"),
        (MODELS, "targets"), (MODELS, "sources"),
    ],
)  # fmt: skip
def test_two_entries_have_two_keys(tmp_path: Path, text: str, axis: str) -> None:
    found = keys(plan(tmp_path, write(tmp_path, text), **{axis: ("mine/keep", "mine/black")}))
    assert len(set(found.values())) == len(found) == 2
    assert len({evaluation for _, evaluation in found.values()}) == 2


def test_two_defenses_behind_which_a_source_stands_have_two_keys(tmp_path: Path) -> None:
    sources = ("bpda(mine/keep, tiny/one)", "bpda(mine/black, tiny/one)")
    found = keys(plan(tmp_path, write(tmp_path, OVERWRITING), sources=sources))
    assert len({adv for adv, _ in found.values()}) == 2


def test_a_parameter_overwrites_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path, write(tmp_path, OVERWRITING), defenses=("mine/keep",))
    record = made.purified_record(None, "mine/keep")["defense"]
    assert record["params"] == {"type": "linf", "version": 3, "passes_": 1}
    assert record["id"] == "mine/keep"
    assert record["version"].startswith("1+")
    assert record["passes"] == 1


def test_no_key_holds_where_the_code_lies(tmp_path: Path) -> None:
    made = plan(tmp_path, defenses=("none", "bit-red"), sources=("bpda(bit-red, tiny/one)",))
    text = str(made.purified_record(made.set_record("bpda(bit-red, tiny/one)", "fgsm", 8.0), "bit-red"))
    assert not any(word in text for word in ("rdp_bench.", "GradientSign", "qualname", "BitDepth", "'type'"))


def test_a_renamed_entry_keeps_its_key_by_its_id(tmp_path: Path) -> None:
    before = '@defense("mine/old", source="s")\n@dataclass(frozen=True)\nclass A(Purifier):\n    "A."\n'
    text = before + "    def purify(self, x, draws):\n        return x\n"
    path = write(tmp_path, text)
    with new_process():
        plan(tmp_path, path)
        old = registry.identity(registry.defense.resolve("mine/old"))
    write(tmp_path, text.replace('"mine/old"', '"mine/new", id="mine/old"').replace("class A", "class B"))
    plan(tmp_path, path)
    new = registry.identity(registry.defense.resolve("mine/new"))
    assert new["id"] == old["id"] == "mine/old"
    assert new["params"] == old["params"]


def test_two_entries_of_one_id_are_refused_with_both_names() -> None:
    def make() -> Any:
        """Nothing."""

    registry.defense("mine/a", source="s")(make)
    with pytest.raises(RdpBenchError, match=r"'mine/b'.*the id 'mine/a' is that of defense 'mine/a'"):
        registry.defense("mine/b", source="s", id="mine/a")(make)


# --- one key, two things -------------------------------------------------------------------------------------

HIDING = '''
@defense("mine/scale", source="made up")
@dataclass(frozen=True)
class Scale(Purifier):
    """Its resolved parameters leave one out."""
    factor: float = 1.0
    shown: int = 1
    def resolved(self):
        return {"shown": self.shown}
    def purify(self, x, draws):
        return x * self.factor

@attack("mine/move", source="made up")
@dataclass(frozen=True)
class Move:
    """The same."""
    sign: float = 1.0
    def __call__(self, source, x, y, eps, draws):
        return (x + self.sign * eps).clamp(0, 1)
    def resolved(self, eps):
        return {}
    def gradients(self, eps):
        return 1
'''


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (
            {"defenses": ("mine/scale", "mine/scale(factor=0.0)")},
            r"defenses 'mine/scale' and 'mine/scale\(factor=0\.0\)' would share one cache key and differ in factor",
        ),
        (
            {"attacks": ("mine/move", "mine/move(sign=-1.0)")},
            r"attacks 'mine/move' and 'mine/move\(sign=-1\.0\)' would share one cache key and differ in sign",
        ),
        (
            {"sources": ("bpda(mine/scale, tiny/one)", "bpda(mine/scale(factor=.5), tiny/one)")},
            r"defenses 'mine/scale' and 'mine/scale\(factor=\.5\)' would share one cache key",
        ),
    ],
)
def test_labels_that_differ_in_what_resolved_leaves_out_are_refused(
    tmp_path: Path, axes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        plan(tmp_path, write(tmp_path, HIDING), **axes)


def test_labels_that_mean_one_thing_are_not_refused(tmp_path: Path) -> None:
    attacks = ("MI", "mi-fgsm", "mi-fgsm(alpha=0.8)", "I|MI(1.0)", "mi-fgsm(steps=auto)")
    defenses = ("bit-red", "bit-red(bits=5)", "tiny/nan", "mine/scale", "mine/scale(shown=2, factor=0.0)")
    sources = ("tiny/one", "bpda(tiny/nan, tiny/one)")
    made = plan(tmp_path, write(tmp_path, HIDING), attacks=attacks, defenses=defenses, sources=sources)
    found = keys(made)
    assert len({found[f"tiny/one {label} bit-red tiny/two"] for label in attacks}) == 1  # all of them at eps 8
    assert len({found[f"tiny/one MI {label} tiny/two"] for label in defenses}) == 4


# --- versions of compositions and schemes --------------------------------------------------------------------

PAIRS = [
    ("MI", "mi-fgsm"), ("MI|DI|TI", "ti-dim"), ("NI|SI|OWN", "si-ni-fgsm"), ("PGD", "pgd"), ("FGSM", "fgsm"),
    ("I", "i-fgsm"),
]  # fmt: skip


@pytest.mark.parametrize(("composed", "preset"), PAIRS)
def test_a_preset_and_the_same_composition_are_one(tmp_path: Path, composed: str, preset: str) -> None:
    found = keys(plan(tmp_path, attacks=(composed, preset)))
    assert len(set(found.values())) == 1


def versions(tmp_path: Path) -> dict[str, Any]:
    labels = [label for pair in PAIRS for label in pair]
    made = plan(tmp_path, attacks=tuple(labels))
    records = {label: made.attack_record(label, 8.0) for label in labels}
    return {
        label: (record["version"], {part: each["version"] for part, each in record["params"]["parts"].items()})
        for label, record in records.items()
    }


def test_the_version_of_the_engine_is_in_all_that_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(tmp_path)
    monkeypatch.setattr(gradient_sign, "ENGINE_VERSION", 2)
    after = versions(tmp_path)
    assert all(before[label] != after[label] for label in before)
    assert all(after[composed] == after[preset] for composed, preset in PAIRS)


def test_the_version_of_a_part_is_in_what_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions(tmp_path)
    monkeypatch.setattr(Smoothing, "version", 2)
    after = versions(tmp_path)
    assert {label for label in before if before[label] != after[label]} == {"MI|DI|TI", "ti-dim"}
    assert after["MI|DI|TI"] == after["ti-dim"]


def test_a_preset_has_no_version_of_its_own(tmp_path: Path) -> None:
    """It would be in no key: a preset and the same composition are one."""
    text = """
@attack("mine/preset", source="made up", version=2)
def preset():
    "A setting."
    return GradientSign((Momentum(),))
"""
    with pytest.raises(UsageError, match=r"'mine/preset'.*has no version of its own; bump that of the engine"):
        plan(tmp_path, write(tmp_path, text), attacks=("mine/preset",))


def test_every_part_has_an_id_and_a_place_of_its_own() -> None:
    kinds = part_kinds()
    assert len(kinds) > 8
    assert len({kind.id for kind in kinds}) == len({kind.order for kind in kinds}) == len(kinds)
    names = [field.name for kind in kinds for field in fields(kind)]
    assert len(set(names)) == len(names)  # labels name them without their part


def test_a_part_that_is_off_is_no_part() -> None:
    for kind in set(part_kinds()) - {Steps}:
        first = fields(kind)[0].name
        off = kind(**{first: kind.off})
        assert off.idle
        assert GradientSign((off,)) == GradientSign()
        assert kind is Ball or not kind().idle


def part_kinds() -> list[type[Part]]:
    found = [type(part) for word in WORDS.values() for part in word.parts] + [type(part) for part in ALWAYS]
    return list(dict.fromkeys(found))


def test_a_subclass_of_the_engine_is_not_the_engine(tmp_path: Path) -> None:
    text = '''
@attack("mine/still", source="made up")
class Still(GradientSign):
    """Does nothing."""
    def __call__(self, source, x, y, eps, draws):
        return x
'''
    made = plan(tmp_path, write(tmp_path, text), attacks=("I", "mine/still"))
    assert len(set(keys(made).values())) == 2
    assert made.attack_record("mine/still", 8.0)["id"] == "mine/still"


IDENTITIES = '''
@attack("mine/method", source="made up")
class Method:
    """Says that it is another's."""
    def identity(self):
        return {"id": "gradient-sign", "version": "1", "params": {}}
    def __call__(self, source, x, y, eps, draws):
        return x
    def resolved(self, eps):
        return {}
    def gradients(self, eps):
        return 1

@defense("mine/field", source="made up")
@dataclass(frozen=True)
class Field(Purifier):
    """Has a parameter of that name."""
    identity: float = 1.0
    def purify(self, x, draws):
        return x * self.identity
'''


def test_no_plugin_says_that_it_is_an_engine(tmp_path: Path) -> None:
    made = plan(tmp_path, write(tmp_path, IDENTITIES), attacks=("mine/method",), defenses=("mine/field",))
    assert made.attack_record("mine/method", 8.0)["id"] == "mine/method"
    assert made.attack_record("mine/method", 8.0)["version"].startswith("1+")
    assert made.defense_record("mine/field")["params"] == {"identity": 1}


SCHEME = '''
@dataclass(frozen=True)
class Level(Purifier):
    """Multiplies."""
    factor: float = 1.0
    def purify(self, x, draws):
        return x * self.factor * OTHER
OTHER = 1
defense.label_scheme("level", r"level:.+", "level:.5", lambda text: Level(float(text.partition(":")[2])))
'''


def test_the_scheme_of_a_plugin_carries_its_stamp(tmp_path: Path) -> None:
    records = []
    for other in ("OTHER = 1", "OTHER = 0"):
        path = write(tmp_path, SCHEME.replace("OTHER = 1", other))
        with new_process():
            made = plan(tmp_path, path, defenses=("level:0.5",))
            records.append(made.defense_record("level:0.5"))
    assert records[0]["id"] == records[1]["id"] == "level"
    assert records[0]["params"] == records[1]["params"] == {"factor": 0.5}
    assert records[0]["version"] != records[1]["version"]


def test_adapters_carry_the_version_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks")
    from importlib import metadata

    label = "torchattacks:FGSM"
    record = plan(tmp_path, attacks=(label,)).attack_record(label, 8.0)
    assert record["id"] == "torchattacks"
    assert record["params"]["torchattacks"] == metadata.version("torchattacks")
    monkeypatch.setattr(metadata, "version", lambda _: "9.9")
    assert plan(tmp_path, attacks=(label,)).attack_record(label, 8.0) != record


# --- what may be left out ------------------------------------------------------------------------------------


def with_field(kind: type, **options: Any) -> type:
    """`kind` with a field more, as a later version of this package would have it."""
    from rdp_bench.keys import neutral

    own = {name: value for name, value in vars(kind).items() if name == "__module__"}
    return make_dataclass(
        kind.__name__, [("added", float, neutral(0.0, **options))], bases=(kind,), frozen=True, namespace=own
    )


def card() -> Card:
    return Card("net", "a network", "timm:net", "file", 224, (0.5,) * 3, (0.5,) * 3)


def records(tmp_path: Path, part: type = Momentum, kind: type = Card, **values: float) -> tuple[Any, Any]:
    file = tmp_path / "net.pth"
    file.write_bytes(b"weights")
    made = registry.Resolved("mi-fgsm", GradientSign((part(**values),)), "", "", "1", "mi-fgsm")
    return registry.identity(made, 8.0), ModelRef(kind(**vars(card())), file).record()


def test_a_new_neutral_field_changes_no_record(tmp_path: Path) -> None:
    before = records(tmp_path)
    assert records(tmp_path, with_field(Momentum), with_field(Card)) == before


def test_a_new_field_that_is_used_changes_the_record(tmp_path: Path) -> None:
    record, _ = records(tmp_path, with_field(Momentum), added=0.5)
    assert record["params"]["parts"]["momentum"]["added"] == 0.5


def test_a_neutral_field_whose_default_is_changed_changes_the_record(tmp_path: Path) -> None:
    before = records(tmp_path)
    after = records(tmp_path, with_field(Momentum, default=0.5), with_field(Card, default=0.5))
    parts = before[0]["params"]["parts"]
    assert after[0]["params"]["parts"] == parts | {"momentum": parts["momentum"] | {"added": 0.5}}
    assert after[1]["card"] == before[1]["card"] | {"added": 0.5}


def test_a_field_that_is_not_declared_neutral_is_always_in_the_record() -> None:
    for kind in set(part_kinds()) - {Ball}:
        if kind in (Nesterov, Restarts):
            continue  # alone they are refused
        made = registry.Resolved("x", GradientSign((kind(),)), "", "", "1", "x")
        found = registry.identity(made, 8.0)["params"]["parts"]
        wanted = {field.name for field in fields(kind) if "neutral" not in field.metadata}
        assert set(found[kind.id]) == wanted | {"version"}


# --- libraries that change pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["jpeg", "wavelet", "sr"])
def test_the_jpeg_library_is_in_the_record_of_what_uses_it(
    tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import features

    before = plan(tmp_path, defenses=(label,)).defense_record(label)
    monkeypatch.setattr(features, "version", lambda _: "9.9.9")
    after = plan(tmp_path, defenses=(label,)).defense_record(label)
    assert "9.9.9" in after["params"]["codec"]
    assert before["params"] == after["params"] | {"codec": before["params"]["codec"]}
    assert before != after


def test_without_jpeg_no_codec_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    labels = ("wavelet(jpeg=0)", "sr(jpeg=0)")
    before = [plan(tmp_path, defenses=labels).defense_record(label) for label in labels]
    monkeypatch.setattr(features, "version", lambda _: "9.9.9")
    assert before == [plan(tmp_path, defenses=labels).defense_record(label) for label in labels]


# --- what registries refuse, and say -------------------------------------------------------------------------


def test_two_schemes_of_one_id_are_refused() -> None:
    registry.defense.label_scheme("level", r"level:.+", "level:1", lambda _: None)
    with pytest.raises(RdpBenchError, match="the id 'level' is that of defense 'level'"):
        registry.defense.label_scheme("level", r"other:.+", "other:1", lambda _: None)
    with pytest.raises(RdpBenchError, match="the id 'level' is that of defense 'level'"):
        registry.defense("level", source="s")(lambda: None)


def test_a_parameter_that_resolved_leaves_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Alone in a run it cannot be refused: it may change no pixel."""
    path = write(tmp_path, HIDING)
    plan(tmp_path, path, defenses=("mine/scale", "mine/scale(shown=2)"))
    assert "leaves out" not in caplog.text
    plan(tmp_path, path, defenses=("mine/scale(factor=.5)",), attacks=("mine/move(sign=-1.0)",))
    assert (
        "defense 'mine/scale(factor=.5)': resolved() leaves out factor, so labels that differ only there share"
        in caplog.text
    )
    assert caplog.text.count("attack 'mine/move(sign=-1.0)': resolved() leaves out sign") == 1


def test_a_record_is_a_copy(tmp_path: Path) -> None:
    """What an entry returned may still be its own, and change after its key was made."""
    shared: dict[str, Any] = {"level": 1}

    class Kind:
        def resolved(self) -> dict[str, Any]:
            return shared

    record = registry.identity(registry.Resolved("x", Kind(), "", "", "1", "x"))
    shared["level"] = 2
    assert record["params"] == {"level": 1}


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    from rdp_bench.keys import canonical_json

    assert canonical_json({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(1)}) == '{"a":0.5,"b":3,"c":true}'
