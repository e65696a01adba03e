"""Attacks that mix other images of the data set into an image: Admix in a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rdp_bench.engine import prefix_reuse
from rdp_bench.engine.jobs import CraftJob
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.worker import Worker
from tests.helpers import plans, toy

ATTACK = "MI|I(2)|ADMIX(admix_share=.8)"


def crafted(plan: Plan, batch: int) -> NDArray[np.int8]:
    """The set of a plan, `[n, 3, h, w]`."""
    worker = Worker(plan, batch=batch)
    (job,) = (job for job in plan.jobs if isinstance(job, CraftJob))
    worker(job)
    found: NDArray[np.int8] = plan.artefact(job.record).read()["delta"]
    return found


def test_mates_are_other_images_of_the_data_set(tmp_path: Path) -> None:
    plan = plans.plan(tmp_path, limit=5, attacks=(ATTACK,))
    worker = Worker(plan, batch=2)
    images = torch.from_numpy(worker.clean(0, 5)).float() / 255
    seen = set()
    for draw in range(40):
        mates = worker._mates(2, toy.image_rng(2, str(draw)))
        for own, mate in zip((2, 3), mates, strict=True):
            (number,) = (i for i in range(5) if torch.equal(images[i], mate))
            assert number != own
            seen.add((own, number))
    assert len(seen) == 8  # each of the other four, for both


def test_an_image_depends_on_the_data_set_and_not_on_its_batch(tmp_path: Path) -> None:
    one = crafted(plans.plan(tmp_path / "one", limit=5, attacks=(ATTACK,)), 1)
    three = crafted(plans.plan(tmp_path / "three", limit=5, attacks=(ATTACK,)), 3)
    assert np.array_equal(one, three)
    fewer = crafted(plans.plan(tmp_path / "fewer", limit=3, attacks=(ATTACK,)), 3)
    assert not np.array_equal(fewer, three[:3])


@pytest.mark.parametrize(("attack", "shared"), [(ATTACK, False), ("MI|I(2)", True)])
def test_sets_with_mates_are_not_shared_between_runs_of_different_length(
    tmp_path: Path, attack: str, *, shared: bool
) -> None:
    long = plans.plan(tmp_path, limit=4, attacks=(attack,))
    prefix_reuse.register_images(long)
    for job in long.jobs:
        Worker(long, batch=2)(job)
    short = plans.plan(tmp_path, limit=2, attacks=(attack,))
    prefix_reuse.copy_shared_shards(short)
    done = {str(job): short.done(job) for job in short.jobs}
    assert done.pop("none against clean images")
    assert set(done.values()) == {shared}


def test_a_data_set_of_one_image_has_only_itself(tmp_path: Path) -> None:
    assert crafted(plans.plan(tmp_path, limit=1, attacks=(ATTACK,)), 1).any()
