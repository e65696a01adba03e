"""A plan is computed once and never changes; its jobs are plain data; files are looked for where its labels say."""

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import registry
from rdp_bench.cache.store import Store
from rdp_bench.engine import plan as planning
from rdp_bench.engine.jobs import CraftJob, EvaluateJob
from rdp_bench.engine.options import RunOptions
from rdp_bench.engine.plan import Plan, make_plan
from rdp_bench.engine.run import Run
from rdp_bench.engine.schedule import run_here
from rdp_bench.engine.worker import Worker
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.specs import FileSearch, files_from
from tests.helpers.plans import new_process, plan

NOTING = '''
"""A plugin."""
from dataclasses import dataclass
from rdp_bench.registry import attack

@attack("mine/noting", source="here")
@dataclass(frozen=True)
class Noting:
    """Says something of its work."""

    def resolved(self, eps):
        return {}

    def gradients(self, eps):
        return 1

    def __call__(self, source, x, y, eps, rng):
        return (x + eps).clamp(0, 1)

    def notes(self):
        return ["noting has seen something"]
'''


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Plan]:
    with new_process():
        yield plan(tmp_path, defenses=("none", "tiny/round"), attacks=("fgsm", "tiny/sleepy"))


def fields_of(made: Plan) -> dict[str, Any]:
    return {each.name: getattr(made, each.name) for each in dataclasses.fields(made)}


def test_nothing_in_a_plan_can_be_set(made: Plan) -> None:
    for each in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, each.name, None)


def test_a_run_changes_nothing_in_its_plan(made: Plan, tmp_path: Path) -> None:
    before = {name: repr(value) for name, value in fields_of(made).items()}
    running = Run(made, tmp_path / "out", "test")
    jobs = running.start()
    worker = Worker(made)
    running.check_accuracy(worker)
    running.execute(jobs, worker)
    running.cross_check()
    assert {cell.status for cell in running.cells.values()} == {"done"}
    assert {name: repr(value) for name, value in fields_of(made).items()} == before
    assert worker.classes.counts  # what work finds out is kept by the worker


def test_what_an_attack_notes_reaches_the_run_and_not_the_plan(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTING)
    with new_process():
        made = plan(tmp_path, tmp_path / "noting.py", attacks=("mine/noting",))
        running = Run(made, tmp_path / "out", "test")
        running.execute(running.start(), Worker(made))
    assert running.record["warnings"].count("noting has seen something") == 1
    assert made.remarks == ()


def test_every_cell_has_its_job(made: Plan) -> None:
    assert list(made.cells) == list(made.grid.cells())
    assert {planned.job.key for planned in made.cells.values()} == {
        job.key for job in made.jobs if isinstance(job, EvaluateJob)
    }


def test_jobs_are_plain_data_with_keys(made: Plan) -> None:
    """An executor on another machine gets them by pickle."""
    again = pickle.loads(pickle.dumps([*made.jobs, *made.clean_checks]))
    assert again == [*made.jobs, *made.clean_checks]
    assert len({job.key for job in made.jobs}) == len(made.jobs)
    names = [str(job) for job in made.jobs]
    assert names[:3] == ["none against clean images", "tiny/round against clean images", "fgsm on tiny/one"]
    assert names[3] == "none against fgsm on tiny/one at eps 8"


def test_jobs_from_a_pickle_are_done(made: Plan) -> None:
    jobs = pickle.loads(pickle.dumps(made.jobs))
    assert not [result.reason for result in run_here(jobs, Worker(made)) if result.reason]
    assert not made.to_do(made.jobs)


def test_images_are_hashed_once_for_all_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 images, 338 cells: 12 s when each record hashed them anew."""
    hashed: list[int] = []
    real = planning.hash_many

    def count(parts: Any) -> str:
        listed = list(parts)
        hashed.append(len(listed))
        return real(listed)

    monkeypatch.setattr(planning, "hash_many", count)
    with new_process():
        made = plan(tmp_path, limit=12, defenses=("none", "tiny/round"), attacks=("fgsm", "mi-fgsm"))
        assert len([job for job in made.jobs if isinstance(job, CraftJob)]) == 2
    assert hashed == [12, 12]  # pixels, labels


@pytest.mark.parametrize("asked", [2, 5])
def test_the_number_of_images_that_is_asked_for_replaces_that_of_the_grid(asked: int, tmp_path: Path) -> None:
    with new_process():
        grid = plan(tmp_path).grid
        grid = dataclasses.replace(grid, axes=dataclasses.replace(grid.axes, limit=3))
        made = make_plan(grid, Store(tmp_path), seed=0, device="cpu", limit=asked, models_dir=None)
    assert len(made.dataset.ids) == asked


def test_files_of_a_label_are_looked_for_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(tmp_path)
    label = "rdp(weights=w.safetensors)"
    made = [registry.defense.resolve(label, files=FileSearch(models_dir=each)).value for each in (first, second)]
    for folder, value in zip((first, second), made, strict=True):  # looked for after resolving, and not in one place
        with pytest.raises(BadModelError, match=f"looked for {folder}/w.safetensors and w.safetensors"):
            value.resolved()
    with pytest.raises(BadModelError, match=r"looked for w\.safetensors\."):
        registry.defense.resolve(label).value.resolved()


def test_a_search_ends_with_its_block_even_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError), files_from(FileSearch(models_dir=tmp_path)):
        registry.defense.resolve("rdp(wights=3)")
    with pytest.raises(BadModelError, match=r"looked for w\.safetensors\."):
        registry.defense.resolve("rdp(weights=w.safetensors)").value.resolved()


def test_the_files_of_parts_of_a_label_are_looked_for_as_its_own(tmp_path: Path) -> None:
    search = FileSearch(models_dir=tmp_path)
    with pytest.raises(BadModelError, match=f"looked for {tmp_path}/w.safetensors"):
        registry.defense.resolve("jpeg >> rdp(weights=w.safetensors)", files=search).value.resolved()


def test_a_defense_in_models_dir_is_attacked_through_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its label needs its folder wherever it is resolved: `purifier:FILE` opens the file at once."""
    from rdp_bench.defenses.rdp import RepresentationDisentanglement
    from rdp_bench.weights import files

    monkeypatch.chdir(tmp_path)
    net = {"width": 12, "blocks": 1, "unshuffle": 2}
    models = tmp_path / "models"
    made = RepresentationDisentanglement().build(**net)
    files.save(models / "w.safetensors", made.state_dict(), {"defense": "rdp", "net": net})
    label = "purifier:w.safetensors(dynamic=true)"
    with new_process():
        made = plan(tmp_path, models_dir=models, defenses=("none", label), sources=("white-box(3)",))
    assert list(made.sources) == ["tiny/two", f"adaptive({label}, tiny/two, 3)"]
    crafted = [job.source for job in made.jobs if isinstance(job, CraftJob)]
    assert crafted == list(made.sources)


def test_no_such_models_dir(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--models-dir {tmp_path}/none: no such folder"):
        FileSearch(models_dir=tmp_path / "none")


def test_options_that_no_run_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--limit 0: expected a whole number above 0"):
        RunOptions(tmp_path, limit=0)
    with pytest.raises(UsageError, match="--batch-size 0: expected a whole number above 0"):
        RunOptions(tmp_path, batch_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunOptions(tmp_path).limit = 3  # type: ignore[misc]
