"""Each recipe's losses against values worked out on paper, and where their gradients go."""

from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rdp_bench.attacks.ssp import distort
from rdp_bench.errors import UsageError
from rdp_bench.train import recipes
from rdp_bench.train.inputs import adversarial
from rdp_bench.train.losses import discriminator_loss, distillation, feature_l1, generator_loss, l1
from rdp_bench.train.recipe import Recipe
from tests.helpers import toy, toy_train


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_train.install(monkeypatch.setitem)


def flat(*levels: float) -> Tensor:
    """One 3 x 4 x 4 image of each level."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Times(nn.Module):
    """x times a number that can be trained."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Score(Times):
    """One score an image: its mean times a number."""

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.mean((1, 2, 3))[:, None]


class Rebuild(nn.Module):
    """V / 2 + x / 4."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor, natural: Tensor) -> Tensor:
        return 0.5 * natural + self.own * x


class Thrice:
    """Two feature maps: 3 x and x."""

    turn = 0

    def __call__(self, x: Tensor) -> list[Tensor]:
        return [3 * x, x]

    def logits(self, x: Tensor) -> Tensor:
        return 10 * x.mean((2, 3))

    joint = logits


def softplus(x: float) -> float:
    return log(1 + exp(x))


# The terms by themselves


def test_l1_is_a_mean() -> None:
    assert l1(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 2.0], [0.0, 4.0]])).item() == 1.0


def test_feature_l1_gives_every_map_the_same_weight() -> None:
    a, b = [torch.zeros(1, 2), torch.zeros(1, 200)], [torch.full((1, 2), 3.0), torch.ones(1, 200)]
    assert feature_l1(a, b).item() == 2.0
    with pytest.raises(ValueError, match="shorter"):
        feature_l1(a, b[:1])


def test_relativistic_average() -> None:
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [-2.0]])  # means 2 and -1
    # -log sigmoid(t) = softplus(-t), for t = 0 - 2 and -2 - 2.
    assert generator_loss(real, fake).item() == pytest.approx((softplus(2) + softplus(4)) / 2, rel=1e-6)
    # Real above the mean fake: t = 1 + 1 and 3 + 1; fake below the mean real: t = 0 - 2 and -2 - 2.
    above, below = (softplus(-2) + softplus(-4)) / 2, (softplus(-2) + softplus(-4)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx((above + below) / 2, rel=1e-6)
    # Not symmetric: with the two swapped, D is wrong about everything.
    above, below = (softplus(2) + softplus(4)) / 2, (softplus(2) + softplus(4)) / 2
    assert discriminator_loss(fake, real).item() == pytest.approx((above + below) / 2, rel=1e-6)
    third = torch.tensor([[5.0], [0.0]])
    expected = (softplus(-6) + softplus(-1)) / 2 / 2 + (softplus(-2.5) + softplus(-4.5)) / 2 / 2
    assert discriminator_loss(third, fake).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_is_the_divergence_of_the_student_from_the_teacher() -> None:
    teacher, student = torch.tensor([[0.0, log(3)], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    # (1/4, 3/4) against (1/2, 1/2): 1/4 log(1/2) + 3/4 log(3/2); the second image agrees.
    expected = (log(0.5) / 4 + 3 * log(1.5) / 4) / 2
    assert distillation(teacher, student).item() == pytest.approx(expected, rel=1e-5)


# RDP


def rdp(**given: Any) -> Recipe:
    """Encoder 2x, decoder V/4, R as above, D 2 mean(x), F (3x, x)."""
    made = toy_train.recipe("rdp", **given)
    purifier = nn.Module()
    purifier.encoder, purifier.decoder = Times(2.0), Times(0.25)
    toys = {"purifier": purifier, "reconstructor": Rebuild(), "discriminator": Score(2.0)}
    made.nets = {name: toys[name] for name in made.nets}
    made.features = Thrice()
    return made


CLEAN, INPUTS = (0.5, 0.3), (0.8, 0.2)
ADV = (softplus(0) + softplus(0.6)) / 2  # D: real 1 and .6, mean .8; fake .8 and .2, mean .5
RDP = {
    "feat": 0.3,  # P(x') = x'/2 = .4 and .1; off by .1 and .2: .15, three times that; the mean of both
    "pix": 0.15,
    "lat": 0.4,  # V = 1.6 and .4, of the clean images 1 and .6
    "adv": ADV,
    "recon": 0.25,  # R = V/2 + x'/4 = 1 and .25, off by .2 and .05: .125, and three times that
    "recon-pix": 0.125,
}
WEIGHTS = {"feat": 1.0, "pix": 1e-2, "lat": 1e-1, "adv": 1e-4, "recon": 1.0, "recon-pix": 1e-4}


def test_rdp_equations_2_to_8() -> None:
    made = rdp()
    (main, total), (discriminator, discriminator_total) = made.steps(flat(*CLEAN), flat(*INPUTS), rng())
    assert (main, discriminator) == ("main", "discriminator")
    found = {name: value.item() for name, value in made.terms.items()}
    above, below = (softplus(-0.5) + softplus(-0.1)) / 2, (softplus(0) + softplus(-0.6)) / 2
    assert found == pytest.approx(RDP | {"discriminator": (above + below) / 2}, rel=1e-5)
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * RDP[name] for name in RDP), rel=1e-6)
    assert discriminator_total.item() == pytest.approx((above + below) / 2, rel=1e-5)


def test_rdp_weights_are_the_papers_and_can_be_given() -> None:
    assert rdp().weights == WEIGHTS | {"low": 0.0}
    made = rdp(weights=(("pix", 2.0), ("recon", 0.5)))
    total = next(made.steps(flat(*CLEAN), flat(*INPUTS), rng()))[1].item()
    expected = sum((WEIGHTS | {"pix": 2.0, "recon": 0.5})[name] * RDP[name] for name in RDP)
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("part", "gone"),
    [("recon", {"recon", "recon-pix"}), ("lat", {"lat"}), ("pix", {"pix"}), ("adv", {"adv"}), ("feat", {"feat"})],
)
def test_rdp_without_a_part(part: str, gone: set[str]) -> None:
    made = rdp(without=(part,))
    steps = list(made.steps(flat(*CLEAN), flat(*INPUTS), rng()))
    assert [name for name, _ in steps] == (["main"] if part == "adv" else ["main", "discriminator"])
    assert ("reconstructor" in made.nets, "discriminator" in made.nets) == (part != "recon", part != "adv")
    left = sum(WEIGHTS[name] * value for name, value in RDP.items() if name not in gone)
    assert steps[0][1].item() == pytest.approx(left, rel=1e-6)


def test_rdp_without_everything_is_refused() -> None:
    kind = recipes.get("rdp")
    with pytest.raises(UsageError, match="leave rdp without a loss: every weight is 0"):
        kind.settings("tiny", {"without": ("recon", "lat", "pix", "adv", "feat")})
    with pytest.raises(UsageError, match="leave rdp without a loss"):
        kind.settings(
            "tiny", {"without": ("recon",), "weights": tuple((t, 0.0) for t in ("lat", "pix", "adv", "feat"))}
        )
    kind.settings("tiny", {"without": ("lat", "pix", "adv", "feat"), "weights": (("recon", 0.0),)})  # recon-pix


def gradients(made: Recipe, loss: Tensor) -> dict[str, float]:
    """Those that are not zero, by parameter."""
    named = [(f"{net}.{name}", p) for net, module in made.nets.items() for name, p in module.named_parameters()]
    wanted = [p for _, p in named if p.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    names = [name for name, p in named if p.requires_grad]
    return {name: grad.item() for name, grad in zip(names, found, strict=True) if grad is not None and grad.item()}


def test_the_reconstructors_loss_reaches_the_purifiers_encoder_and_not_its_decoder() -> None:
    made = rdp(without=("lat", "pix", "adv", "feat"), weights=(("recon-pix", 0.0),))
    found = gradients(made, next(made.steps(flat(*CLEAN), flat(*INPUTS), rng()))[1])
    # d/de of |e x'/2 + x'/4 - x'|, doubled by the mean of both maps: 2 * mean(x'/2) = .5; d/da: 2 mean(x') = 1.
    assert found == pytest.approx({"purifier.encoder.factor": 0.5, "reconstructor.own": 1.0}, rel=1e-5)


def test_the_latent_loss_moves_both_of_its_sides() -> None:
    made = rdp(without=("recon", "pix", "adv", "feat"), weights=(("lat", 1.0),))
    found = gradients(made, next(made.steps(flat(*CLEAN), flat(*INPUTS), rng()))[1])
    # d/de |e x' - e x| = |x' - x| = .3 and .1; with one side held fast it would be x' sign = .8 and -.2: mean .3.
    assert found == pytest.approx({"purifier.encoder.factor": 0.2}, rel=1e-5)


@pytest.mark.parametrize("name", ["rdp", "nrp"])
def test_generator_and_discriminator_learn_apart(name: str) -> None:
    made = toy_train.recipe(name)
    for net in made.nets.values():
        net.train()
    clean = toy.images(4, 32)

    def weights(net: str) -> list[Tensor]:
        return [p.detach().clone() for p in made.nets[net].parameters()]

    def moved(before: dict[str, list[Tensor]]) -> set[str]:
        return {net for net, old in before.items() if not all(map(torch.equal, old, weights(net)))}

    steps = made.steps(clean, toy.images(4, 32, seed=1), rng())
    seen = []
    for expected, (group, loss) in zip(("main", "discriminator"), steps, strict=True):
        assert group == expected
        before = {net: weights(net) for net in made.nets}
        owned = {id(p) for g in made.optimizers[group].param_groups for p in g["params"]}
        for net in made.nets.values():
            net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        touched = {id(p) for net in made.nets.values() for p in net.parameters() if p.grad is not None}
        assert touched == owned  # no gradient is left behind for the other optimizer
        made.optimizers[group].step()
        seen.append(moved(before))
    assert seen == [set(made.nets) - {"discriminator"}, {"discriminator"}]


# NRP


def test_nrp_terms() -> None:
    made = toy_train.recipe("nrp")
    made.nets, made.features = {"purifier": Times(0.5), "discriminator": Score(2.0)}, Thrice()
    (_, total), _ = made.steps(flat(*CLEAN), flat(*INPUTS), rng())
    found = {name: made.terms[name].item() for name in ("feat", "pix", "adv")}
    assert found == pytest.approx({"feat": 0.3, "pix": 0.15, "adv": ADV}, rel=1e-5)
    assert total.item() == pytest.approx(0.3 + 1e-2 * 0.15 + 5e-3 * ADV, rel=1e-6)


# HGD


def test_hgd_feature_and_logit_guided() -> None:
    for weights, expected in (((), 0.3), ((("feat", 0.0), ("logits", 1.0)), 1.5), ((("logits", 2.0),), 3.3)):
        made = toy_train.recipe("hgd", weights=weights)
        made.nets, made.features = {"denoiser": Times(0.5)}, Thrice()
        ((name, loss),) = made.steps(flat(*CLEAN), flat(*INPUTS), rng())
        assert (name, loss.item()) == ("main", pytest.approx(expected, rel=1e-5))


def test_hgd_guides_by_the_last_map_unless_told() -> None:
    made = toy_train.recipe("hgd")
    x = toy.images(2, 32)
    (last,) = made.features(x)
    assert torch.equal(last, toy_train.Maps("", 0).features(x, (1,))[0])
    assert made.features.member.zooms[-1] == 32 / 299
    assert len(toy_train.recipe("hgd", levels=(0, 1)).features(x)) == 2
    assert {recipes.get("hgd").settings(size, {}).levels for size in ("paper", "compact")} == {()}


def hgd_by_hand(logits: Callable[[Tensor], Tensor], x: Tensor, eps: float, steps: int) -> Tensor:
    label, adv = logits(x).argmax(1), x
    for _ in range(steps):
        leaf = adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(logits(leaf), label), leaf)
        adv = (adv + eps / steps * grad.sign()).clamp(0, 1)
    return (adv * 255).round() / 255


@pytest.mark.parametrize("turn", [0, 3])
def test_hgd_mix(turn: int) -> None:
    made = toy_train.recipe("hgd", features=("toy/one", "toy/two"))
    made.features.turn = turn
    n = 10
    clean = (toy.images(n, 32) * 255).round() / 255
    found = made.prepare(clean, rng(1))
    sizes = torch.randint(1, 16, (n, 1, 1, 1), generator=rng(1)) / 255  # drawn first
    own = made.features.members[turn % 2]
    one, two = made.features.members
    for place, (x, adv, size) in enumerate(zip(clean.split(1), found.split(1), sizes.flatten().tolist(), strict=True)):
        kind = (place + turn) % 8
        if kind == 0:
            assert torch.equal(adv, x)
        elif kind == 1:
            inside = (x - size >= 0) & (x + size <= 1)
            change = (adv - x)[inside]
            assert torch.allclose(change.abs(), torch.tensor(size))
            assert 0.4 < (change > 0).float().mean() < 0.6
        elif kind < 5:
            assert torch.allclose(adv, hgd_by_hand(own, x, size, 1), atol=1e-6)
        else:
            expected = hgd_by_hand(lambda z: (one(z) + two(z)) / 2, x, size, {5: 1, 6: 2, 7: 4}[kind])
            # A sign may turn where a gradient is as good as zero.
            assert (adv - expected).abs().gt(1e-6).float().mean() < 1e-3
    assert torch.allclose(found * 255, (found * 255).round(), atol=1e-4)
    assert (found - clean).abs().max() <= 15.01 / 255


def test_hgd_sizes_are_whole_and_below_eps() -> None:
    made = toy_train.recipe("hgd", eps=4.0)
    made.features.turn = 1  # the first image gets noise
    grey = flat(102 / 255)
    sizes = {round(255 * float((made.prepare(grey, rng(seed)) - grey).abs().max())) for seed in range(40)}
    assert sizes == {1, 2, 3}
    for bad in (1.0, 3.5):
        with pytest.raises(UsageError, match="whole number from 2"):
            toy_train.recipe("hgd", eps=bad)


def test_hgd_mix_has_no_more_gradients_than_it_needs() -> None:
    made = toy_train.recipe("hgd")
    made.features.turn = 0
    seen = made.features.members[0].seen
    del seen[:]
    made.prepare(toy.images(8, 32), rng())
    # Three of one step; one of one, one of two and one of four: each as often as it moves, none again for its label.
    assert [len(x) for x in seen] == [3, 3, 2, 1, 1]


# ComDefend


class Codec(nn.Module):
    """Code 40 (x - .5), image the mean of the bits."""

    def encode(self, x: Tensor) -> Tensor:
        return 40 * (x - 0.5)

    def decode(self, bits: Tensor) -> Tensor:
        return bits / 2


def test_comdefend_terms() -> None:
    made = toy_train.recipe("comdefend")
    made.nets = {"codec": Codec()}
    x = flat(0.6, 0.3)
    ((_, loss),) = made.steps(x, x, rng(3))
    noise = torch.randn(x.shape, generator=rng(3)).tolist()
    mse = bits = 0.0
    for level, image in zip((0.6, 0.3), noise, strict=True):
        for value in [v for plane in image for row in plane for v in row]:
            bit = 1 / (1 + exp(-(40 * (level - 0.5) - 20 * value)))
            mse += (bit / 2 - level) ** 2 / 96
            bits += bit**2 / 96
    assert {k: v.item() for k, v in made.terms.items()} == pytest.approx({"mse": mse, "bits": bits}, rel=1e-4)
    assert loss.item() == pytest.approx(mse + 1e-4 * bits, rel=1e-4)


def test_comdefend_learns_from_patches_of_32() -> None:
    made = toy_train.recipe("comdefend")
    x = toy.images(2, 96)
    patches = made.prepare(x, rng())
    assert patches.shape == (18, 3, 32, 32)
    assert torch.equal(patches[9 + 3 + 2], x[1, :, 32:64, 64:96])


# SR


class Twice(nn.Module):
    """Every pixel four times, a tenth brighter."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.1


