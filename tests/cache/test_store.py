"""The store keeps what was written, notices what was changed, and survives being killed."""

import json
from pathlib import Path

import numpy as np
import pytest

from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.errors import DamagedError, StorageError
from rdp_bench.keys import KEY_VERSION, canonical_json, diff_records, hash_pixels, key_of


def test_a_key_is_pinned() -> None:
    """If this fails, every cache in the world is void: bump KEY_VERSION instead of editing the key."""
    assert KEY_VERSION == 2
    record = {"attack": {"steps": 10, "alpha": 1.6}, "eps": 16.0, "source": ["a", "b"], "none": None}
    # printf 'rdp-bench 2\n{"attack":{"alpha":1.6,"steps":10},...}' | sha256sum
    assert canonical_json(record) == '{"attack":{"alpha":1.6,"steps":10},"eps":16,"none":null,"source":["a","b"]}'
    assert key_of(record) == "02d2f5efd25b7cb260aba2187aeca7f041d6c149566a07067f48dfc9946a9732"


@pytest.mark.parametrize(
    "other",
    [
        {"eps": 8, "attack": {"steps": 10}},
        {"eps": 16, "attack": {"steps": 11}},
        {"eps": 16, "attack": {"steps": 10, "momentum": 0}},
        {"eps": "16", "attack": {"steps": 10}},
        {"eps": 16, "attack": {"steps": True}},
    ],
)
def test_every_fact_changes_the_key(other: dict[str, object]) -> None:
    assert key_of(other) != key_of({"eps": 16, "attack": {"steps": 10}})


def test_order_and_kind_of_number_do_not_change_the_key() -> None:
    assert key_of({"a": 1, "b": 16.0}) == key_of({"b": 16, "a": 1.0})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_a_record_without_exact_json_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        key_of({"x": value})


def test_pixels_are_hashed_with_their_shape() -> None:
    flat = np.arange(12, dtype=np.uint8)
    assert hash_pixels(flat.reshape(3, 2, 2)) != hash_pixels(flat.reshape(3, 4, 1))
    assert hash_pixels(flat.reshape(3, 2, 2)) != hash_pixels(flat[::-1].reshape(3, 2, 2))


def test_differences_are_explained() -> None:
    assert diff_records({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == ["b.c: 3 -> 2", "d: 4 -> None"]


RECORD = {"kind": "adv", "n": 10, "what": "test"}


def rows(low: int, high: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int16]]]:
    return {"delta": np.arange(low * 12, high * 12, dtype=np.int16).reshape(-1, 3, 2, 2)}


def test_shards_come_back_as_written(tmp_path: Path) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    assert artefact.missing(4) == [(0, 4), (4, 8), (8, 10)]
    artefact.write(4, 8, rows(4, 8))
    assert artefact.missing(4) == [(0, 4), (8, 10)]
    # Another batch size later: boundaries are multiples of it, finished images are kept.
    assert artefact.missing(3) == [(0, 3), (3, 4), (8, 9), (9, 10)]
    assert not artefact.complete
    with pytest.raises(DamagedError, match="6 of 10 images are missing"):
        artefact.read()
    artefact.write(0, 4, rows(0, 4))
    artefact.write(8, 10, rows(8, 10))
    assert artefact.complete
    np.testing.assert_array_equal(artefact.read()["delta"], rows(0, 10)["delta"])
    np.testing.assert_array_equal(artefact.read(3, 9)["delta"], rows(3, 9)["delta"])


def test_overlapping_shards_of_two_runs_agree(tmp_path: Path) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    for low, high in ((0, 6), (4, 10), (0, 10)):
        artefact.write(low, high, rows(low, high))
    np.testing.assert_array_equal(artefact.read()["delta"], rows(0, 10)["delta"])


@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, place: float) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    artefact.write(0, 10, {"delta": np.random.default_rng(0).integers(-16, 17, (10, 3, 8, 8)).astype(np.int8)})
    (shard,) = [path for _, _, path in artefact.shards()]
    data = bytearray(shard.read_bytes())
    data[int(len(data) * place)] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match=shard.name):
        artefact.read()
    assert not shard.exists()
    assert artefact.missing(10) == [(0, 10)]


def test_every_single_byte_matters(tmp_path: Path) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    artefact.write(0, 10, {"delta": np.arange(120, dtype=np.int8).reshape(10, 3, 2, 2)})
    (shard,) = [path for _, _, path in artefact.shards()]
    whole = shard.read_bytes()
    good = artefact.read()["delta"].tolist()
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 4
        shard.write_bytes(data)
        try:
            found = artefact.read()
        except DamagedError:
            continue
        # Padding of the header may change without changing what is read; nothing else may.
        assert [*found] == ["delta"]
        assert found["delta"].tolist() == good, i


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"<html>not found</html>"])
def test_a_truncated_or_foreign_file_is_damage(tmp_path: Path, content: bytes) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    artefact.write(0, 10, rows(0, 10))
    artefact.shards()[0][2].write_bytes(content)
    with pytest.raises(DamagedError):
        artefact.read()


def test_a_record_that_was_edited_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artefact = store.artefact("adv", RECORD, 10)
    artefact.write(0, 10, rows(0, 10))
    path = artefact.folder / "record.json"
    path.write_text(json.dumps({**RECORD, "what": "another"}))
    with pytest.raises(DamagedError, match="does not hash to its key"):
        store.open("adv", artefact.key)


def test_leftovers_of_a_killed_write_are_not_results(tmp_path: Path) -> None:
    artefact = Store(tmp_path).artefact("adv", RECORD, 10)
    artefact.write(0, 4, rows(0, 4))
    (artefact.folder / ".000004-000010.safetensors.abcd.tmp").write_bytes(b"half")
    assert artefact.missing(10) == [(4, 10)]


def test_writing_where_one_may_not_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name another folder"):
        write_atomic(tmp_path / "file" / "inside.json", b"{}")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.csv"
    write_atomic(target, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rdp_bench.cache.files.os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_nearest_record_explains_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.artefact("adv", {**RECORD, "attack": {"steps": 10}}, 10).write(0, 10, rows(0, 10))
    store.artefact("adv", {**RECORD, "attack": {"steps": 10, "mu": 1}, "eps": 4}, 10).write(0, 10, rows(0, 10))
    assert store.closest_record_diff("adv", {**RECORD, "attack": {"steps": 20}}) == ["attack.steps: 10 -> 20"]
