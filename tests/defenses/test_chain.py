"""Defenses in a chain: against the parts applied by hand, finite differences, and through the command line."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry
from rdp_bench.defenses.chain import Chain
from rdp_bench.engine import defense_cost
from rdp_bench.errors import UsageError
from rdp_bench.models import defended
from rdp_bench.protocols import Backward, Purifier
from rdp_bench.registry import Resolved
from rdp_bench.results.rows import display_name
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.commands import PLUGIN, cli

plugins.load()


@dataclass(frozen=True)
class Square(Purifier):
    """x^2; its gradient is exact."""

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x**2


@dataclass(frozen=True)
class Round(Purifier):
    """Rounds to eighths; BPDA takes the identity."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x * 8).round() / 8


@dataclass(frozen=True)
class Twice(Purifier):
    """Each pixel four times; BPDA takes a smooth enlargement."""

    backward: ClassVar[Backward] = "stand-in"

    @property
    def scale(self) -> float:
        return 2.0

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3).detach()

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:
        return 0.5 * x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@dataclass(frozen=True)
class Noise(Purifier):
    """Adds noise of its stream."""

    count: int = 1
    differentiable: ClassVar[bool] = True

    @property
    def random(self) -> bool:
        return True

    @property
    def passes(self) -> int:
        return self.count

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.1 * rng.uniform(*x.shape[1:])).clamp(0, 1)


def chain(*parts: Purifier) -> Chain:
    return Chain(tuple(Resolved(name := type(part).__name__, part, "", "", "1", name) for part in parts))


def resolve(label: str) -> Any:
    return registry.defense.resolve(label)


def test_it_is_its_parts_in_order() -> None:
    x = toy.images(2, 24)
    made = resolve("jpeg(quality=50) >> bit-red >> tvm")
    expected, streams = x, toy.image_rng(2).spawn("chain")
    for number, label in enumerate(("jpeg(quality=50)", "bit-red", "tvm")):
        expected = resolve(label).value.purify(expected, streams.fork(f"part {number}"))
    found = made.value.purify(x, toy.image_rng(2))
    assert torch.equal(found, expected)
    assert not torch.equal(found, resolve("bit-red >> jpeg(quality=50) >> tvm").value.purify(x, toy.image_rng(2)))
    assert made.label == "jpeg(quality=50) >> bit-red >> tvm"


def test_equal_parts_draw_from_streams_of_their_own() -> None:
    x = torch.full((2, 3, 8, 8), 0.2)
    found = chain(Noise(), Noise()).purify(x, toy.image_rng(2))
    streams = toy.image_rng(2).spawn("chain")
    first = Noise().purify(x, streams.fork("part 0")) - x
    second = Noise().purify(x, streams.fork("part 1")) - x
    assert torch.allclose(found, x + first + second, atol=1e-6)
    assert not torch.allclose(first, second)
    alone = chain(Noise(), Noise()).purify(x[1:], toy.image_rng(2).select(torch.tensor([1])))
    assert torch.equal(found[1:], alone)  # whatever is beside it


def test_another_call_has_other_draws() -> None:
    """A gradient averaged over draws (EOT) calls the chain again with the same streams."""
    x, rng = torch.full((2, 3, 8, 8), 0.2), toy.image_rng(2)
    random = chain(Noise(), resolve("bit-red(bits=8)").value)
    assert not torch.equal(random.purify(x, rng), random.purify(x, rng))
    assert not torch.equal(random.bpda(x, rng), random.bpda(x, rng))
    state = toy.image_rng(2)
    resolve("jpeg >> bit-red").value.purify(toy.images(2, 24), state)
    assert torch.equal(state.uniform(3), toy.image_rng(2).uniform(3))  # without randomness no stream advances


def test_what_it_says_of_itself() -> None:
    assert not chain(Square(), Round()).random
    assert chain(Square(), Noise()).random
    assert chain(Square(), Noise()).differentiable
    assert not chain(Square(), Round()).differentiable
    assert chain(Square(), Square()).backward == "exact"
    assert chain(Round(), Round()).backward == "identity"
    assert chain(Square(), Round()).backward == "stand-in"
    assert chain(Twice(), Square(), Twice()).scale == 4.0
    assert chain(Noise(5), Round()).passes == 5
    with pytest.raises(ValueError, match="Noise and Noise each average several passes"):
        chain(Noise(5), Noise(2))
    with pytest.raises(UsageError, match="each average several passes"):
        resolve("r&p-30 >> r&p(patterns=3)")


