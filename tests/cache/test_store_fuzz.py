"""Whatever is damaged, moved or edited in a cache or in OUT is noticed or harmless, and the next run mends it."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.cache.store import KINDS, Store
from rdp_bench.errors import DamagedError, RdpBenchError
from rdp_bench.reports.figures import drawing
from rdp_bench.results.rows import load
from tests.cache.test_store_faults import ARRAYS, N, artefact
from tests.helpers.commands import cli
from tests.helpers.damage import Toy, edit, flip

OF_A_RUN = {*KINDS} - {"photos", "probe"}  # those are of a training and of an audit

# --- shards: every bit ------------------------------------------------------------------------------------


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return {*found} == {*wanted} and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in wanted.items()
    )


def test_every_kind_is_fuzzed() -> None:
    assert {*ARRAYS} == {*KINDS}


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_every_flipped_bit_of_a_shard_is_noticed_or_harmless(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header and body alike. What is read is what was written, to the type; what made it, too."""
    from rdp_bench.cache import stored

    store = Store(tmp_path)
    made = store.artefact(kind, {"kind": kind, "n": N}, N)
    store.made_by = {"torch": "2.6"}
    made.write(0, N, ARRAYS[kind])
    ((_, _, path),) = made.shards()
    good, provenance = path.read_bytes(), made.made()
    noticed = 0
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        with monkeypatch.context() as patch:
            patch.setattr(stored, "opened", lambda _, data=bytes(data): contextlib.nullcontext(io.BytesIO(data)))
            try:
                found = made.use(path, lambda shard: shard.read(0, N))
            except DamagedError:
                noticed += 1
                assert made.made() in ([], provenance)
                whole = False
            else:
                assert equal(found, ARRAYS[kind]), bit
                assert made.made() == provenance
                whole = True
        if bit % 97:
            continue
        path.write_bytes(data)  # and the same from a file, with what becomes of it
        assert whole == (not [*made.failing()])
        if whole:
            assert equal(made.read(), ARRAYS[kind])
        else:
            with pytest.raises(DamagedError):
                made.read()
            assert not path.exists()
            path.write_bytes(good)
    assert noticed > 0.9 * 8 * len(good)  # the rest is spaces, and hexadecimal digits that JSON spells in two ways


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_every_truncated_shard_is_noticed(tmp_path: Path, kind: str) -> None:
    made = artefact(tmp_path, kind)
    ((_, _, path), _) = made.shards()
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(DamagedError):
            made.read()


def test_garbage_is_damage_and_nothing_else(tmp_path: Path) -> None:
    made = artefact(tmp_path, "eval")
    path = made.shards()[0][2]
    good, dice = path.read_bytes(), random.Random(0)
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    texts = [
        "[" * 100_000, '{"__metadata__": 1}', '{"__metadata__": {"header": 1, "sha256": 2}}', "null", "\\ud800",
        '{"__metadata__": {"header": "\\ud800", "sha256": ""}}', json.dumps({**header, "__metadata__": {}}), "1e999",
    ]  # fmt: skip
    bodies = [len(text).to_bytes(8, "little") + text.encode() for text in texts]
    bodies += [b"\xff" * 8 + good[8:], bytes(16), b"\x00" * 7 + b"\x80" + good[8:]]
    bodies += [bytes(dice.choice(good) for _ in range(dice.randrange(2 * len(good)))) for _ in range(300)]
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.randrange(2, 9)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        bodies.append(bytes(data))
    for body in bodies:
        path.write_bytes(body)
        if body != good:
            with pytest.raises(DamagedError):
                made.read()


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["arrays"]["predicted"].update(dtype=",i4"),
        lambda header: header["arrays"]["predicted"].update(dtype=">i4"),
        lambda header: header["arrays"]["predicted"].update(dtype=["int32"]),
        lambda header: header["arrays"]["predicted"].update(shape=[3, 10**9]),
        lambda header: header["arrays"]["predicted"].update(shape=[3.0]),
        lambda header: header["arrays"]["predicted"].update(shape=[True]),
        lambda header: header["arrays"]["predicted"].update(shape=3),
        lambda header: header["arrays"]["predicted"].update(shape=[3, 0]),
        lambda header: header["arrays"].update(predicted=1),
        lambda header: header["arrays"]["predicted"].pop("sha256"),
        lambda header: header.update(arrays=[]),
        lambda header: header.update(made=None),
        lambda header: header.update(rows=[[0], 3]),
        lambda header: header.update(key=None),
        lambda header: header.update(format=1),
        lambda header: header.clear(),
    ],
)
def test_a_header_with_a_right_hash_is_not_believed_either(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    """As a program with a mistake would write it."""
    from hashlib import sha256

    made = artefact(tmp_path, "eval")
    path = made.shards()[0][2]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["header"])
    change(header)
    text = json.dumps(header)
    outer["__metadata__"] = {"header": text, "sha256": sha256(text.encode()).hexdigest()}
    top = json.dumps(outer).encode()
    path.write_bytes(len(top).to_bytes(8, "little") + top + data[8 + length :])
    with pytest.raises(DamagedError):
        made.read()


