"""`evaluate` on objects of the caller: identity, repetition, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rdp_bench as rb
from rdp_bench import RdpBenchError, UsageError, plugins, registry
from rdp_bench.api import place, wrap
from rdp_bench.protocols import Purifier
from rdp_bench.results.cards import name_of as audit_name
from rdp_bench.rng import ImageRng
from tests.helpers.commands import PLUGIN
from tests.helpers.paths import ROOT

Evaluate = Callable[..., rb.Result]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """`evaluate` on tiny networks, with a cache of its own."""
    plugins.load((PLUGIN,))
    usual = {"attacks": ["fgsm"], "sources": "tiny/one", "targets": ["tiny/two"], "dataset": "tiny/noise", "eps": 32}
    return partial(_evaluate, {**usual, "cache": tmp_path / "cache", "device": "cpu"})


def _evaluate(usual: dict[str, Any], *ours: Any, **given: Any) -> rb.Result:
    return rb.evaluate(*ours, **{**usual, **given})


def key(result: rb.Result, defense: str = "ours") -> str:
    frame = result.to_dataframe()
    keys = frame[(frame["defense"] == defense) & (frame["attack"] != "clean")]["eval_key"]
    return str(keys.item())


def reason(result: rb.Result, defense: str = "ours") -> str:
    """Why the cells of a defense failed, which all did."""
    frame = result.to_dataframe()
    rows = frame[frame["defense"] == defense]
    assert set(rows["status"]) == {"failed"}
    assert rows["value"].isna().all()
    return str(rows["reason"].iloc[0])


class Scale(nn.Module):
    """Darkens by a factor that is no parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def half(x: Tensor) -> Tensor:
    return x * 0.5


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


class Factor:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


def convolution(factor: float) -> nn.Conv2d:
    net = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(factor * torch.eye(3)[:, :, None, None])
    return net


def local_class(factor: float) -> nn.Module:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * factor

    return Local()


MAKERS: dict[str, Callable[[float], Any]] = {
    "attribute": Scale,
    "weights": convolution,
    "closure": scaled,
    "partial": lambda factor: partial(_multiplied, factor=factor),
    "object": Factor,
    "slots": Slotted,
    "class in a function": local_class,
    "method": lambda factor: Factor(factor).__call__,
}


def _multiplied(x: Tensor, factor: float) -> Tensor:
    return x * factor


class Wrapper:
    def __init__(self, factor: float) -> None:
        update_wrapper(self, half)
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return half(x) * self.factor


class OneSlot:
    __slots__ = "factor"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


class HiddenSlot:
    __slots__ = ("__factor",)

    def __init__(self, factor: float) -> None:
        self.__factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.__factor


class Settings(dict[str, float]):
    def __call__(self, x: Tensor) -> Tensor:
        return x * self["factor"]


class Queue(deque[float]):
    def __call__(self, x: Tensor) -> Tensor:
        return x * self[0]


