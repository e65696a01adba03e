"""The paper's figures: spectra and errors against arithmetic, pictures and plots against the run's own results."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image

from rdp_bench import plugins
from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.data.open import open_dataset
from rdp_bench.engine import grid
from rdp_bench.errors import UsageError
from rdp_bench.picture import resized
from rdp_bench.reports.figures import registry
from rdp_bench.reports.figures.ablation import ablation, training, variant
from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.error_maps import error_maps
from rdp_bench.reports.figures.sample_images import SampleImages, psnr_of
from rdp_bench.reports.figures.spectra import gaussian, radial, rings, spectra, spectrum
from rdp_bench.reports.tables.table import error_tables
from rdp_bench.results.record import write_record
from rdp_bench.results.rows import CellKey, Run, display_name, load
from rdp_bench.specs import FileName, FileSearch
from rdp_bench.weights import files as weight_files
from tests.helpers.paths import TESTS
from tests.helpers.report_fixture import make_run

PLUGIN = TESTS / "plugin" / "tiny.py"
GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm", "i-fgsm"]
defenses = ["none", "tiny/round", "tiny/dither"]
eps = [16]
samples = 3
limit = 5
figures = ["spectra", "gallery", "error-maps", "branches", "ablation"]
[profile.embedded]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


def cli(*args: str) -> Any:
    return CliRunner().invoke(main, list(args))


def run_grid(folder: Path, text: str = GRID, *args: str, out: str = "out") -> Run:
    (folder / "tiny.toml").write_text(text)
    given = ["run", "--grid", str(folder / "tiny.toml"), "--plugin", str(PLUGIN), "--out", str(folder / out), *args]
    found = cli(*given)
    assert found.exit_code == 0, found.output
    (run,) = load(folder / out, Store(folder / "cache"))
    return run


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rows(figure: ReportFigure | None) -> list[dict[str, str]]:
    assert figure
    assert figure.csv
    return list(csv.DictReader(io.StringIO(figure.csv)))


# Spectra


@pytest.mark.parametrize(("across", "down"), [(12, 0), (0, 5), (9, 12)])
def test_a_cosine_has_its_power_at_its_frequency(across: int, down: int) -> None:
    y, x = np.mgrid[:60, :60]
    wave = np.cos(2 * np.pi * (across * x + down * y) / 60)

    power = spectrum(wave)

    # The centre of 60 is at 30; a real wave has its mirror.
    peaks = {(30 + down, 30 + across), (30 - down, 30 - across)}
    assert {tuple(at) for at in np.argwhere(power > 1).tolist()} == peaks
    assert power.sum() == pytest.approx(60 * 60)
    _, frequency, counts = rings(60)
    (ring,) = np.flatnonzero(radial(np.broadcast_to(wave, (1, 3, 60, 60)))[0] > 1e-9)
    assert abs(frequency[ring] - np.hypot(across, down) / 60) < 0.02
    assert counts.sum() == 60 * 60


def test_rings_keep_parsevals_sum() -> None:
    noise = np.random.default_rng(0).normal(0, 7, (4, 3, 31, 31))
    power = np.abs(np.fft.fft2(noise)) ** 2
    # The sum over frequencies is the sum of squares times the number of pixels.
    np.testing.assert_allclose(power.sum((2, 3)), (noise**2).sum((2, 3)) * 31 * 31)
    np.testing.assert_allclose(spectrum(noise).mean((2, 3)), 1)
    np.testing.assert_allclose((radial(noise) * rings(31)[2]).sum(1), 31 * 31)


def test_noise_has_each_images_rms_and_no_colour() -> None:
    like = np.ones((3, 3, 64, 64), np.int8) * np.array([4, -8, 16], np.int8)[:, None, None, None]

    noise = gaussian(like)

    np.testing.assert_allclose(noise.std((1, 2, 3)), [4, 8, 16], rtol=0.03)
    assert np.array_equal(noise, gaussian(like))
    _, frequency, counts = rings(64)
    # A ring of k frequencies, of which half are mirrors, in 3 channels: 1 with deviation (2 / 3k)^(1/2).
    many = counts > 50
    assert (np.abs(radial(noise)[:, many] - 1) < 5 * np.sqrt(2 / (3 * counts[many]))).all()
    assert frequency[many].max() > 0.5


def test_the_spectra_of_a_run_are_those_of_its_perturbations(tiny: Path) -> None:
    run = run_grid(tiny)
    figure = spectra(SampleImages(run, Store(tiny / "cache")))
    found = rows(figure)

    (cell,) = [cell for cell in run.cells if (cell.attack, cell.defense) == ("fgsm", "none")]
    delta = Store(tiny / "cache").open("adv", str(cell.adv_key)).read()["delta"].astype(float)
    assert delta.shape == (5, 3, 16, 16)
    power = np.abs(np.fft.fft2(delta)) ** 2
    power = np.roll(power / power.mean((2, 3), keepdims=True), (8, 8), (2, 3)).mean((0, 1))
    index, _, counts = rings(16)
    wanted = [power[index == ring].mean() for ring in np.flatnonzero(counts)]
    np.testing.assert_allclose([float(r["power"]) for r in found if r["noise"] == "FGSM"], wanted, rtol=1e-4)
    assert {r["noise"] for r in found} == {"Gaussian noise", "FGSM", "I-FGSM"}
    assert {r["images"] for r in found} == {"5"}
    assert figure
    assert "over 5 images" in figure.caption


# Pictures


def test_distances_by_hand() -> None:
    a = np.full((3, 4, 4), 100, np.uint8)
    assert psnr_of(a, a + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr_of(a, a) == float("inf")
    large = np.repeat(np.repeat(a, 2, 1), 2, 2)
    assert resized(large, 4).shape == (3, 4, 4)
    assert np.array_equal(resized(large, 4), a)


def test_the_gallery_says_what_the_target_said(tiny: Path) -> None:
    run = run_grid(tiny)
    out = tiny / "out"
    assert cli("report", "--out", str(out)).exit_code == 0
    folder = out / "report" / "figures"
    with (folder / "tiny_gallery.csv").open() as file:
        found = list(csv.DictReader(file))
    # Three kept images, clean and under two attacks, undefended and behind two defenses.
    assert len(found) == 3 * 3 * 3
    for line in found:
        cell_key = CellKey(line["source"], line["attack"], float(line["eps"]), line["target"], line["defense"])
        at = int(line["image"]) - 1
        assert line["correct"] == str(not run.wrong[cell_key][at]).lower()
        assert int(line["predicted"]) == run.predicted[cell_key][at]
    data = open_dataset("tiny/noise")
    for i in range(3):
        rounded = np.rint(np.rint(data.image(i) / 255 * 4) / 4 * 255)
        mse = ((rounded - data.image(i)) ** 2).mean()
        (line,) = [r for r in found if (r["image"], r["attack"], r["defense"]) == (str(i + 1), "clean", "tiny/round")]
        assert float(line["psnr"]) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
        assert float(line["mean_absolute_error"]) == pytest.approx(np.abs(rounded - data.image(i)).mean(), abs=1e-3)
    names = {path.name for path in folder.iterdir()}
    drawn = ("spectra", "gallery", "error-maps", "branches", "ablation")
    assert names == {f"tiny_{name}.{kind}" for name in drawn for kind in ("svg", "png", "pdf", "csv")}


def test_figures_are_of_a_papers_width_with_their_fonts_in_them(tiny: Path) -> None:
    run_grid(tiny)
    assert cli("report", "--out", str(tiny / "out"), "--only", "tiny").exit_code == 0
    for path in (tiny / "out" / "report" / "figures").glob("*.pdf"):
        content = path.read_bytes()
        (width,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+)", content)
        assert float(width) / 72 in (pytest.approx(3.4), pytest.approx(7.0))
        assert b"/FontFile2" in content  # TrueType, embedded
    page = (tiny / "out" / "report" / "index.html").read_text()
    assert "image/png" not in page
    jpegs = re.findall(r"data:image/jpeg;base64,([^\"]*)", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in jpegs]
    assert len(sizes) > 30
    assert "See the figures of this run, which show images." in page  # no examples beside them: a page is to stay small
    assert max(max(size) for size in sizes) <= 160


def test_errors_are_to_the_clean_image_whatever_the_size(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, lambda _: range(3), defenses=["none", "sr", "r&p", "jpeg"], attacks=["fgsm"])
    figure = error_maps(SampleImages(load(tmp_path, store)[0], store))
    found = {row["defense"]: row for row in rows(figure)}

    assert figure
    assert float(found["none"]["mean_absolute_error"]) == 16  # the fixture's checkerboard
    assert float(found["none"]["psnr"]) == pytest.approx(24.05, abs=0.01)
    assert float(found["jpeg"]["mean_absolute_error"]) == 0
    assert float(found["sr"]["mean_absolute_error"]) < 8  # its ramp has half the slope at twice the size
    assert "up to 2ε = 32" in figure.caption
    assert "Images of SR are larger" in figure.caption


def test_a_picture_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    gone = CellKey("a", "fgsm", 16.0, "t", "jpeg")
    make_run(tmp_path, store, lambda _: range(3), attacks=["fgsm"], states={gone: ("failed", "no weights")})
    run = load(tmp_path, store)[0]
    for name in ("gallery", "error-maps", "branches"):
        (figure,) = registry.draw_figures(_asking(run, name), store, error_tables(run))
        assert "jpeg" not in {row["defense"] for row in rows(figure) if row["attack"] == "fgsm"}
        assert b"no weights" in figure.saved["svg"]
    nothing = _asking(run, "gallery")
    for cell in nothing.cells:
        if cell.status == "done":
            store.delete("sample", str(cell.sample_key))
    assert registry.draw_figures(nothing, store, error_tables(run)) == []


def _asking(run: Run, *names: str) -> Run:
    return replace(run, record={**run.record, "figures": list(names)})


# The ablation

VARIANTS = ["none", "rdp(weights=rdp-ablation-full)", "rdp(weights=rdp-ablation-no-lat)"]


def test_the_ablation_shows_the_tables_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store")
    wrong = dict(zip(VARIANTS, (16, 4, 6), strict=True))
    gone = CellKey("a", "mi-fgsm", 16.0, "t", VARIANTS[2])
    make_run(
        tmp_path, store, lambda p: range(wrong[p.defense]), defenses=VARIANTS, states={gone: ("failed", "no weights")}
    )
    run = load(tmp_path, store)[0]
    figure = ablation(error_tables(run))
    found = {(row["variant"], row["attack"]): row for row in rows(figure)}

    assert figure
    assert float(found["RDP, whole", "FGSM"]["error"]) == 20
    assert float(found["without latent loss", "FGSM"]["error"]) == 30
    assert found["without latent loss", "MI-FGSM"]["status"] == "failed"
    assert found["without latent loss", "MI-FGSM"]["reason"] == "no weights"
    assert float(found["No defense", "Average"]["error"]) == 80
    assert b"without latent loss" in figure.saved["svg"]
    bold = findfont(FontProperties(family="rdp-bench-sans", weight="bold"))  # the title of the average is
    assert Path(bold).name == "DejaVuSans-Bold.ttf"
    assert "findfont" not in caplog.text


def test_defenses_whose_long_names_begin_alike_are_no_trainings_of_one(tmp_path: Path) -> None:
    names = [f"a-purifier-of-a-very-long-name(strength={i})" for i in (1, 2)]
    store = Store(tmp_path / "store")
    make_run(tmp_path, store, lambda p: range(4 * (1 + names.index(p.defense))), defenses=names, attacks=["fgsm"])
    figure = ablation(error_tables(load(tmp_path, store)[0]))
    assert {(row["variant"], row["trainings"], float(row["error"])) for row in rows(figure)} == {
        (names[0], "1", 20), (names[1], "1", 40)
    }  # fmt: skip


def test_trainings_that_differ_in_their_seed_share_a_row(tmp_path: Path) -> None:
    """Its interval is Student's, over trainings; computed here by hand, with 4.3027 for two degrees of freedom."""
    store = Store(tmp_path / "store")
    seeds = [f"rdp(weights=rdp-ablation-full{end})" for end in ("", "-1", "-2")]
    lone = "rdp(weights=rdp-ablation-no-pix-12)"
    wrong = {"none": 16, seeds[0]: 4, seeds[1]: 5, seeds[2]: 9, lone: 6}
    gone = CellKey("a", "mi-fgsm", 16.0, "t", seeds[1])
    make_run(
        tmp_path, store, lambda p: range(wrong[p.defense]), defenses=[*wrong], states={gone: ("failed", "no weights")}
    )
    figure = ablation(error_tables(load(tmp_path, store)[0]))
    found = [row for row in rows(figure) if row["attack"] == "FGSM"]
    assert figure
    whole = [row for row in found if row["variant"] == "RDP, whole"]
    assert [(row["trainings"], row["defense"], float(row["error"])) for row in whole] == [
        ("1", seeds[0], 20), ("1", seeds[1], 25), ("1", seeds[2], 45), ("3", "", 30)
    ]  # fmt: skip
    reach = 4.3027 * np.std([20, 25, 45], ddof=1) / np.sqrt(3)
    assert float(whole[3]["ci_low"]) == pytest.approx(max(0, 30 - reach), abs=0.01)
    assert float(whole[3]["ci_high"]) == pytest.approx(30 + reach, abs=0.01)
    (other,) = (row for row in found if row["variant"] == "without pixel loss")
    assert (other["defense"], float(other["error"])) == (lone, 30)
    mean = next(row for row in rows(figure) if (row["attack"], row["trainings"]) == ("MI-FGSM", "3"))
    assert (mean["error"], mean["status"], mean["reason"]) == ("", "failed", "no weights")
    assert "single trainings of RDP, whole, which differ in their seed" in figure.caption
    assert figure.saved["svg"].count(b"RDP, whole</text>") == 1