# --- whole caches, by the commands ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A finished run, and what it exports."""
    toy = Toy(tmp_path_factory.mktemp("whole"))
    assert toy.run().exit_code == 0
    assert toy.command("export").exit_code == 0
    assert {path.parent.parent.parent.name for path in toy.shards()} == OF_A_RUN
    return toy


@pytest.fixture
def toy(tmp_path: Path, whole: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(drawing, "save", lambda figure: {"svg": b"<svg></svg>", "pdf": b"", "png": b""})
    return whole.copy(tmp_path)


def survives(toy: Toy, whole: Toy) -> None:
    """No command gives a wrong number or dies; after one run, everything is as it was."""
    wanted = {row["eval_key"]: row["value"] for run in load(whole.out, Store(whole.cache)) for row in run.rows}
    try:
        rows = [row for run in load(toy.out, Store(toy.cache)) for row in run.rows]
    except RdpBenchError:
        rows = []  # an edited record: nothing is shown
    for row in rows:
        assert row["value"] == wanted[row["eval_key"]] if row["status"] == "done" else row["value"] == ""
    exported = toy.command("export")
    assert exported.exit_code in (0, 1, 2), exported.output
    if exported.exit_code == 0 and toy.record.exists():
        assert toy.predictions() == whole.predictions()
    for found in (toy.verify(), toy.command("report"), toy.run("--dry-run")):
        assert found.exit_code in (0, 1, 2)
        assert "rdp-bench -v says where" not in found.output  # an exception that nobody expected
    found = toy.run()
    if "move it away" in found.output:  # a sheet that may be somebody else's
        (toy.out / "results.csv").unlink()
        found = toy.run()
    assert found.exit_code == 0, found.output
    assert toy.values() == whole.values()
    for name in ("report", "export"):
        again = toy.command(name, *(["--images"] if name == "export" else []))
        assert again.exit_code == 0, again.output
    assert toy.predictions() == whole.predictions()
    assert toy.verify().exit_code == 0


FILES = {
    **{f"{kind} shard": f"cache/{kind}/??/*/*.safetensors" for kind in sorted(OF_A_RUN)},
    **{f"{kind} record": f"cache/{kind}/??/*/record.json" for kind in sorted(OF_A_RUN)},
    "run": "out/runs/*.json",
    "results": "out/results.csv",
    "list": "cache/lists/*.json",
    "pixels": "cache/pixels/*.json",
    "marker": "cache/rdp-bench-cache.json",
}


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_anywhere(toy: Toy, whole: Toy, name: str) -> None:
    """One bit in every file of this kind."""
    paths = sorted(toy.folder.glob(FILES[name]))
    dice = random.Random(name)
    assert paths
    for path in paths:
        flip(path, dice.randrange(8 * path.stat().st_size))
    survives(toy, whole)


@pytest.mark.parametrize("name", FILES)
def test_truncated_files(toy: Toy, whole: Toy, name: str) -> None:
    for path in sorted(toy.folder.glob(FILES[name])):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    survives(toy, whole)


def exchange_shards(toy: Toy, first: str, second: str) -> None:
    """Each shard of a kind with one of another artefact, of the other kind if that is another one."""
    for one, two in zip(toy.shards(first), reversed(toy.shards(second)), strict=False):
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)