def test_sr_learns_what_halving_took_away() -> None:
    made = toy_train.recipe("sr")
    made.nets = {"edsr": Twice()}
    grey = flat(102 / 255, 51 / 255)
    small = made.prepare(grey, rng())
    assert small.shape == (2, 3, 2, 2)
    assert torch.allclose(small, grey[..., :2, :2], atol=1e-6)
    ((_, loss),) = made.steps(grey, small, rng())
    assert loss.item() == pytest.approx(0.1, rel=1e-4)


def test_sr_reduces_as_pillow_does() -> None:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    reduced = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)).astype(float)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    found = toy_train.recipe("sr").prepare(x, rng())[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - reduced).max() <= 1.01  # Pillow rounds between its two passes
    assert np.abs(found - reduced).mean() < 0.3
    assert np.allclose(found, found.round(), atol=1e-4)


# Training inputs


def test_paper_inputs_are_ssp_from_pure_noise() -> None:
    made = toy_train.recipe("rdp", eps=8.0, attack_steps=3)
    x = toy.images(3, 32)
    found = adversarial(made.options, made.features, x, rng(5))
    start = torch.randn(x.shape, generator=rng(5))
    assert torch.equal(found, distort(made.features, x, start, 8 / 255, 3, 0.01))


def test_wide_inputs_have_every_size() -> None:
    made = toy_train.recipe("rdp", attack="wide", batch=64)
    x = toy.images(64, 32) * 0.6 + 0.2
    sizes = torch.cat(
        [(adversarial(made.options, made.features, x, rng(seed)) - x).abs().amax((1, 2, 3)) * 255 for seed in range(6)]
    )
    n = len(sizes)
    assert sizes.max() <= 16.01
    full, none = (sizes > 15.9).sum().item() / n, (sizes == 0).sum().item() / n
    assert abs(full - 0.5) < 0.1
    assert abs(none - 0.125) < 0.06
    between = sizes[(sizes > 0) & (sizes < 15.9)]
    assert between.min() < 3
    assert between.max() > 12


