"""The commands of docs/results can be planned by anybody who has the images."""

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.commands import cli
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

SHARED = ROOT.parent / "shared"
BOOK = ROOT / "docs" / "results"
PAGES = [path for path in sorted(BOOK.glob("*.md")) if path.stem not in ("published", "submitting")]
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("rdp-bench run ")
]


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "nips17").is_dir(), reason="../shared/nips17 is not here")
@pytest.mark.parametrize("grid", ["table2", "table3", "figure8"])
def test_a_command_of_the_results_plans(grid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two of the 500 images, in folders called as on the page: one grid of each kind, for a plan takes seconds."""
    (line,) = [line for line in COMMANDS if f"--grid {grid} " in line]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "nips2017").symlink_to(SHARED / "nips17")
    (tmp_path / "weights").symlink_to(SHARED / "weights")
    with new_process():
        done = cli(*shlex.split(line)[1:], "--limit", "2", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "estimated time" in done.output


def test_there_are_commands_and_all_but_one_use_the_named_images() -> None:
    assert len(PAGES) == 10
    assert len(COMMANDS) == 9
    assert [line for line in COMMANDS if '--dataset "nips2017(subset=every-second)"' not in line] == [
        "rdp-bench run --grid adaptive"
    ]
