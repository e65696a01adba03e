"""The store uses only what belongs where it lies, says what made it, and deletes only what is its own and damaged."""

import errno
import importlib.metadata
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench import environment
from rdp_bench.cache import store as store_module
from rdp_bench.cache.store import Artefact, Store
from rdp_bench.errors import DamagedError, UnreadableError
from rdp_bench.reports.figures import drawing
from rdp_bench.results.rows import load
from tests.helpers.commands import cli
from tests.helpers.damage import Toy, edit, flip, forbid_writing, snapshot

N = 6
ARRAYS: dict[str, dict[str, Any]] = {
    "adv": {"delta": np.arange(N * 12, dtype=np.int8).reshape(N, 3, 2, 2)},
    "eval": {
        "predicted": np.arange(N, dtype=np.int32),
        "label": np.arange(N, dtype=np.int32),
        "margin": np.ones(N, np.float32),
        "seconds": np.ones(N, np.float32),
    },
    "image_quality": {"mse": np.ones(N, np.float32), "ssim": np.ones(N, np.float32)},
    "sample": {"purified": np.arange(N * 12, dtype=np.uint8).reshape(N, 3, 2, 2)},
    "probe": {"json": np.frombuffer(b'{"a": 1}' * N, np.uint8).reshape(N, 8)},
    "photos": {"pixels": np.arange(N * 18, dtype=np.uint8).reshape(N, 3, 2, 3)},
}
KINDS = sorted(ARRAYS)


def artefact(root: Path, kind: str, what: str = "this") -> Artefact:
    """One whole artefact in two shards."""
    made = Store(root).artefact(kind, {"kind": kind, "n": N, "what": what}, N)
    for low in (0, 3):
        made.write(low, low + 3, {name: array[low : low + 3] for name, array in ARRAYS[kind].items()})
    return made


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn into empty files."""
    monkeypatch.setattr(drawing, "save", lambda figure: {"svg": b"<svg></svg>", "pdf": b"", "png": b""})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A finished run that nobody damages."""
    made = Toy(tmp_path_factory.mktemp("whole"))
    found = made.run()
    assert found.exit_code == 0, found.output
    return made


@pytest.fixture
def toy(tmp_path: Path, whole: Toy, blank: None) -> Toy:
    """A copy of it to be damaged."""
    return whole.copy(tmp_path)


