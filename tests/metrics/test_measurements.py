"""The registry of per-image measurements: adding one is one line, and everything that shows measurements follows."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.errors import DamagedError
from rdp_bench.keys import Record
from rdp_bench.metrics.measurement import Measurement
from rdp_bench.metrics.measurements import MEASUREMENTS, measure, values
from rdp_bench.reports.tables import quality_and_cost
from rdp_bench.results.rows import load
from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from rdp_bench.metrics.measurement import Values

GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [16]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one"]
image_quality = true
"""


class Largest(Measurement):
    """The largest change of a pixel."""

    name, title, unit, better = "largest", "Largest", "/255", "lower"
    array = "largest_change"
    note = "Largest is in /255."

    def measure(self, purified: Tensor, clean: Tensor, facts: Record) -> Tensor:
        return (purified - clean).abs().amax((1, 2, 3))

    def values(self, stored: "Values") -> "Values":
        return 255 * stored.astype(float)

    def aggregate(self, values: "Values") -> float:
        return float(values.max())


def test_one_line_adds_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASUREMENTS, "largest", Largest())
    (tmp_path / "g.toml").write_text(GRID)
    given = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    plugin = ["--plugin", ROOT / "tests" / "plugin" / "tiny.py"]
    made = CliRunner().invoke(main, [str(x) for x in ("run", "--grid", tmp_path / "g.toml", *plugin, *given)])
    assert made.exit_code == 0, made.output
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {(line["attack"], line["defense"], line["metric"]): line for line in csv.DictReader(file)}
    row = rows["fgsm", "none", "largest"]
    assert float(row["value"]) == pytest.approx(16, abs=1e-3)  # the attack itself; the maximum, not the mean
    store = Store(tmp_path / "cache")
    artefact = store.open("image_quality", row["eval_key"])
    assert "largest_change" in artefact.read()
    assert artefact.record["measure"]["largest"] == {}
    (table,) = quality_and_cost.tables(load(tmp_path / "out", store)[0])
    undefended = table.groups[0].rows[0]
    assert undefended.cells[table.columns.index("Largest")].value == pytest.approx(16, abs=1e-3)
    assert "Largest is in /255." in " ".join(table.notes)
    doctor = CliRunner().invoke(main, ["doctor", "--cache", str(tmp_path / "cache")])
    assert "largest            here" in doctor.output


def test_what_is_measured_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.metrics import measurements

    before = measurements.record()
    monkeypatch.setitem(MEASUREMENTS, "largest", Largest())
    assert measurements.record() == {**before, "largest": {}}


def test_an_array_that_is_not_stored_is_damage() -> None:
    with pytest.raises(DamagedError, match="no array 'mse' of the measurement psnr"):
        values({"ssim": np.ones(2, np.float32)}, {"psnr": {}, "ssim": {}})


def test_a_measurement_that_this_version_does_not_know_is_left_out() -> None:
    assert values({"x": np.ones(2, np.float32)}, {"later": {}}) == {}


def test_only_what_is_wanted_is_measured() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert set(measure(x, x, {"ssim": {}})) == {"ssim"}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_says_what_it_is(name: str) -> None:
    each = MEASUREMENTS[name]
    assert each.name == name
    assert each.title
    assert each.unit
    assert each.better in ("higher", "lower")
    assert each.note.startswith(each.title)
    assert f"`{name}`" in (ROOT / "docs" / "report.md").read_text(), "the columns of results.csv"


def test_arrays_have_names_of_their_own() -> None:
    stored = [each.stored for each in MEASUREMENTS.values()]
    assert len(set(stored)) == len(stored)


def test_the_registry_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, rdp_bench.metrics.measurements; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
