"""Probes in the cache: found again, never for another question, made again when damaged."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rdp_bench import plugins
from rdp_bench.audits import measured, probes
from rdp_bench.audits.measured import PROBES, ProbeFacts, Probing
from rdp_bench.audits.parts import BUDGETS, WHITE_BOX, Subject, grids
from rdp_bench.cache.store import Store
from rdp_bench.engine.plan import Plan, make_plan
from rdp_bench.errors import RdpBenchError
from rdp_bench.keys import key_of
from tests.helpers import audits
from tests.helpers.paths import ROOT

BUDGETS |= {"toy": audits.TOY, "finer": replace(audits.TOY, eot=3), "longer": replace(audits.TOY, traced=7)}
BUDGETS["planted"] = replace(audits.TOY, planted=(2, 9))
SUBJECT = Subject("honest/average", "fault/one", "fault/photos", 4.0, "toy", ("fault/two",))


def plan(folder: Path, subject: Subject = SUBJECT, **more: Any) -> Plan:
    plugins.load((audits.FAULTS,))
    (grid,) = [grid for part, grid in grids(subject) if part == WHITE_BOX]
    usual = {"seed": 0, "device": "cpu", "limit": None, "models_dir": None}
    return make_plan(grid, Store(folder), **{**usual, **more})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Probes that are computed, each with its number of images; they find these."""
    made: list[tuple[str, int]] = []

    def probe(name: str) -> probes.Probe:
        def count(context: probes.Context) -> dict[str, Any] | None:
            made.append((name, len(context.x)))
            return None if name == "state" else {"name": name, "images": len(context.x)}

        return count

    monkeypatch.setattr(probes, "PROBES", {name: probe(name) for name in PROBES})
    return made


def test_every_probe_is_listed() -> None:
    assert list(PROBES) == list(probes.PROBES)


def test_what_was_measured_is_found_again(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    first = Probing(SUBJECT, plan(tmp_path)).measure()
    assert calls == [(name, min(facts.images, 16)) for name, facts in PROBES.items()]  # there are 16
    assert first.numbers == {name: {"name": name, "images": images} for name, images in calls if name != "state"}
    again = Probing(SUBJECT, plan(tmp_path)).measure()
    assert len(calls) == len(PROBES)
    assert (again.numbers, again.cached, first.cached) == (first.numbers, len(PROBES), 0)


def test_the_numbers_are_those_of_the_probes(tmp_path: Path) -> None:
    found = Probing(SUBJECT, plan(tmp_path)).measure(names=("outputs", "cosine"))
    probing = Probing(SUBJECT, plan(tmp_path))
    assert found.numbers == {
        name: probes.PROBES[name](probing._context(PROBES[name].images)) for name in ("outputs", "cosine")
    }


def facts(folder: Path) -> Mapping[str, tuple[Subject, Plan]]:
    """The question of `SUBJECT`, and others."""
    relabelled = plan(folder)
    relabelled = relabelled.with_dataset(
        replace(relabelled.dataset, name="x"), [*relabelled.image_hashes[1:], "ab" * 32]
    )
    finer = replace(SUBJECT, budget="finer")
    random = replace(SUBJECT, defense="fault/noise")
    other = replace(SUBJECT, target="fault/two", sources=("fault/one",))
    return {
        "eps": (replace(SUBJECT, eps=8.0), plan(folder, replace(SUBJECT, eps=8.0))),
        "draws": (finer, plan(folder, finer)),
        "steps": (replace(SUBJECT, budget="longer"), plan(folder, replace(SUBJECT, budget="longer"))),
        "planted": (replace(SUBJECT, budget="planted"), plan(folder, replace(SUBJECT, budget="planted"))),
        "defense": (random, plan(folder, random)),
        "target": (other, plan(folder, other)),
        "images": (SUBJECT, relabelled),
        "device": (SUBJECT, plan(folder, device="cuda")),
        "precision": (SUBJECT, plan(folder, device="cuda", precision="tf32")),
        "seed": (SUBJECT, plan(folder, seed=1)),
    }


def test_another_question_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"the same": (SUBJECT, plan(tmp_path)), **facts(tmp_path)}
    keys = {name: key_of(Probing(subject, made).record("cosine", 16)) for name, (subject, made) in asked.items()}
    assert len(set(keys.values())) == len(keys)
    assert keys["the same"] == key_of(Probing(SUBJECT, plan(tmp_path / "elsewhere")).record("cosine", 16))
    assert keys["the same"] != key_of(Probing(SUBJECT, plan(tmp_path)).record("cosine", 8))
    assert keys["the same"] != key_of(Probing(SUBJECT, plan(tmp_path)).record("outputs", 16))
    monkeypatch.setitem(measured.PROBES, "cosine", ProbeFacts(16, version=99))
    assert keys["the same"] != key_of(Probing(SUBJECT, plan(tmp_path)).record("cosine", 16))