# What may be asked for


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"without": ("recno",)}, "unknown part 'recno' of rdp. Did you mean 'recon'?"),
        ({"weights": (("pixx", 1.0),)}, "unknown loss weight 'pixx' of rdp. Did you mean 'pix'?"),
        ({"weights": (("pix", float("nan")),)}, "--weight pix is a number from 0 up, found nan"),
        ({"weights": (("pix", 2.0),), "without": ("pix",)}, "--weight pix has no effect with --without pix"),
        (
            {"weights": (("recon-pix", 1.0),), "without": ("recon",)},
            "--weight recon-pix has no effect with --without re",
        ),
        ({"seed": 2**64}, "--seed is from -2^63 to 2^64 - 1, found 18446744073709551616"),
        ({"weights": (("pix", -1.0),)}, "--weight pix is a number from 0 up, found -1"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'?"),
        ({"attack": "papper"}, "unknown training attack 'papper'. Did you mean 'paper'?"),
        ({"features": ("toy/tow",)}, "unknown model 'toy/tow'. Did you mean 'toy/t"),
        ({"crop": 40}, "--crop is a multiple of 32, found 40"),
        ({"steps": 0}, "--steps is at least 1, found 0"),
        ({"batch": -1}, "--batch is at least 1, found -1"),
        ({"rate": 0.0}, "--rate is between 0 and 1, found 0"),
        ({"rate": float("nan")}, "--rate is between 0 and 1, found nan"),
        ({"eps": 256.0}, "--eps is between 0 and 255, found 256"),
    ],
)
def test_what_cannot_train_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        toy_train.recipe("rdp", **given)
    assert message in str(error.value)


