"""Random defenses on several draws: what is judged, kept and said of them; and that one draw changes nothing."""

import csv
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rdp_bench import plugins, registry
from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.engine.grid import Axes, Grid, load
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.worker import Worker
from rdp_bench.errors import UsageError
from rdp_bench.keys import canonical_json, hash_many, hash_pixels
from rdp_bench.metrics.correctness import error_flags, majority
from rdp_bench.metrics.significance import compare_defenses, paired
from rdp_bench.metrics.stats import mcnemar, mean_interval, wilson
from rdp_bench.results.record import CellResult
from rdp_bench.results.rows import aggregation_rows, row
from rdp_bench.results.rows import load as read
from rdp_bench.rng import ImageRng
from rdp_bench.specs import CellKey
from tests.helpers.paths import ROOT

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

# Three images, four draws: always right; wrong in two draws, but 2 is named most; 3 and 0 equally often, 3 first.
SAID = np.array([[1, 1, 1, 1], [0, 2, 1, 2], [3, 0, 0, 3]], np.int32)
LABEL = np.array([1, 2, 0], np.int32)


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.toml"
    path.write_text(GRID)
    return path


def run(grid: Path, *args: object, out: str = "out") -> Result:
    given = ("run", "--grid", grid, "--plugin", PLUGIN, "--out", grid.parent / out, *args)
    return CliRunner().invoke(main, [str(arg) for arg in given])


def results(grid: Path, out: str = "out") -> list[dict[str, str]]:
    with (grid.parent / out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def evals(grid: Path, out: str = "out") -> dict[tuple[str, ...], Any]:
    """Predictions by (attack, defense, target)."""
    store = Store(grid.parent / "cache")
    lines = [line for line in results(grid, out) if line["metric"] in ("error", "accuracy")]
    return {
        (line["attack"], line["defense"], line["target"]): store.open("eval", line["eval_key"]).read() for line in lines
    }


# --- numbers, by hand ------------------------------------------------------------------------------------


def test_mean_worst_and_vote_of_three_images() -> None:
    assert error_flags(SAID, LABEL).tolist() == [0, 0.5, 0.5]
    assert error_flags(SAID, LABEL, "worst").tolist() == [False, True, True]
    assert majority(SAID).tolist() == [1, 2, 3]
    assert error_flags(SAID, LABEL, "vote").tolist() == [False, False, True]
    assert error_flags(SAID[:, 0], LABEL).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("attack", "metric", "mean", "worst", "vote"), [("fgsm", "error", 1, 2, 1), ("clean", "accuracy", 2, 1, 2)]
)
def test_rows_of_a_cell_of_several_draws(attack: str, metric: str, mean: int, worst: int, vote: int) -> None:
    record = {"grid": "g", "dataset": {"name": "d", "n": 3}}
    cell = CellResult("s", attack, 16.0, "t", "r&p", "done", seconds=4.0)
    first = row(record, cell, SAID, LABEL)
    lines = {line["metric"]: line for line in (first, *aggregation_rows(first, SAID, LABEL))}
    assert list(lines) == [metric, f"{metric}_worst", f"{metric}_vote"]
    for name, hits in zip(lines, (mean, worst, vote), strict=True):
        assert float(lines[name]["value"]) == pytest.approx(100 * hits / 3, abs=1e-4)
        rates = np.array([0, 0.5, 0.5]) if metric == "error" else np.array([1, 0.5, 0.5])
        ends = mean_interval(rates) if name == metric else wilson(hits, 3)
        assert [float(lines[name][end]) for end in ("ci_low", "ci_high")] == pytest.approx(
            [100 * e for e in ends], abs=1e-4
        )
    # Work is counted once, however many lines tell of it.
    assert sum(float(line["seconds"]) for line in lines.values()) == 4


def test_rows_stand_before_there_are_predictions() -> None:
    record = {"grid": "g", "dataset": {"name": "d", "n": 3}}
    cell = CellResult("s", "fgsm", 16.0, "t", "r&p", "pending")
    lines = aggregation_rows(row(record, cell, None, None), None, None)
    assert [(line["metric"], line["value"], line["status"]) for line in lines] == [
        ("error_worst", "", "pending"),
        ("error_vote", "", "pending"),
    ]