def test_true_gradient_by_finite_differences() -> None:
    x = toy.images(1, 6).double().requires_grad_()
    weight = toy.random(1, 3, 6, 6).double()
    made = chain(Square(), Noise(), Square())

    def loss(image: Tensor) -> Tensor:
        return (weight * made.purify(image * 0.5, toy.image_rng(1))).sum()

    (grad,) = torch.autograd.grad(loss(x), x)
    step = 1e-5 * toy.random(1, 3, 6, 6, seed=3).double()
    slope = (loss(x + step) - loss(x - step)) / 2
    assert torch.allclose(slope, (grad * step).sum(), rtol=1e-4)


def test_bpda_passes_each_part_in_its_own_way() -> None:
    x = toy.images(2, 6).requires_grad_()
    weight = toy.random(2, 3, 12, 12)
    made = chain(Square(), Round(), Twice(), Square())
    out = made.bpda(x, toy.image_rng(2))
    assert torch.allclose(out, made.purify(x, toy.image_rng(2)), atol=1e-6)  # forward is the chain itself
    (grad,) = torch.autograd.grad((weight * out).sum(), x)
    # By hand: the last square exactly, half of each enlarged pixel's gradient, identity, the first square exactly.
    rounded = Twice().purify(Round().purify(x.detach() ** 2, toy.image_rng(2)), toy.image_rng(2))
    inner = 0.5 * torch.nn.functional.avg_pool2d(weight * 2 * rounded, 2) * 4
    assert torch.allclose(grad, inner * 2 * x.detach(), atol=1e-5)
    assert torch.equal(torch.autograd.grad((weight * made.straight_through(x, toy.image_rng(2))).sum(), x)[0], grad)


def test_sources_behind_a_chain() -> None:
    found = defended.parse("bpda(jpeg >> rdp, effnet-lite0)")
    assert found is not None
    assert isinstance(found[0].defense.value, Chain)
    assert found[1] == "effnet-lite0"
    with pytest.raises(UsageError, match="jpeg >> rdp is not differentiable"):
        defended.parse("exact(jpeg >> rdp, effnet-lite0)")
    assert defended.parse("exact(rdp >> nrp(dynamic=true), effnet-lite0, 2)") is not None
    label = defended.white_box("white-box(7)", "r&p >> jpeg(quality=80)", "effnet-lite2", random=True)
    assert label == "adaptive(r&p >> jpeg(quality=80), effnet-lite2, 7)"
    assert defended.parse(label) is not None


def test_its_identity_holds_that_of_every_part() -> None:
    first, second = resolve("jpeg >> rdp").value.resolved()["parts"]
    assert first == registry.identity(resolve("jpeg"))
    assert second == registry.identity(resolve("rdp"))
    records = [resolve(label).value.resolved() for label in ("jpeg >> rdp", "rdp >> jpeg", "jpeg(quality=74) >> rdp")]
    assert records[0] != records[1] != records[2] != records[0]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("jpeg >>", "expected defenses between each >>, like jpeg >> rdp"),
        (">> rdp", "expected defenses between each >>"),
        ("jpeg >> rpd", "unknown defense 'rpd'. Did you mean 'rdp'?"),
        ("jpeg > rdp", "cannot read 'jpeg > rdp'"),
        ("jpeg(quality=75 >> rdp", "closed parentheses"),
    ],
)
def test_bad_chains_are_refused(label: str, says: str) -> None:
    with pytest.raises(UsageError) as found:
        resolve(label)
    assert says in str(found.value)


def test_a_chain_inside_of_parentheses_is_no_chain() -> None:
    inner = resolve("fixed(jpeg >> r&p)")
    assert (inner.label, type(inner.value).__name__) == ("fixed(jpeg >> r&p)", "Fixed")
    outer = resolve("fixed(r&p) >> fixed(tvm)")
    assert (outer.label, type(outer.value).__name__) == ("fixed(r&p) >> fixed(tvm)", "Chain")
    x = toy.images(2, 32)
    one, two = (inner.value.purify(x, ImageRng(["a", "b"])) for _ in range(2))
    assert torch.equal(one, two)


@dataclass(frozen=True)
class Bad(Purifier):
    value: float = 2.0

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x * 0 + self.value


