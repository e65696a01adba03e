"""A run that nobody ran: a record as the engine writes it, and artefacts in a real store."""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rdp_bench.cache.store import Store
from rdp_bench.results.record import FORMAT, write_record
from rdp_bench.specs import CellKey

Wrong = Callable[[CellKey], Iterable[int]]


def make_run(
    out: Path,
    store: Store,
    wrong: Wrong,
    *,
    grid: str = "table1",
    n: int = 20,
    size: int = 8,
    samples: int = 2,
    sources: Iterable[str] = ("a",),
    attacks: Iterable[str] = ("fgsm", "mi-fgsm"),
    eps: Iterable[float] = (16,),
    targets: Iterable[str] = ("t",),
    defenses: Iterable[str] = ("none", "jpeg", "rdp"),
    clean: bool = True,
    states: Mapping[CellKey, tuple[str, str]] | None = None,
    apart: Container[CellKey] = (),
    **record: Any,
) -> dict[str, Any]:
    """Write a run whose cell at `place` is wrong on the images `wrong(place)`; returns its record.

    `states` gives cells another status than "done", with the reason; the results of `apart` have keys of their own.
    """
    axes = {"sources": list(sources), "targets": list(targets), "attacks": list(attacks), "defenses": list(defenses)}
    places = [CellKey("-", "clean", 0.0, t, d) for t in targets for d in defenses if clean]
    places += [
        CellKey(s, a, float(e), t, d) for s in sources for a in attacks for e in eps for t in targets for d in defenses
    ]
    state = states or {}
    cells = [
        _cell(store, p, wrong, n, size, samples, grid + "'" * (p in apart), *state.get(p, ("done", ""))) for p in places
    ]
    whole = {
        "format": FORMAT,
        "grid": grid,
        "title": "Table 1: transfer attacks",
        "profile": "embedded",
        "note": "",
        "dataset": {"name": "photos20", "n": n, "size": size, "images": "ab" * 32},
        "seed": 0,
        "command": f"rdp-bench run --grid {grid}",
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:10:00+00:00",
        "seconds": 600.0,
        "environment": {"rdp_bench": "0.1.0", "python": "3.11.7", "device": "cpu"},
        "axes": {**axes, "eps": list(eps)},
        "models": {target: {"summary": "a target", "sha256": "cd" * 32, "input_size": 299} for target in targets},
        "sources": {source: {"members": [source]} for source in sources},
        "attacks": {
            attack: {"summary": f"The {attack} attack.", "source": "a paper", "resolved": {"16": {"steps": 10}}}
            for attack in attacks
        },
        "defenses": {
            name: {"summary": f"What {name} does.", "source": "a paper", "random": False, "resolved": {"quality": 75}}
            for name in defenses
        },
        "warnings": [],
        "cells": cells,
        **record,
    }
    path = out / "runs" / f"{whole['grid']}.json"
    write_record(path, whole)
    return whole


def _cell(
    store: Store, cell_key: CellKey, wrong: Wrong, n: int, size: int, samples: int, grid: str, status: str, reason: str
) -> dict[str, Any]:
    clean = cell_key.attack == "clean"
    evaluated = store.artefact("eval", {"n": n, "grid": grid, **asdict(cell_key)}, n)
    sample = store.artefact("sample", {"n": samples, "grid": grid, **asdict(cell_key)}, samples)
    if status == "done":
        label = np.arange(n, dtype=np.int32)
        mask = np.isin(label, list(wrong(cell_key)))
        predicted = np.where(mask, label + 1000, label).astype(np.int32)
        evaluated.write(
            0,
            n,
            {
                "predicted": predicted,
                "label": label,
                "margin": np.ones(n, np.float32),
                "seconds": np.zeros(n, np.float32),
            },
        )
        sample.write(0, samples, {"purified": _picture(cell_key, samples, size)})
    return {
        **asdict(cell_key),
        "status": status,
        "reason": reason,
        "adv_key": None if clean else "ad" * 32,
        "sample_key": sample.key,
        "eval_key": evaluated.key,
        "seconds": 1.5,
    }


def _picture(cell_key: CellKey, samples: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A ramp; attacked, with a checkerboard of 16 on it; behind "sr", twice as large."""
    size *= 2 if cell_key.defense == "sr" else 1
    rows, columns = np.mgrid[:size, :size]
    ramp = 40 + 150 * columns / size
    board = 16.0 * ((rows + columns) % 2 * 2 - 1) * (cell_key.attack != "clean") * (cell_key.defense == "none")
    return np.broadcast_to(ramp + board, (samples, 3, size, size)).astype(np.uint8)