def test_a_chain_with_an_ablation_and_other_parameters_are_no_trainings_of_it() -> None:
    whole = "rdp(weights=rdp-ablation-full)"
    others = [f"jpeg >> {whole}", f"{whole} >> jpeg", "rdp(dynamic=true, weights=rdp-ablation-full)"]
    assert [variant(name) for name in others] == [display_name(name) for name in others]
    assert [training(name) for name in others] == [display_name(name) for name in others]
    for written in (whole, 'rdp(weights="mine/rdp-ablation-full-2.safetensors")', "rdp( weights=rdp-ablation-full )"):
        assert variant(written) == "RDP, whole"


def test_weights_that_ship_are_found_by_their_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load()
    monkeypatch.setattr(weight_files, "files", lambda package: tmp_path)
    for folder in ("weights", "mine"):
        (tmp_path / folder).mkdir()
    search = FileSearch(models_dir=tmp_path / "mine")

    def find(name: str) -> Path:
        return weight_files.find("rdp", FileName(name, search))

    shipped = tmp_path / "weights" / "rdp-ablation-full.safetensors"
    shipped.write_bytes(b"")
    assert find("rdp-ablation-full") == shipped
    (tmp_path / "mine" / "rdp-ablation-full").write_bytes(b"")
    assert find("rdp-ablation-full") == tmp_path / "mine" / "rdp-ablation-full"
    (tmp_path / "outside.safetensors").write_bytes(b"")
    for name in ("../outside", "rdp-ablation-none"):
        with pytest.raises(weight_files.BadModelError, match=f"{name} do not exist"):
            find(name)


