"""Fixtures of the tests of training."""

import pytest

from rdp_bench.train.loop import Training
from tests.helpers import toy_train


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_train.install(monkeypatch.setitem)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Ten steps in one go."""
    with pytest.MonkeyPatch.context() as patch:
        toy_train.install(patch.setitem)
        training = toy_train.training(tmp_path_factory.mktemp("whole"), features=("toy/one", "toy/two"))
        training.run()
    return training
