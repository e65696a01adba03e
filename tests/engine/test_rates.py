"""Estimates from remembered rates: what a run learns, what a later plan makes of it, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdp_bench import environment
from rdp_bench.engine import rates
from rdp_bench.engine.jobs import CraftJob, EvaluateJob
from rdp_bench.engine.progress import Costs, ProgressBar
from rdp_bench.engine.rates import Estimates, Rates
from tests.helpers import plans


@pytest.fixture
def jobs(tmp_path: Path) -> tuple[object, list[CraftJob], list[EvaluateJob]]:
    plan = plans.plan(tmp_path)
    crafts = [job for job in plan.jobs if isinstance(job, CraftJob)]
    return plan, crafts, [job for job in plan.jobs if isinstance(job, EvaluateJob)]


def test_a_measured_job_is_known_and_others_follow_from_it(jobs) -> None:  # type: ignore[no-untyped-def]
    plan, crafts, judged = jobs
    found = Estimates(plan, Rates(None, "cpu"))
    before = {job.key: found.each(job) for job in judged}
    assert not any(map(found.known, plan.jobs))
    slow = 7 * before[judged[0].key]
    found.note(judged[0], slow)
    assert found.known(judged[0])
    assert found.each(judged[0]) == pytest.approx(slow)
    # Nothing else is known, but the machine is seven times slower than that of the built-in rates.
    others = [job for job in plan.jobs if not found.known(job)]
    assert others
    for job in others:
        if isinstance(job, EvaluateJob):
            assert found.each(job) == pytest.approx(7 * before[job.key])
    found.note(judged[0], slow / 2)
    assert found.each(judged[0]) == pytest.approx(0.75 * slow)
    assert crafts


def test_rates_are_kept_by_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rates.json"
    here = Rates(file, "cpu")
    here.note("x", 2.0)
    here.save()
    monkeypatch.setattr(rates, "threads", lambda: 77)
    other = Rates(file, "cpu")
    assert other.seconds == {}
    other.note("y", 3.0)
    other.save()
    assert len(json.loads(file.read_text())) == 2
    assert Rates(file, "cpu").seconds == {"y": 3.0}
    Rates(file, "cpu", write=False).save()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"MACHINE": {"x": "fast", "y": -1, "z": 1e9}}', "\x00"])
def test_a_damaged_file_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(text.replace("MACHINE", rates.machine("cpu")))
    assert Rates(file, "cpu").seconds == {}


def test_the_bar_counts_down_by_what_it_sees(jobs, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    plan, _, judged = jobs
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    costs = Costs(plan, Rates(None, "cpu"))
    bar = ProgressBar(judged, costs, show_bar=False)
    for job in judged:
        bar.left[job.key] = 4
    now[0] += 50  # loading networks is no part of a rate
    bar.start()
    now[0] += 6
    bar(judged[0], 2)  # three seconds per image
    assert costs.each(judged[0]) == pytest.approx(3)
    left = bar.remaining()
    assert left >= 6
    now[0] += 6
    bar(judged[0], 2)
    assert bar.remaining() == pytest.approx(left - 6)
    bar.close()


def test_a_dry_run_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from rdp_bench.cli.main import main\n"
        "try: main(['run', 'table1', '--dry-run', '--limit', '2'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin", "RDP_BENCH_CACHE": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "estimated time" in found.stdout
    assert "another machine's rates" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_rates_of_a_gpu_belong_to_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver lists the cards; two machines with one processor and two cards shared one rate."""
    for number, model in enumerate(("NVIDIA H100", "NVIDIA H100", "Tesla T4")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1\n")
    assert environment.graphics(tmp_path) == "NVIDIA H100 and Tesla T4"
    assert environment.graphics(tmp_path / "none") == "GPU"
    monkeypatch.setattr(environment, "graphics", lambda: "NVIDIA H100")
    assert rates.machine("cuda:0").startswith("cuda, NVIDIA H100, ")
    assert "H100" not in rates.machine("cpu")