def test_a_grid_leaves_out_what_has_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rdp_bench.defenses.rdp import RepresentationDisentanglement

    plugins.load()
    monkeypatch.setattr(weight_files, "files", lambda package: tmp_path)
    net = {"width": 12, "blocks": 1, "unshuffle": 2}
    path = tmp_path / "weights" / "rdp-ablation-no-lat.safetensors"
    weight_files.save(path, RepresentationDisentanglement().build(**net).state_dict(), {"defense": "rdp", "net": net})
    axes = grid.settle(grid.load("figure8", "embedded", {})[0], None).axes
    assert axes.defenses == ("none", "rdp(weights=rdp-ablation-no-lat)")
    assert caplog.text.count("left out: defense rdp(weights=rdp-ablation-") == 11


# What a grid asks for


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('figures = ["galery"]', "unknown figure 'galery' of grid tiny.*gallery"),
        ("samples = 0", "samples is 0; at least one image"),
        ("limit = true", "'limit' is a whole number, found True"),
    ],
)
def test_a_grid_that_asks_for_what_cannot_be_is_refused(tiny: Path, line: str, said: str) -> None:
    key = line.split()[0]
    (tiny / "tiny.toml").write_text(re.sub(rf"{key} = .*", line, GRID))
    with pytest.raises(UsageError, match=said):
        grid.load(str(tiny / "tiny.toml"), "embedded", {})


