"""Ensemble adversarial training: what the student is fed, what its loss is, what is kept of it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from rdp_bench.errors import UsageError
from rdp_bench.models.zoo import find
from rdp_bench.train.loop import Training
from rdp_bench.train.options import Options
from rdp_bench.train.recipes.ens_adv import EnsAdv
from rdp_bench.weights.files import read_tensors
from tests.helpers import toy_train
from tests.helpers.paths import ROOT


class Eye(nn.Module):
    """Three logits of `[n, 3, h, w]`: the mean colour, weighted. Remembers the zooms it was told."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.zooms: list[float] = []

    def forward(self, x: Tensor, zoom: float = 1.0) -> Tensor:
        self.zooms.append(zoom)
        return x.mean((2, 3)) @ self.weight


def recipe(**options: Any) -> Any:
    """A training between two toy sources, teacher and student apart."""
    made: Any = object.__new__(EnsAdv)
    made.options = Options("ens-adv", **{"batch": 4, "attack_steps": 3, **options})
    made.device, made.weights = "cpu", dict(EnsAdv.loss_weights)
    rng = Generator().manual_seed(3)
    made.teacher = Eye(torch.randn(3, 3, generator=rng)).requires_grad_(False)
    made.sources = [Eye(torch.randn(3, 3, generator=rng)) for _ in range(2)]
    made.nets = {"student": copy.deepcopy(made.teacher).requires_grad_(True)}
    made.nets["student"].weight.data += torch.randn(3, 3, generator=rng)
    made.terms = {}
    return made


def photos() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(0))


def test_inputs_move_against_the_sources_and_stay_within_eps() -> None:
    made, clean = recipe(), photos()
    used = set()
    for seed in range(8):
        adv = made.prepare(clean, Generator().manual_seed(seed))
        moved = (adv - made.clean).abs().amax((1, 2, 3)) * 255
        assert adv.shape == (4, 3, 256, 256)
        assert adv.min() >= 0
        assert adv.max() <= 1
        assert moved.max() <= 16 + 1e-3
        assert moved[0] > 15  # the first quarter of a batch gets all of eps
        assert moved.min() > 3.9  # and nobody less than a quarter of it
        used |= {i for i, source in enumerate(made.sources) if len(source.zooms) > seed}
        for source in made.sources:
            assert set(source.zooms) <= {256 / 299}
    assert used == {0, 1}  # by turns


def test_the_loss_is_the_divergence_from_the_teachers_clean_view() -> None:
    made, clean = recipe(), photos()
    adv = made.prepare(clean, Generator().manual_seed(1))
    ((name, loss),) = made.steps(clean, adv, Generator())
    wanted = made.teacher(made.clean).softmax(1)

    def divergence(x: Tensor) -> Tensor:
        log_q = made.nets["student"](x).log_softmax(1)
        return (wanted * (wanted.log() - log_q)).sum(1).mean()

    assert name == "main"
    assert torch.allclose(loss, divergence(made.clean) + divergence(adv), atol=1e-6)


@pytest.mark.parametrize("blend", [0.0, 0.25, 1.0])
def test_the_product_lies_between_teacher_and_student(blend: float) -> None:
    made = recipe(blend=blend)
    before = made.teacher.weight.clone()
    expected = (1 - blend) * before + blend * made.nets["student"].weight
    assert torch.allclose(made.blended().weight, expected, atol=1e-6)
    assert torch.equal(made.teacher.weight, before)


def test_a_blend_beyond_the_student_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--blend is between 0 and 1, found 1\.5"):
        Options("ens-adv", blend=1.5)


def test_a_product_is_a_start() -> None:
    """The weights that ship, in the student: its logits are those of the shipped target; the teacher is as it was."""
    made = EnsAdv(EnsAdv.settings("compact", {"features": ("effnet-lite0",)}), "cpu")
    file = ROOT / "data" / "weights" / "effnet-lite2-ens.safetensors"
    before = made.teacher(photos(), 0.5)
    sources = {name: find(name).load("cpu").weights_hash for name in ("effnet-lite0", "effnet-lite2")}
    assert made.frozen_hashes() == sources
    made.begin_with(read_tensors(file), "ens-adv", file)
    with torch.no_grad():
        found, wanted = made.nets["student"](photos(), 0.5), find("effnet-lite2-ens").load("cpu")(photos(), 0.5)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert torch.equal(made.teacher(photos(), 0.5), before)
    assert not torch.allclose(found, before, atol=0.1)


def test_images_and_the_teachers_view_are_in_float32_whatever_the_student_uses(tmp_path: Path) -> None:
    made = {}
    for precision in ("float32", "bfloat16"):
        options = EnsAdv.settings("compact", {"features": ("effnet-lite0",), "batch": 2, "crop": 32,
                                              "attack_steps": 1, "precision": precision})  # fmt: skip
        training = Training(EnsAdv(options, "cpu"), toy_train.photos(), tmp_path / precision)
        training.step(training._crops(0))
        made[precision] = training.recipe
    assert torch.equal(made["float32"].clean, made["bfloat16"].clean)
    assert torch.equal(made["float32"].wanted, made["bfloat16"].wanted)
