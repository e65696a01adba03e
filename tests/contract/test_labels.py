"""Labels: what each means, how it round-trips, and the one line that a wrong one gets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdp_bench import plugins, registry
from rdp_bench.attacks.parts import LabelChoice, Momentum
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.models import defended
from rdp_bench.models.zoo import find_source
from rdp_bench.protocols import Purifier
from rdp_bench.results.rows import display_name
from rdp_bench.specs import FileName, Spec, WeightFile, cut, parse_spec, plain, split, with_params
from tests.helpers.settings import setting

plugins.load()


def attack(label: str) -> Any:
    return registry.attack.resolve(label).value


def defense(label: str) -> Any:
    return registry.defense.resolve(label).value


def refusal(label: str, kind: str = "defense") -> str:
    """The error of a label, which is one line."""

    def resolve() -> None:
        value = registry.registries[kind].resolve(label).value
        if isinstance(value, Purifier):
            value.resolved()  # looks for weight files

    with pytest.raises(RdpBenchError) as found:
        resolve()
    assert "\n" not in str(found.value)
    return str(found.value)


# --- the tokenizer ---


@pytest.mark.parametrize(
    ("label", "name", "params", "positional"),
    [
        ("jpeg", "jpeg", {}, ()),
        (" jpeg ( quality = 95 ) ", "jpeg", {"quality": "95"}, ()),
        ("r&p()", "r&p", {}, ()),
        ("TI(15)", "TI", {}, ("15",)),
        ("DI(p=.7)", "DI", {"p": ".7"}, ()),
        ("nrp(weights=my(1).pth)", "nrp", {"weights": "my(1).pth"}, ()),
        ("nrp(weights=a,b.pth)", "nrp", {"weights": "a,b.pth"}, ()),
        ("nrp(weights=a,b.pth, clip=false)", "nrp", {"weights": "a,b.pth", "clip": "false"}, ()),
        ("nrp(weights=lr=.1/best.pth)", "nrp", {"weights": "lr=.1/best.pth"}, ()),
        ("nrp(weights=my file.pth)", "nrp", {"weights": "my file.pth"}, ()),
        ("nrp(weights='a, b=(.pth')", "nrp", {"weights": "a, b=(.pth"}, ()),
        ('nrp(weights="it\'s ""it"".pth")', "nrp", {"weights": 'it\'s "it".pth'}, ()),
        ("nrp(weights=it's.pth)", "nrp", {"weights": "it's.pth"}, ()),
        (r"nrp(weights=C:\nets\a.pth)", "nrp", {"weights": r"C:\nets\a.pth"}, ()),
        (r'purifier:"C:\my nets\a.pth"(clip=false)', r"purifier:C:\my nets\a.pth", {"clip": "false"}, ()),
        (r"purifier:C:\nets\a.pth", r"purifier:C:\nets\a.pth", {}, ()),
        ("purifier:my(1).pth", "purifier:my(1).pth", {}, ()),
        ("purifier:old (2)/a=b,c.pth(sigma=.1)", "purifier:old (2)/a=b,c.pth", {"sigma": ".1"}, ()),
        ("files:'a+b (1)'", "files:a+b (1)", {}, ()),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k", {}, ()),
        ("bpda(jpeg(quality=75), a+b, 20)", "bpda", {}, ("jpeg(quality=75)", "a+b", "20")),
    ],
)
def test_what_a_label_holds(label: str, name: str, params: dict[str, str], positional: tuple[str, ...]) -> None:
    spec = parse_spec(label)
    assert (spec.name, dict(spec.params), spec.positional) == (name, params, positional)
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("", "expected a name"),
        ("jpeg(quality=75", "expected a name"),
        ("jpeg quality=75)", "a closing parenthesis has no opening one"),
        ("nrp(weights=my(1.pth)", "write a file name with such characters in quotes"),
        ("nrp(weights='my(1.pth)", "the quote ' is not closed"),
        ("jpeg(quality=75, quality=80)", "'quality' is given twice"),
        ("jpeg(75)", "parameters are written name=value"),
        ("purifier:rdp(weights=nrp)", "names its weights twice"),
        ("spandrel:a.pth(weights=b.pth)", "names its weights twice"),
        ("jpeg(,quality=75)", "there is nothing between two commas"),
    ],
)
def test_what_cannot_be_read(label: str, says: str) -> None:
    assert says in refusal(label)


WORDS = st.text(st.sampled_from("ab1.,=()'\"|+>:\\ /&-é\u00a0\n"), max_size=12)
NAMES = st.from_regex(r"[a-z][a-z0-9&.+-]{0,8}", fullmatch=True)
SPECS = st.builds(
    lambda name, file, params, positional: Spec(
        name if file is None else f"{name}:{file}", tuple(sorted(params.items())), tuple(positional)
    ),
    NAMES,
    st.none() | WORDS,
    st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), WORDS, max_size=3),
    st.lists(WORDS, max_size=3),
)


@settings(max_examples=500, deadline=None)
@given(SPECS)
def test_every_spec_round_trips(spec: Spec) -> None:
    assert parse_spec(str(spec)) == spec


@settings(max_examples=300, deadline=None)
@given(st.lists(SPECS, min_size=1, max_size=3), st.sampled_from([",", "|", "+", ">>"]))
def test_specs_nest(specs: list[Spec], mark: str) -> None:
    specs = [spec for spec in specs if "+" not in spec.name.partition(":")[0]] or [Spec("a")]
    labels = [str(spec) for spec in specs]
    assert split(f" {mark} ".join(labels), mark) == labels
    name, inside = cut(f"bpda({', '.join(labels)})")
    assert (name, split(inside or "", ",")) == ("bpda", labels)
    assert parse_spec(f"bpda({', '.join(labels)})").name == "bpda"


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("ab1.,=()'\"|+>: "), max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (parse_spec, cut, plain, lambda text: split(text, ">>")):
        try:
            read(text)
        except UsageError as error:
            assert str(error)  # noqa: PT017 - nothing else may be raised
    try:
        spec = parse_spec(text)
    except UsageError:
        return
    assert parse_spec(str(spec)) == spec


def test_spaces_outside_of_quotes_mean_nothing() -> None:
    assert plain("fd( low=25,  high=30 )") == plain("fd(low=25,high=30)")
    assert plain("nrp(weights='a b')") != plain("nrp(weights='ab')")


# --- every kind of label ---


def test_compositions() -> None:
    made = attack("MI|DI(p=.7)|TI(15)|SI(5)")
    assert made == setting(momentum=1.0, diversity_prob=0.7, kernel_size=15, scale_copies=5)
    assert attack("OWN|MI") == setting(momentum=1.0, label="predicted")


@pytest.mark.parametrize("label", ["MI(.5)|NI", "NI|MI(.5)"])
def test_a_value_given_in_one_part_is_not_lost_to_another(label: str) -> None:
    assert attack(label).part(Momentum) == Momentum(0.5)


def test_two_parts_that_disagree_are_refused() -> None:
    assert "momentum is given twice, as .5 and as .9" in refusal("MI(.5)|NI(.9)", "attack")


def test_sources() -> None:
    found = defended.parse("bpda(jpeg(quality=80), effnet-lite0+effnet-lite1)")
    assert found is not None
    assert (found[0].defense.value, found[1]) == (defense("jpeg(quality=80)"), "effnet-lite0+effnet-lite1")
    found = defended.parse("exact(rdp(dynamic=true), effnet-lite0, 20)")
    assert found is not None
    assert (found[0].mode, found[0].samples) == ("exact", 20)
    assert defended.parse("effnet-lite0") is None
    assert [member.name for member in find_source("effnet-lite0 + effnet-lite1", {}).members] == [
        "effnet-lite0",
        "effnet-lite1",
    ]


@pytest.mark.parametrize("label", ["white-box(x)", "white-box(0)", "white-box()", "white-box(99999999999999999999)"])
def test_white_box_samples_are_a_number(label: str) -> None:
    assert defended.is_white_box(label)
    with pytest.raises(UsageError, match="whole number from 1 to 10000"):
        defended.white_box(label, "r&p", "effnet-lite2", random=True)


def test_a_quoted_mark_is_a_letter() -> None:
    assert "a >> b.pth" in refusal('purifier:"a >> b.pth"')
    assert "do not exist" in refusal('purifier:"a >> b.pth"')


@pytest.mark.parametrize(
    "file", ["my(1).pth", "a,b.pth", "a=b.pth", "my file.pth", "it's.pth", "true", "auto", "7", "1e5", "x)(.pth"]
)
def test_a_weight_file_of_any_name_is_found(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_bytes(b"weights")
    quoted = file.replace('"', '""')
    assert [path.name for path in defense(f'rdp(weights="{quoted}")').paths] == [file]
    if file not in ("auto", "x)(.pth"):
        assert [path.name for path in defense(f"rdp(weights={file})").paths] == [file]


# --- values ---


@pytest.mark.parametrize(
    ("kind", "label", "says"),
    [
        ("attack", "dim(steps=2.5)", "parameter 'steps': expected a whole number or auto; found '2.5'"),
        ("attack", "mi-fgsm(alpha=foo)", "parameter 'alpha': expected a finite number or auto; found 'foo'"),
        ("attack", "mi-fgsm(momentum=auto)", "parameter 'momentum': expected a finite number, like 1; found 'auto'"),
        ("attack", "mi-fgsm(alpha=nan)", "found 'nan'"),
        ("attack", "mi-fgsm(nesterov=1)", "expected true or false, like true; found '1'"),
        ("attack", "mi-fgsm(label=foo)", "expected 'true' or 'predicted'; found 'foo'"),
        ("defense", "rdp(weights=true)", "weights true do not exist"),
        ("defense", "jpeg(quality=75.5)", "expected a whole number, like 75; found '75.5'"),
        ("defense", "jpeg(quality=auto)", "found 'auto'"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, label: str, says: str) -> None:
    assert says in refusal(label, kind)


def test_values_have_the_annotated_type() -> None:
    assert attack("dim(label=true)").part(LabelChoice) is None
    assert type(attack("mi-fgsm(momentum=2)").part(Momentum).momentum) is float
    assert attack("mi-fgsm(steps=auto)").schedule.steps is None
    assert defense("rdp(weights=auto)") == defense("rdp")


@dataclass(frozen=True)
class Everything(Purifier):
    whole: int | None = None
    number: float = 1.0
    text: str = "x"
    word: Literal["a", "b"] | None = None
    file: WeightFile | None = None
    path: Path = Path()
    more: Annotated[int, "levels"] = 3
    odd: tuple[int, ...] = (1,)


def test_annotations_of_every_kind() -> None:
    label = 'it(whole=3, number=2, text="auto", word=b, file=7, path=a/b, more=4)'
    assert with_params(Everything(), parse_spec(label), "defense") == Everything(
        3, 2.0, "auto", "b", FileName("7"), Path("a/b"), 4
    )
    with pytest.raises(UsageError, match="a label cannot spell a value of type"):
        with_params(Everything(), parse_spec("it(odd=3)"), "defense")


@pytest.mark.parametrize(
    ("kind", "label", "says"),
    [
        ("attack", "TI(kernel_size=100001)", "kernel_size is at most"),
        ("attack", "mi-fgsm(kernel_size=100001)", "kernel_size is at most"),
        ("attack", "I(1000000)", "steps is above 0 and at most 100000, or auto"),
        ("attack", "SI(100000)", "scale_copies is at most 100"),
        ("attack", "DI(size=1000)", "diversity_size is above 1 and at most 10"),
        ("attack", "ssp(steps=1000000)", "steps is 1 to 100000"),
        ("defense", "r&p(patterns=100000)", "patterns is 1 to 10000"),
        ("defense", "tvm(steps=1000000)", "steps is 1 to 100000"),
        ("defense", "pixel-deflection(deflections=100000000)", "deflections is 0 to 10000000"),
    ],
)
def test_absurd_values_are_refused(kind: str, label: str, says: str) -> None:
    assert says in refusal(label, kind)


@pytest.mark.parametrize("name", ['ε<>|"', "a) b(", ")", "it's", "", "'"])
def test_a_name_that_is_no_label_is_shown_as_it_is(name: str) -> None:
    assert display_name(name) == name
    assert plain(name) == plain(plain(name))
