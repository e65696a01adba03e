"""What all attacks of an adaptive evaluation share: random sources, who is left, memory, and what is refused."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdp_bench import plugins, registry
from rdp_bench.attacks._adaptive import spsa, victim
from rdp_bench.attacks._adaptive.victim import Victim, hardest
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier
from rdp_bench.models.zoo import LoadedSource
from rdp_bench.protocols import Purifier
from rdp_bench.registry import Resolved
from rdp_bench.rng import ImageRng
from tests.helpers import plans, toy

plugins.load()

STRONG = (
    "apgd-ce(steps=20)", "apgd-dlr(steps=20)", "apgd-t(steps=20)", "fab-t(steps=20)", "square(queries=400)",
    "autoattack(steps=20)", "autoattack-rand(steps=20)",
)  # fmt: skip
SHORT = {
    "apgd-ce": "apgd-ce(steps=6, restarts=2)", "apgd-dlr": "apgd-dlr(steps=6)", "apgd-t": "apgd-t(steps=4, targets=2)",
    "fab-t": "fab-t(steps=4, targets=2)", "square": "square(queries=20)", "spsa": "spsa(steps=2, samples=4)",
    "autoattack": "autoattack(steps=3, targets=2, queries=5)", "autoattack-rand": "autoattack-rand(steps=3, draws=2)",
    "pgd": "pgd(steps=3, restarts=3, loss_function=margin)",
}  # fmt: skip


@dataclass(frozen=True)
class Noisy(Purifier):
    """Adds N(0, .05) to every image."""

    random: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    backward = "exact"

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.05 * rng.normal(*x.shape[1:])).clamp(0, 1)


def behind(net: object, defense: Purifier, samples: int = 1) -> LoadedSource:
    made = Resolved(type(defense).__name__, defense, "", "", "1", "test")
    inner = DefendedClassifier(net, AttackedDefense("exact", made, samples))  # type: ignore[arg-type]
    return LoadedSource("behind", (inner,), samples)


# --- every attack ---


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SHORT)
def test_results_are_within_the_budget_and_do_not_depend_on_the_batch(name: str, norm: str) -> None:
    """Also behind a random defense: every image has its own streams for the noise and for the attack."""
    if (name, norm) == ("spsa", "l2"):
        with pytest.raises(UsageError, match="L-infinity budget only"):
            registry.attack.resolve("spsa").value.with_norm("l2")
        with pytest.raises(UsageError, match="L-infinity budget only"):
            registry.attack.resolve("spsa(norm=l2)").value.with_norm("linf")
        return
    attack = registry.attack.resolve(SHORT[name]).value.with_norm(norm)
    eps = 6 / 255 if norm == "linf" else 0.6
    x, net = toy.images(4, 12), toy.conv()
    y = net(x).argmax(1)
    for source in (toy.source(net), behind(net, Noisy(), 2)):
        together = attack(source, x.clone(), y, eps, toy.image_rng(4))
        change = together - x
        far = change.abs().max() if norm == "linf" else change.flatten(1).norm(dim=1).max()
        assert float(far) <= eps + 1e-5
        assert 0 <= float(together.min()) <= float(together.max()) <= 1
        rows = torch.tensor([2, 1])
        part = attack(source, x[rows], y[rows], eps, toy.image_rng(4).select(rows))
        assert torch.allclose(part, together[rows], atol=1e-5)


@pytest.mark.parametrize("label", STRONG)
def test_they_break_a_network_that_pgd_breaks(label: str) -> None:
    net = toy.conv()
    x = toy.images(8, 12)
    y = net(x).argmax(1)
    adv = registry.attack.resolve(label).value(toy.source(net), x, y, 24 / 255, toy.image_rng(8))
    stored = (adv * 255).round() / 255
    assert (net(stored).argmax(1) != y).all()


# --- who is left ---


def test_later_runs_get_the_images_that_are_left_and_the_hardest_is_kept() -> None:
    """Pixels above .5 are class 1: run 0 breaks image 0, run 1 image 1; image 2 keeps the first run's point."""
    net = toy.Toy(lambda x: torch.stack([torch.full((len(x),), 0.5), x.mean((1, 2, 3))], 1), 2)
    x = torch.full((3, 3, 2, 2), 0.25)
    asked: list[int] = []

    def run(values: list[float]) -> Callable[[Victim], Tensor]:
        def one(target: Victim) -> Tensor:
            asked.append(len(target))
            return torch.tensor(values).view(-1, 1, 1, 1).expand_as(target.x).clone()

        return one

    target = Victim.of(toy.source(net), x, torch.zeros(3, dtype=torch.long), 1.0, "linf", toy.image_rng(3))
    adv = hardest(target, [run([0.75, 0.3, 0.3]), run([0.8, 0.4]), run([0.45])])
    assert asked == [3, 2, 1]
    assert adv[:, 0, 0, 0].tolist() == pytest.approx([0.75, 0.8, 0.3])


