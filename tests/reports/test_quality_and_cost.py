"""Restoration quality against scikit-image, costs that stay out of the store, and what the report makes of both."""

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.engine import defense_cost
from rdp_bench.engine.levels import check_purified
from rdp_bench.engine.progress import Costs
from rdp_bench.errors import RdpBenchError
from rdp_bench.metrics import lpips
from rdp_bench.metrics.measurements import measure
from rdp_bench.metrics.psnr import psnr
from rdp_bench.protocols import Purifier
from rdp_bench.reports.figures.pareto import pareto
from rdp_bench.reports.tables import quality_and_cost
from rdp_bench.results.rows import CellKey, Run, load
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.helpers.paths import ROOT
from tests.helpers.report_fixture import make_run

PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"
GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round", "tiny/dither"]
eps = [16]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one", "tiny/two"]
"""
ASKED = "image_quality = true\n"
BOTH: dict[str, Any] = {"psnr": {}, "ssim": {}}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.toml"
    path.write_text(GRID)
    return path


def run(grid: Path, *args: object) -> Result:
    given = ("run", "--grid", grid, "--plugin", PLUGIN, "--out", grid.parent / "out", *args)
    return CliRunner().invoke(main, [str(arg) for arg in given])


def results(grid: Path) -> list[dict[str, str]]:
    with (grid.parent / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def stored(grid: Path) -> set[tuple[str, str]]:
    return set(Store(grid.parent / "cache").everything())


# --- restoration -----------------------------------------------------------------------------------------


def similarity(first: Tensor, second: Tensor) -> float:
    """Wang et al.'s settings in scikit-image, channel by channel."""
    a, b = (image.permute(1, 2, 0).double().numpy() for image in (first, second))
    found = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2
    )
    return float(found)


@pytest.mark.parametrize(("size", "spread", "level"), [(11, 1.0, 0.0), (40, 1.0, 0.0), (33, 0.05, 0.9), (25, 0.1, 0.0)])
def test_ssim_and_psnr_are_those_of_scikit_image(size: int, spread: float, level: float) -> None:
    clean = toy.images(3, size) * spread + level
    purified = (clean + 0.05 * toy.random(3, 3, size, size, seed=1)).clamp(0, 1)
    found = measure(purified, clean, BOTH)
    decibels = psnr(found["mse"].numpy())
    for i in range(3):
        assert float(found["ssim"][i]) == pytest.approx(similarity(purified[i], clean[i]), abs=2e-5)
        expected = peak_signal_noise_ratio(clean[i].numpy(), purified[i].numpy(), data_range=1)
        assert decibels[i] == pytest.approx(expected, abs=1e-4)


def test_equal_images_are_at_one_and_infinitely_near() -> None:
    found = measure(toy.images(2, 20), toy.images(2, 20), BOTH)
    assert found["ssim"].tolist() == pytest.approx([1, 1])
    assert psnr(found["mse"].numpy()).tolist() == [np.inf, np.inf]


def test_enlarged_images_are_brought_back_to_size() -> None:
    clean = torch.full((1, 3, 12, 12), 0.25)
    found = measure(torch.full((1, 3, 24, 24), 0.35), clean, BOTH)
    assert float(found["mse"]) == pytest.approx(0.01, rel=1e-4)
    # The mean luminances alone differ: 2 a b + c over a^2 + b^2 + c.
    assert float(found["ssim"]) == pytest.approx((2 * 0.25 * 0.35 + 1e-4) / (0.25**2 + 0.35**2 + 1e-4), abs=1e-5)


def test_there_is_no_similarity_of_images_smaller_than_the_window() -> None:
    assert torch.isnan(measure(toy.images(2, 10), toy.images(2, 10), BOTH)["ssim"]).all()


