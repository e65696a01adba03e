"""Attack success over originally right images, and targeted success with the data set's own target classes."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result

import rdp_bench as rb
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.cache.store import Store
from rdp_bench.errors import UsageError
from rdp_bench.metrics.stats import wilson
from rdp_bench.reports.tables.success import success_tables
from rdp_bench.reports.tables.table import error_tables
from rdp_bench.specs import parse_spec
from tests.helpers import toy
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.settings import setting

AIMED = """
import sys
from dataclasses import dataclass
from rdp_bench import dataset
tiny = next(m for name, m in sys.modules.items() if name.startswith("rdp_bench_plugin_tiny"))

@dataset("aimed/noise", source="made up")
@dataclass(frozen=True)
class Aimed(tiny.Noise):
    "tiny/noise with target classes."
    name: str = "aimed/noise"
    by: int = 2

    @property
    def targets(self):
        return [(label + self.by) % tiny.CLASSES for label in self.labels]
"""
GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["fgsm", "tiny/sleepy"]
sources = ["tiny/one"]
defenses = ["none", "tiny/round"]
targets = ["tiny/one", "tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from rdp_bench import plugins
    from rdp_bench.registry import registries

    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    plugins.load((PLUGIN,))
    for registry in registries.values():
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    (tmp_path / "success.toml").write_text(GRID)
    (tmp_path / "aimed.py").write_text(AIMED)
    return tmp_path / "success.toml"


def run(grid: Path, *flags: object) -> Result:
    plugins = ("--plugin", PLUGIN, "--plugin", grid.parent / "aimed.py")
    return cli("run", "--grid", grid, *plugins, "--out", grid.parent / "out", *flags)


def rows(grid: Path, metric: str) -> list[dict[str, str]]:
    with (grid.parent / "out" / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["metric"] == metric]


def predictions(grid: Path, row: dict[str, str]) -> dict[str, np.ndarray]:
    return Store(grid.parent / "cache").open("eval", row["eval_key"]).read()


def clean_of(grid: Path, row: dict[str, str]) -> dict[str, str]:
    return next(
        one for one in rows(grid, "accuracy") if (one["target"], one["defense"]) == (row["target"], row["defense"])
    )


def test_success_is_a_share_of_what_was_right_behind_the_same_defense(grid: Path) -> None:
    assert run(grid, "--success").exit_code == 0
    found = rows(grid, "success")
    assert len(found) == 2 * 2 * 2
    seen = set()
    for row in found:
        clean, attacked = predictions(grid, clean_of(grid, row)), predictions(grid, row)
        right = clean["predicted"] == clean["label"]
        lost = int((right & (attacked["predicted"] != attacked["label"])).sum())
        assert int(row["n"]) == right.sum()
        assert float(row["value"]) == pytest.approx(100 * lost / right.sum(), abs=1e-3)
        ends = [float(row[name]) / 100 for name in ("ci_low", "ci_high")]
        assert ends == pytest.approx(wilson(lost, int(right.sum())), abs=1e-5)
        error = next(one for one in rows(grid, "error") if one["eval_key"] == row["eval_key"])
        seen.add(row["value"] == error["value"])
    assert seen == {True, False}  # where a target is right on all clean images the two are one number


def test_without_the_axis_there_is_one_row_a_cell(grid: Path) -> None:
    assert run(grid).exit_code == 0
    assert rows(grid, "success") == []


def test_success_needs_clean_cells(grid: Path) -> None:
    grid.write_text(GRID + "clean = false\nsuccess = true\n")
    found = run(grid)
    assert (found.exit_code, "needs clean = true" in found.output) == (2, True)


def test_a_cached_run_has_the_same_rows(grid: Path) -> None:
    assert run(grid, "--success").exit_code == 0
    before = rows(grid, "success")
    assert run(grid, "--success").exit_code == 0
    assert rows(grid, "success") == before


def test_no_image_right_is_said_and_no_number(grid: Path) -> None:
    from rdp_bench.results.rows import success_row

    line = {"metric": "error_l2", "status": "done", "reason": "", "n": 3}
    wrong = np.array([True, True, True])
    found = success_row(line, wrong, line, wrong)
    assert (found["metric"], found["n"], found["value"]) == ("success_l2", 0, "")
    assert found["reason"] == "no image is right without an attack"
    for state, reason, says in (("pending", "", "is pending"), ("failed", "it is blue", "is failed: it is blue")):
        found = success_row(line, wrong, {"status": state, "reason": reason}, None)
        assert (found["status"], found["value"]) == (state, "")
        assert found["reason"] == f"the same cell without an attack {says}"


def test_a_failed_cell_has_a_failed_success_everywhere(tmp_path: Path) -> None:
    from rdp_bench import plugins

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("it is blue")

    plugins.load((PLUGIN,))
    result = rb.evaluate(
        {"broken": broken}, defenses="none", attacks="fgsm", sources="tiny/one", targets="tiny/two", eps=32,
        dataset="tiny/noise", success=True, cache=tmp_path / "cache", device="cpu", out=tmp_path / "out",
    )  # fmt: skip
    (run,) = result.runs
    for table in (*success_tables(run), *error_tables(run)):
        right, failed = table.cells
        assert (right.status, failed.status) == ("done", "failed")
        assert failed.reason == "defense 'broken': ValueError: it is blue"
    assert "pending" not in result.table()
    frame = result.to_dataframe()
    kept = pd.read_csv(tmp_path / "out" / "results.csv", keep_default_na=False, na_values={"value": [""]})
    assert list(frame["metric"]) == list(kept["metric"]) == ["accuracy"] * 2 + ["error", "success"] * 2
    assert frame["value"].equals(kept["value"].astype(float))
    assert list(frame["status"]) == list(kept["status"])
    assert list(frame.query("metric == 'success'")["status"]) == ["done", "failed"]


def test_the_report_shows_success_where_it_was_asked_for(grid: Path) -> None:
    assert run(grid, "--success").exit_code == 0
    assert cli("report", "--out", grid.parent / "out").exit_code == 0
    (table, *_) = sorted((grid.parent / "out" / "report" / "tables").glob("success_success_*.tests.csv"))
    with table.open() as file:
        shown = {(row["defense"], row["column"]): row["value"] for row in csv.DictReader(file)}
    row = next(row for row in rows(grid, "success") if row["target"] == "tiny/one" and row["defense"] == "tiny/round")
    assert f"{float(row['value']):.4f}" in {value for (name, _), value in shown.items() if name == "tiny/round"}
    assert (
        "Attack success: ε\u00a0=\u00a016, target tiny/one"
        in (grid.parent / "out" / "report" / "index.html").read_text()
    )
    assert run(grid).exit_code == 0
    assert cli("report", "--out", grid.parent / "out").exit_code == 0
    assert "Attack success" not in (grid.parent / "out" / "report" / "index.html").read_text()


# --- targeted ---


def test_the_iteration_descends_on_the_target_class() -> None:
    source = toy.source(toy.conv())
    x, y = toy.images(6, 16), (torch.arange(6) + 2) % 5
    attack = compose("TARGETED(dataset)|I(5)")
    assert attack == setting(steps=5, targeted=True, target="dataset")
    adv = attack(source, x, y, 32 / 255, toy.image_rng(6))
    losses = [torch.nn.functional.cross_entropy(source.members[0](z), y, reduction="none") for z in (x, adv)]
    assert (losses[1] < losses[0]).all()
    random = compose("TARGETED|I(5)")(source, x, y, 32 / 255, toy.image_rng(6))
    assert not torch.equal(random, adv)


def test_target_needs_targeted() -> None:
    with pytest.raises(UsageError, match="target has no effect without targeted"):
        compose("MI").with_params(parse_spec("mi-fgsm(target=dataset)"))


def test_targeted_success_is_the_share_predicted_as_the_target_class(grid: Path) -> None:
    flags = ("--dataset", "aimed/noise", "--attack", "mi-fgsm(targeted=true, target=dataset)", "--attack", "fgsm")
    found = run(grid, *flags, "--eps", "32")
    assert found.exit_code == 0, found.output
    aimed = rows(grid, "targeted_success")
    assert len(aimed) == 4
    record = json.loads((grid.parent / "out" / "runs" / "success.json").read_text())
    targets = np.array(record["dataset"]["targets"])
    for row in aimed:
        arrays = predictions(grid, row)
        hits = int((arrays["predicted"] == targets).sum())
        assert (arrays["label"] != targets).all()
        assert float(row["value"]) == pytest.approx(100 * hits / 12, abs=1e-3)
        assert float(row["ci_high"]) / 100 == pytest.approx(wilson(hits, 12)[1], abs=1e-5)
    assert max(float(row["value"]) for row in aimed) > 80  # white-box, at a large eps
    assert cli("report", "--out", grid.parent / "out").exit_code == 0
    assert (
        "Targeted success: ε\u00a0=\u00a032, target tiny/one"
        in (grid.parent / "out" / "report" / "index.html").read_text()
    )


def test_other_targets_are_another_set(grid: Path) -> None:
    keys = set()
    for by in (2, 3):
        flags = ("--dataset", f"aimed/noise(by={by})", "--attack", "TARGETED(dataset)|I(5)")
        assert run(grid, *flags).exit_code == 0
        keys |= {row["adv_key"] for row in rows(grid, "targeted_success")}
    assert len(keys) == 2


def test_a_data_set_without_targets_is_refused(grid: Path) -> None:
    found = run(grid, "--attack", "TARGETED(dataset)|I(5)")
    assert found.exit_code == 2
    assert "approaches the data set's target classes, and tiny/noise has none" in found.output
    assert not (grid.parent / "out").exists()
    with pytest.raises(UsageError, match="takes 1 values"):
        compose("TARGETED(dataset, 3)")
