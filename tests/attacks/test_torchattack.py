"""The adapter of the torchattack package: its attacks on our sources, reproducible, within the budget."""

import random

import numpy as np
import pytest
import torch
import torchattack
from torch import Tensor

import rdp_bench.attacks.torchattack
from rdp_bench import registry
from rdp_bench.errors import UsageError
from tests.helpers import toy

EPS = 16 / 255


def run(text: str, x: Tensor, y: Tensor, picked: list[int] | None = None) -> Tensor:
    index = list(range(len(x))) if picked is None else picked
    rng = toy.image_rng(len(x)).select(torch.tensor(index))
    return registry.attack.resolve(text).value(toy.source(toy.conv()), x[index], y[index], EPS, rng)


@pytest.mark.parametrize("name", sorted(rdp_bench.attacks.torchattack.BUDGETS["linf"]))
def test_every_class_of_the_table_runs_within_the_budget(name: str) -> None:
    x, y = toy.images(2, 32), torch.arange(2)
    adv = run(f"torchattack:{name}" + ("" if name == "FGSM" else "(steps=2)"), x, y)
    assert float((adv - x).abs().max()) <= EPS + 1e-6
    assert float((adv - x).abs().mean()) > 0.5 / 255
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_it_runs_the_library_with_our_eps() -> None:
    x, y = toy.images(3, 16), torch.arange(3)
    theirs = torchattack.NIFGSM(toy.network(), None, torch.device("cpu"), eps=EPS, steps=3)
    expected = torch.cat([theirs(x[i : i + 1], y[i : i + 1]) for i in range(3)]).detach()
    assert float((run("torchattack:NIFGSM(steps=3)", x, y) - expected).abs().max()) < 1e-6


def test_random_attacks_are_reproducible_and_leave_the_global_streams_alone() -> None:
    x, y = toy.images(3, 32), torch.arange(3)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    wanted = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    together = run("torchattack:BSR(steps=2, num_scale=2)", x, y)
    assert (random.random(), np.random.rand()) == wanted  # noqa: NPY002
    assert torch.equal(run("torchattack:BSR(steps=2, num_scale=2)", x, y), together)
    assert torch.equal(run("torchattack:BSR(steps=2, num_scale=2)", x, y, [2, 0]), together[[2, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchattack:Admix", "mixes the images of a batch, .* use the attack 'admix'"),
        ("torchattack:FIA", "hooks into layers"),
        ("torchattack:LTP", "needs the weights of a trained generator"),
        ("torchattack:DeepFool", "fits no budget"),
        ("torchattack:BSRR", r"unknown torchattack attack 'BSRR'\. Did you mean 'BSR'\?"),
        ("torchattack:BSR(normalize=1)", "unknown parameter 'normalize' of torchattack:BSR"),
        ("torchattack:BSR(num_scale=0)", "num_scale is at least 1, found 0"),
        ("torchattack:MIFGSM(alpha=.0001)", "change no 8-bit pixel"),
        ("torchattack:FGSM(targeted=true)", "which targeted=true would attack towards; use TARGETED"),
    ],
)
def test_what_it_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.attack.resolve(text)


def test_every_attack_of_the_package_is_in_a_table() -> None:
    tables = rdp_bench.attacks.torchattack
    assert set(torchattack.ATTACK_REGISTRY) <= {*tables.BUDGETS["linf"], *tables.BUDGETS["l2"], *tables.REFUSED}


def test_its_key_holds_the_package_and_every_parameter() -> None:
    found = registry.attack.resolve("torchattack:VMIFGSM(n=3)").value.resolved(16)
    assert found["torchattack"] == torchattack.__version__
    assert found["params"] == {
        "eps": 16, "steps": 10, "alpha": None, "decay": 1.0, "n": 3, "beta": 1.5, "clip_min": 0.0, "clip_max": 1.0,
        "targeted": False,
    }  # fmt: skip
