"""Shared by all tests."""

import os
import signal
from collections.abc import Iterator

import pytest

# A user's plugin: loaded by `--plugin`, under its own rules, never by pytest looking for doctests.
collect_ignore = ["plugin"]

# Started in the background by a shell, Python ignores Ctrl-C; tests that send it need the usual handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

MAY_SKIP = {"gpu", "network", "shared"}
"""Markers of tests that need what a stranger's machine may lack. Everything else is a package that CI installs."""

_skipped: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    excused = MAY_SKIP & {mark.name for mark in item.iter_markers()}
    if report.skipped and not excused and not hasattr(report, "wasxfail"):
        _skipped.append(f"{item.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that skips itself as a whole, by `importorskip` at its top, never becomes a test."""
    if report.skipped:
        _skipped.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI a skip is a failure, unless the test is marked as needing a GPU, the network or ../shared."""
    if _skipped and os.environ.get("RDP_BENCH_NO_SKIPS"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and os.environ.get("RDP_BENCH_NO_SKIPS"):
        terminalreporter.section("skipped, though CI installs what they need", red=True)
        for line in _skipped:
            terminalreporter.write_line(line)
