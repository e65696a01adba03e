"""Rows of jobs done by several workers, and shares of a plan: the store is that of a run in one process, bit by bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.api import place
from rdp_bench.api.place import Where
from rdp_bench.api.work import work
from rdp_bench.cache.store import Artefact
from rdp_bench.engine import executors, tasks
from rdp_bench.engine.jobs import CraftJob
from rdp_bench.engine.options import Placement, Shard
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.run import Run
from rdp_bench.engine.tasks import numbered
from rdp_bench.engine.worker import Worker
from tests.helpers.plans import new_process, plan
from tests.helpers.pools import TakingTurns
from tests.helpers.stores import contents

AXES: dict[str, Any] = {
    "limit": 8, "attacks": ("fgsm", "mi-fgsm(steps=3)"), "sources": ("tiny/one", "white-box"),
    "defenses": ("none", "tiny/dither", "tiny/round"), "image_quality": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with new_process():
        yield


def serial(folder: Path) -> dict[Any, str]:
    made = plan(folder, **AXES)
    running = Run(made, folder / "out", "serial")
    work(running, running.start(), 2, show_bar=False)
    return contents(folder / "cache")


def spread(made: Plan, out: Path, monkeypatch: pytest.MonkeyPatch, workers: int = 3) -> tuple[Run, TakingTurns]:
    pools: list[TakingTurns] = []

    def make(*given: Any) -> TakingTurns:
        pools.append(TakingTurns(*given))
        return pools[-1]

    monkeypatch.setattr(executors, "make", make)
    monkeypatch.setattr(tasks, "PARTS_PER_WORKER", 20)  # all jobs are cut
    running = Run(made, out, "spread")
    where = Where(Placement("turns", workers), limit=AXES["limit"], batch_size=2)
    work(running, running.start(), 2, show_bar=False, where=where)
    return running, pools[0]


def test_workers_that_share_rows_store_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = serial(tmp_path / "serial")
    made = plan(tmp_path / "spread", **AXES)
    running, pool = spread(made, tmp_path / "spread/out", monkeypatch)
    assert {cell.status for cell in running.cells.values()} == {"done"}
    assert contents(tmp_path / "spread/cache") == wanted
    sent = [task for some in pool.did.values() for task in some]
    assert len(pool.did) == 3
    assert len(sent) == len(set(sent)) > 2 * len({task.number for task in sent})
    # Clean accuracies are measured too, by the workers.
    assert all("measured_accuracy" in model for model in running.record["models"].values())


def test_shares_store_the_same_bits_and_leave_nothing_to_do(tmp_path: Path) -> None:
    wanted = serial(tmp_path / "serial")
    stored: dict[Any, str] = {}
    for number in (2, 3, 1):  # in any order
        made = plan(tmp_path / f"own{number}", **AXES)  # even without a store in common
        running = Run(made, tmp_path / "out", "share")
        where = Where(Placement(), limit=8, batch_size=2, shard=Shard(number, 3))
        work(running, running.start(), 2, show_bar=False, where=where)
        share = contents(tmp_path / f"own{number}/cache")
        assert share
        assert not [row for row, _ in share.keys() & stored.keys() if row[0] == "adv"]  # one share crafts a set
        stored |= share
        # In a store in common:
        made = plan(tmp_path / "common", **AXES)
        running = Run(made, tmp_path / "out", "share")
        work(running, running.start(), 2, show_bar=False, where=where)
    assert stored == wanted
    assert contents(tmp_path / "common/cache") == wanted
    last = Run(plan(tmp_path / "common", **AXES), tmp_path / "out", "plain")
    assert last.start() == []
    assert {cell.status for cell in last.cells.values()} == {"done"}


def test_failures_and_remarks_of_workers_reach_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = tmp_path / "noting.py"
    noting.write_text(
        "from dataclasses import dataclass\nfrom typing import Any\nfrom rdp_bench import attack\n\n"
        '@attack("mine/noting", source="made up")\n@dataclass(frozen=True)\nclass Noting:\n    """Notes."""\n\n'
        "    def __call__(self, source: Any, x: Any, y: Any, eps: float, rng: Any) -> Any:\n"
        "        return (x + eps).clamp(0, 1)\n\n"
        "    def resolved(self, eps_255: float) -> dict[str, Any]:\n        return {}\n\n"
        "    def gradients(self, eps_255: float) -> int:\n        return 1\n\n"
        '    def notes(self) -> list[str]:\n        return ["seen elsewhere"]\n'
    )
    axes = {**AXES, "sources": ("tiny/one",), "attacks": ("mine/noting", "tiny/sleepy(broken=true)")}
    made = plan(tmp_path, noting, **{**axes, "defenses": ("none", "tiny/nan")})
    running, _ = spread(made, tmp_path / "out", monkeypatch)
    assert running.record["warnings"].count("seen elsewhere") == 1
    reasons = {f"{cell.attack} {cell.defense}": cell.reason for cell in running.cells.values()}
    assert reasons["mine/noting none"] == ""
    assert "NaN" in reasons["mine/noting tiny/nan"]
    assert reasons["tiny/sleepy(broken=true) none"].startswith("its adversarial set failed: ")
    assert "this attack is broken" in reasons["tiny/sleepy(broken=true) none"]


def test_a_run_that_was_cut_off_goes_on_with_other_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = serial(tmp_path / "serial")
    made = plan(tmp_path, **AXES)
    craft = next(job for job in numbered(made) if isinstance(job, CraftJob))
    Worker(made, 2)(craft, (2, 4))
    written: list[tuple[str, int, int]] = []
    real = Artefact.write

    def write(artefact: Artefact, low: int, high: int, arrays: Any) -> None:
        written.append((artefact.key, low, high))
        real(artefact, low, high, arrays)

    monkeypatch.setattr(Artefact, "write", write)
    spread(made, tmp_path / "out", monkeypatch)
    assert [rows for key, *rows in sorted(written) if key == craft.key] == [[0, 2], [4, 6], [6, 8]]
    assert contents(tmp_path / "cache") == wanted


def test_a_model_that_only_a_check_measures_fails_no_cell(tmp_path: Path) -> None:
    made = plan(tmp_path)
    check = made.clean_checks[0]
    from rdp_bench.engine.jobs import JobResult

    assert list(place.of_cells(made, iter([JobResult(check, "no weights"), JobResult(made.jobs[0])]))) == [
        JobResult(made.jobs[0])
    ]
