"""An audit spread over workers of Ray equals that of one process, bit for bit."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rdp_bench
from rdp_bench import plugins
from rdp_bench.audits import run
from rdp_bench.audits.parts import BUDGETS, TRANSFER, WHITE_BOX, grids
from rdp_bench.engine.executors import on_ray
from rdp_bench.errors import UsageError
from tests.helpers import audits
from tests.helpers.commands import cli
from tests.helpers.paths import ROOT
from tests.helpers.stores import contents

SMALL = replace(
    audits.TOY, gradient=("apgd-ce(steps=3)",), doubled=("apgd-ce(steps=6)",), black_box=("square(queries=9)",)
)
FLAGS = ("--target", "fault/one", "--source", "fault/two", "--dataset", "fault/photos", "--plugin", audits.FAULTS)


@pytest.fixture
def _ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray with two cores, for all parts."""
    import ray

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_TQDM_PATCH_PRINT", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()
    for number, handler in before.items():  # Ray leaves its own
        signal.signal(number, handler)


def card(out: Path) -> dict[str, Any]:
    (path,) = (out / "audit").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name not in ("cost", "command", "sha256")}


@pytest.mark.usefixtures("_ray")
def test_a_spread_audit_equals_one_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", SMALL)
    some = [TRANSFER, WHITE_BOX]  # enough, and faster
    started: list[int] = []
    start = on_ray.RayExecutor._start_actor

    def count(executor: on_ray.RayExecutor) -> Any:
        started.append(1)
        return start(executor)

    monkeypatch.setattr(on_ray.RayExecutor, "_start_actor", count)
    monkeypatch.setattr(run, "grids", lambda subject: [each for each in grids(subject) if each[0] in some])
    places = {"serial": (), "ray": ("--executor", "ray", "--workers", "2")}
    for name, place in places.items():
        where = ("--cache", tmp_path / name / "cache", "--out", tmp_path / name)
        found = cli("audit", "honest/average", *FLAGS, *where, "--limit", "6", "--batch-size", "2", *place)
        assert found.exit_code == 0, found.output
    notes = [json.loads(path.read_bytes()) for path in (tmp_path / "ray" / "cache").glob("notes/*/run.json")]
    assert len(notes) == len(json.loads(next((tmp_path / "ray" / "audit").glob("*.json")).read_text())["runs"])
    assert {note["executor"] for note in notes} == {"ray"}
    assert len(started) == 2  # the same two for both parts
    assert not on_ray._idle.actors
    assert contents(tmp_path / "ray" / "cache") == contents(tmp_path / "serial" / "cache")
    assert card(tmp_path / "ray") == card(tmp_path / "serial")
    again = rdp_bench.audit(
        "honest/average", target="fault/one", sources="fault/two", dataset="fault/photos", limit=6, batch_size=2,
        cache=tmp_path / "ray" / "cache", executor="ray", workers=2, progress=False,
    )  # fmt: skip
    assert again.cost is not None
    assert again.cost.cached == again.cost.jobs
    assert [tier.accuracy for tier in again.tiers] == [tier["accuracy"] for tier in card(tmp_path / "ray")["tiers"]]


def test_workers_elsewhere_cannot_have_an_object_of_this_process() -> None:
    plugins.load((audits.FAULTS,))
    with pytest.raises(UsageError, match="executor='ray': 'mine' is an object of this process"):
        rdp_bench.audit({"mine": lambda x: x}, target="fault/one", dataset="fault/photos", executor="ray", workers=2)
    with pytest.raises(UsageError, match="--workers belongs to --executor ray"):
        rdp_bench.audit("honest/average", target="fault/one", dataset="fault/photos", workers=2)