def test_as_many_images_are_kept_as_the_grid_says_in_any_batches(tiny: Path) -> None:
    def kept(run: Run) -> set[int]:
        return {len(Store(tiny / "cache").open("sample", str(c.sample_key)).read()["purified"]) for c in run.cells}

    assert kept(run_grid(tiny, GRID, "--batch-size", "2")) == {3}
    # Everything is judged already; only the pictures are not there yet.
    assert kept(run_grid(tiny, GRID.replace("samples = 3", "samples = 4"), out="more")) == {4}
    assert kept(run_grid(tiny, GRID, "--limit", "2", out="less")) == {2}
    run = run_grid(tiny, GRID, "--limit", "7", out="all")
    assert run.record["dataset"]["n"] == 7


def test_a_record_from_before_there_were_figures_is_drawn_as_ever(tiny: Path) -> None:
    run_grid(tiny)
    path = tiny / "out" / "runs" / "tiny.json"
    record = json.loads(path.read_text())
    del record["figures"], record["samples"], record["sha256"]
    write_record(path, record)
    assert cli("report", "--out", str(tiny / "out")).exit_code == 0
    names = {path.stem for path in (tiny / "out" / "report" / "figures").iterdir()}
    assert names - {name for name in names if "tradeoff" in name} == {"tiny_heat", "tiny_dots"}
    assert len(names) == 3