# --- what belongs where (faults 4 and 5) -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_shard_of_another_artefact_or_kind_is_discarded(tmp_path: Path, kind: str, other: str) -> None:
    mine, theirs = artefact(tmp_path, kind), artefact(tmp_path, other, "that")
    shutil.copy(theirs.shards()[0][2], mine.shards()[0][2])
    with pytest.raises(DamagedError, match=r"its k(ey|ind) is"):
        mine.read()
    assert mine.missing(N) == [(0, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_of_other_rows_is_discarded(tmp_path: Path, kind: str) -> None:
    mine = artefact(tmp_path, kind)
    (_, _, first), (_, _, second) = mine.shards()
    second.replace(first)
    with pytest.raises(DamagedError, match="its rows is"):
        mine.read()
    assert mine.missing(N) == [(0, N)]


@pytest.mark.parametrize(
    ("kind", "name", "array"),
    [
        ("eval", "predicted", np.arange(N, dtype=np.int64)),
        ("eval", "predicted", np.ones((N, 2), np.int32)),  # draws, but margins of one
        ("eval", "label", np.ones((N, 2), np.int32)),
        ("eval", "more", np.arange(N, dtype=np.int32)),
        ("eval", "seconds", None),
        ("adv", "delta", np.zeros((N, 3, 2, 2), np.uint8)),
        ("adv", "delta", np.zeros((N, 2, 2), np.int8)),
        ("adv", "delta", np.zeros((N, 3, 2, 4), np.int8)),
        ("adv", "delta", np.zeros((N - 1, 3, 2, 2), np.int8)),
        ("nothing", "delta", np.zeros((N, 3, 2, 2), np.int8)),
    ],
)
def test_only_what_a_kind_declares_is_written(tmp_path: Path, kind: str, name: str, array: Any) -> None:
    arrays = {**ARRAYS.get(kind, {}), name: array}
    made = Store(tmp_path).artefact(kind, {"kind": kind, "n": N}, N)
    with pytest.raises(ValueError, match=f"{kind} {made.key[:12]}, images 0 to {N}"):
        made.write(0, N, {name: array for name, array in arrays.items() if array is not None})
    assert not made.folder.exists()


def test_rows_beyond_the_artefact_are_not_written(tmp_path: Path) -> None:
    made = Store(tmp_path).artefact("adv", {"kind": "adv", "n": 3}, 3)
    with pytest.raises(ValueError, match="not among the 3"):
        made.write(0, N, ARRAYS["adv"])


def test_shards_that_are_not_alike_do_not_mix(tmp_path: Path) -> None:
    made = artefact(tmp_path, "adv")
    made.write(3, 6, {"delta": np.zeros((3, 3, 4, 4), np.int8)})
    with pytest.raises(DamagedError, match="not like those of the shards before"):
        made.read()
    assert made.missing(N) == [(3, 6)]


def test_a_record_is_not_blessed_in_an_exchanged_folder(tmp_path: Path) -> None:
    one, two = artefact(tmp_path, "eval", "one"), artefact(tmp_path, "eval", "two")
    one.folder.rename(tmp_path / "aside")
    two.folder.rename(one.folder)
    (tmp_path / "aside").rename(two.folder)
    one.write_record()  # what a run does
    with pytest.raises(DamagedError, match="its key is"):
        Store(tmp_path).open("eval", one.key).read()
    assert one.missing(N) == [(0, N)]


def test_a_part_of_a_shard_is_taken_over_under_the_new_key(tmp_path: Path) -> None:
    whole = artefact(tmp_path, "adv", "whole")
    part = Store(tmp_path).artefact("adv", {"kind": "adv", "n": 5, "what": "part"}, 5)
    assert part.copy_shards_of(whole) == 2
    assert [(low, high) for low, high, _ in part.shards()] == [(0, 3), (3, 5)]
    np.testing.assert_array_equal(part.read()["delta"], ARRAYS["adv"]["delta"][:5])
    assert part.made() == whole.made()  # by whom they were made, not by whom they were copied


@pytest.mark.parametrize("end", [5, 6])
def test_a_damaged_shard_is_not_taken_over(tmp_path: Path, end: int) -> None:
    whole = artefact(tmp_path, "adv", "whole")
    flip(whole.shards()[1][2], -40)
    part = Store(tmp_path).artefact("adv", {"kind": "adv", "n": end, "what": "part"}, end)
    assert part.copy_shards_of(whole) == 1
    assert part.missing(N) == [(3, end)]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"prints": [], "labels": []}', '{"prints": "ab", "labels": [1]}']
)
def test_a_damaged_list_of_images_stops_nothing(toy: Toy, content: str) -> None:
    (path,) = (toy.cache / "lists").iterdir()
    good = path.read_bytes()
    path.write_text(content)
    found = toy.run("--limit", 4)
    assert found.exit_code == 0, found.output
    assert toy.run().exit_code == 0
    assert path.read_bytes() == good


# --- run records (fault 4) -------------------------------------------------------------------------------


def swap_keys(record: dict[str, Any]) -> None:
    clean, attacked = (next(c for c in record["cells"] if (c["attack"] == a)) for a in ("clean", "fgsm"))
    clean["eval_key"], attacked["eval_key"] = attacked["eval_key"], clean["eval_key"]


@pytest.mark.parametrize(
    "change",
    [
        swap_keys,
        lambda record: record["cells"].reverse() or record["cells"][0].update(target="tiny/one"),
        lambda record: record["dataset"].update(name="nips2017"),
        lambda record: record.pop("sha256"),
        lambda record: record["cells"].pop(),
    ],
)
def test_an_edited_run_record_is_refused_and_the_run_mends_it(toy: Toy, change: Any) -> None:
    before = toy.values()
    edit(toy.record, change)
    for name in ("report", "export"):
        found = toy.command(name)
        assert found.exit_code == 2
        assert "was changed after the run wrote it (its checksum differs); run the grid again" in found.output
    assert toy.run().exit_code == 0
    assert toy.command("report").exit_code == 0
    assert toy.values() == before


def test_a_cost_from_an_edited_record_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(tmp_path)
    with (tmp_path / "tiny.toml").open("a") as file:
        file.write("cost = true\n")
    assert toy.run().exit_code == 0
    edit(toy.record, lambda record: record["cost"]["defenses"]["none"].update(ms=1e-9))
    assert toy.run().exit_code == 0
    assert json.loads(toy.record.read_text())["cost"]["defenses"]["none"]["ms"] > 1e-9