def test_unknown_trainer_and_size() -> None:
    from rdp_bench.train.recipes import TRAINERS, get

    with pytest.raises(UsageError, match="unknown trainer 'rdq'"):
        get("rdq")
    for kind in map(get, TRAINERS):
        with pytest.raises(UsageError, match=f"unknown size 'papr' of {kind.name}"):
            kind.settings("papr", {})


def test_an_extractor_without_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.registry import Entry, model

    monkeypatch.setitem(model.entries, "toy/blind", Entry("toy/blind", toy.mean, "", "tests", "1", "tests"))
    with pytest.raises(UsageError, match="it has no method `features`"):
        toy_train.recipe("rdp", features=("toy/blind",))


@pytest.mark.parametrize(("attack", "clean", "share"), [("wide", None, 0.125), ("wide", 0.5, 0.5), ("paper", 0.5, 0.5)])
def test_the_share_of_clean_inputs(attack: str, clean: float | None, share: float) -> None:
    """Of 4 x 64 images, where the standard deviation of a share is at most .031; and older records are as they were."""
    made = toy_train.recipe("rdp", attack=attack, clean=clean, batch=64)
    x = toy.images(64, 32)
    untouched, least = 0.0, 1.0
    for seed in range(4):
        inputs = made.prepare(x, torch.Generator().manual_seed(seed))
        sizes = (inputs - x).abs().amax((1, 2, 3))
        untouched += float((sizes == 0).float().mean()) / 4
        least = min(least, float(sizes[sizes > 0].min()))
    assert untouched == pytest.approx(share, abs=0.1)
    assert least > (15.9 / 255 if attack == "paper" else 0)  # `paper` has one size
    assert ("clean" in made.options.record()) == (clean is not None)