@pytest.mark.parametrize("value", [2.0, -0.5, float("nan")])
def test_the_next_part_does_not_hide_what_one_did_wrong(value: float) -> None:
    with pytest.raises(UsageError, match="part 'Bad' of a chain left the range"):
        chain(Bad(value), Round()).purify(toy.images(1), toy.image_rng(1))


def test_what_it_costs_and_how_it_is_written() -> None:
    assert defense_cost.parameters(resolve("jpeg >> rdp").value) == defense_cost.parameters(resolve("rdp").value) != 0
    assert defense_cost.parameters(chain(Round(), Square())) is None
    assert defense_cost.parameters(resolve("fixed(dds)").value) == defense_cost.parameters(resolve("dds").value) != 0
    assert display_name("jpeg(quality=80)>>rdp") == "JPEG(quality=80) >> RDP"


def test_a_run_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(
        '[axes]\nattacks = ["fgsm"]\neps = [16]\ndataset = "tiny/noise"\ntargets = ["tiny/two"]\n'
        'defenses = ["none", "tiny/round", "tiny/round >> tiny/dither", "tiny/round(levels=9)?"]\n'
        'sources = ["tiny/one", "bpda(tiny/round >> tiny/dither, tiny/one, 2)", "white-box(2)"]\n'
    )
    out = tmp_path / "out"
    found = cli("run", "--grid", tmp_path / "tiny.toml", "--plugin", PLUGIN, "--out", out)
    assert found.exit_code == 0, found.output
    with (out / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["defense"] == "tiny/round >> tiny/dither"]
    assert len(rows) == 4
    assert all(row["status"] == "done" for row in rows)
    found = cli("report", "--out", out)
    assert found.exit_code == 0, found.output
    assert "tiny/round &gt;&gt; tiny/dither" in (out / "report" / "index.html").read_text()
    assert "jpeg >> rdp" in cli("list", "defenses").output
    again = cli(
        "run", "--grid", tmp_path / "tiny.toml", "--plugin", PLUGIN, "--out", out, "--defense", "tiny/round>>jpeg"
    )
    assert again.exit_code == 0, again.output
    assert "tiny/round>>jpeg" in again.output


@dataclass(frozen=True)
class Blurred(Purifier):
    """Noise whose BPDA stand-in draws a gain of its own."""

    random: ClassVar[bool] = True
    backward: ClassVar[Backward] = "stand-in"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.1 * rng.uniform(*x.shape[1:])).clamp(0, 1)

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x * rng.uniform(*x.shape[1:])


def test_a_stand_in_that_draws_draws_anew_in_every_call() -> None:
    """EOT averages gradients over draws: the same gain in each call would be no average."""
    rng, x = toy.image_rng(2), toy.images(2).requires_grad_()
    first, second = (torch.autograd.grad(Blurred().bpda(x, rng).sum(), x)[0] for _ in range(2))
    assert not torch.equal(first, second)
    again = torch.autograd.grad(Blurred().bpda(x, toy.image_rng(2)).sum(), x)[0]
    assert torch.equal(first, again)
    seen = Blurred().bpda(x, toy.image_rng(2)).detach()
    assert torch.allclose(seen, Blurred().purify(x.detach(), toy.image_rng(2)), atol=1e-6)  # what fixed(...) relies on


def test_a_chain_takes_what_attacks_look_at() -> None:
    """The look-ahead of NI leaves [0, 1]; a part that leaves it by itself is still refused, and so is NaN."""
    rng = ImageRng(["a", "b"])
    beyond = toy.images(2, 32) * 1.4 - 0.2
    for label in ("bit-red >> jpeg", "none >> jpeg", "none >> none"):
        chain: Any = resolve(label).value
        assert torch.isfinite(chain.bpda(beyond, rng)).all()
    assert torch.equal(resolve("none >> none").value.bpda(beyond, rng), beyond)  # type: ignore[attr-defined]
    for value in (2.0, float("nan")):
        bad = Chain((Resolved("bad", Bad(value), "", "", "1", "bad"), resolve("none")))
        with pytest.raises(UsageError, match="left the range"):
            bad.purify(toy.images(2, 32), rng)
    with pytest.raises(UsageError, match="left the range"):
        Chain((Resolved("bad", Bad(float("nan")), "", "", "1", "bad"), resolve("none"))).purify(beyond, rng)
