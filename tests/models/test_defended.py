"""Sources behind a defense: which gradient an attack gets, and how often it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rdp_bench import plugins, registry
from rdp_bench.errors import UsageError
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier, parse
from rdp_bench.models.zoo import LoadedSource, find_source
from rdp_bench.protocols import Purifier
from rdp_bench.registry import Resolved
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.settings import setting

plugins.load()


@dataclass(frozen=True)
class Squares(Purifier):
    """x^2, whose true gradient is 2x and whose straight-through gradient is 1."""

    differentiable: ClassVar[bool] = True
    seen: ClassVar[list[Tensor]] = []

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return x**2


@dataclass(frozen=True)
class Noise(Purifier):
    """Adds N(0, 0.01); keeps what it drew."""

    random: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    stochastic_logits: ClassVar[list[Tensor]] = []

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        noise = 0.01 * rng.normal(*x.shape[1:])
        self.stochastic_logits.append(noise)
        return x + noise


class Linear:
    """Two logits: the sum of weights times pixels, and 0."""

    name, classes = "linear", 2

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.zooms: list[float] = []

    def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        self.zooms.append(zoom)
        score = (self.weights * x).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)

    def record(self) -> dict[str, Any]:
        return {"linear": self.weights.flatten().tolist()}


def through(defense: Purifier, mode: str, samples: int = 1) -> AttackedDefense:
    return AttackedDefense(mode, Resolved("it", defense, "", "", "1"), samples)


def behind(member: Any, defense: Purifier, mode: str, samples: int = 1) -> LoadedSource:
    way = through(defense, mode, samples)
    return LoadedSource("source", [DefendedClassifier(member, way)], samples)


@pytest.mark.parametrize(("mode", "slope"), [("exact", 0.6), ("bpda", 1.0)])
def test_gradient_of_each_mode_by_hand(mode: str, slope: float) -> None:
    x = torch.full((1, 3, 2, 2), 0.3, requires_grad=True)
    weights = torch.randn(1, 3, 2, 2)
    logits = DefendedClassifier(Linear(weights), through(Squares(), mode))(x)
    assert torch.allclose(logits[0, 0], (weights * 0.09).sum(), atol=1e-6)  # the forward pass is x^2 either way
    logits[0, 0].backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, slope * weights, atol=1e-6)


def test_adaptive_is_what_the_defense_says() -> None:
    @dataclass(frozen=True)
    class Exact(Squares):
        backward = "exact"

    for defense, slope in ((Squares(), 1.0), (Exact(), 0.6)):
        x = torch.full((1, 3, 2, 2), 0.3, requires_grad=True)
        DefendedClassifier(Linear(torch.ones(1, 3, 2, 2)), through(defense, "adaptive"))(x)[0, 0].backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, torch.full_like(x.grad, slope))


def test_every_gradient_sees_a_fresh_draw_and_an_image_the_same_ones_in_any_batch() -> None:
    attack = setting(steps=3, momentum=1.0)
    x, y = torch.rand(4, 3, 5, 5), torch.zeros(4, dtype=torch.long)
    source = behind(Linear(torch.randn(1, 3, 5, 5)), Noise(), "exact", samples=2)
    seeds = [str(i) for i in range(4)]

    def drawn(rows: Sequence[int]) -> Tensor:
        Noise.stochastic_logits.clear()
        attack(source, x[list(rows)], y[list(rows)], 16 / 255, ImageRng([seeds[i] for i in rows]))
        return torch.stack(Noise.stochastic_logits)

    whole = drawn(range(4))
    assert len(whole) == 3 * 2  # steps x samples
    assert len(torch.unique(whole[:, 0].flatten(1), dim=0)) == 6
    assert torch.equal(drawn([2, 1]), whole[:, [2, 1]])


def test_draws_stay_with_their_image_under_input_diversity() -> None:
    # Some images are enlarged and some not: each part must get its own images' streams.
    attack = setting(steps=2, diversity_prob=0.5)
    x, y = torch.rand(6, 3, 20, 20), torch.zeros(6, dtype=torch.long)

    class Mean(Linear):
        def __call__(self, x: Tensor, zoom: float = 1.0) -> Tensor:
            score = x.mean((1, 2, 3)) * 50
            return torch.stack([score, torch.zeros_like(score)], 1)

    source = behind(Mean(torch.zeros(1)), Noise(), "exact")
    together = attack(source, x, y, 16 / 255, ImageRng([str(i) for i in range(6)]))
    alone = [attack(source, x[i : i + 1], y[:1], 16 / 255, ImageRng([str(i)])) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_samples_average_gradients_and_not_logits() -> None:
    # Under a saturated loss the two differ: the mean of sigmoids is not the sigmoid of the mean.
    @dataclass(frozen=True)
    class Flips(Purifier):
        random: ClassVar[bool] = True
        differentiable: ClassVar[bool] = True
        signs: ClassVar[list[float]] = []

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x * self.signs.pop(0)

    weights = torch.tensor([2.0, 5.0]).repeat(6)[:12].view(1, 3, 2, 2)
    x, y = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    Flips.signs[:] = [1.0, -0.2]
    found = setting(steps=1)(behind(Linear(weights), Flips(), "exact", 2), x, y, 8 / 255, ImageRng(["a"]))
    total = torch.zeros_like(x)
    for sign in (1.0, -0.2):
        leaf = x.clone().requires_grad_()
        score = (weights * leaf * sign).sum((1, 2, 3))
        cross_entropy(torch.stack([score, torch.zeros_like(score)], 1), y).backward()
        assert leaf.grad is not None
        total += leaf.grad
    assert torch.allclose(found, (x + 8 / 255 * total.sign()).clamp(0, 1))


def test_a_larger_output_is_shown_larger() -> None:
    member = Linear(torch.ones(1, 1, 1, 1))
    source = find_source("exact(r&p, effnet-lite0)", {})
    assert source.attacked_defense is not None
    DefendedClassifier(member, source.attacked_defense).stochastic_logits(torch.rand(1, 3, 299, 299), ImageRng(["a"]))
    assert member.zooms == [331 / 299]


def test_labels() -> None:
    found = parse("bpda(tvm(weight=.1), effnet-lite0+effnet-lite1, 20)")
    assert found is not None
    way, inner = found
    assert (way.mode, way.defense.label, way.samples, inner) == (
        "bpda", "tvm(weight=.1)", 20, "effnet-lite0+effnet-lite1",
    )  # fmt: skip
    assert parse("effnet-lite0") is None
    assert parse("effnet-lite0+effnet-lite1") is None


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("exact(jpeg, effnet-lite0)", "not differentiable; use bpda"),
        ("bpda(jpeg)", "expected bpda"),
        ("bpda(jpeg, effnet-lite0, 0)", "from 1 to 10000, found '0'"),
        ("bpda(jpeg, effnet-lite0, many)", "found 'many'"),
        ("bpda(jpeg, effnet-lite0, 5)", r"not random, so that all 5 samples.*write bpda\(jpeg, effnet-lite0\)"),
        ("exact(jpeg >> rdp, effnet-lite0, 2)", "not differentiable"),
        ("exact(rdp >> nrp, effnet-lite0, 2)", "not random"),
        ("bpda(jpge, effnet-lite0)", "Did you mean 'jpeg'"),
    ],
)
def test_bad_labels_are_refused(label: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_source(label, {})


def test_keys_know_the_defense_the_mode_and_the_samples() -> None:
    labels = [
        "effnet-lite0", "bpda(fd, effnet-lite0)", "bpda(tvm, effnet-lite0)", "bpda(tvm, effnet-lite0, 5)",
        "bpda(tvm(weight=.1), effnet-lite0)", "adaptive(tvm, effnet-lite0)",
    ]  # fmt: skip
    records = [str(find_source(label, {}).record()) for label in labels]
    assert len(set(records)) == len(records)
    assert find_source("bpda( fd , effnet-lite0 )", {}).record() == find_source(labels[1], {}).record()


def test_straight_through_needs_a_size() -> None:
    made = registry.defense.resolve("r&p").value
    assert isinstance(made, Purifier)
    with pytest.raises(UsageError, match="use its true gradient"):
        made.straight_through(torch.rand(1, 3, 32, 32), ImageRng(["a"]))


def test_foreign_attacks_cannot_draw() -> None:
    x = torch.rand(1, 3, 4, 4)
    assert DefendedClassifier(Linear(torch.ones(1, 3, 4, 4)), through(Squares(), "exact"))(x).shape == (1, 2)
    with pytest.raises(UsageError, match="is random"):
        DefendedClassifier(Linear(torch.ones(1, 3, 4, 4)), through(Noise(), "exact"))(x)


def test_a_source_behind_two_defenses_is_a_chain() -> None:
    """The inner defense would be left out of the source."""
    with pytest.raises(UsageError, match=r"is behind a defense already; write both as a chain, like bpda\(jpeg >> rdp"):
        find_source("bpda(jpeg, adaptive(rdp, effnet-lite0))", {})


@pytest.mark.parametrize("way", ["straight_through", "smooth_through"])
def test_what_lies_beyond_the_range_is_purified_as_its_end(way: str) -> None:
    """Attacks that look ahead leave [0, 1]; as 8 bits, -16/255 would be 240."""
    jpeg: Any = registry.defense.resolve("jpeg").value
    x = toy.images(2, 32) * 1.2 - 0.1
    found = getattr(jpeg, way)(x.clone().requires_grad_(), ImageRng(["a", "b"]))
    assert torch.allclose(found.detach(), jpeg.purify(x.clamp(0, 1), ImageRng(["a", "b"])), atol=1e-6)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(getattr(jpeg, way)(leaf, ImageRng(["a", "b"])).sum(), leaf)
    assert float(grad.abs().max()) > 0


def test_stand_ins_have_a_version_of_their_own() -> None:
    labels = ("bpda(jpeg, m)", "smooth(jpeg, m)", "adaptive(jpeg, m)", "exact(nrp, m)", "adaptive(nrp, m)")
    sources = {label: found[0] for label in labels if (found := parse(label))}
    assert {label: source.record().get("version") for label, source in sources.items()} == {
        "bpda(jpeg, m)": 2, "smooth(jpeg, m)": 2, "adaptive(jpeg, m)": 2, "exact(nrp, m)": None,
        "adaptive(nrp, m)": None,
    }  # fmt: skip