def test_a_random_defense_is_tested_by_its_rates() -> None:
    """Against every sign pattern, enumerated; deterministic defenses are in tens and tested as ever."""
    shares, flags = np.array([3, 10, 0, 7, 1, 10]), np.array([0, 10, 10, 0, 0, 0])
    difference = shares - flags
    sums = [
        abs(sum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=6)
    ]
    exact = sum(total >= abs(difference.sum()) for total in sums) / 2**6
    assert paired(shares, flags) == pytest.approx(exact)
    only_first, only_second = np.repeat([1, 0], [3, 14]), np.repeat([0, 1], [3, 14])
    assert paired(10 * only_first, 10 * only_second) == mcnemar(3, 14)
    rng = np.random.default_rng(0)
    column = {name: rng.integers(0, 2, 40) for name in ("none", "jpeg", "fd")}
    assert compare_defenses([{name: 10 * errors for name, errors in column.items()}]) == compare_defenses([column])


# --- keys ------------------------------------------------------------------------------------------------


@dataclass
class Model:
    name: str = "t"

    def record(self) -> dict[str, str]:
        return {"made": "up"}


@dataclass
class Images:
    name: str = "three"
    size: int = 8
    ids: tuple[str, ...] = ("a", "b", "c")
    labels: tuple[int, ...] = (0, 1, 2)


def keys(tmp_path: Path, **axes: Any) -> dict[str, Any]:
    plugins.load()
    names = ("jpeg", "r&p")
    grid = Grid("g", "G", "p", replace(Axes(dataset="three", targets=("t",), defenses=names), **axes))
    made = {name: registry.defense.resolve(name) for name in names}
    plan = Plan(grid, Store(tmp_path), 0, "cpu", Images(), ["aa", "bb", "cc"], {}, made, {}, {"t": Model()})  # type: ignore[arg-type, dict-item]
    return {cell.defense: {"eval": made.eval.key, "sample": made.sample.key} for cell, made in plan.cells.items()}


def test_draws_are_in_the_key_of_random_defenses_alone(tmp_path: Path) -> None:
    one, ten, eleven = (keys(tmp_path, defense_samples=defense_samples) for defense_samples in (1, 10, 11))
    assert one["jpeg"] == ten["jpeg"]
    assert len({found["r&p"]["eval"] for found in (one, ten, eleven)}) == 3
    assert one["r&p"]["sample"] == ten["r&p"]["sample"]


# --- runs ------------------------------------------------------------------------------------------------


def test_draws_are_kept_apart_and_the_first_is_that_of_a_run_with_one(grid: Path) -> None:
    assert run(grid, out="one").exit_code == 0
    assert run(grid, "--defense-samples", 4).exit_code == 0
    one, four = evals(grid, "one"), evals(grid)
    for place, arrays in four.items():
        if place[1] != "tiny/dither":
            assert arrays["predicted"].shape == (12,)
            continue
        assert arrays["predicted"].shape == arrays["margin"].shape == (12, 4)
        for name in ("predicted", "margin"):
            np.testing.assert_array_equal(arrays[name][:, 0], one[place][name])
    assert any(len(set(said)) > 1 for said in four["fgsm", "tiny/dither", "tiny/two"]["predicted"].tolist())
    lines = results(grid)
    assert len(lines) == len(results(grid, "one")) + 2 * 2 * 2  # attacks (and clean), targets, worst and vote
    said = four["fgsm", "tiny/dither", "tiny/two"]
    (line,) = [line for line in lines if (line["metric"], line["target"]) == ("error_worst", "tiny/two")]
    assert float(line["value"]) == pytest.approx(
        100
        * np.mean(
            [any(p != label for p in each) for each, label in zip(said["predicted"], said["label"], strict=True)]
        ),
        abs=1e-4,
    )


