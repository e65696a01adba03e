"""Calls inside of `torch.inference_mode()`, as scripts that only judge write them: what they load can be attacked."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import rdp_bench
from defenses import _learned
from rdp_bench.models import classifier
from rdp_bench.numerics import resizing
from tests.helpers import toy

PHOTOS, LABELS = toy.images(2, 40), torch.tensor([1, 2])


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """As in a new process; and nothing of this one is left for other tests."""

    def clear() -> None:
        for kept in (classifier._loaded, _learned._networks()):
            kept.clear()
        for matrices in (resizing.resize_matrix, resizing._transposed):
            matrices.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.parametrize("name", ["hgd", "rdp", "jpeg", "dds"])
def test_what_was_loaded_in_inference_mode_has_gradients(name: str) -> None:
    with torch.inference_mode():
        model, defense = rdp_bench.load_model("effnet-lite0"), rdp_bench.load_defense(name)
        judged = model(defense(PHOTOS))
    x = PHOTOS.clone().requires_grad_()
    logits: Any = model(x)
    assert torch.allclose(model(defense(PHOTOS)), judged, atol=1e-5)
    (grad,) = torch.autograd.grad(logits.logsumexp(1).sum() + defense(x).square().sum() * bool(name != "jpeg"), x)
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


def test_an_attack_in_inference_mode_is_that_outside() -> None:
    attack, model = rdp_bench.load_attack("dim(steps=2)"), rdp_bench.load_model("effnet-lite0")
    with torch.inference_mode():
        found = attack(model, PHOTOS, LABELS, 8 / 255)
    assert not found.is_inference()
    assert torch.equal(found, attack(model, PHOTOS, LABELS, 8 / 255))
    assert (found - PHOTOS).abs().max() > 0


def test_a_run_in_inference_mode_is_that_outside(tmp_path: Any) -> None:
    def errors(place: str) -> list[float]:
        found = rdp_bench.evaluate(
            defenses=["none", "bit-red"], attacks="fgsm", sources="effnet-lite0", targets="effnet-lite0", limit=2,
            image_size=64, eps=16, dataset="photos20", cache=tmp_path / place, progress=False,
        )  # fmt: skip
        return [float(value) for value in found.to_dataframe()["value"]]

    with torch.inference_mode():
        found = errors("in")
    assert found == errors("out")
