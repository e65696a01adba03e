"""A record that was edited and sealed again: what the keys of its predictions contradict is found."""

import contextlib
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine.run import Run
from rdp_bench.engine.worker import Worker
from rdp_bench.environment import versions
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.keys import plain
from rdp_bench.registry import identity, registries
from rdp_bench.results.lines import every_row
from rdp_bench.results.naming import misnamed
from rdp_bench.results.record import CellResult, sealed
from rdp_bench.results.rows import load_run, write_results
from rdp_bench.results.verify import verify
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process, plan

Record = dict[str, Any]

RUNS = ROOT / "docs" / "results" / "runs"


def cells(record: Record, **values: Any) -> list[Record]:
    return [cell for cell in record["cells"] if all(cell[name] == value for name, value in values.items())]


def clean_for_attacked(record: Record) -> None:
    """RDP's error under FGSM becomes its error on clean images."""
    for cell in cells(record, attack="fgsm", defense="rdp"):
        (clean,) = cells(record, attack="clean", defense="rdp", target=cell["target"])
        cell |= {"adv_key": None, "eval_key": clean["eval_key"]}


def a_weaker_attack(record: Record) -> None:
    """RDP under SINI-TIDIM has the numbers that it has under FGSM."""
    for cell in cells(record, attack="sini-tidim", defense="rdp"):
        (other,) = cells(record, attack="fgsm", defense="rdp", target=cell["target"])
        cell |= {"adv_key": other["adv_key"], "eval_key": other["eval_key"], "seconds": other["seconds"]}


def swapped_labels(record: Record) -> None:
    names = {"fgsm": "sini-tidim", "sini-tidim": "fgsm"}
    for cell in record["cells"]:
        cell["attack"] = names.get(cell["attack"], cell["attack"])


def more_steps(record: Record) -> None:
    record["attacks"]["mi-fgsm"]["resolved"]["16"]["steps"] = 1000


def no_baseline(record: Record) -> None:
    kept = [cell for cell in record["cells"] if cell["defense"] != "none" or cell["attack"] == "clean"]
    record["cells"] = kept


def exchange(axis: str, one: str, two: str) -> Callable[[Record], None]:
    """The cells of two labels exchange their results."""

    def edit(record: Record) -> None:
        place = ("source", "attack", "eps", "target", "defense")
        found = {tuple(cell[name] for name in place): dict(cell) for cell in record["cells"]}
        names = {one: two, two: one}
        for cell in record["cells"]:
            if cell[axis] in names:
                other = found[tuple(names[cell[name]] if name == axis else cell[name] for name in place)]
                cell |= {name: value for name, value in other.items() if name not in place}

    return edit


def renamed(kind: str, axis: str, one: str, two: str) -> Callable[[Record], None]:
    """Two labels are exchanged in the whole record, with what it says of them."""

    def edit(record: Record) -> None:
        names = {one: two, two: one}
        record[kind] = {names.get(label, label): said for label, said in record[kind].items()}
        if kind == "models":
            for label, said in record[kind].items():
                said["name"] = label
        for cell in record["cells"]:
            cell[axis] = names.get(cell[axis], cell[axis])

    return edit


def unsaid(kind: str, axis: str, one: str, two: str) -> Callable[[Record], None]:
    """As `exchange`, in a record that says nothing of the two labels."""

    def edit(record: Record) -> None:
        exchange(axis, one, two)(record)
        del record[kind][one], record[kind][two]

    return edit


def say(kind: str, label: str, **values: Any) -> Callable[[Record], None]:
    return lambda record: record[kind][label].update(values)


def more_draws(record: Record) -> None:
    """The white-box attack is said to average more draws of the defense than it did."""
    record["sources"]["adaptive(tvm, effnet-lite2-ens, 5)"]["attacked_defense"]["samples"] = 50


def no_axis(record: Record) -> None:
    record["axes"]["attacks"] = record["axes"]["attacks"][:2]


