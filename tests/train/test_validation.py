"""What validation measures while a purifier trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdp_bench import plugins
from rdp_bench.registry import defense
from rdp_bench.train import validate
from rdp_bench.train.validate import Validation
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train

pytestmark = pytest.mark.usefixtures("toys")


def test_validation_sees_what_the_defense_will_do(tmp_path: Path) -> None:
    """What a recipe shows to validation is what its entry makes of the exported file."""
    plugins.load()
    for name in toy_train.NAMES:
        training = toy_train.training(tmp_path, name)
        for _ in range(2):
            training.step(training._crops(training.done))
        path = tmp_path / f"{name}.safetensors"
        weight_files.save(path, training.recipe.export(), training.metadata(""), half=False)
        x = toy.images(2, 224)
        shown = training.recipe.purify(x).detach()
        made = defense.resolve(f"{name}(weights={path})").value.purify(x, toy.image_rng(2))
        assert shown.shape == made.shape
        # Batch-norms are folded in the one and not in the other.
        assert torch.allclose(shown, made.detach(), atol=1e-5)


@pytest.fixture
def toy_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "SOURCE", "toy/one")
    monkeypatch.setattr(validate, "JUDGE", "toy/two")
    monkeypatch.setattr(validate, "SelfSupervised", lambda steps: validate.__dict__["_ssp"](steps=steps, level=1))
    from rdp_bench.attacks.ssp import SelfSupervised

    monkeypatch.setattr(validate, "_ssp", SelfSupervised, raising=False)


def test_validation_counts_agreement_and_psnr(toy_judges: None) -> None:
    clean = (toy.images(4, 32) * 255).round() / 255
    found = Validation(clean, "cpu")
    assert set(found.sets) == {"clean", "ssp", "mi-fgsm"}
    for name in ("ssp", "mi-fgsm"):
        assert 15 <= float((found.sets[name] - clean).abs().max()) * 255 <= 16.01
    # The identity: what is there without a defense.
    seen = found(lambda x: x)
    assert {key: seen[key] for key in found.undefended} == found.undefended
    assert seen["agree_clean"] == 100
    assert seen["psnr_clean"] == pytest.approx(100)
    for name in ("ssp", "mi-fgsm"):
        mse = ((found.sets[name] - clean) ** 2).mean((1, 2, 3)).numpy()
        assert seen[f"psnr_{name}"] == pytest.approx(float(np.mean(-10 * np.log10(mse))), rel=1e-4)
    judge = toy_train.Maps("", 10)
    logits = {name: judge(images) for name, images in found.sets.items()}
    wanted = logits["clean"].softmax(1)
    divergence = [float((wanted * (wanted.log() - other.log_softmax(1))).sum(1).mean()) for other in logits.values()]
    assert seen["score"] == pytest.approx(divergence[0] + sum(divergence[1:]) / 2, rel=1e-3)
    agreed = [float((other.argmax(1) == wanted.argmax(1)).float().mean()) * 100 for other in logits.values()]
    assert [seen[f"agree_{name}"] for name in logits] == agreed
    # A perfect purifier.
    place = {name: iter([clean]) for name in found.sets}
    perfect = found(lambda x: next(next(p for n, p in place.items() if torch.equal(found.sets[n], x))))
    assert perfect["score"] == pytest.approx(0, abs=1e-6)
    assert perfect["psnr_ssp"] == pytest.approx(100)


def test_validation_attacks_at_16_whatever_eps_trains_on(toy_judges: None) -> None:
    clean = (toy.images(2, 32) * 255).round() / 255
    found: Any = toy_train.recipe("rdp", eps=4.0).validation(clean)
    for name in ("ssp", "mi-fgsm"):
        assert 15 <= float((found.sets[name] - clean).abs().max()) * 255 <= 16.01


def test_validation_of_larger_images(toy_judges: None) -> None:
    """A super-resolved image is judged at its size, told so, and compared after reduction."""
    clean = toy_train.photos(((32, 32),)).image(0)
    found = Validation(torch.from_numpy(clean.copy())[None].float() / 255, "cpu")
    zooms = found.judge.zooms
    del zooms[:]
    seen = found(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert 2.0 in zooms
    assert seen["psnr_clean"] > 30
