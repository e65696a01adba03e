"""The attacks of 2020 to 2024, each against a plain loop of its paper for one image."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import rdp_bench.attacks.presets  # noqa: F401 - registers them
from rdp_bench import registry
from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.attacks.parts.spectrum import Spectrum
from rdp_bench.rng import ImageRng
from tests.helpers import toy

EPS, STEPS, SIZE = 16 / 255, 4, 24
ALPHA = EPS / STEPS
NET = toy.network(5, 3)
Gradient = Callable[[Tensor], Tensor]


def loss_gradient(net: Callable[[Tensor], Tensor], at: Tensor, y: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(net(leaf), y, reduction="sum"), leaf)
    return grad


def clip(adv: Tensor, x: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(adv, x - EPS), x + EPS).clamp(0, 1)


def unit(g: Tensor) -> Tensor:
    return g / g.abs().mean()


def vmi(x: Tensor, grad: Gradient, rng: ImageRng, *, nesterov: bool = False) -> Tensor:
    adv, g, v = x, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(STEPS):
        at = adv + ALPHA * g if nesterov else adv
        here = grad(at)
        around = [grad(adv + rng.uniform(3, SIZE, SIZE, low=-1.5 * EPS, high=1.5 * EPS)) for _ in range(3)]
        g = g + unit(here + v)
        v = sum(around) / 3 - here
        adv = clip(adv + ALPHA * g.sign(), x)
    return adv


def gra(x: Tensor, grad: Gradient, rng: ImageRng) -> Tensor:
    adv, g, m = x, torch.zeros_like(x), torch.full_like(x, 1 / 0.94)
    for _ in range(STEPS):
        here = grad(adv)
        mean = sum(grad(adv + rng.uniform(3, SIZE, SIZE, low=-3.5 * EPS, high=3.5 * EPS)) for _ in range(3)) / 3
        s = float((here * mean).sum() / (here.norm() * mean.norm()))
        new = g + unit(s * here + (1 - s) * mean)
        m = m * torch.where(new.sign() == g.sign(), 1.0, 0.94)
        g = new
        adv = clip(adv + ALPHA * m * g.sign(), x)
    return adv


def pgn(x: Tensor, grad: Gradient, rng: ImageRng) -> Tensor:
    adv, g = x, torch.zeros_like(x)
    for _ in range(STEPS):
        total = torch.zeros_like(x)
        for _ in range(3):
            near = adv + rng.uniform(3, SIZE, SIZE, low=-3 * EPS, high=3 * EPS)
            one = grad(near)
            total += 0.5 * one + 0.5 * grad(near - ALPHA * unit(one))
        g = g + unit(total)
        adv = clip(adv + ALPHA * g.sign(), x)
    return adv


def pi(x: Tensor, grad: Gradient, rng: ImageRng) -> Tensor:
    kernel = np.ones((1, 1, 3, 3)) / 8
    kernel[0, 0, 1, 1] = 0
    bound = 10 * ALPHA
    adv, a = x, np.zeros(x.shape)
    for _ in range(STEPS):
        sign = grad(adv).sign()
        a = a + bound * sign.double().numpy()
        cut = np.clip(np.abs(a) - EPS, 0, None) * np.sign(a)
        around = scipy.ndimage.convolve(cut, kernel, mode="constant")
        projection = bound * np.sign(np.round(around, 7))
        a = a + projection
        adv = clip(adv + bound * sign + torch.from_numpy(projection).float(), x)
    return adv


def ssa(x: Tensor, grad: Gradient, rng: ImageRng) -> Tensor:
    adv, g = x, torch.zeros_like(x)
    for _ in range(STEPS):
        total = torch.zeros_like(x)
        for _ in range(3):
            noise = scipy.fft.idctn(EPS * rng.normal(3, SIZE, SIZE).double().numpy(), axes=(2, 3), norm="ortho")
            mask = rng.uniform(3, SIZE, SIZE, low=0.5, high=1.5).double().numpy()
            changed = scipy.fft.idctn(scipy.fft.dctn(adv.double().numpy() + noise, axes=(2, 3)) * mask, axes=(2, 3))
            total += grad(torch.from_numpy(changed).float())
        g = g + unit(total)
        adv = clip(adv + ALPHA * g.sign(), x)
    return adv


MATES = toy.images(7, SIZE, seed=9)


def admix(x: Tensor, grad: Gradient, rng: ImageRng) -> Tensor:
    """On [-1, 1], as the authors write it; J's gradient there is half of that on [0, 1]."""
    adv, g = x, torch.zeros_like(x)
    for _ in range(STEPS):
        total = torch.zeros_like(x)
        for _ in range(3):
            other = 2 * MATES[rng.integers(0, 7)] - 1
            for scale in (1, 2, 4):
                mixed = ((2 * adv - 1) + 0.2 * other) / scale
                total += grad((mixed + 1) / 2) / 2 / scale
        g = g + unit(total)
        adv = clip(adv + ALPHA * g.sign(), x)
    return adv


