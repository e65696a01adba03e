"""The local web server, with short pauses and timeouts."""

from collections.abc import Iterator

import pytest

from rdp_bench.download import http as download_module
from tests.helpers.web_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    monkeypatch.setattr(download_module, "TIMEOUT", 0.3)
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()