class Held:
    """Of one object, in an attribute."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, x: Tensor) -> Tensor:
        return x


def circle(factor: float) -> list[Any]:
    found: list[Any] = [factor]
    found.append(found)
    return found


class Proxy:
    def __getattr__(self, name: str) -> "Proxy":
        return Proxy()

    def __init__(self, factor: float = 1.0) -> None:
        vars(self)["factor"] = factor


MAKERS |= {
    "update_wrapper": Wrapper,
    "one slot": OneSlot,
    "hidden slot": HiddenSlot,
    "a dict": lambda factor: Settings(factor=factor),
    "a deque": lambda factor: Queue([factor]),
    "a circle": lambda factor: Held(circle(factor)),
    "a proxy": lambda factor: Held(Proxy(factor)),
    "float8": lambda factor: Held(torch.tensor([factor]).to(torch.float8_e4m3fn)),
    "conj": lambda factor: Held(torch.tensor([factor * 1j]).conj()),
    "a structured array": lambda factor: Held(np.array([(factor,)], dtype=[("a", object)])),
    "script function": lambda factor: torch.jit.script(SCRIPTED[factor]),
    "a setter": lambda factor: Held(property(None, scaled(factor))),
    "a metaclass": lambda factor: Held(type("M", (type,), {"factor": factor, "__module__": __name__})("Our", (), {})),
    "a hook": lambda factor: hooked(factor),
}  # fmt: skip


def _script_half(x: Tensor) -> Tensor:
    return x * 0.5


def _script_quarter(x: Tensor) -> Tensor:
    return x * 0.25


SCRIPTED = {0.5: _script_half, 0.25: _script_quarter}


def hooked(factor: float) -> nn.Module:
    net = nn.Identity()
    net.register_forward_hook(lambda module, inputs, output: output * factor)
    return net


@pytest.mark.parametrize("kind", MAKERS)
def test_an_object_is_identified_by_what_it_is(kind: str) -> None:
    make = MAKERS[kind]
    assert wrap.digest(make(0.5)) == wrap.digest(make(0.5))
    assert wrap.digest(make(0.5)) != wrap.digest(make(0.25))


def test_the_class_of_a_builtin_value_counts() -> None:
    class Levels(IntEnum):
        ALL = 255

    assert wrap.digest(Held(Levels.ALL)) != wrap.digest(Held(255))


def test_a_chain_of_any_length_is_followed_to_its_end() -> None:
    def then(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: inner(x)

    def chain(factor: float) -> Callable[[Tensor], Tensor]:
        found = scaled(factor)
        for _ in range(3000):
            found = then(found)
        return found

    assert wrap.digest(chain(0.5)) == wrap.digest(chain(0.5)) != wrap.digest(chain(0.25))


def test_a_buffer_that_is_not_saved_counts() -> None:
    def make(value: float) -> nn.Module:
        net = nn.Identity()
        net.register_buffer("scale", torch.tensor(value), persistent=False)
        return net

    assert wrap.digest(make(1.0)) != wrap.digest(make(2.0))
    assert wrap.digest(make(1.0)) == wrap.digest(make(1.0))


def test_a_hook_counts() -> None:
    plain, hooked = nn.Identity(), nn.Identity()
    hooked.register_forward_hook(lambda module, args, out: out * 0.5)
    assert wrap.digest(plain) != wrap.digest(hooked)


def test_another_state_is_another_result(evaluate: Evaluate) -> None:
    one, two, again = (evaluate({"ours": Scale(factor)}) for factor in (0.5, 0.0, 0.5))
    assert key(one) == key(again) != key(two)
    assert one.to_dataframe().equals(again.to_dataframe())


def test_the_same_object_under_two_names_is_computed_once(evaluate: Evaluate) -> None:
    result = evaluate({"ours": Scale(0.5), "same": Scale(0.5)})
    assert key(result) == key(result, "same")


def test_a_cell_can_be_run_twice(evaluate: Evaluate) -> None:
    before = dict(registry.defense.entries), dict(registry.attack.entries)
    frames = [evaluate({"ours": half}, attacks={"mine": sign}).to_dataframe() for _ in range(2)]
    assert frames[0].equals(frames[1])
    assert set(frames[0]["status"]) == {"done"}
    assert (registry.defense.entries, registry.attack.entries) == before


CALLS: list[int] = []


def counting(x: Tensor) -> Tensor:
    CALLS.append(len(x))
    return x


def test_a_second_call_computes_nothing(evaluate: Evaluate) -> None:
    CALLS.clear()
    evaluate({"ours": counting})
    assert CALLS
    made = len(CALLS)
    evaluate({"ours": counting})
    assert len(CALLS) == made
    evaluate({"ours": counting}, fresh=True)
    assert len(CALLS) > made
    made = len(CALLS)
    evaluate({"ours": counting})
    assert len(CALLS) == made


TABLE = {"factor": 0.5}


def by_table(x: Tensor) -> Tensor:
    return x * TABLE["factor"]


def test_what_a_module_holds_is_part_of_its_functions(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changed it: a file that the module read when it was imported, or the caller."""
    before = key(evaluate({"ours": by_table}))
    assert key(evaluate({"ours": by_table})) == before
    monkeypatch.setitem(TABLE, "factor", 0.25)
    assert key(evaluate({"ours": by_table})) != before
    monkeypatch.undo()
    assert key(evaluate({"ours": by_table})) == before


