"""Fixtures of the tests of reports."""

import pytest

from rdp_bench.reports.figures import drawing


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but what is saved is empty: for pages whose figures are not looked at."""
    saved = {"svg": b"<svg></svg>", "pdf": b"", "png": b""}
    monkeypatch.setattr(drawing, "save", lambda figure: saved)