# --- what made it (fault 6) ------------------------------------------------------------------------------


def another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.version
    monkeypatch.setattr(environment, "version", lambda name: "9.9.9" if name == "torch" else real(name))


def test_a_cached_rerun_does_not_claim_to_have_made_the_numbers(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    another_torch(monkeypatch)
    assert toy.run().exit_code == 0
    assert json.loads(toy.record.read_text())["environment"]["torch"] == importlib.metadata.version("torch")
    assert toy.command("report").exit_code == 0
    page = (toy.out / "report" / "index.html").read_text()
    assert "9.9.9" not in page
    assert f"<dd>{importlib.metadata.version('torch')}</dd>" in page
    for name in ("rdp-bench", "timm", "torchvision", "numpy", "pillow", "platform", "threads", "cpu_capability"):
        assert f"<dt>{name}</dt>" in page, name
    assert "not all made under the same conditions" not in page
    (run,) = load(toy.out, Store(toy.cache))
    assert run.made_between
    assert f"<dt>results computed</dt><dd>{' to '.join(dict.fromkeys(run.made_between))}</dd>" in page


def test_numbers_made_by_several_versions_say_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    another_torch(monkeypatch)
    toy.shards("eval")[0].unlink()
    assert toy.run().exit_code == 0
    assert "9.9.9" in json.loads(toy.record.read_text())["environment"]["torch"]
    assert toy.command("report").exit_code == 0
    page = (toy.out / "report" / "index.html").read_text()
    assert "not all made under the same conditions: torch" in page
    assert "and 9.9.9" in page


def test_a_shard_says_what_made_it_and_when(toy: Toy) -> None:
    (run,) = load(toy.out, Store(toy.cache))
    assert {"rdp-bench", "torch", "timm", "torchvision", "numpy", "pillow", "platform", "device", "threads"} <= {
        *run.made[0]
    }
    assert all(made["time"].startswith("20") for made in run.made)
    import socket

    assert socket.gethostname() not in json.dumps(run.made)


# --- the cache commands (fault 19) -----------------------------------------------------------------------


def test_prune_leaves_a_folder_alone_that_is_no_cache(tmp_path: Path) -> None:
    """As somebody's home folder would look, artefacts of nobody included."""
    old = time.time() - 1e6
    key = "ab" * 32
    names = ["latex/chapter.tmp", "lists/shopping.json", "pixels/art.json", f"adv/ab/{key}/thesis.txt", ".x.json.1.tmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (old, old))
    before = snapshot(tmp_path)
    for args in (("prune", "--all"), ("prune", "--older-than", 0), ("verify",)):
        found = cli("cache", *args, "--cache", tmp_path)
        assert found.exit_code == 2
        assert "is not proven to be a cache of rdp-bench" in found.output
        assert snapshot(tmp_path) == before
    Store(tmp_path).mark()  # even then, its own names only
    assert cli("cache", "prune", "--all", "--cache", tmp_path).exit_code == 0
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_prune_all_empties_a_cache(toy: Toy) -> None:
    assert cli("cache", "prune", "--all", "--cache", toy.cache).exit_code == 0
    assert [path.name for path in toy.cache.rglob("*") if path.is_file()] == ["rdp-bench-cache.json"]


def test_a_cache_of_a_newer_format_is_left_alone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
        Store(toy.cache).mark(merged=True)
    before = snapshot(toy.cache)
    for found in (toy.run(), toy.command("report"), toy.verify(), cli("cache", "prune", "--all", "--cache", toy.cache)):
        assert found.exit_code == 2
        assert "is a cache of format 4, this version knows 3; update rdp-bench" in found.output
    assert snapshot(toy.cache) == before


def test_every_flipped_bit_of_the_marker_is_noticed_or_harmless(tmp_path: Path) -> None:
    Store(tmp_path).mark()
    path = tmp_path / "rdp-bench-cache.json"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        flip(path, bit)
        store = Store(tmp_path)
        store.mark()
        assert store.marked
        path.write_bytes(good)


@pytest.mark.parametrize("command", [("cache", "prune", "--all"), ("cache", "ls"), ("report",), ("run", "--grid", "x")])
def test_an_empty_name_is_not_the_current_folder(command: tuple[str, ...]) -> None:
    found = cli(*command, "--cache", "")
    assert found.exit_code == 2
    assert "the path is empty" in found.output


@pytest.mark.parametrize("folder", ["lists", "pixels"])
def test_verify_finds_a_damaged_list_and_index_of_images(toy: Toy, folder: str) -> None:
    (path,) = (toy.cache / folder).glob("*.json")
    good = path.read_bytes()
    assert toy.verify().exit_code == 0
    for damaged in (good.replace(b"1", b"2", 1), good[:-9], b"[]", b"\xff"):
        path.write_bytes(damaged)
        found = toy.verify()
        assert found.exit_code == 1
        assert f"damaged, deleted: {path}" in found.output
        assert "1 damaged" in found.output
        assert not path.exists()
        assert toy.run().exit_code == 0
        assert json.loads(path.read_bytes()) == json.loads(good)


def test_a_flipped_bit_in_a_record_costs_no_shard(toy: Toy) -> None:
    path = toy.shards("adv")[0].parent / "record.json"
    good, shards = path.read_bytes(), snapshot(toy.cache / "adv")
    flip(path, 900)
    found = toy.verify()
    assert found.exit_code == 1
    assert "the next run of its grid writes it again" in found.output
    assert {n: s for n, s in snapshot(toy.cache / "adv").items() if n.endswith("safetensors")} == {
        n: s for n, s in shards.items() if n.endswith("safetensors")
    }
    assert toy.run().exit_code == 0
    assert path.read_bytes() == good
    assert toy.verify().exit_code == 0


def failing_reads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    real = io.open

    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def opened(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        broken = (
            isinstance(path, Path) and path.is_relative_to(folder) and path.suffix == ".safetensors" and "r" in mode
        )
        return Broken() if broken else real(path, mode, *args, **more)

    monkeypatch.setattr(io, "open", opened)


@pytest.mark.parametrize("kind", ["adv", "eval"])
def test_an_error_of_the_disk_is_not_damage(toy: Toy, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    before, shards = toy.values(), toy.shards()
    with monkeypatch.context() as patch:
        failing_reads(patch, toy.cache / kind)
        assert "Input/output error" in toy.verify().output
        found = toy.run()
        assert found.exit_code == (1 if kind == "eval" else 0)
        assert toy.command("report").exit_code == 0  # a cell that failed is shown as failed
        assert toy.command("export", "--images").exit_code == (1 if kind == "adv" else 0)
        store = Store(toy.cache)
        key = next(key for found, key in store.everything() if found == kind)
        with pytest.raises(UnreadableError):
            store.open(kind, key).read()
    assert toy.shards() == shards
    assert toy.run().exit_code == 0
    assert toy.values() == before


@pytest.mark.parametrize("command", [("verify",), ("prune", "--older-than", "9")])
def test_what_killed_runs_left_goes_after_a_day(toy: Toy, command: tuple[str, ...]) -> None:
    folder = toy.shards("adv")[0].parent
    old = [folder / ".000004-000010.safetensors.0123abcd.tmp", toy.cache / "lists" / f".{'ab' * 32}.json.0123abcd.tmp"]
    kept = [folder / ".record.json.0123abcd.tmp", folder / "notes.tmp", toy.cache / "chapter.tmp"]
    for path in (*old, *kept):
        path.write_bytes(b"half")
    for path in (*old, *kept[1:]):  # kept[0] is somebody's, right now
        os.utime(path, (time.time() - 90000,) * 2)
    assert cli("cache", *command, "--cache", toy.cache).exit_code == 0
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)


# --- damaged sets (fault 20) -----------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), ("export", "--images"), ("report",)])
def test_a_damaged_set_is_made_again_though_it_is_judged_already(toy: Toy, before: tuple[str, ...]) -> None:
    values = toy.values()
    assert toy.command("export", "--images").exit_code == 0
    images = {p.name: p.read_bytes() for p in (toy.out / "export" / "images").rglob("*.png")}
    flip(toy.shards("adv")[0], -80)
    if before:
        toy.command(*before)
    assert toy.run().exit_code == 0
    assert toy.verify().exit_code == 0
    assert toy.command("export", "--images").exit_code == 0
    assert {p.name: p.read_bytes() for p in (toy.out / "export" / "images").rglob("*.png")} == images
    assert toy.values() == values


# --- read-only caches, dry runs, reports of what is lost (fault 22) --------------------------------------


def test_a_cached_run_needs_no_writable_cache(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    before = toy.values()
    tried = forbid_writing(monkeypatch, toy.cache)
    assert toy.run().exit_code == 0
    assert toy.values() == before
    assert not tried
    found = toy.run("--seed", 1)
    assert found.exit_code == 2
    assert f"--cache {toy.cache} cannot be written to (Read-only file system)" in found.output


@pytest.mark.parametrize("limit", [3, 4])
def test_a_read_only_cache_of_more_images_is_used(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """The plan counts it, so the run must read it; all that it writes is what a run writes that may copy."""
    other = toy.copy(tmp_path / "other")
    assert other.run("--limit", limit).exit_code == 0
    tried = forbid_writing(monkeypatch, toy.cache)
    assert "everything is cached" in toy.run("--limit", limit, "--dry-run").output
    found = toy.run("--limit", limit)
    assert found.exit_code == 0, found.output
    assert tried
    assert toy.values() == other.values()
    names = ("environment", "predictions", "models", "checks", "warnings", "cells")
    lent, copied = ({name: json.loads(each.record.read_text())[name] for name in names} for each in (toy, other))
    assert lent == copied
    assert cli("verify", toy.out).exit_code == 0


def test_damage_in_a_read_only_cache_of_more_images_is_not_a_number(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(toy.shards("eval")[0], -80)
    forbid_writing(monkeypatch, toy.cache)
    assert "everything is cached" not in toy.run("--limit", 4, "--dry-run").output
    found = toy.run("--limit", 4)
    assert found.exit_code == 2
    assert "cannot be written to" in found.output


def test_a_run_says_what_it_could_not_write(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(toy.cache / "lists")
    (toy.shards("eval")[0].parent / "record.json").unlink()
    tried = forbid_writing(monkeypatch, toy.cache)
    caplog.clear()
    found = toy.run()
    assert tried
    assert "going on with what is stored" in caplog.text
    assert "Read-only file system" in caplog.text
    assert found.exit_code == 2  # a record is missing, and only a run can write it


def test_damage_in_a_read_only_cache_is_not_a_number(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(toy.shards("eval")[0], -80)
    forbid_writing(monkeypatch, toy.cache)
    found = toy.run()
    assert found.exit_code == 2
    assert "cannot be written to" in found.output
    assert "pending" in {status for *_, status in toy.values()}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("flags", [(), ("--limit", "4"), ("--seed", "1")])
def test_a_dry_run_writes_nothing_at_all(tmp_path: Path, cached: bool, flags: tuple[str, ...]) -> None:
    toy = Toy(tmp_path)
    if cached:
        assert toy.run().exit_code == 0
        flip(toy.shards("adv")[0], -80)
        (toy.cache / "pixels").rename(tmp_path / "pixels")
    before = snapshot(tmp_path)
    found = toy.run("--dry-run", *flags)
    assert found.exit_code == 0, found.output
    assert "estimated time" in found.output
    assert {n: s for n, s in snapshot(tmp_path).items() if "__pycache__" not in n} == before


def test_a_dry_run_of_several_grids_writes_nothing_either(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text('title = "All"\ngrids = ["tiny.toml"]')
    flip(toy.shards("adv")[1], -80)
    before = snapshot(tmp_path)
    for flags, sets in (((), "1 sets"), (("--limit", 4), "1 sets"), (("--limit", 3), "0 sets")):
        found = toy.command("run", "--grid", tmp_path / "all.toml", "--dry-run", *flags)
        assert found.exit_code == 0, found.output
        # The flip is in the second of two batches of three images.
        assert sets in found.output
        assert snapshot(tmp_path) == before


def test_a_dry_run_counts_what_a_run_would_take_over(toy: Toy) -> None:
    assert "everything is cached" in toy.run("--limit", 4, "--dry-run").output


@pytest.mark.parametrize("kind", ["eval", "image_quality"])
@pytest.mark.parametrize("damage", [lambda path: flip(path, -80), lambda path: path.unlink()])
def test_a_report_counts_what_it_could_not_read(toy: Toy, kind: str, damage: Any) -> None:
    damage(toy.shards(kind)[0])
    assert toy.command("report").exit_code == 0  # the predictions are in OUT, too
    shutil.rmtree(toy.out / "predictions")
    found = toy.command("report")
    assert found.exit_code == 1
    assert "1 of the results that the record of tiny calls done could not be read; run the grid again" in found.stderr
    page = (toy.out / "report" / "index.html").read_text()
    assert "1 of the results that the record of tiny calls done could not be read" in page
    assert toy.run().exit_code == 0
    again = toy.command("report")
    assert again.exit_code == 0
    assert "could not be read" not in (toy.out / "report" / "index.html").read_text()