def test_an_image_that_rounding_puts_right_again_has_survived() -> None:
    """127.4 / 255 is beyond the boundary at 127.2 / 255 and stored as 127 / 255."""
    net = toy.Toy(lambda x: torch.stack([torch.full((len(x),), 127.2 / 255), x.mean((1, 2, 3))], 1), 2)
    x = torch.full((1, 3, 2, 2), 0.25)
    target = Victim.of(toy.source(net), x, torch.tensor([0]), 1.0, "linf", toy.image_rng(1))
    runs = [lambda v: torch.full_like(v.x, 127.4 / 255), lambda v: torch.full_like(v.x, 127.6 / 255)]
    assert float(hardest(target, runs).mean()) == pytest.approx(127.6 / 255)


def test_a_random_source_is_judged_on_twenty_draws_and_never_by_luck() -> None:
    """Right when the noise is below the pixel: accuracy is its value. The lowest is kept, whatever comes after."""

    @dataclass(frozen=True)
    class Coin(Purifier):
        random: ClassVar[bool] = True
        differentiable: ClassVar[bool] = True
        calls: ClassVar[list[int]] = []

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            self.calls.append(len(x))
            return (x > rng.uniform(1, 1, 1)).float() + 0 * x

    net = toy.Toy(lambda x: torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.5)], 1), 2)
    x = torch.full((2, 3, 2, 2), 1.0)
    target = Victim.of(behind(net, Coin()), x, torch.zeros(2, dtype=torch.long), 1.0, "linf", toy.image_rng(2))
    levels = iter([0.9, 0.3, 0.6, 0.0, 0.5])
    adv = hardest(target, [lambda v: torch.full_like(v.x, next(levels)) for _ in range(5)])
    # .3 has survivors among 20 draws, so the cascade goes on; after 0 nobody is left, and the fifth run never starts.
    assert adv[:, 0, 0, 0].tolist() == [0, 0]
    assert Coin.calls == [2] * 20 * 5
    assert next(levels) == 0.5


def test_stop_leaves_an_image_of_a_random_source_alone_once_twenty_draws_are_wrong() -> None:
    """Noise of at most .2 around a threshold of .5: below .3 no draw is right, above .3 some are.

    Image 0 begins below .3: it is judged once and left alone. Image 1 reaches .351 at best: one of twenty draws is
    right soon, and it is attacked until the end. Neither's result depends on the other.
    """

    @dataclass(frozen=True)
    class Shaken(Purifier):
        random: ClassVar[bool] = True
        differentiable: ClassVar[bool] = True
        backward = "exact"
        calls: ClassVar[list[int]] = []

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            self.calls.append(len(x))
            return x + rng.uniform(1, 1, 1, low=-0.2, high=0.2)

    net = toy.Toy(lambda x: torch.stack([20 * x.mean((1, 2, 3)), torch.full((len(x),), 10.0)], 1), 2)
    x = (torch.tensor([76, 115]) / 255).view(2, 1, 1, 1).expand(2, 3, 2, 2).clone()
    y = torch.zeros(2, dtype=torch.long)
    attack = registry.attack.resolve("apgd-ce(steps=8, stop=true)").value
    source = behind(net, Shaken(), 4)
    Shaken.calls.clear()
    adv = attack(source, x, y, 0.1, toy.image_rng(2))
    assert float(adv[0].mean()) < 76 / 255
    assert float(adv[1].mean()) == pytest.approx(115 / 255 - 0.1, abs=1e-4)
    # Both are judged before and after, and have a gradient of four draws where they begin.
    assert Shaken.calls.count(2) == 20 + 4 + 20
    assert Shaken.calls.count(1) >= 20 + 8 * 4
    alone = attack(source, x[:1], y[:1], 0.1, toy.image_rng(2).select(torch.tensor([0])))
    assert torch.equal(alone, adv[:1])


