"""What a run made, for others to use: predictions of every image, adversarial images as PNG."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rdp_bench import csvtext
from rdp_bench.cache.files import write_atomic_by
from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.data.decoded import DecodedImages
from rdp_bench.data.image_hashes import digest, hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import DamagedError, UnreadableError, UsageError
from rdp_bench.picture import to_png
from rdp_bench.protocols import Dataset
from rdp_bench.results.rows import Run, load, select_runs
from rdp_bench.terminal import utf8

log = logging.getLogger(__name__)

COLUMNS = (
    "grid", "dataset", "source", "attack", "eps", "defense", "target", "index", "id", "label", "predicted", "margin",
    "correct", "draw", "norm",
)  # fmt: skip
BATCH = 50
ROW_GROUP = 100_000
"""Rows of a Parquet file that are held at a time."""


def export(
    out: Path,
    store: Store,
    to: Path,
    dataset: str | None,
    *,
    images: bool,
    parquet: bool,
    only: Sequence[str] = (),
    predictions: bool = True,
) -> dict[str, int]:
    """Write the runs in `out` (of the grids in `only`, if given) into `to`.

    Returns how many predictions and images there are, and how many sets are lacking.

    * `predictions.csv` (or .parquet): one row an image, cell and draw; `margin` is the best logit minus the second.
    * `images/<set>/<index>.png` with `images/<grid>.json`: every adversarial set once, pixel for pixel.

    Predictions come from OUT or the cache; the data set is opened for images, or if it is named. Image names come from
    the data set, so they are written as text, never used as paths.

    Raises:
        UsageError: no such run in `out`, the data set is not the run's, or it must be named.
        DamagedError: a stored file.
    """
    runs = select_runs(load(out, store), only)
    opened = {
        run.grid: _dataset(run, dataset, store)
        for run in runs
        if images or dataset or (predictions and not (run.stored and run.stored.file))
    }
    data = {grid: found.dataset for grid, found in opened.items()}
    number = _write_predictions(to, runs, data, parquet) if predictions else 0
    counts = [_write_images(run, store, opened[run.grid], to / "images") for run in runs] if images else []
    found, lacking = (sum(count[i] for count in counts) for i in (0, 1))
    return {"predictions": number, "images": found, "lacking": lacking}


def _dataset(run: Run, named: str | None, store: Store) -> DecodedImages:
    about = run.record["dataset"]
    label = named or str(about.get("label") or about["name"])  # a name alone lacks its parameters: photos20(size=64)
    try:
        found = open_dataset(label, size=about.get("image_size"), limit=int(about["n"]))
    except UsageError as error:
        raise UsageError(
            f"the run's data set {about['name']} is needed again: name it with --dataset ({error})"
        ) from error
    image_hashes = hash_images(found, store.local)
    if digest(image_hashes, found.labels) != about["images"]:
        raise UsageError(
            f"{label} does not hold the images and labels of the run {run.grid}; "
            "where runs have different images, export them one by one: --only GRID --dataset ... --to ..."
        )
    return DecodedImages(found, image_hashes, store.local)


def _predictions(run: Run, dataset: Dataset | None) -> Iterator[dict[str, Any]]:
    """The rows of a run; without a data set, OUT has the names of the images."""
    assert run.stored is not None
    ids = dataset.ids if dataset else run.stored.file.ids if run.stored.file else ()
    for cell in run.cells:
        if cell.status != "done":
            continue
        arrays = run.stored.evaluated(cell)
        shared = {"grid": run.grid, "dataset": run.record["dataset"]["name"], **asdict(cell.key)}
        labels = arrays["label"].tolist()
        # One prediction an image, or one for each draw of a random defense.
        said, margins = (arrays[name].reshape(len(labels), -1).tolist() for name in ("predicted", "margin"))
        for index, label in enumerate(labels):
            for draw, (predicted, margin) in enumerate(zip(said[index], margins[index], strict=True)):
                yield shared | {
                    "index": index,
                    "id": ids[index],
                    "label": label,
                    "predicted": predicted,
                    "margin": round(margin, 5),
                    "correct": int(label == predicted),
                    "draw": draw,
                    "norm": run.norm,
                }


def _write_predictions(to: Path, runs: Sequence[Run], data: Mapping[str, Dataset], parquet: bool) -> int:
    """Write the rows of the runs as they come, a few of them in memory at a time; returns how many there are."""
    number = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal number
        for run in runs:
            for row in _predictions(run, data.get(run.grid)):
                number += 1
                yield row

    if parquet:
        write_atomic_by(to / "predictions.parquet", partial(_write_parquet, rows()))
    else:
        text = csvtext.chunks(COLUMNS, rows())
        write_atomic_by(to / "predictions.csv", lambda file: file.writelines(map(utf8, text)))
    return number


def _write_parquet(rows: Iterator[dict[str, Any]], file: BinaryIO) -> None:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise UsageError("--parquet needs pyarrow: pip install pyarrow, or leave it out for CSV") from error
    kinds = dict.fromkeys(("index", "label", "predicted", "correct", "draw"), pyarrow.int64())
    kinds |= dict.fromkeys(("eps", "margin"), pyarrow.float64())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, ROW_GROUP)):
            written = [{**row, "id": utf8(row["id"]).decode()} for row in some]
            writer.write_table(pyarrow.Table.from_pylist(written, schema=schema))


def _write_images(run: Run, store: Store, images: DecodedImages, to: Path) -> tuple[int, int]:
    """Every set of the run as PNG; returns the number of images, and of incomplete sets."""
    sets = {cell.adv_key: cell for cell in run.cells if cell.adv_key}
    lines, count = [], 0
    for key, cell in sets.items():
        try:
            made = store.open("adv", key)
            ranges = [(low, min(low + BATCH, made.n)) for low in range(0, made.n, BATCH)]
            for low, high in ranges:  # a set that is damaged is left out whole
                found = made.read(low, high)["delta"]
        except (DamagedError, UnreadableError) as error:
            log.warning("set %s is left out: %s", key[:12], error)
            continue
        folder = to / key[:16]
        # Compression frees the interpreter lock, and so does waiting for the disk.
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            for low, high in ranges:
                delta = found if len(ranges) == 1 else made.read(low, high)["delta"]
                adv = (images.batch(low, high) + delta.astype(np.int16)).astype(np.uint8)
                names = [folder / f"{index:05d}.png" for index in range(low, high)]
                count += sum(pool.map(_write_png, names, adv))
        lines.append({"folder": key[:16], "source": cell.source, "attack": cell.attack, "eps": cell.eps, "key": key})
    about = {name: value for name, value in run.record["dataset"].items() if name != "label"}
    record = {"dataset": about, "norm": run.norm, "ids": list(images.dataset.ids), "sets": lines}
    write_atomic(to / f"{run.grid}.json", json.dumps(record, indent=1).encode())
    return count, len(sets) - len(lines)


def _write_png(path: Path, image: NDArray[np.uint8]) -> int:
    write_atomic(path, to_png(image))
    return 1
