"""A worker from plain data: the same plan anywhere, or one line that says why not."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from rdp_bench.cache.store import Store
from rdp_bench.engine.executors import board as boards
from rdp_bench.engine.executors import spec as specs
from rdp_bench.engine.executors.board import Board, digest
from rdp_bench.engine.executors.spec import WorkerSpec, make_worker, spec_of
from rdp_bench.errors import RdpBenchError, StorageError
from tests.helpers.plans import new_process, plan

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def _same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


def written(folder: Path, *files: Path, **axes: object) -> WorkerSpec:
    """The specification of a run that has begun in `folder`."""
    with new_process():
        made = plan(folder, *files, **axes)  # type: ignore[arg-type]
        found = spec_of(made, limit=4, batch_size=2, models_dir=None)
        Board(made.store, found.plan).begin(made, {})
    return WorkerSpec.read(json.loads(json.dumps(found.json())))


def mine(folder: Path) -> Path:
    """A plugin of two files."""
    (folder / "beside.py").write_text("LEVELS = 4\n")
    path = folder / "mine.py"
    path.write_text(
        "from beside import LEVELS\nfrom rdp_bench import Purifier, defense\n\n"
        '@defense("mine/round", source="made up")\nclass Round(Purifier):\n    """Rounds."""\n\n'
        "    def purify(self, x, rng):\n        return (x * LEVELS).round() / LEVELS\n"
    )
    return path


def test_the_plan_is_the_same_in_another_process(tmp_path: Path) -> None:
    spec = written(tmp_path, defenses=("none", "tiny/round"), image_quality=True, ensembles={"both": ("tiny/one",)})
    worker, board = make_worker(spec)
    assert digest(worker.plan) == spec.plan
    assert tuple(job.key for job in (*worker.plan.jobs, *worker.plan.clean_checks)) == spec.keys
    assert board.run == spec.plan
    assert (worker.batch, worker.size) == (2, 2)


def test_a_plugin_that_the_machine_lacks_is_brought_along(tmp_path: Path) -> None:
    (tmp_path / "plugin").mkdir()
    file = mine(tmp_path / "plugin")
    spec = written(tmp_path, file, defenses=("none", "mine/round"))
    file.unlink()
    (tmp_path / "plugin/beside.py").unlink()
    worker, _ = make_worker(spec)
    assert digest(worker.plan) == spec.plan


def test_a_plugin_that_was_edited_since_is_used_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "plugin").mkdir()
    spec = written(tmp_path, mine(tmp_path / "plugin"), defenses=("none", "mine/round"))
    (tmp_path / "plugin/beside.py").write_text("LEVELS = 5\n")
    worker, _ = make_worker(spec)
    assert digest(worker.plan) == spec.plan


def refused(spec: WorkerSpec) -> str:
    with pytest.raises(RdpBenchError) as error:
        make_worker(spec)
    text = str(error.value)
    assert text.startswith(f"host {HOST}: ")
    assert "\n" not in text
    return text


def test_other_versions_are_refused(tmp_path: Path) -> None:
    spec = written(tmp_path)
    other = dataclasses.replace(spec, versions={**spec.versions, "torch": "1.0", "only-there": "3"})
    text = refused(other)
    assert "torch is " in text
    assert "1.0 on the driver" in text
    assert "only-there is absent there and 3 on the driver" in text


def test_builds_of_one_version_are_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "versions", lambda: {"torch": "2.9.0+cu130", "python": "3.11.1"})
    spec = written(tmp_path)
    monkeypatch.setattr(specs, "versions", lambda: {"torch": "2.9.0+cpu", "python": "3.11.2"})
    make_worker(spec)


def test_a_plugin_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plugin").mkdir()
    file = mine(tmp_path / "plugin")
    spec = written(tmp_path, file, defenses=("none", "mine/round"))
    (tmp_path / "plugin/beside.py").write_text("LEVELS = 5\n")
    text = refused(dataclasses.replace(spec, shipped={}))
    assert "'mine/round against clean images' has another key there" in text


def test_a_cache_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    spec = written(tmp_path)
    assert "same folder on all machines" in refused(dataclasses.replace(spec, cache=str(tmp_path / "other")))


def test_a_cache_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = written(tmp_path)

    def full(path: Path, content: bytes) -> None:
        raise StorageError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(boards, "write_atomic", full)
    assert "the cache cannot be written to: " in refused(spec)


def test_only_what_the_run_needs_crosses(tmp_path: Path) -> None:
    spec = written(tmp_path)
    assert {field.name for field in dataclasses.fields(spec)} == {
        "grid", "cache", "seed", "device", "limit", "batch_size", "threads", "folder", "models_dir", "plugins",
        "shipped", "versions", "environment", "plan", "keys", "precision",
    }  # fmt: skip
    assert Store(Path(spec.cache)).root == tmp_path / "cache"