def test_the_paper_leaves_no_input_clean() -> None:
    made = toy_train.recipe("rdp", attack="paper")
    assert made.options.clean_share == 0
    inputs = made.prepare(toy.images(64, 32), torch.Generator().manual_seed(0))
    assert float((inputs - toy.images(64, 32)).abs().amax((1, 2, 3)).min()) > 15.9 / 255


def test_coarse_errors_have_a_term_where_it_has_a_weight() -> None:
    """Means over 8 x 8 pixels: of a difference with the sign of a chessboard nothing is left, of a shift all."""
    x = toy.images(2, 32) / 2
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1) * 0.1
    for name in ("rdp", "nrp"):
        made = toy_train.recipe(name, weights=(("low", 2.0),))
        assert made.pixel_terms(x + board, x)["low"].item() == pytest.approx(0, abs=1e-7)
        found = made.pixel_terms(x + board + 0.03, x)
        assert found["low"].item() == pytest.approx(0.03, rel=1e-5)
        assert made.total(found).item() == pytest.approx(0.06 + made.weights["pix"] * found["pix"].item(), rel=1e-5)
        assert "low" not in toy_train.recipe(name).pixel_terms(x, x)


def test_nothing_is_computed_of_inputs_that_stay_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    made = toy_train.recipe("rdp", attack="paper", clean=0.5, attack_steps=3, batch=64)
    x, counts = toy.images(64, 32), []
    (member,) = made.features.members
    look = member.features
    monkeypatch.setattr(member, "features", lambda images, *rest: (counts.append(len(images)), look(images, *rest))[1])
    inputs = made.prepare(x, torch.Generator().manual_seed(0))
    attacked = int((inputs != x).any(3).any(2).any(1).sum())
    assert counts == [attacked] * 4
    assert 0 < attacked < 64