def test_a_run_measures_what_its_defenses_hand_on(grid: Path) -> None:
    grid.write_text(GRID + ASKED)
    assert run(grid, "--batch-size", 5).exit_code == 0
    rows = {(line["attack"], line["defense"], line["metric"]): line for line in results(grid) if line["target"] == "-"}
    assert len(rows) == 2 * 3 * 2  # clean and fgsm; defenses; psnr and ssim
    clean = torch.stack(
        [torch.from_numpy(np.random.default_rng(i).integers(0, 256, (3, 16, 16), np.uint8)) for i in range(12)]
    )
    x = clean.float() / 255
    key = rows["fgsm", "none", "psnr"]["adv_key"]
    delta = Store(grid.parent / "cache").open("adv", key).read()["delta"]
    adv = x + torch.from_numpy(delta).float() / 255
    for attack, images in (("clean", x), ("fgsm", adv)):
        purified = (images * 4).round() / 4
        near = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(x, purified, strict=True)]
        assert float(rows[attack, "tiny/round", "psnr"]["value"]) == pytest.approx(np.mean(near), abs=1e-3)
        alike = [similarity(a, b) for a, b in zip(x, purified, strict=True)]
        assert float(rows[attack, "tiny/round", "ssim"]["value"]) == pytest.approx(100 * np.mean(alike), abs=1e-2)
    assert rows["clean", "none", "psnr"]["value"] == "inf"


