"""Merged files hold what the shards held, batch by batch: in what is read, what is damaged, what is taken over."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.cache import artefact as artefact_module
from rdp_bench.cache import stored
from rdp_bench.cache.artefact import Artefact
from rdp_bench.cache.files import Location
from rdp_bench.cache.store import Store
from rdp_bench.errors import DamagedError, StorageError
from tests.helpers.damage import flip, snapshot

N, BATCH = 40, 4


def arrays(kind: str) -> dict[str, Any]:
    dice = np.random.default_rng(0)
    return {
        # Larger than RAW_UP_TO bytes an image: frames.
        "adv": {"delta": dice.integers(-16, 17, (N, 3, 20, 20)).astype(np.int8)},
        "eval": {
            "predicted": dice.integers(0, 1000, (N, 2)).astype(np.int32),
            "label": np.arange(N, dtype=np.int32),
            "margin": dice.random((N, 2), np.float32),
            "seconds": np.ones(N, np.float32),
        },
        "image_quality": {"mse": dice.random(N, np.float32)},
    }[kind]


KINDS = ("adv", "eval", "image_quality")


def written(root: Location, kind: str, n: int = N, batch: int = BATCH) -> Artefact:
    """A complete artefact in shards; every second one was made on another day by another version."""
    store = Store(root)
    made = store.artefact(kind, {"kind": kind, "n": n}, n)
    for low in range(0, n, batch):
        store.made_by = {"torch": f"2.{low // batch % 2}"}
        high = min(low + batch, n)
        made.write(low, high, {name: array[low:high] for name, array in arrays(kind).items()})
    return made


def merged(root: Location, kind: str) -> Artefact:
    made = written(root, kind)
    made.merge()
    assert [shard[:2] for shard in made.shards()] == [(0, N)]
    return made


def damage(made: Artefact) -> None:
    """Flip a bit of one batch, near the end of its artefact's first merged file."""
    path = made.shards()[0][2]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    columns = [about["data_offsets"] for name, about in json.loads(content[8 : 8 + length]).items() if "array" in name]
    begin, end = max(columns, key=lambda ends: ends[1] - ends[0])
    flip(path, 8 * (8 + length + begin + 9 * (end - begin) // 10))


def same(found: dict[str, Any], kind: str, low: int = 0, high: int = N) -> bool:
    wanted = arrays(kind)
    return {*found} == {*wanted} and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array[low:high])
        for name, array in wanted.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_merged_is_read_as_before(root: Location, kind: str) -> None:
    made = merged(root, kind)
    assert made.complete
    assert made.missing(BATCH) == []
    assert made.has_shard(4, 8)
    again = Store(root).open(kind, made.key)
    assert same(again.read(), kind)
    for low, high in ((0, 4), (8, 12), (3, 9), (39, 40), (0, 40), (17, 18)):
        assert same(again.read(low, high), kind, low, high)
    assert list(again.batches()) == [(low, low + BATCH) for low in range(0, N, BATCH)]
    assert not [*again.failing()]
    assert {one["torch"] for one in again.made()} == {"2.0", "2.1"}
    assert all(one["time"].startswith("20") for one in again.made())


def test_few_shards_and_unfinished_artefacts_are_left_alone(tmp_path: Path) -> None:
    for made in (written(tmp_path, "eval", batch=8), written(tmp_path / "more", "eval")):
        if len(made.shards()) >= artefact_module.MERGE_FROM:
            made.shards()[3][2].unlink()
        before = snapshot(made.folder)  # type: ignore[arg-type]
        made.merge()
        assert snapshot(made.folder) == before  # type: ignore[arg-type]


def test_a_large_artefact_becomes_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact_module, "MERGED_BYTES", 9_000)  # of two batches
    made = written(tmp_path, "adv")
    made.merge()
    assert [shard[:2] for shard in made.shards()] == [(low, low + 8) for low in range(0, N, 8)]
    assert same(made.read(), "adv")
    assert same(made.read(6, 10), "adv", 6, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_batch_costs_that_batch(root: Location, kind: str) -> None:
    made = merged(root, kind)
    damage(made)
    with pytest.raises(DamagedError, match="do not have the hash they were written with"):
        made.read()
    ((low, high),) = made.missing(BATCH)
    assert high - low == BATCH
    for a, b in ((0, low), (high, N)):
        if a < b:
            assert same(made.read(a, b), kind, a, b)
    assert not [*made.failing()]
    made.write(low, high, {name: array[low:high] for name, array in arrays(kind).items()})
    assert same(made.read(), kind)


def test_a_damaged_batch_of_a_read_only_store_is_ignored(tmp_path: Path) -> None:
    made = merged(tmp_path, "eval")
    damage(made)
    before = snapshot(tmp_path)
    mine = Store(tmp_path, read_only=True).open("eval", made.key)
    assert len(mine.drop_damaged()) == 1
    assert len(mine.missing(BATCH)) == 1
    low, _ = mine.missing(BATCH)[0]
    assert same(mine.read(0, low), "eval", 0, low)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["eval", "adv"])