def other_members(record: Record) -> None:
    """A source is attacked in place of another, and the record says of what it consists."""
    (label,) = record["sources"]
    (other,) = [name for name in record["models"] if name == "effnet-lite2-ens"]
    record["sources"][label]["members"] = [other]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (clean_for_attacked, "whether it has one"),
        (a_weaker_attack, "its cells are of 2 adversarial sets"),
        (swapped_labels, "of the attack"),
        (exchange("attack", "mi-fgsm", "ti-dim"), "of the attack"),
        (renamed("attacks", "attack", "mi-fgsm", "ti-dim"), "attack mi-fgsm has the keys of another attack: "),
        (renamed("defenses", "defense", "jpeg", "rdp"), "defense jpeg has the keys of rdp"),
        (unsaid("attacks", "attack", "mi-fgsm", "ti-dim"), "attack gradient-sign, recorded nothing of this name"),
        (unsaid("defenses", "defense", "jpeg", "rdp"), "defense jpeg, recorded nothing of this name"),
        (say("attacks", "fgsm", aims_at_targets=True), "target classes of the set None, recorded "),
        (say("models", "effnet-lite2-ens", arch="resnet50"), "settings of the model effnet-lite2-ens"),
        (say("models", "effnet-lite2-ens", measured_accuracy=99.0), "is 99.0, 90.0 by its cell"),
        (say("defenses", "r&p", passes=30), "passes of the defense 1, recorded 30"),
        (other_members, "weights of the model effnet-lite2-ens of the source 5793"),
        (lambda record: record["defenses"]["rdp"].pop("passes"), "the two cannot be compared (KeyError('passes'))"),
        (no_axis, "its cells have the attack "),
        (lambda record: record["axes"].update(success=True), "success is True, and False in what `run --from`"),
        (lambda record: record["dataset"].update(label="cifar10"), "dataset is cifar10, and photos20 in what"),
        (lambda record: record["request"].update(device="cuda"), "device cpu, recorded cuda"),
        (more_steps, "steps of the attack 10, recorded 1000"),
        (no_baseline, "the predictions of 10 cells are there, and the record has no such cells"),
    ],
)
def test_an_edited_record_contradicts_its_predictions(
    edit: Callable[[Record], None], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(RUNS / "photos20-table1", out)
    assert [each.problems for each in verify(out)] == [()]
    found = forged(out, "table1", edit)
    assert any(says in problem for problem in found), found[:3]


@pytest.mark.parametrize(
    ("grid", "edit", "says"),
    [
        ("adaptive", renamed("defenses", "defense", "rdp", "rdp(dynamic=true)"), "has keys with dynamic=false"),
        ("adaptive", more_draws, "defense in front of the source"),
        ("table1", renamed("models", "target", "effnet-lite2", "effnet-lite2-ens"), "has the weights of effnet-lite2"),
        ("table1", exchange("source", "effnet-lite0", "effnet-lite1"), "weights of the model effnet-lite0 of the"),
    ],
)
def test_a_larger_record_contradicts_its_predictions(
    grid: str, edit: Callable[[Record], None], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(RUNS / {"adaptive": "photos20-adaptive", "table1": "nips17-500-table1"}[grid], out)
    found = forged(out, grid, edit)
    assert any(says in problem for problem in found), found[:3]


def forged(out: Path, grid: str, edit: Callable[[Record], None]) -> tuple[str, ...]:
    """What is found about a run whose record was edited, sealed, and counted again."""
    path = out / "runs" / f"{grid}.json"
    record = json.loads(path.read_text())
    edit(record)
    del record["sha256"]
    path.write_text(sealed(record))
    run = load_run(path, None)
    if not run.unread:
        (out / "results.csv").unlink()
        write_results(out, every_row(run))
    (found,) = verify(out)
    return found.problems


def made(folder: Path, *files: Path, **axes: Any) -> Path:
    """The results folder of an honest run of tests/plugin/tiny.py and plugin `files`; axes as tuples of labels."""
    run = Run(plan(folder, *files, **axes), folder / "out", "test")
    run.execute(run.start(), Worker(run.plan, 4))
    assert not run.failed
    return run.out


def test_a_baseline_is_no_target_behind_a_defense(tmp_path: Path) -> None:
    with new_process():
        out = made(tmp_path, defenses=("none", "jpeg"), baselines=("tiny/one",))
    assert [each.problems for each in verify(out)] == [()]

    def behind_jpeg(record: Record) -> None:
        (cell, *_) = cells(record, defense="jpeg", attack="fgsm")
        record["cells"].append({**cell, "target": "tiny/one", "status": "pending", "eval_key": None})

    assert "its cells have the target tiny/one, and its axes do not" in forged(out, "toy", behind_jpeg)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a model attacks itself."""
    with new_process():
        out = made(
            tmp_path_factory.mktemp("tiny"),
            sources=("tiny/two",),
            attacks=("fgsm", "pgd(steps=1)"),
            defenses=("none", "bit-red", "jpeg(quality=95)", "bit-red >> jpeg", "fixed(r&p)"),
        )
    assert [each.problems for each in verify(out)] == [()]
    return out


def relabelled(axis: str, old: str, new: str, *, unsaid: bool = False) -> Callable[[Record], None]:
    """A label is another one in the whole record; with `unsaid`, the record says nothing of it."""

    def edit(record: Record) -> None:
        about = record[f"{axis}s"]
        record[f"{axis}s"] = {new if label == old else label: each for label, each in about.items()}
        if unsaid:
            del record[f"{axis}s"][new]
        for axes in (record["axes"], record["request"]["axes"]):
            axes[f"{axis}s"] = [new if label == old else label for label in axes[f"{axis}s"]]
        for cell in record["cells"]:
            cell[axis] = new if cell[axis] == old else cell[axis]

    return edit


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("white-box", "source adaptive(bit-red, tiny/two) 1 models, recorded nothing of this name"),
        ("bpda(jpeg, tiny/two)", "has the keys of models without a defense"),
        ("tiny/one+tiny/two", "source tiny/one+tiny/two consists of tiny/two"),
        ("tiny/one", "source tiny/one consists of tiny/two"),
        ("effnet-lite0", "source effnet-lite0 consists of tiny/two"),
        ("elsewhere", "source elsewhere consists of tiny/two"),
    ],
)
def test_a_source_is_what_its_label_says(new: str, says: str, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "out")
    found = forged(tmp_path / "out", "toy", relabelled("source", "tiny/two", new, unsaid=new == "white-box"))
    assert any(says in problem for problem in found), found[:3]


def test_a_model_of_a_plugin_is_not_a_built_in_one(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "out")

    def edit(record: Record) -> None:
        relabelled("source", "tiny/two", "inc-v3")(record)
        record["models"] = {"inc-v3": {**record["models"]["tiny/two"], "name": "inc-v3"}}
        record["sources"]["inc-v3"]["members"] = ["inc-v3"]
        for axes in (record["axes"], record["request"]["axes"]):
            axes["targets"] = ["inc-v3"]
        for cell in record["cells"]:
            cell["target"] = "inc-v3"

    assert forged(tmp_path / "out", "toy", edit) == ("model inc-v3 has the keys of tiny/two",)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("exact(tvm, effnet-lite2-ens, 5)", "has the keys of adaptive with 5 samples"),
        ("adaptive(tvm, effnet-lite2-ens, 50)", "has the keys of adaptive with 5 samples"),
        ("adaptive(noise, effnet-lite2-ens, 5)", "defense noise has the keys of tvm"),
        ("adaptive(tvm(steps=100), effnet-lite2-ens, 5)", "has keys with steps=12"),
        ("effnet-lite2-ens", "has the keys of models behind a defense"),
        ("adaptive(tvm, effnet-lite0, 5)", "consists of effnet-lite2-ens"),
    ],
)
def test_a_source_is_behind_what_its_label_says(new: str, says: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(RUNS / "photos20-adaptive", out)
    old = "adaptive(tvm, effnet-lite2-ens, 5)"

    def edit(record: Record) -> None:
        relabelled("source", old, new)(record)
        for cell in cells(record, source="white-box(5)", defense="tvm"):
            cell["source"] = new

    found = forged(out, "adaptive", edit)
    assert any(says in problem for problem in found), found[:3]


@pytest.mark.parametrize(
    ("axis", "old", "new", "says"),
    [
        ("attack", "fgsm", "MI|DI(p=.7)|TI(15)|SI(5)", "the keys of another attack: diversity_prob is in one of the"),
        ("attack", "fgsm", "apgd-ce", "attack apgd-ce has the keys of gradient-sign"),
        ("attack", "fgsm", "files:theirs", "attack files:theirs has the keys of gradient-sign"),
        ("attack", "pgd(steps=1)", "pgd", "attack pgd has keys with steps=1"),
        ("attack", "pgd(steps=1)", "PGD(20)", "attack PGD(20) has keys with steps=1"),
        ("attack", "pgd(steps=1)", "pgd(steps=1, restarts=9)", "restarts is in one of the two alone"),
        ("defense", "jpeg(quality=95)", "jpeg", "defense jpeg has keys with quality=95"),
        ("defense", "jpeg(quality=95)", "jpeg(quality=95, size=1)", "has keys without size"),
        ("defense", "jpeg(quality=95)", "jpeg(quality=950)", "has keys with quality=95"),
        ("defense", "jpeg(quality=95)", "rdp >> jpeg(quality=75)", "has the keys of jpeg"),
        ("defense", "bit-red", "bit-red >> rdp", "has the keys of bit-red"),
        ("defense", "bit-red >> jpeg", "bit-red >> jpeg >> rdp", "has the keys of bit-red >> jpeg"),
        ("defense", "bit-red >> jpeg", "bit-red >> jpeg(quality=10)", "jpeg(quality=10) has keys with quality=75"),
        ("defense", "bit-red >> jpeg", "jpeg", "defense jpeg has the keys of chain"),
        ("defense", "bit-red", "fixed(noise)", "has the keys of bit-red, whose noise is not fixed"),
        ("defense", "fixed(r&p)", "fixed(r&p(patterns=9))", "r&p(patterns=9) has keys with patterns=1"),
        ("defense", "bit-red", "purifier:rdp.safetensors", "has the keys of bit-red, which reads no file"),
        ("defense", "bit-red", "bit-red)", "its labels and its keys cannot be compared"),
    ],
)
def test_a_label_names_every_parameter(axis: str, old: str, new: str, says: str, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "out")
    found = forged(tmp_path / "out", "toy", relabelled(axis, old, new))
    assert any(says in problem for problem in found), found[:3]


@pytest.mark.parametrize(
    ("label", "name", "says"),
    [
        ("bit-red", "RDP", "'bit-red' cannot be called 'RDP': that is the defense rdp"),
        ("fgsm", "mi-fgsm", "'fgsm' cannot be called 'mi-fgsm': that is the attack mi-fgsm"),
        ("tiny/two", "Inc-V3", "'tiny/two' cannot be called 'Inc-V3': that is the model inc-v3"),
        ("bit-red>>jpeg", "JPEG", "that is the defense jpeg"),
        ("jpeg(quality=95)", "JPEG", ""),
        ("bit-red", "FGSM", ""),
    ],
)
def test_a_label_is_not_shown_by_the_name_of_another_entry(
    label: str, name: str, says: str, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "out")
    found = forged(tmp_path / "out", "toy", lambda record: record.update(names={label: name}))
    assert any(says in problem for problem in found) if says else found == ()


def put(*path: str, value: Any) -> Callable[[Record], None]:
    """Something more in the record."""

    def edit(record: Record) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            put("attacks", "fgsm", "resolved", "8", "restarts", value=100),
            "attack fgsm is said to have the parameter restarts 100, and has it absent",
        ),
        (
            put("attacks", "fgsm", "resolved", "8", "norm", value="l2"),
            "attack fgsm is said to have the parameter norm l2, and has it linf",
        ),
        (
            put("defenses", "jpeg(quality=95)", "resolved", "dct", value="exact"),
            "defense jpeg(quality=95) is said to have the parameter dct exact, and has it absent",
        ),
        (
            put("attacks", "fgsm", "resolved", "16", value={"steps": 100}),
            "the record describes the attack fgsm at eps 16, and no cell is of it",
        ),
        (
            put("attacks", "pgd", value={"resolved": {"8": {"steps": 100}}}),
            "the record describes the attack pgd, and no cell is of it",
        ),
        (put("defenses", "rdp", value={"resolved": {}}), "the record describes the defense rdp, and no cell is of it"),
        (
            put("sources", "tiny/one", value={"members": ["tiny/one"], "attacked_defense": None}),
            "the record describes the source tiny/one, and no cell is of it",
        ),
        (put("models", "inc-v3", value={"name": "inc-v3"}), "describes the model inc-v3, and no cell is of it"),
    ],
)
def test_a_record_describes_nothing_that_no_key_has(
    edit: Callable[[Record], None], says: str, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "out")
    found = forged(tmp_path / "out", "toy", edit)
    assert any(says in problem for problem in found), found[:3]


@pytest.mark.parametrize("kind", ["attack", "defense"])
def test_only_the_label_that_a_key_is_of_may_have_it(kind: str) -> None:
    """Every built-in label with the keys of every other one, and with what a record says of that."""
    at = [8.0] if kind == "attack" else []
    made: dict[str, tuple[Record, Record]] = {}
    labels = ["MI|TI", "PGD(20)", "jpeg >> rdp", "jpeg >> rdp >> jpeg", "fixed(r&p)", "fixed(noise(sigma=.1))"]
    entries = [name for name, entry in registries[kind].entries.items() if entry.origin.startswith("rdp_bench.")]
    for label in [*entries, *labels]:
        with contextlib.suppress(UsageError, BadModelError):  # of the other kind, or without weights
            one = registries[kind].resolve(label)
            resolved = plain(one.value.resolved(*at))
            made[label] = identity(one, *at), {"8": resolved} if at else resolved
    assert len(made) > 25
    for label, key in product(made, made):
        facts, resolved = made[key]
        record = {
            "environment": versions(), "axes": {}, "sources": {"s": {"members": ["s"]}}, "models": {"s": {}},
            "attacks": {}, "defenses": {}, f"{kind}s": {label: {"resolved": resolved}},
        }  # fmt: skip
        attack, defense = (label, "-") if kind == "attack" else ("-", label)
        cell = CellResult("s", attack, 8.0, "t", defense, "done", adv_key="adv", eval_key="eval")
        found = {name: {"id": "-", "version": "1+0", "params": {}} for name in ("attack", "defense")} | {kind: facts}
        problems = list(
            misnamed(record, [cell], {"adv": {**found, "source": {"members": []}}, "eval": {**found, "target": {}}})
        )
        assert bool(problems) == (made[label][0] != facts), (label, key, problems)


def test_honest_sources_of_every_form_pass(tmp_path: Path) -> None:
    labels = ("tiny/one+tiny/two", "both", "white-box(2)", "bpda(jpeg >> tiny/round, both)")
    with new_process():
        out = made(
            tmp_path,
            sources=(*labels, "adaptive(tiny/dither, tiny/one+tiny/two, 3)", "tiny/one"),
            targets=("tiny/one", "tiny/two"),
            defenses=("none", "tiny/dither", "jpeg"),
            ensembles={"both": ("tiny/two", "tiny/one")},
        )
    assert [each.problems for each in verify(out)] == [()]


OTHERWISE = """
from dataclasses import dataclass
import numpy as np
import torch
from rdp_bench import Purifier, attack, defense

@defense("its/own", source="made up")
@dataclass(frozen=True)
class Own(Purifier):
    '''Its key has other numbers than its label.'''
    share: float = 1.0
    sigma: float = 1.0
    bits: int = 5
    count: int = 0

    def purify(self, x, rng):
        return x * (1 - self.sigma / 255)

    def resolved(self):
        return {"share": np.float32(self.share), "sigma": self.sigma / 255, "bits": min(self.bits, 8),
                "count": self.count or 7}

@attack("its/step", source="made up")
@dataclass(frozen=True)
class Step:
    '''As the defense.'''
    share: float = 1.0

    def __call__(self, source, x, y, eps, rng):
        return (x + self.share * eps * torch.ones_like(x)).clamp(0, 1)

    def resolved(self, eps_255):
        return {"share": np.float32(self.share), "step": self.share * eps_255}

    def gradients(self, eps_255):
        return 1
"""
"""Entries whose keys hold other numbers than their labels, as `resolved` may."""


def test_a_plugin_may_resolve_its_numbers_in_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OTHERWISE)
    labels = ("its/own(share=.7)", "its/own(sigma=3)", "its/own(bits=10)", "its/own(count=0)")
    with new_process():
        out = made(tmp_path, tmp_path / "own.py", defenses=("none", *labels), attacks=("its/step(share=.7)",))
        with_plugin = [each.problems for each in verify(out)]
    assert with_plugin == [each.problems for each in verify(out)] == [()]


@pytest.mark.parametrize("name", ["table1.0123456789abcdef.safetensors", "other.0123456789abcdef.safetensors", "x"])
def test_a_file_of_predictions_that_no_record_names_is_found(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(RUNS / "photos20-table1", out)
    (path,) = (out / "predictions").iterdir()
    shutil.copy(path, out / "predictions" / name)
    assert {each.grid: each.problems for each in verify(out)} == {
        "table1": (), name: (f"no record names {out / 'predictions' / name}; move it away",)
    }  # fmt: skip
