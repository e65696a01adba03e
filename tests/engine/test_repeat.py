"""`run --from`: a published run again, on another cache, with other weights, other images, another request."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

from rdp_bench.engine import precision as rules
from rdp_bench.engine import worker
from rdp_bench.results.record import read_run, write_record
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.damage import edit
from tests.helpers.grid_runs import GridRuns, read_rows
from tests.helpers.plans import new_process

NETWORK = """
import sys
from dataclasses import dataclass
from rdp_bench import Learned, defense, model

tiny = next(module for name, module in sys.modules.items() if name.startswith("rdp_bench_plugin_tiny"))

@model("mine/net", source="made up")
def net():
    "A linear classifier."
    return tiny.Linear("mine/net", 2)

@defense("mine/smooth", source="made up")
@dataclass(frozen=True)
class Smooth(Learned):
    "One convolution."
    kind = "mine/smooth"
    def build(self, **net):
        from torch import nn
        return nn.Conv2d(3, 3, 1, groups=3, bias=False)
"""

GRID = """
title = "Mine"
[axes]
dataset = "tiny/noise"
eps = [16, 8]
attacks = ["fgsm", "tiny/sleepy"]
sources = ["tiny/one"]
defenses = ["none", "mine/smooth(weights=smooth.safetensors)"]
targets = ["mine/net"]
limit = 10
[names]
"mine/smooth" = "Ours"
"""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with new_process():
        yield


def smooth(path: Path, factor: float) -> None:
    """Weights of a defense that multiplies each colour."""
    save_file({"weight": torch.full((3, 1, 1, 1), factor)}, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a results folder that was moved to `published`, and what made it."""
    folder = tmp_path_factory.mktemp("made")
    smooth(folder / "smooth.safetensors", 0.5)
    (folder / "network.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch, new_process():
        runs = GridRuns.make(folder, patch, GRID, PLUGIN, folder / "network.py")
        patch.chdir(folder)
        runs.done("--seed", 3)
        runs.out.rename(folder / "published")
    return folder


@pytest.fixture
def published(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as it is now on another machine: without a cache, and without the grid file."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("published", "network.py", "smooth.safetensors"):
        (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "published" / "runs" / "mine.json"


def again(published: Path, *flags: object) -> Result:
    plugins = ("--plugin", PLUGIN, "--plugin", published.parents[2] / "network.py")
    return cli("run", "--from", published, *plugins, "--out", published.parents[2] / "out", *flags)


def forge(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    del content["sha256"]
    write_record(path, {**content, **changes})


def test_a_moved_run_on_another_cache_agrees_everywhere(published: Path) -> None:
    found = again(published)
    assert found.exit_code == 0, found.output
    assert "0 differences from mine.json" in found.stderr
    assert f"10 of 10 cells agree with {published} on every image" in found.stdout
    out = published.parents[2] / "out"
    ours, theirs = (read_run(path).header for path in (out / "runs" / "mine.json", published))
    for name in ("grid", "title", "profile", "seed", "dataset", "axes", "names", "attacks", "defenses", "request"):
        assert ours[name] == theirs[name], name
    assert (theirs["seed"], theirs["dataset"]["n"], theirs["names"]) == (3, 10, {"mine/smooth": "Ours"})
    values = [[row["value"] for row in read_rows(folder)] for folder in (out, published.parents[1])]
    assert values[0] == values[1]
    assert len(set(values[0])) > 3


def test_what_the_cache_holds_is_no_second_run(published: Path) -> None:
    assert again(published).exit_code == 0
    found = again(published)
    assert "10 of 10 cells are in the cache" in found.stderr
    assert "will not be computed again; --fresh or another --cache computes them" in found.stderr
    some = again(published, "--limit", 4, "--attack", "fgsm")
    assert "6 of 6 cells are in the cache" in some.stderr
    assert f"6 of 6 cells agree with {published} on each of the 4 images of 10 that both have" in some.stdout
    assert "are in the cache" not in again(published, "--fresh").stderr


def test_fewer_images_need_the_published_predictions(published: Path) -> None:
    shutil.rmtree(published.parents[1] / "predictions")
    found = again(published, "--limit", 4)
    assert found.exit_code == 2
    assert "leave out --limit" in found.output


def test_changed_weights_are_named_before_and_counted_after(published: Path) -> None:
    weights = published.parents[2] / "smooth.safetensors"
    old = read_run(published).header["defenses"]["mine/smooth(weights=smooth.safetensors)"]["resolved"]
    smooth(weights, 0.05)
    found = again(published, "--dry-run")
    assert found.exit_code == 0
    (line,) = (line for line in found.stderr.splitlines() if "sha256" in line or "weights" in line)
    assert line.strip().startswith("defense mine/smooth(weights=smooth.safetensors): params.")
    assert str(old["weights"])[:12] in line
    assert not (published.parents[2] / "out").exists()
    found = again(published)
    assert found.exit_code == 1
    assert "5 of 10 cells agree" in found.stdout
    apart = [line for line in found.stdout.splitlines() if "differs by" in line]
    assert len(apart) == 5
    assert all("-> mine/smooth(weights=smooth.safetensors) -> mine/net: differs by" in line for line in apart)
    assert all("of 10; error" in line for line in apart)


def test_a_changed_model_is_named(published: Path) -> None:
    other = published.parents[2] / "network.py"
    other.write_text(NETWORK.replace('Linear("mine/net", 2)', 'Linear("mine/net", 7)'))
    found = again(published, "--dry-run")
    told = [line.strip() for line in found.stderr.splitlines()]
    assert any(line.startswith("model mine/net: ") and line.endswith("seed: 2 in the record, 7 here") for line in told)
    assert "plugin network.py: sha256" in found.stderr


def test_plugins_are_asked_for_and_never_loaded_by_name(published: Path) -> None:
    found = cli("run", "--from", published, "--plugin", PLUGIN, "--out", "out")
    assert found.exit_code == 2
    assert "error: the run used plugins that are not loaded: network.py (sha256" in found.stderr
    assert "Add --plugin PATH/network.py" in found.stderr
    assert found.stderr.count("\n") == 1


def test_other_flags_change_only_what_they_name(published: Path) -> None:
    found = again(published, "--attack", "fgsm", "--limit", 6)
    assert found.exit_code == 0, found.output
    assert "6 of 6 cells agree" in found.stdout
    record = read_run(published.parents[2] / "out" / "runs" / "mine.json").header
    assert (record["axes"]["attacks"], record["axes"]["eps"]) == (["fgsm"], [16, 8])
    assert (record["seed"], record["dataset"]["n"]) == (3, 6)


def test_the_precision_is_that_of_the_run(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition in float32 of what bfloat16 made would compare other arithmetic and call it the same."""
    monkeypatch.setattr(rules, "_has_bfloat16", lambda: True)
    forge(published, precision="bfloat16")
    found = again(published, "--dry-run")
    assert "precision: " not in found.stderr
    other = again(published, "--dry-run", "--precision", "float32")
    assert "precision: bfloat16 in the record, float32 here" in other.stderr
    assert again(published).exit_code == 1  # these predictions were made in float32
    assert read_run(published.parents[2] / "out" / "runs" / "mine.json").header["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--norm", "l2", "--eps", "16"), "norm: linf in the record, l2 here"),
        (("--defense-samples", "3"), "defense samples: 1 in the record, 3 here"),
    ],
)
def test_another_norm_or_number_of_draws_is_a_difference(published: Path, flags: tuple[str, ...], says: str) -> None:
    """Cells of both have equal names."""
    assert says in again(published, "--attack", "fgsm", "--defense", "none", *flags, "--dry-run").stderr


def test_another_seed_is_a_difference(published: Path) -> None:
    found = again(published, "--seed", 4, "--dry-run")
    assert "seed: 3 in the record, 4 here" in found.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("table1",), "names the grid already; leave out table1"),
        (("--profile", "paper"), "the record already has the axes of its profile; leave out --profile"),
        (("--out", "published"), "holds the published run, which would be replaced"),
    ],
)
def test_requests_that_repeat_nothing_are_refused(published: Path, flags: tuple[str, ...], says: str) -> None:
    before = published.read_bytes()
    found = again(published, *flags)
    assert (found.exit_code, says in found.stderr) == (2, True), found.output
    assert published.read_bytes() == before


def test_other_images_are_refused(published: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "0").mkdir(parents=True)
    Image.new("RGB", (16, 16), (9, 8, 7)).save(tmp_path / "other" / "0" / "a.png")
    found = again(published, "--dataset", f"{tmp_path / 'other'}(size=16)")
    assert found.exit_code == 2
    assert "does not hold the images of the run (tiny/noise): 0 of its 10 images" in found.stderr


def test_an_edited_record_is_refused(published: Path) -> None:
    edit(published, lambda record: record.update(seed=5))
    found = again(published)
    assert found.exit_code == 2
    assert "was changed after the run wrote it (its checksum differs)" in found.stderr


def test_a_record_cannot_name_another_file(published: Path) -> None:
    forge(published, grid="../../escaped")
    found = again(published)
    assert found.exit_code == 2
    assert "is the record of ../../escaped" in found.stderr


def test_a_record_without_a_request_is_refused(published: Path) -> None:
    forge(published, request=None)
    found = again(published)
    assert (found.exit_code, "does not hold the request of its run" in found.stderr) == (2, True)


def test_a_record_without_predictions_is_repeated_and_not_called_equal(published: Path) -> None:
    shutil.rmtree(published.parents[1] / "predictions")
    found = again(published)
    assert found.exit_code == 1
    assert "the published predictions cannot be read, so nothing will be compared" in found.stderr
    assert f"0 of 10 cells agree with {published}" in found.stdout
    smooth(published.parents[2] / "smooth.safetensors", 0.05)
    assert "defense mine/smooth(weights=smooth.safetensors): resolved." in again(published, "--dry-run").stderr


def test_a_failing_cell_is_not_called_equal(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.Worker.__call__

    def fails(self: Any, job: Any) -> Any:
        if "smooth" in getattr(job, "defense", ""):
            raise ValueError("broken here")
        return real(self, job)

    monkeypatch.setattr(worker.Worker, "__call__", fails)
    found = again(published)
    assert found.exit_code == 1
    assert "5 cells could not be compared; the first: " in found.stdout
    assert "broken here" in found.stdout
