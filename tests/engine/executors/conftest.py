"""Workers load every plugin of the process that drives them: here, none of what other tests loaded."""

from collections.abc import Iterator

import pytest

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
