"""OUT contains its predictions: a moved folder gives the same numbers without a cache; what was changed gives none."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.cache.store import Store
from rdp_bench.errors import DamagedError
from rdp_bench.keys import hash_many
from rdp_bench.results.prediction_file import PredictionFile, PredictionWriter, path_of, tidy
from rdp_bench.results.record import read_run, write_record
from rdp_bench.results.rows import load, load_run
from tests.helpers.commands import cli
from tests.helpers.damage import edit, flip
from tests.helpers.grid_runs import GridRuns, read_rows

GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["fgsm"]
sources = ["tiny/one"]
defenses = ["none", "tiny/dither"]
targets = ["tiny/two", "tiny/one"]
image_quality = true
success = true
defense_samples = 3
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridRuns]:
    with pytest.MonkeyPatch.context() as patch:
        runs = GridRuns.make(tmp_path_factory.mktemp("made"), patch, GRID, name="toy")
        runs.done()
        yield runs


@pytest.fixture
def out(made: GridRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results folder, moved to where no cache is."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "empty"))
    return Path(shutil.copytree(made.out, tmp_path / "moved"))


def file_of(out: Path) -> Path:
    (path,) = (out / "predictions").iterdir()
    return path


def forge(out: Path, **changes: Any) -> None:
    """Write the record again with a right checksum, as somebody with this code could."""
    content = json.loads((out / "runs" / "toy.json").read_text())
    del content["sha256"]
    write_record(out / "runs" / "toy.json", {**content, **changes})


def refused(out: Path) -> str:
    """What `verify` says of a folder that it must refuse; `report` must not show a number of it either."""
    found = cli("verify", out)
    assert found.exit_code == 1, found.output
    assert not any(load_run(out / "runs" / "toy.json", Store(out / "none")).wrong)
    return found.output


def test_a_moved_folder_gives_the_same_rows(made: GridRuns, out: Path) -> None:
    path = made.out / "runs" / "toy.json"
    theirs = json.loads(path.read_text())
    del theirs["predictions"], theirs["sha256"]
    old = out.parent / "old" / "runs" / "toy.json"  # as a version without OUT/predictions wrote it
    write_record(old, theirs)
    cached, own = load_run(old, Store(made.cache)), load_run(out / "runs" / "toy.json", None)
    assert cached.stored
    assert not cached.stored.file
    assert own.rows == cached.rows
    assert {key: wrong.tolist() for key, wrong in own.wrong.items()} == {
        key: wrong.tolist() for key, wrong in cached.wrong.items()
    }
    for cell in own.cells:
        assert own.stored
        assert own.stored.evaluated(cell)["margin"].tolist() == cached.stored.evaluated(cell)["margin"].tolist()
    assert own.image_quality.keys() == cached.image_quality.keys()
    assert own.record["environment"] == cached.record["environment"]
    assert not (out.parent / "empty").exists()


def test_a_moved_folder_is_verified_shown_exported_and_reported(out: Path) -> None:
    metrics = [row["metric"] for row in read_rows(out) if row["value"]]
    assert {"accuracy", "error", "error_worst", "success", "psnr"} <= set(metrics)
    assert f"pass  toy: {len(metrics)} numbers of results.csv follow from 8 cells" in cli("verify", out).output
    shown = cli("show", out, "--json")
    assert {row["status"] for row in json.loads(shown.output)} == {"done"}
    assert cli("export", "--predictions", "--out", out).exit_code == 0
    with (out / "export" / "predictions.csv").open() as file:
        exported = list(csv.DictReader(file))
    for row in (row for row in read_rows(out) if row["metric"] in ("error", "accuracy")):
        cell = [each for each in exported if all(each[k] == row[k] for k in ("attack", "defense", "target"))]
        wrong = 100 * sum(each["label"] != each["predicted"] for each in cell) / len(cell)
        assert float(row["value"]) == pytest.approx(wrong if row["metric"] == "error" else 100 - wrong, abs=1e-4)
    found = cli("report", "--out", out)
    assert found.exit_code == 0, found.output
    assert "does not contain them; name that of the run with --cache" in (out / "report" / "index.html").read_text()


def test_two_moved_folders_are_compared(out: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(out, tmp_path / "other"))
    found = cli("report", "--out", tmp_path / "page", "--compare", out, other)
    assert (found.exit_code, "8 of 8 cells of both runs were compared" in found.output) == (0, True), found.output


def test_equal_keys_with_other_predictions_are_a_difference(out: Path) -> None:
    """Two machines may compute one key: the last bit of a gradient differs between them."""
    from rdp_bench.reports.compare import compare

    one, two = (load_run(out / "runs" / "toy.json", None) for _ in range(2))
    key = next(key for key in one.wrong if key.attack != "clean" and key.defense == "none" and one.wrong[key].any())
    two.wrong[key] = ~one.wrong[key]
    same = {pair.place: pair.same for pair in compare(one, two).pairs}
    assert [place for place in same if not same[place]] == [key]


@pytest.mark.parametrize("where", ["first", "middle", "last", "cut", "longer", "missing", "folder"])
def test_a_damaged_file_gives_no_number(out: Path, where: str) -> None:
    path = file_of(out)
    size = path.stat().st_size
    if where in ("first", "last"):
        flip(path, 80 * 8 if where == "first" else -1)
    elif where == "middle":
        for at in range(size // 4, size - size // 4, 97):
            flip(path, at * 8)
    elif where == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    elif where == "longer":
        path.write_bytes(path.read_bytes() + b"0")
    else:
        path.unlink()
        if where == "folder":
            path.parent.rmdir()
    assert str(path.name) in refused(out)


def test_every_flipped_byte_is_noticed_or_harmless(out: Path) -> None:
    path, record = file_of(out), out / "runs" / "toy.json"
    content, rows = path.read_bytes(), load_run(record, None).rows
    values = {row["eval_key"]: row["value"] for row in rows}
    noticed = 0
    for at in range(0, len(content), 211):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        run = load_run(record, None)
        assert all(row["value"] in ("", values[row["eval_key"]]) for row in run.rows)
        noticed += bool(run.unread)
    assert noticed > len(content) // 211 // 2


def test_an_exchanged_part_is_refused(out: Path) -> None:
    """Other predictions in a file that is whole in every other way."""
    import zstandard
    from safetensors.numpy import load_file, save_file

    path = file_of(out)
    parts = load_file(path)
    old = zstandard.ZstdDecompressor().decompress(parts["0.predicted"].tobytes())
    other = zstandard.ZstdCompressor().compress(bytes((value + 1) % 5 for value in old))
    save_file({**parts, "0.predicted": np.frombuffer(other, np.uint8)}, path)
    run = load_run(out / "runs" / "toy.json", None)
    assert "'0.predicted' does not have the hash it was written with" in run.rows[0]["reason"]
    assert run.rows[0]["value"] == ""
    assert cli("verify", out).exit_code == 1


def test_the_cache_is_used_where_the_file_is_damaged(made: GridRuns, out: Path) -> None:
    rows = load_run(out / "runs" / "toy.json", None).rows
    file_of(out).unlink()
    (run,) = load(out, Store(made.cache))
    assert run.rows == rows
    (told,) = (text for text in run.record["warnings"] if "were read from the cache" in text)
    assert "does not exist" in told
    assert cli("verify", out).exit_code == 1


def test_a_file_of_another_run_is_refused(made: GridRuns, out: Path) -> None:
    other = GridRuns(made.file.with_name("toy.toml"))
    found = cli("run", other.file, "--plugin", *other.plugins, "--out", out.parent / "other", "--limit", 5)
    assert found.exit_code == 0, found.output
    stranger = file_of(out.parent / "other")
    shutil.copy(stranger, file_of(out))
    assert "is not the file that the run record names" in refused(out)
    named = json.loads((out.parent / "other" / "runs" / "toy.json").read_text())["predictions"]
    shutil.copy(stranger, path_of(out, "toy", named["sha256"]))
    forge(out, predictions=named)
    assert "does not belong to toy.json: its n is 5, not 12" in refused(out)


def test_an_edited_record_is_refused(out: Path) -> None:
    edit(out / "runs" / "toy.json", lambda record: record.update(seed=3))
    assert "was changed after the run wrote it" in cli("verify", out).output


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("defense", "none", "defense"),
        ("adv_key", "00" * 32, "is not the key of what the file says it is"),
        ("seconds", 1.25, "seconds"),
        ("defense_samples", 4, "number of defense samples 3, recorded 4"),
        ("eps", 8.0, "eps 16.0, recorded 8.0"),
        ("eval_key", "00" * 32, "does not contain them"),
    ],
)
def test_a_cell_that_its_predictions_contradict_has_no_number(out: Path, field: str, value: Any, says: str) -> None:
    """The forger computes the checksum again, so that only the keys speak against the record."""
    cells = json.loads((out / "runs" / "toy.json").read_text())["cells"]
    number = next(n for n, c in enumerate(cells) if (c["attack"], c["defense"]) == ("fgsm", "tiny/dither"))
    cells[number][field] = value
    forge(out, cells=cells)
    run = load_run(out / "runs" / "toy.json", None)
    assert run.rows[number]["status"] == "failed"
    assert says in run.rows[number]["reason"]
    assert cli("verify", out).exit_code == 1


def test_cells_cannot_exchange_their_predictions(out: Path) -> None:
    cells = json.loads((out / "runs" / "toy.json").read_text())["cells"]
    one, two = (n for n, c in enumerate(cells) if (c["attack"], c["target"]) == ("fgsm", "tiny/two"))
    cells[one]["eval_key"], cells[two]["eval_key"] = cells[two]["eval_key"], cells[one]["eval_key"]
    forge(out, cells=cells)
    assert cli("verify", out).output.count("are not what the record says") == 2


def rewritten(out: Path, change: Any) -> None:
    """A whole new file with changed arrays, and a record that names it."""
    stored = read_run(out / "runs" / "toy.json")
    old = PredictionFile(file_of(out), stored.header["predictions"]["sha256"])
    about = {name: old.about[name] for name in ("grid", "n", "images")}
    writer = PredictionWriter(out, "toy", about, old.label.tolist(), old.ids, old.image_hashes)
    for each in old.about["artefacts"]:
        arrays = change(old.read(each["key"]))
        writer.add(each["kind"], each["key"], arrays, **{k: each[k] for k in ("seconds",) if k in each})
    made = {name: old.about[name] for name in ("environments", "made")}
    found = writer.commit([each["key"] for each in old.about["artefacts"]], old.about["records"], made)
    assert found
    tidy(writer.out, writer.stem, found["sha256"])
    dataset = {**stored.header["dataset"], "classes": 5}
    forge(out, predictions=found, dataset=dataset)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: {k: v + 5 if k == "predicted" else v for k, v in arrays.items()}, "none of the 5 classes"),
        (lambda arrays: {k: -1 - v if k == "predicted" else v for k, v in arrays.items()}, "none of the 5 classes"),
        (lambda arrays: {k: v[:7] for k, v in arrays.items()}, "is not of 12 images"),
        (lambda arrays: {k: v * np.nan if k == "margin" else v for k, v in arrays.items()}, "no difference of two"),
    ],
)
def test_arrays_that_no_run_writes_are_refused(out: Path, change: Any, says: str) -> None:
    rewritten(out, change)
    assert says in refused(out)


def test_the_same_arrays_written_again_pass(out: Path) -> None:
    """Without this, the test above could pass because of how it writes."""
    rewritten(out, lambda arrays: arrays)
    assert cli("verify", out).exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("error,", "error,1", 1), "value is 1"),
        (lambda text: text.rpartition("toy,")[0], "the row is missing in results.csv"),
        (lambda text: text + text.splitlines()[1] + "\n", "1 rows twice"),
        (lambda text: text + text.splitlines()[1].replace("none", "jpeg") + "\n", "in results.csv and not in the run"),
        (lambda text: text.replace("grid,", "name,", 1), "has other columns"),
        (lambda text: text + text.splitlines()[1].replace("toy", "toys", 1) + "\n", "toys: results.csv has rows of it"),
    ],
)
def test_an_edited_table_fails_by_its_row(out: Path, change: Any, says: str) -> None:
    path = out / "results.csv"
    path.write_text(change(path.read_text()))
    found = cli("verify", out)
    assert (found.exit_code, says in found.output) == (1, True), found.output


def test_a_folder_without_predictions_fails(out: Path) -> None:
    content = json.loads((out / "runs" / "toy.json").read_text())
    del content["sha256"], content["predictions"]
    write_record(out / "runs" / "toy.json", content)
    assert "names no predictions; run the grid again to add them" in refused(out)


def test_no_run_is_a_wrong_request(tmp_path: Path) -> None:
    assert cli("verify", tmp_path).exit_code == 2


def test_table_1_on_500_images_is_small(tmp_path: Path) -> None:
    """11 defenses, 5 attacks and clean images, 3 sources, 2 targets; margins and errors as spread as they get."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 1000, 500).astype(np.int32)
    hashes = [f"{rng.bytes(32).hex()}" for _ in range(500)]
    about = {"grid": "t", "n": 500, "images": hash_many([*hashes, *map(str, label)])}
    writer = PredictionWriter(tmp_path, "t", about, label.tolist(), [f"{i:016x}.png" for i in range(500)], hashes)
    keys = [f"{number:064x}" for number in range(11 * (5 * 3 + 1) * 2)]
    for key in keys:
        wrong = rng.random(500) < 0.5
        predicted = np.where(wrong, rng.integers(0, 1000, 500), label).astype(np.int32)
        writer.add("eval", key, {"predicted": predicted, "margin": rng.exponential(3, 500).astype(np.float32)})
    found = writer.commit(keys, {}, {"environments": [], "made": {}})
    assert found
    path = path_of(tmp_path, "t", found["sha256"])
    assert path.stat().st_size < 1.2e6
    assert PredictionFile(path, found["sha256"]).read(keys[-1])["predicted"].tolist() == predicted.tolist()


def test_labels_of_other_images_are_not_kept(tmp_path: Path) -> None:
    from rdp_bench.errors import UnreadableError

    writer = PredictionWriter(tmp_path, "t", {}, [0, 1], ["a", "b"], ["0", "1"])
    with pytest.raises(UnreadableError, match="has other labels than the data set"):
        writer.add("eval", "00" * 32, {"label": np.array([0, 2], np.int32), "predicted": np.zeros(2, np.int32)})


def test_a_stranger_file_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.uint8)}, tmp_path / "x.safetensors")
    with pytest.raises(DamagedError, match="is not a file of predictions"):
        PredictionFile(tmp_path / "x.safetensors", "00" * 32)
