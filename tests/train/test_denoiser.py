"""The denoiser's training: noise, loss, the average that is exported, and its validation, each by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from rdp_bench.registry import defense
from rdp_bench.train.recipe import Recipe
from rdp_bench.train.recipes.denoiser import NoiseValidation
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def recipe() -> Any:
    return toy_train.recipe("denoiser")


def rng() -> Generator:
    return Generator().manual_seed(3)


def test_noise_levels_are_half_of_a_square(recipe: Any) -> None:
    clean = torch.full((4000, 3, 8, 8), 0.5)
    noisy = recipe.prepare(clean, rng())
    measured = (noisy - clean).flatten(1).std(1)
    assert torch.allclose(measured, recipe.sigma, rtol=0.35)
    assert (measured / recipe.sigma).mean().item() == pytest.approx(1, abs=0.01)
    share = (recipe.sigma / 0.5).sqrt()  # uniform, above the smallest level
    for quantile in (0.25, 0.5, 0.9):
        assert share.quantile(quantile).item() == pytest.approx(quantile, abs=0.03)
    assert 0.002 <= recipe.sigma.min() < 0.003
    assert noisy.min() < 0  # not clamped


def test_the_loss_weighs_every_level_alike(recipe: Any) -> None:
    """EDM: the error over c_out, so that an untrained F, which is nearly 0, costs about the variance of its target."""
    clean = toy.images(4, 32)
    noisy = recipe.prepare(clean, rng())
    ((name, loss),) = recipe.steps(clean, noisy, rng())
    expected = []
    for i, sigma in enumerate(recipe.sigma.tolist()):
        error = recipe.nets["denoiser"](noisy[i : i + 1], recipe.sigma[i : i + 1]) - clean[i : i + 1]
        c_out = sigma * 0.25 / (sigma**2 + 0.25**2) ** 0.5
        expected.append((error.square().mean() / c_out**2).item())
    assert name == "main"
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-4)


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def advance(recipe: Recipe) -> None:
    clean = toy.images(2, 32)
    ((_, loss),) = recipe.steps(clean, recipe.prepare(clean, rng()), rng())
    loss.backward()  # type: ignore[no-untyped-call]
    recipe.optimizers["main"].step()


def test_what_is_exported_is_a_moving_average(recipe: Any) -> None:
    expected = None
    for done in range(6):
        advance(recipe)
        now = weights(recipe.nets["denoiser"])
        share = min(0.998, (1 + done) / (10 + done))
        expected = now if expected is None else share * expected + (1 - share) * now
        average = torch.cat([tensor.flatten() for tensor in recipe.export().values()])
        assert torch.allclose(average, expected, atol=1e-6)
    assert not torch.allclose(average, now, atol=1e-4)
    assert recipe.export().keys() == recipe.nets["denoiser"].state_dict().keys()


def test_the_average_is_not_trained(recipe: Any) -> None:
    trained = {id(p) for group in recipe.optimizers["main"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in recipe.nets["denoiser"].parameters()}


def test_validation_is_the_entrys_psnr(recipe: Any) -> None:
    advance(recipe)
    clean = toy.images(3, 36)
    validation = NoiseValidation(clean, recipe)
    found = validation(recipe.purify)
    assert validation.undefended["psnr_sigma_0.1"] == pytest.approx(20, abs=0.2)
    assert validation.undefended["psnr_sigma_0.5"] == pytest.approx(6, abs=0.2)
    noisy = validation.sets[0.25]
    with torch.no_grad():
        denoised = recipe.product(noisy, torch.full((3,), 0.25)).clamp(0, 1)
    psnr = -10 * (denoised - clean).square().mean((1, 2, 3)).log10()
    assert found["psnr_sigma_0.25"] == pytest.approx(psnr.mean().item(), abs=1e-3)
    levels = [found[f"psnr_sigma_{level}"] for level in ("0.1", "0.25", "0.5")]
    assert found["score"] == pytest.approx(-sum(levels) / 3)


def test_a_training_learns_and_its_file_is_the_entrys(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "denoiser", steps=60, rate=5e-3)
    photos = toy_train.photos()
    clean = torch.stack([torch.from_numpy(photos.image(i)[:, :32, :32].copy()) for i in range(2)]).float() / 255
    validation = NoiseValidation(clean, training.recipe)  # type: ignore[arg-type]
    before = validation(training.recipe.purify)["score"]
    training.run()
    after = validation(training.recipe.purify)["score"]
    assert after < before - 0.3
    metadata = weight_files.read_metadata(training.product_file)
    assert (metadata["defense"], metadata["net"]) == ("denoiser", {"widths": [4, 6], "blocks": 1})
    made: Any = defense.resolve(f"denoiser(weights={training.product_file})").value
    assert made.resolved()["net"] == metadata["net"]