def test_damage_is_measured_anew(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    first = Probing(SUBJECT, plan(tmp_path)).measure(names=("cosine", "outputs"))
    (path,) = [
        path
        for path in tmp_path.glob("probe/*/*/*.safetensors")
        if b'"cosine"' in (path.parent / "record.json").read_bytes()
    ]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = Probing(SUBJECT, plan(tmp_path)).measure(names=("cosine", "outputs"))
    assert [name for name, _ in calls] == ["cosine", "outputs", "cosine"]
    assert (again.numbers, again.cached) == (first.numbers, 1)


def test_an_audit_of_fewer_images_does_not_answer_for_one_of_more(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    for limit in (8, None):
        Probing(SUBJECT, plan(tmp_path, limit=limit)).measure(names=("gradient",))
    assert calls == [("gradient", 8), ("gradient", 16)]


def test_what_memory_was_enough_for_is_found_again(
    tmp_path: Path, calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = probes.PROBES["gradient"]

    def small(context: probes.Context) -> dict[str, Any] | None:
        if len(context.x) > 4:
            raise torch.OutOfMemoryError
        return works(context)

    monkeypatch.setitem(probes.PROBES, "gradient", small)  # type: ignore[arg-type]
    for _ in range(2):
        Probing(SUBJECT, plan(tmp_path)).measure(names=("gradient",))
    assert calls == [("gradient", 4)]
    monkeypatch.setitem(probes.PROBES, "gradient", works)  # type: ignore[arg-type]
    Probing(SUBJECT, plan(tmp_path, limit=4)).measure(names=("gradient",))
    assert len(calls) == 2  # what memory left of a larger audit is no answer either


def test_fresh_measures_once(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    Probing(SUBJECT, plan(tmp_path)).measure(names=("cosine",))
    made: set[str] = set()
    for _ in range(2):
        Probing(SUBJECT, plan(tmp_path)).measure(fresh=made, names=("cosine",))
    assert len(calls) == 2


def test_a_probe_that_fails_is_named_and_asked_again(
    tmp_path: Path, calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(context: probes.Context) -> None:
        raise RdpBenchError("defense 'x' returned NaN")

    works = probes.PROBES["cosine"]
    monkeypatch.setitem(probes.PROBES, "cosine", fail)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        found = Probing(SUBJECT, plan(tmp_path)).measure(names=("cosine", "outputs"))
    assert found.problems == ["probe 'cosine': defense 'x' returned NaN"]
    assert list(found.numbers) == ["outputs"]
    monkeypatch.setitem(probes.PROBES, "cosine", works)  # type: ignore[arg-type]
    assert list(Probing(SUBJECT, plan(tmp_path)).measure(names=("cosine",)).numbers) == ["cosine"]


AUDIT = """
import sys
from dataclasses import replace
from rdp_bench.audits.parts import BUDGETS
from rdp_bench.cli.main import main

BUDGETS["quick"] = replace(
    BUDGETS["quick"], transfer=("fgsm",), gradient=("apgd-ce(steps=2)",), doubled=("apgd-ce(steps=4)",),
    black_box=("square(queries=4)",),
)
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""


def test_the_second_audit_loads_no_torch(tmp_path: Path) -> None:
    """And so no network is called."""
    flags = ("--target", "effnet-lite0", "--device", "cpu", "--limit", "1", "--image-size", "32")
    where = ("--cache", tmp_path / "cache", "--out", tmp_path / "out")
    command = [sys.executable, "-c", AUDIT, "audit", "bit-red", *flags, *map(str, where)]
    texts = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
        for _ in range(2)
    ]
    assert [text.splitlines()[-1] for text in texts] == ["True", "False"]
    assert texts[0].splitlines()[:-1] == texts[1].splitlines()[:-1]  # costs too: those of the first


def test_a_random_defenses_own_noise_is_not_the_losss(tmp_path: Path) -> None:
    """The random shift moves the margin by more than half its size; noise of 4/255, for one shift, by a tenth."""
    subject = replace(SUBJECT, defense="fault/resize")
    context = Probing(subject, plan(tmp_path, subject))._context(4)
    first, second = (context.logits(context.x, context.rng(name)) for name in ("one", "two"))
    assert float((first - second).norm() / first.norm()) > 0.3
    still = Probing(SUBJECT, plan(tmp_path))._context(4)
    assert probes.stability(context)["change"] == pytest.approx(probes.stability(still)["change"], abs=0.1)
    assert probes.stability(context)["change"] < 0.5


def test_a_seed_reaches_the_probes(tmp_path: Path) -> None:
    usual, other = (Probing(SUBJECT, plan(tmp_path, seed=seed))._context(2).signs("x") for seed in (0, 1))
    assert not torch.equal(usual, other)
