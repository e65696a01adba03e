"""Whole runs on tiny models: right numbers, nothing lost, nothing reused wrongly."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rdp_bench.cache.store import Artefact, Store
from tests.helpers.commands import PLUGIN, ROOT, cli

GRID = """
title = "Tiny"
[axes]
attacks = ["fgsm", "tiny/sleepy"]
defenses = ["none", "tiny/round", "tiny/dither"]
eps = [16]
[profile.embedded]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one", "tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.toml"
    path.write_text(GRID)
    return path


def run(grid: Path, *args: object) -> Result:
    return cli("run", "--grid", grid, "--plugin", PLUGIN, "--out", grid.parent / "out", *args)


def results(grid: Path) -> list[dict[str, str]]:
    with (grid.parent / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def record(grid: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((grid.parent / "out" / "runs" / f"{grid.stem}.json").read_text())
    return found


def value(grid: Path, **want: str) -> str:
    (row,) = [row for row in results(grid) if all(row[name] == text for name, text in want.items())]
    return row["value"]


def stored(grid: Path, kind: str) -> dict[str, Any]:
    """All arrays of a kind by key."""
    store = Store(grid.parent / "cache")
    return {key: store.open(found, key).read() for found, key in store.everything() if found == kind}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Equal arrays under equal keys; timings aside."""
    return first.keys() == second.keys() and all(
        np.array_equal(first[key][name], second[key][name]) for key in first for name in first[key] if name != "seconds"
    )


def test_numbers_are_those_of_a_loop_written_by_hand(grid: Path) -> None:
    import torch

    assert run(grid).exit_code == 0
    tiny: Any = next(module for name, module in sys.modules.items() if name.startswith("rdp_bench_plugin_tiny"))
    data, source, target = tiny.Noise(), tiny.one(), tiny.two()
    x = torch.stack([torch.from_numpy(data.image(i)) for i in range(12)]).float() / 255
    y = torch.tensor(data.labels)
    leaf = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(source(leaf), y).backward()
    assert leaf.grad is not None
    adv = ((x + 16 / 255 * leaf.grad.sign()).clamp(0, 1) * 255).round() / 255
    for name, net in (("tiny/one", source), ("tiny/two", target)):
        wrong = (net(adv).argmax(1) != y).double().mean() * 100
        assert float(value(grid, attack="fgsm", target=name, defense="none")) == pytest.approx(float(wrong), abs=1e-3)
        right = (net((x * 4).round() / 4).argmax(1) == y).double().mean() * 100
        assert float(value(grid, attack="clean", target=name, defense="tiny/round")) == pytest.approx(
            float(right), abs=1e-3
        )
    assert float(value(grid, attack="clean", target="tiny/one", defense="none")) == 100


def test_columns_are_the_contract(grid: Path) -> None:
    assert run(grid).exit_code == 0
    header = (grid.parent / "out" / "results.csv").read_text().splitlines()[0]
    assert header == (
        "grid,dataset,n,source,attack,eps,defense,target,metric,value,ci_low,ci_high,paper,"
        "status,reason,adv_key,eval_key,seconds"
    )
    rows = results(grid)
    assert len(rows) == 3 * 2 + 2 * 3 * 2  # clean: defenses x targets; attacked: attacks x defenses x targets
    assert {row["status"] for row in rows} == {"done"}
    assert all(float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) for row in rows)


def test_a_second_run_computes_nothing(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(grid).exit_code == 0
    before = (grid.parent / "out" / "results.csv").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("work was done again")

    monkeypatch.setattr("rdp_bench.engine.worker.Worker.__call__", never)
    assert run(grid).exit_code == 0
    assert (grid.parent / "out" / "results.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "again"),
    [
        (["--seed", "1"], True),
        (["--eps", "15"], True),
        (["--limit", "11"], True),
        (["--attack", "tiny/sleepy(stray=.0001)", "--attack", "fgsm(momentum=1)"], True),
        (["--source", "tiny/two"], True),
        (["--attack", "FGSM", "--attack", "tiny/sleepy(seconds=0.001)"], False),  # the same attacks in other words
        (["--batch-size", "5"], False),
    ],
)
def test_only_what_is_equal_is_reused(grid: Path, flags: list[str], again: bool) -> None:
    assert run(grid).exit_code == 0
    before = set(stored(grid, "adv"))
    assert run(grid, *flags).exit_code == 0
    assert len(set(stored(grid, "adv")) - before) == (2 if again else 0)


def test_an_edited_plugin_never_meets_its_old_cache(grid: Path, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    copy = tmp_path / "copy.py"
    keys = []
    for text in (PLUGIN.read_text(), PLUGIN.read_text().replace(".sign()", "").replace("low=-1.0", "low=0.0")):
        copy.write_text(text)
        command = [sys.executable, "-m", "rdp_bench", "run", "--grid", grid, "--plugin", copy, "--out", tmp_path / "o"]
        command += ["--attack", "tiny/sleepy"]
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=env, capture_output=True)
        keys.append(set(stored(grid, "adv")))
    assert len(keys[1] - keys[0]) == 1


def test_batches_and_order_change_no_bit(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(grid).exit_code == 0
    first = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache2"))
    flags = ["--attack", "tiny/sleepy", "--attack", "fgsm", "--defense", "tiny/dither", "--defense", "none"]
    assert run(grid, "--batch-size", "5", *flags, "--defense", "tiny/round").exit_code == 0
    other = Store(tmp_path / "cache2")
    for kind, artefacts in first.items():
        assert same(artefacts, {key: other.open(kind, key).read() for key in artefacts})


def test_a_subset_is_part_of_the_whole(grid: Path) -> None:
    assert run(grid, "--attack", "tiny/sleepy").exit_code == 0
    (whole,) = stored(grid, "adv").values()
    assert run(grid, "--attack", "tiny/sleepy", "--limit", "5").exit_code == 0
    (part,) = [found for found in stored(grid, "adv").values() if len(found["delta"]) == 5]
    np.testing.assert_array_equal(part["delta"], whole["delta"][:5])


def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """From now on, every batch that is written: the artefact's key, first and past-the-last image."""
    batches: list[tuple[str, int, int]] = []
    write = Artefact.write

    def noted(artefact: Artefact, low: int, high: int, arrays: Any) -> None:
        batches.append((artefact.key, low, high))
        write(artefact, low, high, arrays)

    monkeypatch.setattr(Artefact, "write", noted)
    return batches


@pytest.mark.parametrize("flags", [(), ("--defense-samples", 3)])
def test_a_part_is_taken_out_of_the_whole(grid: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[Any, ...]) -> None:
    assert run(grid, "--limit", 5, *flags).exit_code == 0
    alone = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    rows = [{**row, "seconds": ""} for row in results(grid)]
    monkeypatch.setenv("RDP_BENCH_CACHE", str(grid.parent / "cache2"))
    assert run(grid, *flags).exit_code == 0
    batches = made(monkeypatch)
    assert run(grid, "--limit", 5, *flags).exit_code == 0
    assert batches == []
    assert [{**row, "seconds": ""} for row in results(grid)] == rows
    other = Store(grid.parent / "cache2")
    for kind, artefacts in alone.items():
        assert same(artefacts, {key: other.open(kind, key).read() for key in artefacts})


@pytest.mark.parametrize("flags", [(), ("--defense-samples", 3)])
def test_a_whole_goes_on_from_its_part(grid: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[Any, ...]) -> None:
    assert run(grid, *flags, "--batch-size", 5).exit_code == 0
    alone = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    monkeypatch.setenv("RDP_BENCH_CACHE", str(grid.parent / "cache2"))
    assert run(grid, "--limit", 5, *flags).exit_code == 0
    batches = made(monkeypatch)
    assert run(grid, *flags, "--batch-size", 5).exit_code == 0
    assert {(low, high) for key, low, high in batches if key in alone["adv"]} == {(5, 10), (10, 12)}
    assert {low for key, low, _ in batches if key in alone["eval"]} == {5, 10}
    other = Store(grid.parent / "cache2")
    for kind, artefacts in alone.items():
        assert same(artefacts, {key: other.open(kind, key).read() for key in artefacts})


@pytest.mark.parametrize("change", ["pixel", "label", "order", "end"])
def test_nothing_is_taken_from_other_images(grid: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Of a list that begins otherwise, or that no set was made of."""
    assert run(grid).exit_code == 0
    (path,) = (grid.parent / "cache" / "lists").iterdir()
    content = json.loads(path.read_text())
    if change == "order":
        content = {name: values[::-1] for name, values in content.items()}
    elif change == "label":
        content["labels"][1] = (content["labels"][1] + 1) % 5
    else:
        content["image_hashes"][0 if change == "pixel" else -1] = "0" * 64
    path.write_text(json.dumps(content))
    batches = made(monkeypatch)
    assert run(grid, "--limit", 5).exit_code == 0
    assert {(low, high) for _, low, high in batches} >= {(0, 5)}


def test_lists_that_part_ways_lend_nothing(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images of which the first five are those of tiny/noise: its shards hold others behind them."""
    plugin = grid.parent / "parted.py"
    plugin.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from rdp_bench import dataset\n"
        "tiny = next(m for name, m in sys.modules.items() if name.startswith('rdp_bench_plugin_tiny'))\n"
        "@dataclass(frozen=True)\n"
        "class Parted(tiny.Noise):\n"
        "    name: str = 'tiny/parted'\n"
        "    ids: tuple[str, ...] = tuple('abcdefg')\n"
        "    @property\n"
        "    def labels(self):\n"
        "        return [*tiny.Noise().labels[:5], 0, 0]\n"
        "    def image(self, index):\n"
        "        return tiny.Noise().image(index if index < 5 else index + 50)\n"
        "@dataset('tiny/parted', source='made up')\n"
        "def parted():\n"
        "    return Parted()\n"
    )
    flags = ("--plugin", plugin, "--dataset", "tiny/parted")
    found = run(grid, *flags)
    assert found.exit_code == 0, found.output
    alone = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    monkeypatch.setenv("RDP_BENCH_CACHE", str(grid.parent / "cache2"))
    assert run(grid).exit_code == 0
    assert run(grid, *flags).exit_code == 0
    other = Store(grid.parent / "cache2")
    for kind, artefacts in alone.items():
        assert same(artefacts, {key: other.open(kind, key).read() for key in artefacts})


def test_a_failing_attack_or_defense_fails_its_own_cells_only(grid: Path) -> None:
    flags = ["--attack", "fgsm", "--attack", "tiny/sleepy(broken=true)", "--attack", "tiny/sleepy(stray=3)"]
    found = run(grid, *flags, "--defense", "none", "--defense", "tiny/nan")
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    by_name = {(row["attack"], row["defense"], row["target"]): row for row in results(grid)}
    assert by_name["fgsm", "none", "tiny/two"]["status"] == "done"
    broken = by_name["tiny/sleepy(broken=true)", "none", "tiny/two"]
    assert (broken["status"], broken["value"]) == ("failed", "")
    assert "this attack is broken" in broken["reason"]
    assert "moved a pixel by 19.00/255, allowed 16/255" in by_name["tiny/sleepy(stray=3)", "none", "tiny/two"]["reason"]
    assert "NaN" in by_name["clean", "tiny/nan", "tiny/one"]["reason"]


def test_a_flipped_bit_is_found_and_mended(grid: Path) -> None:
    assert run(grid).exit_code == 0
    before = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    for kind in ("adv", "eval"):
        shard = next((grid.parent / "cache" / kind).rglob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[-3] ^= 16
        shard.write_bytes(data)
    found = cli("cache", "verify")
    assert found.exit_code == 1
    assert "2 damaged" in found.output
    assert run(grid).exit_code == 0
    assert same(before["eval"], stored(grid, "eval"))
    assert cli("cache", "verify").exit_code == 0


def test_a_set_damaged_behind_our_back_is_made_again(grid: Path) -> None:
    assert run(grid).exit_code == 0
    before = stored(grid, "adv")
    for shard in (grid.parent / "cache" / "adv").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-9])
    assert run(grid, "--defense", "tiny/round(levels=7)").exit_code == 0
    assert same(before, stored(grid, "adv"))


@pytest.fixture
def process(grid: Path) -> Iterator[Any]:
    """Starts the run as a process of its own whose every batch of two takes a while; ends it at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float = 0.4) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rdp_bench", "run", "--grid", grid, "--plugin", PLUGIN, "--batch-size", 2]
        command += ["--out", grid.parent / "out", "--attack", f"tiny/sleepy(seconds={seconds})", "--defense", "none"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([str(part) for part in command], cwd=ROOT, env=env, **pipes))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def wait_for_shards(grid: Path, kind: str, count: int) -> None:
    for _ in range(2400):
        if len(list((grid.parent / "cache" / kind).rglob("*.safetensors"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} shards of {kind} after two minutes")


def test_kill_minus_nine_loses_no_finished_batch(grid: Path, process: Any) -> None:
    running = process()
    wait_for_shards(grid, "adv", 2)
    running.kill()
    running.wait()
    shards = {path: path.stat().st_mtime_ns for path in (grid.parent / "cache" / "adv").rglob("*.safetensors")}
    assert 2 <= len(shards) < 6
    assert {row["status"] for row in results(grid)} == {"pending"}
    assert process(0.0).wait() == 0
    for path, written in shards.items():
        assert path.stat().st_mtime_ns == written  # not made again
    resumed = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    for kind in ("adv", "eval"):
        for key in resumed[kind]:
            Store(grid.parent / "cache").delete(kind, key)
    assert process(0.0).wait() == 0
    for kind, found in resumed.items():
        assert same(found, stored(grid, kind))


def test_control_c_is_one_line_and_status_130(grid: Path, process: Any) -> None:
    running = process()
    wait_for_shards(grid, "adv", 1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert "continues from there" in errors
    assert record(grid)["finished"] is None


def test_two_runs_at_once_share_one_cache(grid: Path, process: Any) -> None:
    both = [process(0.05), process(0.05)]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert cli("cache", "verify").exit_code == 0
    assert {row["status"] for row in results(grid)} == {"done"}
    once = {kind: stored(grid, kind) for kind in ("adv", "eval")}
    for kind in once:
        for key in once[kind]:
            Store(grid.parent / "cache").delete(kind, key)
    assert process(0.0).wait() == 0
    for kind, found in once.items():
        assert same(found, stored(grid, kind))


def test_out_of_memory_halves_the_batch_and_goes_on(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rdp_bench.attacks import _loop

    real, sizes = _loop.craft, []

    def small_device(parts: Any, source: Any, x: Any, *more: Any) -> Any:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(parts, source, x, *more)

    monkeypatch.setattr(_loop, "craft", small_device)
    assert run(grid, "--attack", "fgsm").exit_code == 0
    assert sizes == [12, 6, 3, 3, 3, 3]


@pytest.mark.parametrize(("flags", "sizes"), [((), [5, 5, 2]), (("--batch-size", 8), [8, 4])])
def test_gradients_through_a_defense_take_smaller_batches(
    grid: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], sizes: list[int]
) -> None:
    """A network's and its purifier's activations are kept at once; a batch size that was asked for is what is used."""
    from rdp_bench.attacks import _loop

    real, found = _loop.craft, []

    def seen(parts: Any, source: Any, x: Any, *rest: Any) -> Any:
        found.append(len(x))
        return real(parts, source, x, *rest)

    monkeypatch.setattr(_loop, "craft", seen)
    grid.write_text(GRID.replace('["tiny/one"]\ntargets', '["bpda(tiny/round, tiny/one)"]\ntargets'))
    assert run(grid, "--attack", "fgsm", *flags).exit_code == 0
    assert found == sizes


def test_a_known_model_that_is_off_warns_loudly(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.models.card import Card

    monkeypatch.setattr(Card, "known_accuracy", lambda *_: 97.0)
    found = run(grid)
    assert found.exit_code == 0
    (warning, *_) = record(grid)["warnings"]
    assert "tiny/one is right on 100.0 % of tiny/noise, its card says 97.0 %" in warning


def test_several_grids_share_one_out(grid: Path) -> None:
    other = grid.with_name("other.toml")
    other.write_text(GRID)
    assert run(grid).exit_code == 0
    assert run(other, "--attack", "fgsm").exit_code == 0
    found = {name: sum(row["grid"] == name for row in results(grid)) for name in ("tiny", "other")}
    assert found == {"tiny": 18, "other": 12}


def test_dry_run_says_what_is_cached_and_writes_nothing(grid: Path) -> None:
    first = run(grid, "--dry-run")
    assert first.exit_code == 0
    assert "estimated time" in first.output
    assert not (grid.parent / "out").exists()
    assert run(grid).exit_code == 0
    assert "everything is cached" in run(grid, "--dry-run").output


def test_white_box_attacks_each_cell_through_its_own_defense(grid: Path) -> None:
    args = ("--attack", "i-fgsm", "--defense", "none", "--defense", "tiny/round", "--defense", "tiny/dither")
    assert run(grid, "--source", "white-box(3)", "--source", "tiny/one", *args).exit_code == 0
    cells = {(row["source"], row["target"], row["defense"]): row for row in results(grid) if row["attack"] != "clean"}
    white = {key[1:]: row for key, row in cells.items() if key[0] == "white-box(3)"}
    assert len(white) == 2 * 3
    assert len({row["adv_key"] for row in white.values()}) == 6
    # Undefended, the white box is the plain source: one set, made once.
    assert white["tiny/one", "none"]["adv_key"] == cells["tiny/one", "tiny/one", "none"]["adv_key"]
    sources = record(grid)["sources"]
    assert sources["adaptive(tiny/dither, tiny/two, 3)"]["attacked_defense"]["samples"] == 3
    assert "adaptive(tiny/round, tiny/two)" in sources  # nothing random to average over
    # The white box is never weaker than an attack on the same network that ignores the defense.
    for target, defense in white:
        if (other := cells.get((target, target, defense))) is not None:
            assert float(white[target, defense]["value"]) >= float(other["value"]) - 1e-9