PLAIN: dict[str, Callable[[Tensor, Gradient, ImageRng], Tensor]] = {
    "MI|VT(3)": vmi,
    "NI|VT(3)": lambda x, grad, rng: vmi(x, grad, rng, nesterov=True),
    "MI|GRA(3)": gra,
    "MI|PGN(3)": pgn,
    "PI": pi,
    "MI|SSA(3)": ssa,
    "MI|ADMIX(scale_copies=3)": admix,
}


def attack(text: str) -> GradientSign:
    made = compose(f"I({STEPS})|{text}")
    return made.with_mates(lambda rng: MATES[rng.integers(0, 7)]) if made.draws_mates else made


def share_different(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() > 1e-5).float().mean())


@pytest.mark.parametrize("text", PLAIN)
def test_it_is_the_loop_of_its_paper(text: str) -> None:
    x, y = toy.images(4, SIZE), torch.arange(4)
    found = attack(text)(toy.source(toy.Toy(NET, 5)), x, y, EPS, toy.image_rng(4))
    for i in range(4):
        rng = toy.image_rng(4).select(torch.tensor([i]))
        one = slice(i, i + 1)
        wanted = PLAIN[text](x[one], lambda at, one=one: loss_gradient(NET, at, y[one]), rng)  # type: ignore[misc]
        assert share_different(found[one], wanted) < 4e-3  # where a gradient is next to nothing