def test_every_flipped_bit_of_a_merged_file_is_noticed_or_harmless(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = merged(tmp_path, kind)
    path = made.shards()[0][2]
    good, provenance = path.read_bytes(), made.made()
    header = 8 + int.from_bytes(good[:8], "little")
    noticed = tried = 0
    for bit in [*range(0, 8 * header, 5), *range(8 * header, 8 * len(good), 41 if kind == "eval" else 1501)]:
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        tried += 1
        with monkeypatch.context() as patch:
            patch.setattr(stored, "opened", lambda _, data=bytes(data): contextlib.nullcontext(io.BytesIO(data)))
            try:
                found = made.use(path, lambda shard: shard.read(0, N))
                part = made.use(path, lambda shard: shard.read(5, 9))
            except DamagedError:
                noticed += 1
            else:
                assert same(found, kind), bit
                assert same(part, kind, 5, 9), bit
                assert made.made() == provenance, bit
    assert noticed > 0.8 * tried


@pytest.mark.parametrize("length", [0, 7, 9, 500, -1, -4000])
def test_a_truncated_merged_file_is_noticed(tmp_path: Path, length: int) -> None:
    made = merged(tmp_path, "adv")
    path = made.shards()[0][2]
    path.write_bytes(path.read_bytes()[:length])  # type: ignore[union-attr]
    with pytest.raises(DamagedError):
        made.read()
    assert made.missing(N) != []
    assert not [*made.failing()]


def test_a_merged_file_in_another_place_is_discarded(tmp_path: Path) -> None:
    mine = merged(tmp_path, "eval")
    other = Store(tmp_path).artefact("eval", {"kind": "eval", "n": N, "what": "other"}, N)
    other.write_record()
    other._path(0, N).write_bytes(mine.shards()[0][2].read_bytes())  # type: ignore[union-attr]
    with pytest.raises(DamagedError, match="its key is"):
        other.read()
    assert other.missing(N) == [(0, N)]


@pytest.mark.parametrize("n", [10, 60])
def test_batches_of_a_merged_file_are_taken_over(root: Location, n: int) -> None:
    whole = merged(root, "adv")
    mine = Store(root).artefact("adv", {"kind": "adv", "n": n}, n)
    assert mine.copy_shards_of(whole) == (3 if n == 10 else 10)
    assert mine.missing(n) == ([] if n == 10 else [(N, n)])
    assert same(mine.read(0, min(n, N)), "adv", 0, min(n, N))
    assert {one["torch"] for one in mine.made()} == {"2.0", "2.1"}
    assert mine.copy_shards_of(whole) == 0


def test_a_damaged_batch_is_not_taken_over(tmp_path: Path) -> None:
    whole = merged(tmp_path, "adv")
    damage(whole)
    mine = Store(tmp_path).artefact("adv", {"kind": "adv", "n": 60}, 60)
    assert mine.copy_shards_of(whole) == 9
    assert len(mine.missing(BATCH)) == 1 + 20 // BATCH
    assert whole.missing(N) == [rows for rows in mine.missing(BATCH) if rows[1] <= N]


@pytest.mark.parametrize("make", [written, merged])
def test_a_read_only_store_reads_them_where_they_are(tmp_path: Path, make: Callable[[Path, str], Artefact]) -> None:
    """With what made these batches alone: those of another version are beyond them."""
    whole = make(tmp_path, "adv")
    store = Store(tmp_path, read_only=True)
    mine = store.artefact("adv", {"kind": "adv", "n": 3}, 3)
    assert mine.copy_shards_of(Store(tmp_path).open("adv", whole.key)) == 1
    assert mine.complete
    assert same(mine.read(), "adv", 0, 3)
    assert same(store.open("adv", mine.key).read(1, 3), "adv", 1, 3)
    assert list(mine.batches()) == [(0, 3)]
    assert {one["torch"] for one in mine.made()} == {"2.0"}
    assert not mine.folder.exists()


@pytest.mark.parametrize("step", range(12))
def test_a_crash_in_the_middle_loses_nothing(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever change of the folder is the last one, every batch is read; the next merge goes on."""
    monkeypatch.setattr(artefact_module, "MERGED_BYTES", 9_000)
    made = written(tmp_path, "adv")
    count = 0

    def crashing(real: Any) -> Any:
        def change(*args: Any, **more: Any) -> Any:
            nonlocal count
            if count == step:
                raise KeyboardInterrupt
            count += 1
            return real(*args, **more)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(stored, "write_atomic", crashing(stored.write_atomic))
        patch.setattr(Path, "unlink", crashing(Path.unlink))
        with contextlib.suppress(KeyboardInterrupt):
            made.merge()
    again = Store(tmp_path).open("adv", made.key)
    assert same(again.read(), "adv")
    assert again.missing(BATCH) == []
    again.merge()
    assert [shard[:2] for shard in again.shards()] == [(low, low + 8) for low in range(0, N, 8)]
    assert same(again.read(), "adv")


def test_a_reader_that_listed_the_shards_before_they_were_merged_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = written(tmp_path, "eval")
    real = stored.StoredRows.shards
    merged_meanwhile: list[bool] = []

    def listed(self: Artefact) -> Any:
        found = real(self)
        if not merged_meanwhile:
            merged_meanwhile.append(True)
            Store(tmp_path).open("eval", made.key).merge()
        return found

    monkeypatch.setattr(stored.StoredRows, "shards", listed)
    assert same(made.read(2, 11), "eval", 2, 11)


def test_another_runs_merge_is_noticed_between_batches(tmp_path: Path) -> None:
    """A run that works on an artefact does not make again what another completed and merged."""
    store = Store(tmp_path)
    mine = store.artefact("eval", {"kind": "eval", "n": N}, N)
    handed = []
    for low, high in mine.still_missing(BATCH):
        handed.append((low, high))
        mine.write(low, high, {name: array[low:high] for name, array in arrays("eval").items()})
        if low == 8:
            written(tmp_path, "eval").merge()
    assert handed == [(0, 4), (4, 8), (8, 12)]


def test_a_full_disk_while_merging_leaves_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(tmp_path, "eval")
    before = snapshot(made.folder)  # type: ignore[arg-type]

    def full(*_: object) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(stored, "write_atomic", full)
    made.merge()
    assert snapshot(made.folder) == before  # type: ignore[arg-type]
    assert same(made.read(), "eval")


def test_a_cache_with_a_merged_file_has_the_newer_format(tmp_path: Path) -> None:
    from rdp_bench.cache import store as store_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "FORMAT", 2)
        made = written(tmp_path, "eval")
    assert Store(tmp_path)._format() == 2
    assert Store(tmp_path).marked  # a cache of an earlier version may be used, verified and pruned
    made = Store(tmp_path).open("eval", made.key)
    made.merge()
    assert Store(tmp_path)._format() == 3