def test_without_the_axis_nothing_is_measured_and_with_it_no_key_changes(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(grid).exit_code == 0
    before = stored(grid)
    assert "image_quality" not in {kind for kind, _ in before}
    assert {line["metric"] for line in results(grid)} == {"error", "accuracy"}
    grid.write_text(GRID + ASKED)

    def never(*_: object) -> None:
        raise AssertionError("a classifier was asked again")

    monkeypatch.setattr("rdp_bench.engine.worker.Worker.model", lambda *_: never)
    monkeypatch.setattr("rdp_bench.engine.progress.measure", lambda plan, _: Costs(plan))
    purified = []

    def count(pure: Tensor, x: Tensor, what: str) -> Tensor:
        purified.append(what)
        return check_purified(pure, x, what)

    monkeypatch.setattr("rdp_bench.engine.looks.check_purified", count)
    assert run(grid).exit_code == 0
    # Each set once; a user's defense also gets an image alone.
    assert Counter(purified) == {"none": 2, "tiny/dither": 2 * 2, "tiny/round": 2 * 2}
    assert {kind for kind, _ in stored(grid) - before} == {"image_quality"}
    assert len(stored(grid) - before) == 2 * 3
    assert before <= stored(grid)


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AlexNet with random weights, where torchvision would have put the real ones."""
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch" / "hub" / "checkpoints" / lpips.ALEXNET
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def test_lpips_is_that_of_torchmetrics(alexnet: Path) -> None:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    first, second = toy.images(3, 64), toy.images(3, 64).flip(0)
    theirs = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)  # finds the file as torchvision does
    wanted = [float(theirs(a[None], b[None])) for a, b in zip(first, second, strict=True)]
    assert lpips.distance(first, second).tolist() == pytest.approx(wanted, rel=1e-4)
    assert len({round(value, 5) for value in wanted}) > 1
    assert lpips.distance(first, first).tolist() == [0, 0, 0]
    assert lpips.distance(first[..., :32, :32], second[..., :32, :32]).isfinite().all()
    assert lpips.distance(first[..., :31, :31], second[..., :31, :31]).isnan().all()


def test_lpips_is_measured_where_its_weights_are(grid: Path, alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid.write_text(GRID + ASKED)
    monkeypatch.setattr(lpips, "distance", lambda purified, clean, _: (purified - clean).abs().amax((1, 2, 3)))
    assert run(grid).exit_code == 0
    with_it = stored(grid)
    (row,) = [
        line
        for line in results(grid)
        if (line["attack"], line["defense"], line["metric"]) == ("fgsm", "none", "lpips") and line["target"] == "-"
    ]
    assert float(row["value"]) == pytest.approx(100 * 16 / 255, abs=1e-3)
    alexnet.unlink()
    assert run(grid).exit_code == 0
    assert "lpips" not in {line["metric"] for line in results(grid)}
    assert len(stored(grid) - with_it) == 2 * 3  # another measurement is another artefact
    alexnet.write_bytes(b"another file")
    assert lpips.record() is not None
    with pytest.raises(RdpBenchError, match="alexnet"):
        lpips._load(*(lpips.files() or ()), tuple((lpips.record() or {})["weights"]), "cpu")


# --- cost ------------------------------------------------------------------------------------------------


def test_memory_is_what_was_held_at_once() -> None:
    """In a process of its own: what other tests left on the heap would be counted or filled again."""
    code = """
import torch
from rdp_bench.engine import defense_cost
from rdp_bench.engine.worker import configure_torch

held = 48 << 20

def work():
    first = torch.ones(held // 8)
    second = first + 1  # both halves at once
    del first, second
    torch.ones(held // 64)  # may come to lie elsewhere: a sixteenth of what was held

configure_torch("cpu")  # as in a run, where freed memory is kept for the next batch
print([defense_cost.extra_memory(work, "cpu") for _ in range(2)][1])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    if found.strip() == "None":
        pytest.skip("this system does not tell the highest resident size")
    assert int(found) == pytest.approx(48 << 20, rel=0.1)


def test_memory_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reset in (tmp_path / "absent" / "clear_refs", tmp_path / "without-effect"):
        monkeypatch.setattr(defense_cost, "_RESET", reset)
        monkeypatch.setattr(defense_cost, "_resident", lambda name: {"VmHWM": 9 << 20, "VmRSS": 1 << 20}[name])
        assert defense_cost.extra_memory(lambda: None, "cpu") is None


def test_parameters_are_counted_where_somebody_tells() -> None:
    from rdp_bench.defenses.jpeg import Jpeg

    class Plugin(Purifier):
        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            return x

    class Learned(Plugin):
        def load(self) -> torch.nn.Module:
            return torch.nn.Conv2d(3, 5, 3)

    assert defense_cost.parameters(Jpeg()) == 0
    assert defense_cost.parameters(Plugin()) is None
    assert defense_cost.parameters(Learned()) == 5 * 3 * 9 + 5


def test_passes_and_larger_images_are_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts what is called: 1 s a pass, 2 s a prediction, 8 s of an image twice as large."""
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    @dataclass(frozen=True)
    class Double(Purifier):
        @property
        def passes(self) -> int:
            return 3

        def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
            spend(1)
            return x.repeat(1, 1, 2, 2)

    def model(x: Tensor, zoom: float = 1.0) -> Tensor:
        assert zoom == x.shape[-1] / 16
        spend(2 * zoom**2)
        return x.sum((1, 2, 3))

    def purify_nothing(x: Tensor, rng: ImageRng) -> Tensor:
        return x

    monkeypatch.setattr(defense_cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(defense_cost, "describe", lambda _: {"threads": 1})
    facts = {"device": "cpu", "batch": 4, "size": 16, "target": "t", "defenses": {"none": {}, "double": {}, "bad": {}}}
    monkeypatch.setattr(defense_cost, "asked", lambda _: facts)
    bare = SimpleNamespace(purify=purify_nothing, passes=1)
    made = {name: SimpleNamespace(value=value) for name, value in (("none", bare), ("double", Double()), ("bad", None))}
    images = np.zeros((4, 3, 16, 16), np.uint8)
    worker = SimpleNamespace(
        plan=SimpleNamespace(device="cpu", defenses=made, precision="float32"),
        clean=lambda low, high: images,
        model=lambda _: model,
    )
    found = defense_cost.measure(cast("Any", worker))
    assert found["forward_ms"] == 2000 / 4
    assert found["defenses"]["none"]["ratio"] == 1
    assert found["defenses"]["double"]["ms"] == 3 * 1000 / 4
    assert found["defenses"]["double"]["ratio"] == 3 * (1 + 8) / 2
    assert "AttributeError" in found["defenses"]["bad"]["reason"]


def test_costs_stay_out_of_the_store_and_are_measured_once(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(grid).exit_code == 0
    before, table = stored(grid), (grid.parent / "out" / "results.csv").read_text()
    path = grid.parent / "out" / "runs" / "tiny.json"
    assert "cost" not in json.loads(path.read_text())
    grid.write_text(GRID + "cost = true\n")
    assert run(grid).exit_code == 0
    first = json.loads(path.read_text())["cost"]
    assert list(first["defenses"]) == ["none", "tiny/round", "tiny/dither"]
    assert first["defenses"]["tiny/round"]["ms"] > 0
    assert stored(grid) == before
    assert (grid.parent / "out" / "results.csv").read_text() == table
    measured = []
    monkeypatch.setattr(
        defense_cost, "measure", lambda worker: measured.append(1) or {**defense_cost.asked(worker.plan), "key": ""}
    )
    assert run(grid).exit_code == 0
    assert json.loads(path.read_text())["cost"] == first
    assert not measured
    assert run(grid, "--defense", "none", "--defense", "tiny/round(levels=7)").exit_code == 0  # another defense
    assert measured


# --- report ----------------------------------------------------------------------------------------------

TIMES = {"none": 1.0, "jpeg": 2.0, "fd": 3.0, "tvm": 4.0, "rdp": 5.0}
WRONG = {"none": 16, "jpeg": 10, "fd": 12, "tvm": 10, "rdp": 5}


@pytest.fixture
def reported(tmp_path: Path) -> Run:
    """Twenty images, two attacks alike; jpeg beats fd and, as good and faster, tvm."""
    store = Store(tmp_path / "cache")
    found = {
        name: {"ms": 10 * ratio, "ratio": ratio, "parameters": 2500, "memory": 3 << 20} for name, ratio in TIMES.items()
    }
    found["tvm"]["memory"] = None  # type: ignore[assignment]
    about = {
        "device": "cpu", "processor": "a processor", "threads": 2, "batch": 8, "size": 8, "target": "t",
        "forward_ms": 20.0, "defenses": found, "key": "",
    }  # fmt: skip
    make_run(tmp_path, store, lambda cell_key: range(WRONG[cell_key.defense]), defenses=TIMES, cost=about, clean=False)
    (run,) = load(tmp_path, store)
    for attack, level in (("fgsm", 20.0), ("mi-fgsm", 30.0)):
        run.image_quality[CellKey("a", attack, 16.0, "-", "rdp")] = {
            "psnr": np.full(20, level),
            "ssim": np.full(20, 80.0),
        }
    return run


def test_the_table_holds_error_restoration_and_cost(reported: Run) -> None:
    (table,) = quality_and_cost.tables(reported)
    lines = {line.defense: [entry.value for entry in line.cells] for line in table.groups[0].rows}
    assert table.columns == ["error", "PSNR", "SSIM", "clean PSNR", "clean SSIM", "ms", "× time", "k param.", "MiB"]
    assert lines["rdp"] == pytest.approx([25, 25, 80, None, None, 50, 5, 2.5, 3])
    assert lines["tvm"][-1] is None
    assert {entry.reason for line in table.groups[0].rows for entry in line.cells if entry.value is None} == {
        "not measured"
    }
    assert list(lines) == list(TIMES)


def test_the_front_holds_what_nobody_beats_in_both(reported: Run) -> None:
    figure = pareto(reported)
    assert figure is not None
    lines = list(csv.DictReader(io.StringIO(figure.csv or "")))
    assert [(line["defense"], float(line["error"]), float(line["ms"]), line["front"]) for line in lines] == [
        ("none", 80, 20, "1"), ("jpeg", 50, 40, "1"), ("fd", 60, 60, "0"), ("tvm", 50, 80, "0"), ("rdp", 25, 100, "1"),
    ]  # fmt: skip
    assert set(figure.saved) == {"svg", "png", "pdf"}


def test_a_run_that_asked_for_nothing_has_neither(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    make_run(tmp_path, store, lambda _: ())
    (run,) = load(tmp_path, store)
    assert quality_and_cost.tables(run) == []
    assert pareto(run) is None


def test_a_defense_of_which_an_attack_failed_says_so(tmp_path: Path) -> None:
    failed = CellKey("a", "mi-fgsm", 16.0, "t", "jpeg")
    made = {
        "processor": "x", "device": "cpu", "threads": 1, "batch": 1, "size": 8, "target": "t", "forward_ms": 1.0,
        "defenses": {},
    }  # fmt: skip
    make_run(tmp_path, Store(tmp_path / "s"), lambda p: (), states={failed: ("failed", "it is blue")}, cost=made)
    (run,) = load(tmp_path, Store(tmp_path / "s"))
    (table,) = quality_and_cost.tables(run)
    errors = {line.defense: line.cells[0] for group in table.groups for line in group.rows}
    assert {name: (error.status, error.reason) for name, error in errors.items()} == {
        "none": ("done", ""), "jpeg": ("failed", "it is blue"), "rdp": ("done", ""),
    }  # fmt: skip
