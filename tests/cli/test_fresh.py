"""`run --fresh` computes the selected cells again, and no others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process

GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
image_quality = true
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(GRID)
    with new_process():
        yield tmp_path / "out"


def run(out: Path, *args: object, grid: str = "tiny.toml") -> Result:
    return cli("run", "--grid", out.parent / grid, "--plugin", PLUGIN, "--out", out, *args)


def written(out: Path) -> dict[str, int]:
    """The inode of each shard of the cache: another one was written anew."""
    root = out.parent / "cache"
    found = {str(path.relative_to(root)): path for path in root.glob("*/??/*/*.safetensors")}
    for path in found.values():  # kept elsewhere, so that no number is used again
        kept = out.parent / "kept" / str(path.stat().st_ino)
        kept.parent.mkdir(exist_ok=True)
        if not kept.exists():
            kept.hardlink_to(path)
    return {name: path.stat().st_ino for name, path in found.items()}


def test_fresh_makes_everything_selected_again(out: Path) -> None:
    assert run(out).exit_code == 0
    before, results = written(out), (out / "results.csv").read_text()
    kinds = {name.partition("/")[0] for name in before}
    assert kinds == {"adv", "eval", "image_quality", "sample"}
    assert run(out).exit_code == 0
    assert written(out) == before
    assert run(out, "--fresh").exit_code == 0
    after = written(out)
    assert set(after) == set(before)
    assert not {name for name in before if after[name] == before[name]}
    strip = [line.rpartition(",")[0] for line in results.splitlines()]
    assert [line.rpartition(",")[0] for line in (out / "results.csv").read_text().splitlines()] == strip


def test_fresh_leaves_what_is_not_selected(out: Path) -> None:
    assert run(out).exit_code == 0
    before = written(out)
    assert run(out, "--fresh", "--defense", "none").exit_code == 0
    after = written(out)
    kept = {name for name in before if after[name] == before[name]}
    assert {name.partition("/")[0] for name in kept} == {"eval", "image_quality", "sample"}  # those of tiny/round


def test_fresh_takes_nothing_over_from_a_run_of_more_images(out: Path) -> None:
    assert run(out).exit_code == 0
    before = set(written(out).values())
    assert run(out, "--limit", 4).exit_code == 0
    copied = set(written(out).values()) - before
    assert run(out, "--limit", 4, "--fresh").exit_code == 0
    assert not copied & set(written(out).values())  # made again, not copied again


def test_a_dry_run_of_fresh_deletes_nothing(out: Path) -> None:
    assert run(out).exit_code == 0
    before = written(out)
    found = run(out, "--fresh", "--dry-run")
    assert "everything is cached" not in found.output
    assert "about" in found.output
    assert written(out) == before


def test_grids_of_a_list_share_what_one_of_them_made_afresh(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.engine.worker import Worker

    (out.parent / "other.toml").write_text(GRID)
    (out.parent / "both.toml").write_text('title = "Both"\ngrids = ["tiny.toml", "other.toml"]\n')
    assert run(out, grid="both.toml").exit_code == 0
    crafted = []
    real = Worker._craft
    monkeypatch.setattr(Worker, "_craft", lambda self, job: crafted.append(job.key) or real(self, job))
    assert run(out, "--fresh", grid="both.toml").exit_code == 0
    assert len(crafted) == 1
