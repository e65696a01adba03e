"""Gradients that are not finite leave nothing behind."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from rdp_bench.errors import RdpBenchError
from rdp_bench.train import loop
from rdp_bench.train.loop import Training
from tests.helpers import toy_train

pytestmark = pytest.mark.usefixtures("toys")


def poisoned(training: Training, group: str, when: Callable[[int], bool], value: float = float("nan")) -> None:
    """Let the loss of one optimizer be no number."""
    steps = training.recipe.steps

    def bad(clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[tuple[str, Tensor]]:
        for name, loss in steps(clean, inputs, rng):
            yield name, loss * value if name == group and when(training.done) else loss

    training.recipe.steps = bad  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("group", ["main", "discriminator"])
def test_a_poisoned_update_is_left_out(
    tmp_path: Path, group: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    training = toy_train.training(tmp_path)
    poisoned(training, group, lambda done: done == 2, value)
    for _ in range(2):
        training.step(training._crops(training.done))
    before = toy_train.states(training)
    with caplog.at_level(logging.WARNING):
        training.step(training._crops(2))
    assert f"step 2: the gradient of {group} is not finite; this update is skipped" in caplog.text
    after = toy_train.states(training)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    others = {"purifier", "reconstructor", "main"} if group == "discriminator" else {"discriminator"}
    assert changed == others
    assert (training.skipped, training.done) == (1, 3)
    training.step(training._crops(3))
    assert all(value.isfinite().all() for value in toy_train.states(training).values())
    assert training.skipped == 1


def test_a_poisoned_batch_leaves_batch_statistics_alone(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "hgd")
    training.step(training._crops(0))
    before = toy_train.states(training)
    prepare = training.recipe.prepare
    training.recipe.prepare = lambda clean, rng: prepare(clean, rng) * float("nan")  # type: ignore[method-assign]
    training.step(training._crops(1))
    assert training.skipped == 1
    assert toy_train.same(before, toy_train.states(training))
    del training.recipe.prepare
    training.step(training._crops(2))
    assert not toy_train.same(before, toy_train.states(training))


def test_a_training_that_only_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the discriminator's updates succeed in between."""
    monkeypatch.setattr(loop, "PATIENCE", 4)
    training = toy_train.training(tmp_path)
    poisoned(training, "main", lambda done: done != 3)
    with pytest.raises(
        RdpBenchError, match=r"training rdp has failed: 4 updates in a row .* Lower --rate \(now 0\.004\)"
    ):
        training.run()
    assert training.done == 7  # three failures, one success, then four
    assert training.skipped == 7