def test_the_attacks_differ() -> None:
    """The test above would be no proof if all led to the same image."""
    x, y = toy.images(2, SIZE), torch.arange(2)
    texts = [*PLAIN, "MI", "NI", "MI|BSR(3)", "MI|SIA(3)"]
    found = [attack(text)(toy.source(toy.Toy(NET, 5)), x, y, EPS, toy.image_rng(2)) for text in texts]
    assert all(share_different(a, b) > 0.02 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("text", [*PLAIN, "MI|BSR(2)", "MI|SIA(2)", "MI|SVRE", "SVRE(2)|DI(.5)", "MI|ENS(gradients)"])
def test_an_image_does_not_depend_on_its_batch(text: str) -> None:
    x, y = toy.images(4, SIZE), torch.arange(4)
    source = toy.source(toy.conv(seed=1), toy.conv(seed=2))
    found = attack(text)(source, x, y, EPS, toy.image_rng(4))
    some = torch.tensor([2, 1])
    alone = attack(text)(source, x[some], y[some], EPS, toy.image_rng(4).select(some))
    assert torch.equal(found[some], alone)


def test_copies_of_different_images_do_not_share_their_spectrum() -> None:
    """Without noise and scaling a copy is its image, also the second copy, whose own coefficients are needed."""
    run: Any = SimpleNamespace(rng=toy.image_rng(2))
    first, second = Spectrum(spectrum_copies=2, spectrum_rho=0, spectrum_sigma=0).copies(run)
    a, b = toy.images(2, SIZE), toy.images(2, SIZE, seed=8)
    assert torch.allclose(first(a), a, atol=1e-5)
    assert torch.allclose(second(b), b, atol=1e-5)


def test_svre_is_the_loop_of_its_paper() -> None:
    nets = [toy.network(5, 1), toy.network(5, 2), toy.network(5, 3)]
    x, y = toy.images(1, SIZE), torch.tensor([2])
    source = toy.source(*(toy.Toy(net, 5, str(i)) for i, net in enumerate(nets)))
    found = attack("MI|SVRE(2)")(source, x, y, EPS, toy.image_rng(1))
    adv, outer = x, torch.zeros_like(x)
    for t in range(STEPS):
        whole = loss_gradient(lambda z: sum(net(z) for net in nets) / 3, adv, y)  # type: ignore[arg-type,return-value]
        near, h = adv, torch.zeros_like(x)
        for k in torch.randint(3, (6,), generator=torch.Generator().manual_seed(t + 1)).tolist():
            h = h + unit(loss_gradient(nets[k], near, y) - (loss_gradient(nets[k], adv, y) - whole))
            near = clip(near + ALPHA * h.sign(), x)
        outer = outer + unit(h)
        adv = clip(adv + ALPHA * outer.sign(), x)
    assert share_different(found, adv) < 4e-3


@pytest.mark.parametrize("rule", ["losses", "gradients"])
def test_ensemble_rules(rule: str) -> None:
    nets = [toy.network(5, 1), toy.network(5, 2)]
    strong = [nets[0], lambda z: 30 * nets[1](z)]
    x, y = toy.images(3, SIZE), torch.arange(3)
    source = toy.source(*(toy.Toy(net, 5, str(i)) for i, net in enumerate(strong)))
    found = attack(f"ENS({rule})")(source, x, y, EPS, toy.image_rng(3))
    for i in range(3):
        one = slice(i, i + 1)
        adv = x[one]
        for _ in range(STEPS):
            parts = [loss_gradient(net, adv, y[one]) for net in strong]
            adv = clip(adv + ALPHA * sum(unit(g) if rule == "gradients" else g for g in parts).sign(), x[one])  # type: ignore[union-attr]
        assert share_different(found[one], adv) < 4e-3
    mean_logits = compose(f"I({STEPS})")(source, x, y, EPS, toy.image_rng(3))
    assert share_different(found, mean_logits) > 0.02


def test_their_gradients_are_counted() -> None:
    """Calls of the network on one image, which is what planning multiplies by the price of a gradient."""
    x, y = toy.images(1, SIZE), torch.tensor([0])
    for text in [*PLAIN, "MI|BSR(3)", "MI|SIA(3)", "VT(2)|NI|DI|TI(7)|SI", "MI|SVRE(2)"]:
        model = toy.Toy(NET, 5)
        made = attack(text)
        made(toy.source(model), x, y, EPS, toy.image_rng(1))
        assert len(model.seen) == made.gradients(16), text


PRESETS: dict[str, dict[str, object]] = {
    "vmi-fgsm": {"momentum": 1.0, "variance_samples": 20, "variance_range": 1.5},
    "vni-fgsm": {"momentum": 1.0, "nesterov": True, "variance_samples": 20, "variance_range": 1.5},
    "pi-fgsm": {"amplification": 10.0, "projection_size": 3},
    "admix": {"momentum": 1.0, "admix_mates": 3, "admix_share": 0.2, "scale_copies": 5},
    "ssa": {"momentum": 1.0, "spectrum_copies": 20, "spectrum_rho": 0.5, "spectrum_sigma": 16.0},
    "pgn": {"momentum": 1.0, "flat_samples": 20, "flat_range": 3.0, "flat_weight": 0.5},
    "bsr": {"momentum": 1.0, "shuffle_copies": 20, "shuffle_blocks": 2, "shuffle_angle": 0.2},
    "sia": {"momentum": 1.0, "structure_copies": 20, "structure_blocks": 3},
    "gra": {"momentum": 1.0, "relevance_samples": 20, "relevance_range": 3.5, "relevance_decay": 0.94},
    "svre-mi-fgsm": {"momentum": 1.0, "reduction_steps": 4, "reduction_momentum": 1.0},
    "tgr": {"momentum": 1.0, "token_gradients": True, "attention_factor": 0.25, "qkv_factor": 0.75, "mlp_factor": 0.5},
    "sgm": {"steps": 10, "alpha": 2.0, "skip_gamma": 0.2},
    "ilpd": {"steps": 100, "alpha": 1.0, "decay_share": 0.1, "decay_sigma": 0.05, "decay_layer": "auto"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_constants_of_author_code(name: str) -> None:
    found = registry.attack.resolve(name).value.resolved(16)
    wanted = {"steps": 10, "alpha": 1.6, **PRESETS[name]}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["GRA", "PI", "SVRE"])
def test_sign_step_attacks_refuse_an_l2_budget(text: str) -> None:
    with pytest.raises(ValueError, match="defined for L-infinity"):
        compose(f"MI|{text}").with_norm("l2")