def test_eot_averages_gradients_and_values() -> None:
    """exact(noise, 3): three evaluations per gradient; autoattack-rand takes its own 20 where the source says less."""
    net = toy.conv()
    x = toy.images(2, 8)
    y = net(x).argmax(1)
    for samples, draws, expected in ((3, 1, 3), (3, 20, 20), (30, 20, 30)):
        target = Victim.of(behind(net, Noisy(), samples), x, y, 0.1, "linf", toy.image_rng(2), draws)
        net.seen.clear()
        point = target.gradient(x, lambda z, y: z.gather(1, y[:, None])[:, 0])
        assert len(net.seen) == expected
        leaf = torch.cat(net.seen).requires_grad_()
        every = net(leaf).gather(1, y.repeat(expected)[:, None])[:, 0]
        (grad,) = torch.autograd.grad(every.sum(), leaf)
        inside = ((leaf > 0) & (leaf < 1)).float()
        mean = (grad * inside).view(expected, 2, *x.shape[1:]).mean(0)
        assert torch.allclose(point.gradient, mean, atol=1e-6)
        assert torch.allclose(point.value, every.view(expected, 2).mean(0), atol=1e-6)
    assert registry.attack.resolve("autoattack-rand").value.least_draws == 20
    deterministic = Victim.of(toy.source(net), x, y, 0.1, "linf", toy.image_rng(2), 20)
    assert deterministic.draws == 1


def test_a_part_of_the_batch_keeps_its_streams() -> None:
    x, net = toy.images(3, 8), toy.conv()
    y = torch.zeros(3, dtype=torch.long)
    whole, again = (Victim.of(behind(net, Noisy()), x, y, 0.1, "linf", toy.image_rng(3)) for _ in range(2))
    part = again.select(torch.tensor([2, 0]))
    assert torch.equal(part.logits(part.x), whole.logits(x)[[2, 0]])
    assert torch.equal(part.own.uniform(4), whole.own.uniform(4)[[2, 0]])


# --- memory ---