def exchange_folders(toy: Toy, kind: str) -> None:
    first, *_, last = sorted({path.parent for path in toy.shards(kind)})
    first.rename(toy.folder / "aside")
    last.rename(first)
    (toy.folder / "aside").rename(last)


def move_kind(toy: Toy, kind: str, to: str) -> None:
    shutil.rmtree(toy.cache / to)
    (toy.cache / kind).rename(toy.cache / to)


def exchange_rows(toy: Toy) -> None:
    for first in toy.shards():
        second = first.with_name("000003-000006.safetensors")
        if first.name == "000000-000003.safetensors" and second.exists():
            first.rename(first.with_suffix(".aside"))
            second.rename(first)
            first.with_suffix(".aside").rename(second)


def change_lists(content: Any) -> None:
    content["labels"][0] += 1
    content["image_hashes"].reverse()


def change_pixels(content: Any) -> None:
    names = sorted(content["entries"])
    content["entries"] = {name: content["entries"][names[-1 - i]] for i, name in enumerate(names)}


def change_cells(content: Any) -> None:
    keys = [cell["eval_key"] for cell in content["cells"]]
    for cell, key in zip(content["cells"], reversed(keys), strict=True):
        cell["eval_key"] = key


MOVES: dict[str, Callable[[Toy], object]] = {
    "shards of one kind": lambda toy: exchange_shards(toy, "eval", "eval"),
    "shards of two kinds": lambda toy: exchange_shards(toy, "eval", "image_quality"),
    "a set's shards among samples": lambda toy: exchange_shards(toy, "adv", "sample"),
    "rows": exchange_rows,
    "folders of predictions": lambda toy: exchange_folders(toy, "eval"),
    "folders of image quality": lambda toy: exchange_folders(toy, "image_quality"),
    "folders of samples": lambda toy: exchange_folders(toy, "sample"),
    "kinds": lambda toy: move_kind(toy, "eval", "image_quality"),
    "sets as samples": lambda toy: move_kind(toy, "adv", "sample"),
    "cells of the run": lambda toy: edit(toy.record, change_cells),
    "status of the run": lambda toy: edit(toy.record, lambda c: c["cells"][0].update(status="failed", reason="no")),
    "images of the run": lambda toy: edit(toy.record, lambda c: c["dataset"].update(n=3)),
    "lists": lambda toy: [edit(path, change_lists) for path in toy.cache.glob("lists/*.json")],
    "pixels": lambda toy: [edit(path, change_pixels) for path in toy.cache.glob("pixels/*.json")],
    "records": lambda toy: [
        edit(path, lambda c: c.update(n=3, seed=1)) for path in toy.cache.glob("*/??/*/record.json")
    ],
    "values of the sheet": lambda toy: (toy.out / "results.csv").write_text(
        (toy.out / "results.csv").read_text().replace("tiny,", "tinx,", 3).replace(".", "1.")
    ),
    "everything but the sheet": lambda toy: shutil.rmtree(toy.out / "runs"),
    "the cache": lambda toy: shutil.rmtree(toy.cache),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_exchanged_and_edited(toy: Toy, whole: Toy, name: str) -> None:
    MOVES[name](toy)
    survives(toy, whole)


def test_the_judge_notices_a_wrong_number(toy: Toy, whole: Toy) -> None:
    """Without this, `survives` might let anything pass: a consistent cache of other predictions."""
    store = Store(toy.cache)
    kind, key = next(found for found in store.everything() if found[0] == "eval")
    other = store.open(kind, key)
    arrays = other.read()
    arrays["predicted"] = (arrays["predicted"] + 1) % 5
    for _, _, path in other.shards():
        path.unlink()
    other.write(0, 6, arrays)
    with pytest.raises(AssertionError):
        survives(toy, whole)
    assert cli("cache", "verify", "--cache", toy.cache).exit_code == 0
