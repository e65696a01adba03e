"""How jobs are cut and dealt."""

from pathlib import Path

import pytest

from rdp_bench.engine.jobs import CraftJob
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.tasks import Part, distinct, nominal_cost, numbered, portions, share, split, stored
from tests.helpers.plans import new_process, plan


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    """Five sets of twelve images, each judged behind two defenses."""
    attacks = tuple(f"mi-fgsm(steps={steps})" for steps in range(2, 7))
    with new_process():
        return plan(tmp_path, limit=12, attacks=attacks, defenses=("none", "tiny/round"))


def cost(_: object) -> float:
    return 1.0


def rows(parts: list[Part]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for part in parts:
        found.setdefault(part.task.number, []).append((part.task.low, part.task.high))
    return found


@pytest.mark.parametrize(("workers", "batch"), [(1, 2), (2, 5), (8, 2), (8, 5), (100, 3)])
def test_tasks_cover_each_job_once_and_begin_at_batches(made: Plan, workers: int, batch: int) -> None:
    numbers = distinct(made)
    for ranges in rows(split(made, numbers, cost, workers, batch)).values():
        images = [image for low, high in ranges for image in range(low, high)]
        assert images == list(range(12))
        assert not any(low % batch for low, _ in ranges)


def test_five_sets_keep_eight_workers_busy(made: Plan) -> None:
    crafts = [number for number, job in enumerate(numbered(made)) if isinstance(job, CraftJob)]
    assert len(crafts) == 5
    assert len(split(made, crafts, cost, 8, 2)) >= 8
    assert len(split(made, crafts, cost, 1, 2)) == 5  # one worker has no use for parts


def test_models_that_a_cell_measures_are_not_measured_twice(made: Plan) -> None:
    jobs = numbered(made)
    checks = [number for number in distinct(made) if number >= len(made.jobs)]
    assert [label for number in checks for label, _ in jobs[number].evals] == ["tiny/one"]  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_shares_are_disjoint_and_complete_and_need_nothing_of_each_other(made: Plan, count: int) -> None:
    found = portions(made, distinct(made), cost, count, 2)
    piles = share(found, count)
    assert len(piles) == count
    tasks = [part.task for pile in piles for portion in pile for part in portion]
    assert len(tasks) == len(set(tasks))
    assert {(t.number, image) for t in tasks for image in range(t.low, t.high)} == {
        (number, image) for number in distinct(made) for image in range(12)
    }
    for pile in piles:
        crafted: set[tuple[str, int]] = set()
        for part in (part for portion in pile for part in portion):
            images = range(part.task.low, part.task.high)
            if isinstance(part.job, CraftJob):
                crafted |= {(part.job.key, image) for image in images}
            elif part.job.craft:
                assert {(part.job.craft.key, image) for image in images} <= crafted  # by this share, and before


def test_shares_are_about_equal(made: Plan) -> None:
    piles = share(portions(made, distinct(made), cost, 4, 2), 4)
    seconds = [sum(part.cost for portion in pile for part in portion) for pile in piles]
    assert max(seconds) <= 1.25 * sum(seconds) / 4


def test_costs_of_shares_count_gradients_passes_and_targets(tmp_path: Path) -> None:
    with new_process():
        axes = {
            "attacks": ("mi-fgsm(steps=7)",),
            "defenses": ("none", "tiny/dither"),
            "targets": ("tiny/one", "tiny/two"),
        }
        made = plan(tmp_path, sources=("tiny/one", "both"), ensembles={"both": ("tiny/one", "tiny/two")}, **axes)
        price = nominal_cost(made)
        found = {str(job): price(job) for job in made.jobs}
    assert found["mi-fgsm(steps=7) on tiny/one"] == 7
    assert found["mi-fgsm(steps=7) on both"] == 14
    assert found["none against clean images"] == pytest.approx(0.5 + 2 * 0.4)
    assert found["tiny/dither against clean images"] == pytest.approx(3 * (0.5 + 2 * 0.4))


def test_shares_do_not_depend_on_what_is_stored(made: Plan) -> None:
    from rdp_bench.engine.worker import Worker

    before = share(portions(made, distinct(made), cost, 3, 2), 3)
    craft = made.jobs[2]
    Worker(made, 2)(craft, (0, 4))
    assert stored(made, craft, 0, 4)
    assert not stored(made, craft, 2, 6)
    assert share(portions(made, distinct(made), cost, 3, 2), 3) == before
