"""Workers load every plugin of the process that drives them: here, none of what other tests loaded."""

from collections.abc import Iterator

import pytest
import torch

from rdp_bench import plugins
from rdp_bench.registry import registries
from tests.helpers.plans import new_process


@pytest.fixture(autouse=True)
def _without_plugins() -> Iterator[None]:
    with new_process():
        for registry in registries.values():
            for name in [name for name in registry.entries if "/" in name]:
                del registry.entries[name]
        plugins._loaded.clear()
        yield


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker has as many threads as the process that drives it; the nodes of the tests have one core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
