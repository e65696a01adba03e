"""`--average`: the moving average of the weights is validated and saved, by hand, for every recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rdp_bench.errors import UsageError
from rdp_bench.train.loop import Training
from tests.helpers import toy, toy_train
from tests.helpers.trainings import rows

pytestmark = pytest.mark.usefixtures("toys")

DECAY = 0.8


def floats(net: Any) -> dict[str, Tensor]:
    """Parameters and buffers that can be averaged, by value."""
    return {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", toy_train.NAMES)
def test_what_is_saved_is_the_average(name: str, tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, name, average=DECAY)
    training.validate = None
    trained = next(iter(training.recipe.nets.values()))
    expected: dict[str, Tensor] = {}
    for done in range(6):
        training.step(training._crops(done))
        share = min(DECAY, (1 + done) / (10 + done)) if expected else 0.0
        now = floats(trained)
        expected = {key: share * expected.get(key, value) + (1 - share) * value for key, value in now.items()}
    assert any(not torch.allclose(expected[key], now[key], atol=1e-5) for key in now)
    training._keep({}, "")
    saved = load_file(training.product_file)
    for key, value in expected.items():
        assert torch.allclose(saved[key].float(), value, atol=2e-3, rtol=2e-3), key
    product = floats(training.recipe.product)
    assert all(torch.allclose(product[key], value, atol=1e-6) for key, value in expected.items())


def test_the_validation_sees_the_average(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, average=DECAY)
    x = toy.images(2, 32)
    for done in range(4):
        training.step(training._crops(done))
    with torch.no_grad():
        found = training.recipe.purify(x)
        wanted = training.recipe.product(x).clamp(0, 1)
        last = training.recipe.nets["purifier"](x).clamp(0, 1)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.allclose(found, last, atol=1e-4)


def test_the_reconstruction_is_of_the_same_average(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, average=DECAY)
    for done in range(4):
        training.step(training._crops(done))
    whole = training.recipe.extra_exports()["rdp-reconstruction"].state_dict()
    purifier: Any = training.recipe.product
    for part, net in (("encoder", purifier.encoder), ("reconstructor", training.recipe.averaged("reconstructor"))):
        wanted = net.state_dict()
        assert wanted
        assert all(torch.equal(whole[f"{part}.{key}"], value) for key, value in wanted.items())


def test_a_resumed_training_has_the_same_average(tmp_path: Path) -> None:
    whole = toy_train.training(tmp_path / "whole", average=DECAY)
    whole.run()
    first = toy_train.training(tmp_path / "parts", average=DECAY)
    first.run("", lambda done, _: stop(first, done))
    second = toy_train.training(tmp_path / "parts", average=DECAY)
    second.resume()
    assert second.done == 5
    second.run()
    assert toy_train.same(toy_train.states(second), toy_train.states(whole))
    assert rows(second)[-1] == rows(whole)[-1]
    assert toy_train.same(second.best_state, whole.best_state)


def stop(training: Training, done: int) -> None:
    """Leave a checkpoint after five steps, and go no further."""
    if done == 5:
        training.save()
    if done == 6:
        training.done = training.options.steps


def test_it_is_not_trained_and_changes_no_weights(tmp_path: Path) -> None:
    with_it, without = (toy_train.training(tmp_path / str(decay), average=decay) for decay in (DECAY, 0.0))
    for training in (with_it, without):
        for done in range(3):
            training.step(training._crops(done))
    for name, net in without.recipe.nets.items():
        assert toy_train.same(dict(net.state_dict()), dict(with_it.recipe.nets[name].state_dict()))
    assert without.recipe.product is without.recipe.nets["purifier"]


def test_it_begins_with_the_weights_of_start(tmp_path: Path) -> None:
    made = toy_train.recipe("rdp", average=DECAY)
    other = toy_train.recipe("rdp", seed=1)
    save_file(
        {name: value.contiguous() for name, value in other.product.state_dict().items()}, tmp_path / "start.safetensors"
    )
    made.begin_with(load_file(tmp_path / "start.safetensors"), "rdp of size tiny", tmp_path / "start.safetensors")
    for net in (made.product, made.nets["purifier"]):
        assert toy_train.same(dict(net.state_dict()), dict(other.product.state_dict()))


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="--average is at least 0 and below 1"):
        toy_train.recipe("rdp", average=decay)


def test_the_target_has_a_blend_instead() -> None:
    from rdp_bench.train.recipes import get

    with pytest.raises(UsageError, match="--average has no effect on ens-adv"):
        get("ens-adv").settings("compact", {"average": 0.9})
