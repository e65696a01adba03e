"""OUT/predictions during a run: what is done is kept, and it is not written at every save."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine import run as engine
from rdp_bench.engine.jobs import EvaluateJob, Job, JobResult, Work
from rdp_bench.engine.run import Run
from rdp_bench.engine.schedule import run_here
from rdp_bench.engine.worker import Worker
from rdp_bench.results.prediction_file import PredictionWriter
from rdp_bench.results.rows import load_run
from rdp_bench.results.verify import verify
from tests.helpers.plans import plan


def stopped(jobs: Iterable[Job], work: Work, after: int) -> Iterator[JobResult]:
    """Does so many jobs, then is interrupted."""
    for number, outcome in enumerate(run_here(list(jobs), work)):
        if number == after:
            raise KeyboardInterrupt
        yield outcome


@pytest.fixture
def running(tmp_path: Path) -> Run:
    return Run(plan(tmp_path, attacks=("fgsm", "mi-fgsm"), defenses=("none", "tiny/round")), tmp_path / "out", "test")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many results each version of OUT/predictions contains."""
    found: list[int] = []
    real: Callable[..., Any] = PredictionWriter.commit

    def commit(self: PredictionWriter, *args: Any) -> Any:
        made = real(self, *args)
        found.append(made["artefacts"] if made else 0)
        return made

    monkeypatch.setattr(PredictionWriter, "commit", commit)
    return found


def test_an_interrupted_run_keeps_what_is_done(running: Run) -> None:
    jobs = running.start()
    with pytest.raises(KeyboardInterrupt):
        running.follow(stopped(jobs, Worker(running.plan, 4), 5))
    done = sum(isinstance(job, EvaluateJob) for job in jobs[:5])
    assert done == 4
    found = load_run(running.out / "runs" / "toy.json", None)
    assert len(found.wrong) == done
    assert sorted(cell.status for cell in found.cells) == ["done"] * done + ["pending"] * 2
    (checked,) = verify(running.out)
    assert (checked.problems, checked.cells, checked.open) == ((), done, 2)
    again = Run(running.plan, running.out, "test")
    again.execute(again.start(), Worker(again.plan, 4))
    assert len(load_run(running.out / "runs" / "toy.json", None).wrong) == 6
    assert len(list((running.out / "predictions").iterdir())) == 1


def test_a_save_does_not_write_predictions(running: Run, commits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = running.start()
    saves: list[str] = []
    real = Run.save
    monkeypatch.setattr(Run, "save", lambda self: (saves.append(""), real(self)))
    running.follow(run_here(jobs, Worker(running.plan, 4)), save_every=0)
    assert commits == [0, 6]
    assert len(saves) > 6


def test_a_long_run_writes_them_in_between(running: Run, commits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "KEEP_EVERY", 0.0)
    running.execute(running.start(), Worker(running.plan, 4))
    assert commits == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert len(list((running.out / "predictions").iterdir())) == 1


def test_a_kill_between_two_versions_leaves_the_cache(running: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, a run has written its record after the last version of OUT/predictions."""
    jobs = running.start()
    running.execute(jobs[:2], Worker(running.plan, 4))
    first = running.record["predictions"]
    monkeypatch.setattr(Run, "keep_predictions", Run.save)
    running.execute(jobs[2:], Worker(running.plan, 4))
    assert running.record["predictions"] == first
    path = running.out / "runs" / "toy.json"
    alone, cached = load_run(path, None), load_run(path, running.plan.store)
    assert (len(alone.wrong), len(cached.wrong)) == (2, 6)
    assert all("does not contain them" in why for why in alone.unread.values())
    assert any("4 results of toy were read from the cache" in text for text in cached.record["warnings"])


def test_a_cached_run_writes_the_same_file(running: Run, tmp_path: Path) -> None:
    running.execute(running.start(), Worker(running.plan, 4))
    other = Run(running.plan, tmp_path / "other", "test")
    assert other.start() == []
    one, two = (next((each.out / "predictions").iterdir()) for each in (running, other))
    assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())
