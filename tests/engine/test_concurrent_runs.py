"""Two runs that share a cache: what one finishes while the other begins is not left pending."""

import json
from pathlib import Path
from typing import Any

import pytest

from rdp_bench.engine.run import Run
from rdp_bench.engine.worker import Worker
from tests.helpers.plans import new_process, plan


def test_a_cell_that_another_run_finishes_during_the_start_is_not_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_process():
        mine, other = (Run(plan(tmp_path), tmp_path / out, "") for out in ("mine", "other"))
        read = Run.refresh

        def other_run_then_refresh(run: Run, cells: Any) -> None:
            read(run, cells)
            if run is mine and not other.record:
                other.execute(other.start(), Worker(other.plan))

        monkeypatch.setattr(Run, "refresh", other_run_then_refresh)
        jobs = mine.start()
        mine.execute(jobs, Worker(mine.plan))
    for out in ("mine", "other"):
        record = json.loads((tmp_path / out / "runs/toy.json").read_text())
        assert {cell["status"] for cell in record["cells"]} == {"done"}, out