def test_every_draw_follows_from_its_image_and_number(grid: Path) -> None:
    """Draws 0 and 2, of three passes each, by a loop of its own."""
    assert run(grid, "--defense-samples", 3, "--batch-size", 5).exit_code == 0
    tiny: Any = next(module for name, module in sys.modules.items() if name.startswith("rdp_bench_plugin_tiny"))
    place = ("clean", "tiny/dither", "tiny/two")
    cells = {(line["attack"], line["defense"], line["target"]): line["eval_key"] for line in results(grid)}
    artefact = Store(grid.parent / "cache").open("eval", cells[place])
    seed = hash_many([canonical_json({name: artefact.record[name] for name in ("defense", "seed", "stream")})])
    data = tiny.Noise()
    images = [data.image(i) for i in range(12)]
    first = ImageRng([f"{seed}/{hash_pixels(image)}" for image in images])
    x = torch.stack([torch.from_numpy(image) for image in images]).float() / 255
    for number, streams in ((0, first), (2, first.fork("draw 2"))):
        passes = [tiny.two()(tiny.Dither().purify(x, streams.fork(f"pass {i}"))).softmax(1) for i in range(3)]
        said = torch.stack(passes).mean(0).argmax(1).tolist()
        assert artefact.read()["predicted"][:, number].tolist() == said


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--defense-samples", 4, "--batch-size", 2, "--defense", "tiny/dither", "--defense", "none")
    assert run(grid, *flags).exit_code == 0
    whole = evals(grid)
    store = Store(grid.parent / "cache")
    for kind, key in store.everything():
        if kind == "eval":
            store.delete(kind, key)
    predict, asked = Worker._predict, []

    def stop(self: Worker, *args: Any, **more: Any) -> Any:
        asked.append(args[-2:])
        if len(asked) > 9:
            raise KeyboardInterrupt
        return predict(self, *args, **more)

    monkeypatch.setattr(Worker, "_predict", stop)
    assert run(grid, *flags).exit_code == 130
    monkeypatch.setattr(Worker, "_predict", predict)
    assert run(grid, *flags).exit_code == 0
    for place, arrays in evals(grid).items():
        for name in ("predicted", "margin", "label"):
            np.testing.assert_array_equal(arrays[name], whole[place][name])


@pytest.mark.parametrize("value", ["0", "-3"])
def test_no_draws_is_no_evaluation(grid: Path, value: str) -> None:
    found = run(grid, "--defense-samples", value)
    assert found.exit_code == 2
    assert f"defense_samples is {value}; a random defense is evaluated on at least one" in found.output
    assert run(grid, "--defense-samples", "6000", "--dry-run").exit_code == 0  # one attack and source
    assert (
        "at most 10000 draws in all, 5000 each"
        in run(grid, "--defense-samples", "6000", "--source", "tiny/one,tiny/two").output
    )
    grid.write_text(GRID + "defense_samples = true\n")
    with pytest.raises(UsageError, match="'defense_samples' is a whole number, found True"):
        load(str(grid), "embedded", {})


def test_the_report_has_a_table_of_its_own(grid: Path) -> None:
    assert run(grid, "--defense-samples", 4).exit_code == 0
    out = grid.parent / "out"
    assert CliRunner().invoke(main, ["report", "--out", str(out)]).exit_code == 0
    found = {}
    for path in (out / "report" / "tables").glob("*_draws.csv"):
        with path.open() as file:
            lines = list(csv.DictReader(file))
        target = "eps" if "eps16" in path.name else "clean"
        found[target] = {line["defense"]: line for line in lines}
    assert list(found["clean"]) == ["none", "tiny/dither, mean", "tiny/dither, worst of 4", "tiny/dither, vote"]
    numbers = {
        line["metric"]: float(line["value"])
        for line in results(grid)
        if (line["attack"], line["defense"], line["target"]) == ("clean", "tiny/dither", "tiny/two")
    }
    column = [
        found["clean"][f"tiny/dither, {aggregation}"]["tiny/two"] for aggregation in ("mean", "worst of 4", "vote")
    ]
    assert [float(value) for value in column] == [
        numbers[name] for name in ("accuracy", "accuracy_worst", "accuracy_vote")
    ]
    assert len(found["eps"]) == 4
    # Pictures are of the first draw, and so is what stands below them.
    (loaded,) = read(out, Store(grid.parent / "cache"))
    for place, arrays in evals(grid).items():
        where = CellKey(
            "-" if place[0] == "clean" else "tiny/one", place[0], 16.0 * (place[0] != "clean"), place[2], place[1]
        )
        first = arrays["predicted"].reshape(12, -1)[:, 0]
        assert loaded.predicted[where].tolist() == first.tolist()
        assert (loaded.wrong_first_sample(where) == (first != arrays["label"])).all()
    page = (out / "report" / "index.html").read_text()
    assert "tiny/dither, worst of 4" in page
    # Nothing random, or a draw each: no such table.
    assert run(grid, out="one").exit_code == 0
    assert CliRunner().invoke(main, ["report", "--out", str(grid.parent / "one")]).exit_code == 0
    assert not list((grid.parent / "one" / "report" / "tables").glob("*_draws.*"))