def test_an_attribute_called_call_does_not_stand_for_its_object() -> None:
    class Odd(Purifier):
        def __init__(self, factor: float) -> None:
            self.factor, self._call = factor, half

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x * self.factor

        def resolved(self) -> dict[str, Any]:
            return {}

    one, two = (wrap.named(registry.defense, {"odd": Odd(f)}, wrap.as_defense) for f in (0.5, 0.25))
    assert one.entries["odd"].stamp != two.entries["odd"].stamp


def test_calls_of_two_threads_wait_for_each_other(evaluate: Evaluate) -> None:
    """Both objects stand under one name in the registry of the process."""
    alone = {factor: evaluate({"ours": Scale(factor)}).to_dataframe()["value"].tolist() for factor in (0.1, 1.0)}
    assert alone[0.1] != alone[1.0]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda factor: evaluate({"ours": Scale(factor)}, fresh=True).to_dataframe()["value"], alone)
    assert [list(each) for each in both] == list(alone.values())


def test_a_thread_of_a_defense_may_call_another_defense(evaluate: Evaluate) -> None:
    """Its call, which waits for that thread, goes on."""

    def inner(x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(rb.load_defense("bit-red"), x).result(timeout=60)

    assert set(evaluate({"ours": inner}).to_dataframe()["status"]) == {"done"}


def test_a_network_is_used_in_evaluation_mode_and_left_alone(evaluate: Evaluate) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Sigmoid()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = evaluate({"ours": net})
    assert set(result.to_dataframe()["status"]) == {"done"}
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_numbers_are_those_of_the_command(evaluate: Evaluate, tmp_path: Path) -> None:
    """An object that does what an entry does has the entry's numbers."""

    def rounded(x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    frame = evaluate({"ours": rounded}, defenses=["none", "tiny/round"]).to_dataframe()
    values = {name: list(rows["value"]) for name, rows in frame.groupby("defense")}
    assert values["ours"] == values["tiny/round"]


def test_labels_and_names(evaluate: Evaluate) -> None:
    result = evaluate({"Ours (v2)": half, "Coarse": "tiny/round(levels=2)"})
    assert set(result.to_dataframe()["defense"]) == {"none", "ours-v2", "tiny/round(levels=2)"}


def sign(source: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    leaf = x.requires_grad_()
    logits = source.members[0](leaf)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
    return (x + eps * gradient.sign()).clamp(0, 1).detach()


def test_an_attack_may_be_a_function(evaluate: Evaluate) -> None:
    frame = evaluate(attacks=["fgsm", sign]).to_dataframe()
    values = {name: list(rows["value"]) for name, rows in frame.groupby("attack")}
    assert values["sign"] == values["fgsm"]
    assert values["sign"][0] > 50


def test_a_random_function_takes_rng(evaluate: Evaluate) -> None:
    def noisy(x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.2 * rng.normal(*x.shape[1:])).clamp(0, 1)

    result = evaluate({"ours": noisy}, defense_samples=3)
    assert set(result.to_dataframe()["status"]) == {"done"}
    assert result.runs[0].record["defenses"]["ours"]["random"] is True


def test_randomness_from_elsewhere_is_refused(evaluate: Evaluate) -> None:
    result = evaluate({"ours": lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1)})
    assert "gives another image in a second call" in reason(result)


def test_a_seeded_stream_per_batch_is_refused(evaluate: Evaluate) -> None:
    def seeded(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return (x + 0.1 * noise).clamp(0, 1)

    assert "another output alone than in a batch" in reason(evaluate({"ours": seeded}))


def test_an_output_that_depends_on_the_batch_is_refused(evaluate: Evaluate) -> None:
    assert "another output alone than in a batch" in reason(evaluate({"ours": lambda x: x - x.mean() + 0.5}))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda x: x * 2, "range"),
        (lambda x: x * float("nan"), "NaN"),
        (lambda x: x[:, :1], "shape"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_output_fails_its_cells_only(evaluate: Evaluate, bad: Any, why: str) -> None:
    result = evaluate({"ours": bad})
    assert why in reason(result)
    assert set(result.to_dataframe().query("defense == 'none'")["status"]) == {"done"}
    assert len(result.failed) == 2


def test_an_attack_beyond_its_budget_fails(evaluate: Evaluate) -> None:
    frame = evaluate(attacks={"far": lambda source, x, y, eps: (x + 2 * eps).clamp(0, 1)}).to_dataframe()
    assert "allowed 32/255" in frame.query("attack == 'far'")["reason"].item()


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"ours": {"jpeg": half}}, "the name is taken by rdp_bench.defenses.jpeg"),
        ({"ours": {"no defense": half}}, "the name is taken by rdp_bench.defenses.none"),
        ({"ours": {"rdp": "jpeg"}}, "'jpeg' cannot be called 'rdp': that is the defense rdp"),
        ({"ours": {"No Defense": "jpeg"}}, "'jpeg' cannot be called 'No Defense': that is the defense none"),
        ({"attacks": {"PGD": "fgsm"}}, "'fgsm' cannot be called 'PGD': that is the attack pgd"),
        ({"ours": {"ours": 3}}, "is of type int; expected a label, a torch.nn.Module"),
        ({"ours": {"ours": Scale}}, "is a class; give an object of it: Scale()"),
        ({"ours": {"ours": lambda: 1}}, "cannot be called with (x) or (x, rng)"),
        ({"ours": {"!": half}}, "no letter or digit"),
        ({"ours": {"a b": half, "a-b": Scale(1)}}, "two defenses are called 'a-b'"),
        ({"attacks": None}, "evaluate() needs attacks, or a grid"),
        ({"attacks": [lambda x: x]}, "cannot be called with (source, x, y, eps)"),
        ({"eps": 0.03}, "did you mean 8?"),
        ({"defenses": ["jpg"]}, "unknown defense 'jpg'"),
        ({"grid": "paper"}, "lists grids"),
        ({"profile": "paper"}, "profile='paper' is of a grid, and none is given"),
        ({"attacks": []}, "attacks is empty; leave it out"),
        ({"defenses": ()}, "defenses is empty"),
        ({"grid": "table1", "sources": []}, "sources is empty"),
        ({"grid": "table1", "image_size": "64"}, "grid table1: 'image_size' is a whole number"),
    ],
)
def test_what_cannot_be_is_refused(evaluate: Evaluate, call: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(**call)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_purifier_of_ones_own(evaluate: Evaluate) -> None:
    result = evaluate({"ours": Half()}, sources=["tiny/one", "bpda(ours, tiny/one)"])
    assert set(result.to_dataframe()["status"]) == {"done"}
    assert result.runs[0].record["defenses"]["ours"]["differentiable"] is True


@dataclass(frozen=True)
class Holder(Purifier):
    """Holds what JSON does not."""

    net: Any = None

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return self.net(x)


class Plain(Holder):
    def resolved(self) -> dict[str, Any]:
        return {}


def test_a_purifier_that_holds_a_network(evaluate: Evaluate) -> None:
    with pytest.raises(UsageError, match="override it"):
        evaluate({"ours": Holder(Scale(0.5))})
    one, two = (evaluate({"ours": Plain(Scale(factor))}) for factor in (0.5, 0.0))
    assert key(one) != key(two)


class Half(Purifier):
    """Darkens."""

    differentiable = True
    backward = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x * 0.5


def test_a_row_is_added_to_a_grid(evaluate: Evaluate, tmp_path: Path) -> None:
    grid = tmp_path / "mine.toml"
    grid.write_text(
        '[axes]\ndataset = "tiny/noise"\nsources = ["tiny/one"]\ntargets = ["tiny/two"]\nattacks = ["fgsm"]\n'
        'defenses = ["none", "tiny/round"]\neps = [8]\n'
    )
    result = rb.evaluate({"ours": half}, grid=str(grid), cache=tmp_path / "cache", out=tmp_path / "out", device="cpu")
    assert list(dict.fromkeys(result.to_dataframe()["defense"])) == ["none", "tiny/round", "ours"]
    assert (tmp_path / "out" / "runs" / "mine.json").is_file()
    assert "['ours'], grid=" in result.runs[0].record["command"]


def test_without_predictions_cells_say_so(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate({"ours": half}, out=tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "predictions")
    lost = rb.load_results(tmp_path / "out", cache=tmp_path / "other")
    assert len(lost.failed) == 4
    with pytest.raises(UsageError, match="nothing to plot"):
        lost.plot()


def test_a_report_joins_what_a_folder_holds(evaluate: Evaluate, tmp_path: Path) -> None:
    grid = tmp_path / "first.toml"
    grid.write_text('[axes]\ndataset = "tiny/noise"\ntargets = ["tiny/two"]\ndefenses = ["none"]\n')
    rb.evaluate(grid=str(grid), cache=tmp_path / "cache", out=tmp_path / "out", device="cpu")
    evaluate({"ours": half}).report(tmp_path / "out")
    both = rb.load_results(tmp_path / "out", cache=tmp_path / "cache")
    assert [run.grid for run in both.runs] == ["evaluate", "first"]
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 6


def test_a_call_waits_whatever_its_grid_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would return cells without numbers, and `fresh` would delete what the workers have finished."""
    axes = '[axes]\ndataset = "tiny/noise"\ntargets = ["tiny/two"]\ndefenses = ["none"]\n'
    (tmp_path / "g.toml").write_text(f'plugins = ["{PLUGIN}"]\n{axes}[run]\nexecutor = "slurm"\nwait = false\n')
    waits: list[bool] = []

    def spread(_running: Any, where: place.Where, *_: Any) -> str:
        waits.append(where.placement.wait)
        return ""

    monkeypatch.setattr(place, "spread", spread)
    rb.evaluate(grid=tmp_path / "g.toml", cache=tmp_path / "cache", device="cpu")
    assert waits == [True]


def test_a_class_in_a_file_is_known_by_that_file(tmp_path: Path) -> None:
    """What is imported from a local module counts with the module's content and the object's state."""
    code = (
        "import sys; sys.path.insert(0, '.')\nfrom mine import Blur, make\nfrom rdp_bench.api.wrap import digest\n"
        "print(digest(Blur(1)), digest(Blur(2)), digest(make(1)), digest(make(2)))"
    )
    text = (
        "class Blur:\n    def __init__(self, a):\n        self.a = a\n    def __call__(self, x):\n        return x\n"
        "def make(a):\n    return lambda x: x * a\n"
    )
    found = []
    for more in ("", "# edited\n"):
        (tmp_path / "mine.py").write_text(text + more)
        result = subprocess.run(
            [sys.executable, "-B", "-c", code], capture_output=True, text=True, cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=True,
        )  # fmt: skip
        assert "not part of cache keys" not in result.stderr
        found += result.stdout.split()
    assert len(set(found)) == 8


def test_load_functions_take_objects_and_seeds() -> None:
    plugins.load((PLUGIN,))
    x, y = rb.load_dataset("tiny/noise", limit=3, device="cpu")
    model = rb.load_model("tiny/one", device="cpu")
    assert torch.equal(rb.load_attack(sign)(model, x, y, eps=0.1), rb.load_attack("fgsm")(model, x, y, eps=0.1))
    assert torch.equal(rb.load_defense(half)(x), x * 0.5)
    dither, sleepy = rb.load_defense("tiny/dither"), rb.load_attack("tiny/sleepy")
    assert torch.equal(dither(x, seed=1), dither(x, seed=1))
    assert torch.equal(dither(x, seed=1)[1:2], dither(x[1:2], seed=1))
    assert not torch.equal(dither(x, seed=1), dither(x, seed=2))
    first, second = (sleepy(model, x, y, eps=0.1, seed=seed) for seed in (1, 2))
    assert torch.equal(sleepy([model], x, y, eps=0.1, seed=1), first)
    assert not torch.equal(first, second)
    assert torch.equal(dither(x, seed=np.int64(1)), dither(x, seed=1))
    for seed in (1.0, True, "1", None):
        with pytest.raises(UsageError, match="a seed is a whole number"):
            dither(x, seed=seed)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="a seed is a whole number"):
            sleepy(model, x, y, eps=0.1, seed=seed)  # type: ignore[arg-type]
    for limit in (3.0, "3", True, 0):
        with pytest.raises(UsageError, match=f"--limit {limit}: expected a whole number above 0"):
            rb.load_dataset("tiny/noise", limit=limit)  # type: ignore[arg-type]


def test_an_attack_takes_a_torch_module() -> None:
    x, y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    adv = rb.load_attack("pgd(steps=2)")(net, x, y, eps=8 / 255)
    assert float((adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert not torch.equal(adv, x)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"eps": 16}, "did you mean 16/255?"),
        ({"eps": -0.1}, "eps is in [0, 1]"),
        ({"eps": float("nan")}, "eps is in [0, 1]"),
        ({"x": torch.rand(2, 3, 8, 8) * 255}, "pixels are in [0, 1]"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "divide 8-bit images by 255"),
        ({"x": torch.zeros(3, 8, 8)}, "found shape [3, 8, 8]"),
        ({"x": torch.full((2, 3, 8, 8), float("nan"))}, "NaN"),
        ({"x": [1]}, "a torch tensor"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "labels are 2 whole numbers"),
        ({"y": torch.zeros(2)}, "labels are 2 whole numbers"),
        ({"source": "tiny/one"}, "use load_model('tiny/one')"),
        ({"source": []}, "needs a source"),
        ({"eps": True}, "eps is in [0, 1], as pixels are, found True"),
        ({"eps": "8/255"}, "eps is in [0, 1], as pixels are, found '8/255'"),
        ({"eps": np.int64(8)}, "did you mean 8/255?"),
        ({"eps": np.float64("nan")}, "found"),
    ],
)
def test_bad_tensors_are_refused(change: dict[str, Any], why: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    usual = {"source": net, "x": torch.zeros(2, 3, 8, 8), "y": torch.zeros(2, dtype=torch.int64), "eps": 0.1}
    with pytest.raises(UsageError) as caught:
        rb.load_attack("fgsm")(**{**usual, **change})
    assert why in str(caught.value)


def test_an_attack_that_goes_too_far_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    far = rb.load_attack(lambda source, x, y, eps: x + 2 * eps)
    with pytest.raises(RdpBenchError, match="moved a pixel"):
        far(net, torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64), eps=0.1)


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    probe = (
        "import sys, rdp_bench as rb\nrb.evaluate, rb.load_results, rb.Result\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'PIL', 'matplotlib'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_a_cached_call_does_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, rdp_bench as rb\n"
        "r = rb.evaluate(defenses=['none'], attacks=['fgsm'], sources='effnet-lite0', targets='effnet-lite0',"
        " dataset='photos20(size=64)', eps=8, limit=1, cache='cache', device='cpu')\n"
        "print(len(r.to_dataframe()), 'torch' in sys.modules)"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert found == [["2", "True"], ["2", "False"]]


def test_a_precision_is_part_of_every_key(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdp_bench.engine.precision._has_bfloat16", lambda: True)
    low = evaluate({"ours": half}, defenses=["none", "rdp"], precision="bfloat16")
    assert low.failed == {}
    assert key(low) != key(evaluate({"ours": half}))
    with pytest.raises(UsageError, match="tf32 is arithmetic of NVIDIA GPUs"):
        evaluate({"ours": half}, precision="tf32")
    with pytest.raises(UsageError, match="this run has neither"):  # networks of plugins compute as they are
        evaluate({"ours": half}, precision="bfloat16")


def test_objects_of_libraries_are_told_apart_by_their_content(evaluate: Evaluate) -> None:
    """A pipeline of torchvision is an object of a library, whose attributes are what matters."""
    from argparse import Namespace
    from collections import deque
    from fractions import Fraction

    from torchvision import transforms

    def closing(over: object) -> Callable[[Tensor], Tensor]:
        return lambda x: (over, x)[1]  # type: ignore[no-any-return]

    pairs = [
        (transforms.Compose([transforms.GaussianBlur(9, 9.0)]), transforms.Compose([transforms.GaussianBlur(3, 0.1)])),
        *[
            (closing(one), closing(two))
            for one, two in [
                (Namespace(a=1), Namespace(a=2)), (deque([1]), deque([2])), (Fraction(1, 2), Fraction(1, 3)),
                (bytearray(b"a"), bytearray(b"b")), (range(3), range(4)), (torch.float16, torch.float32),
            ]
        ],
    ]  # fmt: skip
    for one, two in pairs:
        assert wrap.digest(one) != wrap.digest(two)
    strong, weak = pairs[0]
    both = evaluate({"strong": strong, "weak": weak})
    assert key(both, "strong") != key(both, "weak")


def test_a_model_in_a_closure_is_part_of_the_key() -> None:
    def through(name: str) -> Callable[[Tensor], Tensor]:
        model: Any = rb.load_model(name)
        return lambda x: x + 0 * model(x).sum()

    assert wrap.digest(through("effnet-lite0")) == wrap.digest(through("effnet-lite0"))
    assert wrap.digest(through("effnet-lite2")) != wrap.digest(through("effnet-lite2-ens"))


def test_a_grid_with_a_plugin_can_be_run_twice(tmp_path: Path) -> None:
    plugin = tmp_path / "twice.py"
    plugin.write_text("from rdp_bench import defense\n\n\n@defense('twice/same', source='x')\nclass Same:\n" + SAME)
    grid = tmp_path / "mine.toml"
    grid.write_text(
        f'title = "x"\nplugins = ["twice.py", "{PLUGIN}"]\n[axes]\ndataset = "tiny/noise"\nsources = ["tiny/one"]\n'
        'targets = ["tiny/two"]\nattacks = ["fgsm"]\neps = [8]\ndefenses = ["none", "twice/same"]\n'
    )
    for _ in range(2):
        assert len(rb.evaluate({"mine": lambda x: x}, grid=str(grid), cache=tmp_path / "cache").to_dataframe()) == 6


SAME = """    random = False
    passes = 1

    def resolved(self):
        return {}

    def purify(self, x, rng):
        return x
"""


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"limit": 0}, "--limit 0: expected a whole number above 0"),
        ({"limit": 1.5}, "--limit 1.5"),
        ({"limit": "3"}, "--limit 3"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": "auto"}, "--batch-size auto"),
        ({"batch_size": True}, "--batch-size True"),
    ],
)
def test_counts_are_whole_numbers_above_zero(evaluate: Evaluate, call: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        evaluate(**call)
    with pytest.raises(UsageError, match=why):
        rb.audit("none", **call)


@pytest.mark.parametrize(
    ("call", "plain"),
    [
        ({"eps": np.float64(16)}, {"eps": 16}),
        ({"eps": np.float32(16)}, {"eps": 16}),
        ({"eps": np.int64(16)}, {"eps": 16}),
        ({"eps": torch.tensor(16)}, {"eps": 16}),
        ({"eps": [np.int64(8), 16]}, {"eps": [8, 16]}),
        ({"eps": np.array([8, 16])}, {"eps": [8, 16]}),
        ({"limit": np.int64(3), "batch_size": np.int32(2)}, {"limit": 3, "batch_size": 2}),
        ({"image_size": np.int64(16)}, {"image_size": 16}),
        ({"defense_samples": np.int64(2), "defenses": "r&p"}, {"defense_samples": 2, "defenses": "r&p"}),
        ({"seed": np.uint8(3), "fresh": np.bool_(True)}, {"seed": 3}),
        ({"success": np.bool_(True)}, {"success": True}),
        ({"targets": np.array(["tiny/two"]), "attacks": np.array(["fgsm"])}, {}),
    ],
)
def test_numbers_of_numpy_are_numbers(
    evaluate: Evaluate, tmp_path: Path, call: dict[str, Any], plain: dict[str, Any]
) -> None:
    wanted = evaluate(**plain, out=tmp_path / "plain").to_dataframe()
    found = evaluate(**call, out=tmp_path / "numpy").to_dataframe()
    assert set(found["status"]) == {"done"}
    assert found.drop(columns="seconds").equals(wanted.drop(columns="seconds"))
    axes = [json.loads((tmp_path / name / "runs/evaluate.json").read_text())["axes"] for name in ("plain", "numpy")]
    assert axes[0] == axes[1]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"limit": np.bool_(True)}, "--limit True"),
        ({"limit": np.float64(2)}, "--limit 2.0"),
        ({"eps": np.nan}, "eps nan: expected a number"),
        ({"eps": np.inf}, "eps inf: expected a number"),
        ({"eps": np.bool_(True)}, "'eps' is a list of numbers"),
        ({"image_size": np.bool_(True)}, "'image_size' is a whole number"),
        ({"defense_samples": np.float64(1.5)}, "'defense_samples' is a whole number"),
        ({"dataset": Path("photos20")}, "no dataset at './photos20'"),
        ({"grid": Path("table1")}, "unknown grid './table1'"),
    ],
)
def test_what_numpy_has_and_no_run_can_use_is_refused(evaluate: Evaluate, call: dict[str, Any], why: str) -> None:
    with pytest.raises((UsageError, RdpBenchError)) as caught:
        evaluate(**call)
    assert why in str(caught.value)


def test_names_in_any_script_are_labels_of_their_own(evaluate: Evaluate, tmp_path: Path) -> None:
    names = ["净化", "日本語", "净化 a", "日本 a", "कि", "की", "Café", "Cafe"]
    result = evaluate({name: scaled(1 - i / 10) for i, name in enumerate(names)}, out=tmp_path / "out")
    frame = result.to_dataframe().query("attack == 'fgsm'")
    assert list(frame["defense"]) == ["none", *(name.lower().replace(" ", "-") for name in names)]
    assert frame["eval_key"].nunique() == len(names) + 1
    page = result.report(tmp_path / "out").read_text("utf-8")
    assert all(f">{name}<" in page for name in names)
    files = [audit_name(label, "t", "photos20", 4.0, "quick") for label in frame["defense"]]
    assert len(set(files)) == len(files)
    assert "".join(files).isascii()
    figure = result.plot()
    figure.canvas.draw()
    rows = [row.get_text() for row in figure.axes[0].get_yticklabels()]
    assert rows[1:] == ["[1]", "[2]", "[1] a", "[3] a", "[4]", "[5]", "Café", "Cafe"]


def test_a_data_set_and_a_grid_may_be_paths(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos20")  # the name of a data set too
    for name in ("0/a.png", "1/b.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (60, 120, 180)).save(folder / name)
    assert rb.load_dataset(folder, size=np.int64(32), device="cpu")[0].shape == (2, 3, 32, 32)
    grid = Path("mine.toml")
    grid.write_text('title = "Mine"\n[axes]\ndefenses = ["none"]\n')
    found = evaluate(dataset=folder, grid=grid, image_size=32)
    assert {(line["grid"], line["n"]) for line in found.to_dataframe().to_dict("records")} == {("mine", 2)}
    with pytest.raises(UsageError, match="eps nan"):
        rb.audit("none", dataset=folder.absolute(), eps=np.float32("nan"), limit=np.int64(1), image_size=np.int64(32))


def test_a_source_in_training_mode_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    x, y = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    before = net[1].running_mean.clone()
    with pytest.raises(UsageError, match="training mode"):
        rb.load_attack("fgsm")(net, x, y, 8 / 255)
    assert torch.equal(net[1].running_mean, before)
    assert rb.load_attack("fgsm")(net.eval(), x, y, 8 / 255).shape == x.shape


def test_an_entry_that_exits_costs_its_own_cells_only(evaluate: Evaluate) -> None:
    def leaves(x: Tensor) -> Tensor:
        sys.exit(0)

    found = evaluate({"leaves": leaves, "same": lambda x: x.clone()}, defenses=["none"])
    assert "SystemExit" in reason(found, "leaves")
    assert set(found.to_dataframe().query("defense == 'same'")["status"]) == {"done"}


class Unusable(nn.Module):
    """A source whose images would be the clean ones."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :5]
        return flat * self.factor if self.factor else flat.detach()


@pytest.mark.parametrize(("factor", "why"), [(float("nan"), "NaN or infinite logits"), (0.0, "without a gradient")])
def test_a_source_without_a_gradient_is_refused(factor: float, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        rb.load_attack("fgsm")(Unusable(factor), torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), 8 / 255)


def test_an_attack_makes_its_own_gradients() -> None:
    x, y = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    usual = rb.load_attack("fgsm")(Unusable(1.0), x, y, 8 / 255)
    with torch.no_grad():
        assert torch.equal(rb.load_attack("fgsm")(Unusable(1.0), x, y, 8 / 255), usual)


def test_scripted_networks_are_told_apart_and_used(evaluate: Evaluate) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    one, two, again = (torch.jit.script(Scaled(factor)) for factor in (0.5, 0.25, 0.5))  # type: ignore[no-untyped-call]
    assert wrap.digest(one) == wrap.digest(again) != wrap.digest(two)
    found = evaluate({"one": one, "two": two})
    assert found.failed == {}
    assert key(found, "one") != key(found, "two")