class Live(TorchDispatchMode):
    """Counts the numbers in all tensors that operations made and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in [one for one in tree_leaves(out) if isinstance(one, Tensor)]:
            if id(each) not in self.sizes:  # an operation in place returns what exists
                self.sizes[id(each)] = each.numel()
                weakref.finalize(each, self.sizes.pop, id(each))
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize(
    "label",
    [
        "apgd-ce(steps={})", "apgd-t(steps={}, targets=1)", "fab-t(steps={}, targets=1)", "square(queries={})",
        "spsa(steps={}, samples=2)",
    ],
)  # fmt: skip
def test_memory_grows_neither_with_steps_nor_with_draws(label: str) -> None:
    net = toy.network(5)

    def logits(x: Tensor) -> Tensor:
        return net(x) + torch.tensor([[90.0, 0, 0, 0, 0]])  # nobody is broken

    def peak(steps: int, samples: int) -> int:
        quiet = toy.Toy(logits, 5)
        quiet.seen = Forgets()
        attack, x = registry.attack.resolve(label.format(steps)).value, toy.images(2, 16)
        with Live() as live:
            attack(behind(quiet, Noisy(), samples), x, torch.zeros(2, dtype=torch.long), 0.1, toy.image_rng(2))
        return live.peak

    few = peak(6, 3)
    # A history of losses or a graph that is kept would add more than the 1,536 numbers of the batch.
    assert peak(24, 3) <= few + 500
    assert peak(6, 12) <= few + 500


class Forgets(list[Tensor]):
    """Keeps nothing."""

    def append(self, _: Tensor) -> None:
        pass


# --- gradients that are none ---


@pytest.mark.parametrize("attack", ["apgd-ce", "pgd"])
def test_a_defense_that_detaches_is_named_with_what_to_do(attack: str) -> None:
    @dataclass(frozen=True)
    class Detaches(Purifier):
        differentiable: ClassVar[bool] = True

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x.detach() * 0.5

    source = behind(toy.conv(), Detaches())
    with pytest.raises(RdpBenchError, match=r"no gradient with respect to the images.*bpda.*square"):
        registry.attack.resolve(attack).value(source, toy.images(1), torch.tensor([0]), 0.1, toy.image_rng(1))


def test_a_defense_that_returns_nan_or_another_shape_under_attack_is_named() -> None:
    @dataclass(frozen=True)
    class Breaks(Purifier):
        how: str = "nan"
        differentiable: ClassVar[bool] = True
        calls: ClassVar[list[int]] = []

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            self.calls.append(1)
            if len(self.calls) < 3:
                return x
            if self.how == "raises":
                raise ValueError("too few sheep")
            return x * float("nan") if self.how == "nan" else x[:, :2]

    for how, error in (("nan", "NaN"), ("shape", "returned shape"), ("raises", "ValueError: too few sheep")):
        Breaks.calls.clear()
        with pytest.raises(RdpBenchError, match=f"defense 'Breaks'.*{error}"):
            registry.attack.resolve("apgd-ce").value(
                behind(toy.conv(), Breaks(how)), toy.images(1), torch.tensor([0]), 0.1, toy.image_rng(1)
            )


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    net = toy.Toy(lambda x: (x.flatten(1)[:, :5] - x.flatten(1)[:, :5].detach()).abs().sqrt() + torch.arange(5.0), 5)
    with pytest.raises(RdpBenchError, match="the gradient of an attack is NaN"):
        registry.attack.resolve("apgd-ce").value(
            toy.source(net), toy.images(1), torch.tensor([0]), 0.1, toy.image_rng(1)
        )


# --- spsa ---


def test_estimates_equal_the_gradient_of_a_linear_margin() -> None:
    net = toy.linear(classes=2, size=4)
    x = torch.full((1, 3, 4, 4), 0.5)
    target = Victim.of(toy.source(net), x, torch.tensor([0]), 0.1, "linf", toy.image_rng(1))
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    (grad,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], leaf)
    found = spsa.estimate(target, x, 4000, 0.01)
    # The error of each entry is the norm of the gradient over sqrt(4000).
    assert float((found - grad).norm() / grad.norm()) < 2 * (48 / 4000) ** 0.5


def test_spsa_needs_no_gradient() -> None:
    net = toy.linear(classes=3, size=4)
    rounded = toy.Toy(lambda x: net(x.detach()), 3)
    x = torch.full((2, 3, 4, 4), 0.5)
    y = net(x).argmax(1)
    adv = registry.attack.resolve("spsa(steps=40, samples=32)").value(toy.source(rounded), x, y, 0.4, toy.image_rng(2))
    assert (net(adv).argmax(1) != y).all()


# --- pgd with restarts and other losses ---


def test_pgd_ascends_the_loss_that_it_names() -> None:
    """Label 0 is far behind: its probability vanishes in float32 and so does the gradient of the cross-entropy.

    The margin still has one, up to the confidence of cw.
    """
    net = toy.Toy(lambda x: torch.stack([0 * x[:, 0, 0, 0], x[:, 0, 0, 0] + 200, x[:, 1, 0, 0] - 90], 1), 3)
    x = torch.full((1, 3, 1, 1), 0.5)
    moved = {}
    for loss in ("ce", "margin", "cw", "dlr"):
        label = f"pgd(steps=1, random_start=false, step_ratio=1, loss_function={loss})"
        adv = registry.attack.resolve(label).value(toy.source(net), x, torch.tensor([1]), 0.1, toy.image_rng(1))
        moved[loss] = [round(float(each), 4) for each in (adv - x).flatten()]
    # The label leads: the cross-entropy is flat, the margins fall with pixel 0, and the ratio (z_1 - z_0) / (z_1 - z_2)
    # with pixel 0 and pixel 1.
    assert moved == {"ce": [0, 0, 0], "margin": [-0.1, 0, 0], "cw": [-0.1, 0, 0], "dlr": [-0.1, -0.1, 0]}


def test_pgd_restarts_find_what_one_run_misses() -> None:
    net = toy.conv(seed=5)
    x = toy.images(12, 12)
    y = net(x).argmax(1)

    def broken(label: str) -> int:
        adv = registry.attack.resolve(label).value(toy.source(net), x, y, 2 / 255, toy.image_rng(12))
        return int((net((adv * 255).round() / 255).argmax(1) != y).sum())

    one, many = broken("pgd(steps=1)"), broken("pgd(steps=1, restarts=30)")
    assert many >= one
    for refused in ("fgsm(restarts=3)", "pgd-targeted(restarts=3)"):
        with pytest.raises(UsageError, match="restarts need"):
            registry.attack.resolve(refused)


# --- fixed noise ---


def test_fixed_noise_is_the_same_for_every_image_and_call() -> None:
    made = registry.defense.resolve("fixed(r&p)")
    x = toy.images(1, 20).expand(3, -1, -1, -1)
    first = made.value.purify(x, toy.image_rng(3))
    assert torch.equal(first, made.value.purify(x, toy.image_rng(3, "other")))
    assert torch.equal(first[0], first[2])
    assert not made.value.random
    assert made.value.differentiable
    assert registry.identity(made)["params"]["defense"]["id"] == "r&p"
    with pytest.raises(UsageError, match="is deterministic and has no noise to fix"):
        registry.defense.resolve("fixed(jpeg)")


def test_the_attacker_of_a_fixed_defense_sees_what_is_evaluated(tmp_path: Path) -> None:
    """White-box through fixed noise: what the attack counts as broken is what the cells count as errors."""
    from rdp_bench.engine.schedule import run_here
    from rdp_bench.engine.worker import Worker

    made = plans.plan(
        tmp_path, limit=6, sources=("white-box",), attacks=("apgd-ce(steps=10)",), targets=("tiny/one",),
        defenses=("fixed(r&p)",), eps=(2.0,),
    )  # fmt: skip
    assert made.grid.axes.defenses == ("fixed(r&p)",)
    assert "adaptive(fixed(r&p), tiny/one)" in made.sources
    results = list(run_here(made.jobs, Worker(made)))
    assert not [result.reason for result in results if result.reason]
    (cell,) = [cell for cell in made.cells if cell.attack != "clean"]
    stored = made.cells[cell].eval.read()
    worker = Worker(made)
    craft = made.cells[cell].job.craft
    images = torch.from_numpy(worker.images(craft, 0, 6)).float() / 255
    source = made.sources["adaptive(fixed(r&p), tiny/one)"].load("cpu")
    target = Victim.of(source, images, torch.from_numpy(stored["label"]).long(), 1.0, "linf", toy.image_rng(6))
    assert target.accuracy(images).tolist() == (stored["predicted"] == stored["label"]).astype(float).tolist()
    assert victim.JUDGED == 20


class Precise(Purifier):
    """Gives back float64, as numpy code does."""

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        return (x * 0.9).double()

    def resolved(self) -> dict[str, object]:
        return {}


def test_a_defense_that_gives_back_float64_can_be_attacked() -> None:
    """An evaluation casts what it gives back, so an attack does."""
    x, net = toy.images(3, 12), toy.conv()
    (member,) = behind(net, Precise(), 1).members
    leaf = x.clone().requires_grad_()
    out = member.stochastic_logits(leaf, toy.image_rng(3))
    assert out.dtype == torch.float32
    assert torch.allclose(out, net(x * 0.9), atol=1e-6)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert grad.abs().sum() > 0
