"""The store beside PNG files, and how long the commands take: `python -m benchmarks.system`."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.defenses import Row
from rdp_bench import plugins, registry
from rdp_bench.cache.store import Store
from rdp_bench.data.open import open_dataset
from rdp_bench.engine.levels import add_delta, to_delta, to_float
from rdp_bench.engine.worker import configure_torch
from rdp_bench.models import zoo
from rdp_bench.rng import ImageRng


def store_rows(attack: str, images: int = 20, repeats: int = 5) -> list[Row]:
    """Bytes and reading time of an adversarial set of the photos, stored by us and as PNG."""
    configure_torch("cpu")  # as a run does
    data = open_dataset("photos20", limit=images)
    clean = np.stack([data.image(i) for i in range(len(data.labels))])
    source = zoo.LoadedSource("lite0", [zoo.find("effnet-lite0").load("cpu")])
    x, y = to_float(clean, "cpu"), torch.tensor(list(data.labels))
    made = registry.attack.resolve(attack).value
    adv = made(source, x, y, 16 / 255, ImageRng([str(i) for i in range(len(x))]))
    delta = to_delta(adv, x, clean, 16, attack)
    final = add_delta(clean, delta)
    pngs = []
    for image in final:
        file = BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        pngs.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        artefact = Store(Path(folder)).artefact("adv", {"kind": "adv", "n": len(delta)}, len(delta))
        artefact.write(0, len(delta), {"delta": delta})
        size = sum(path.stat().st_size for _, _, path in artefact.shards())

        def ours() -> NDArray[np.uint8]:
            return add_delta(clean, artefact.read()["delta"])

        def theirs() -> list[NDArray[np.uint8]]:
            return [np.asarray(Image.open(BytesIO(png))) for png in pngs]

        assert np.array_equal(ours(), np.stack(theirs()).transpose(0, 3, 1, 2))
        reading = median(theirs, repeats) / median(ours, repeats)
    return [
        Row(f"{attack}: bytes, ours / PNG", size / sum(map(len, pngs)), "(at most 0.8)"),
        Row(f"{attack}: reading, PNG / ours (hash checked)", reading, "times our time (at least 5)"),
    ]


def median(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def command_rows(repeats: int = 5) -> list[Row]:
    """Wall seconds of whole processes, the interpreter's own start included."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "RDP_BENCH_CACHE": f"{folder}/cache"}

        def call(*args: str) -> Callable[[], object]:
            command = [sys.executable, "-m", "rdp_bench", *args]
            return lambda: subprocess.run(command, check=True, capture_output=True, env=env)

        small = ["run", "--grid", "table1", "--out", f"{folder}/out", "--limit", "4", "--attack", "fgsm"]
        small += ["--source", "effnet-lite0", "--defense", "none", "--defense", "jpeg", "--defense", "bit-red"]
        call(*small)()
        return [
            Row("rdp-bench --help", median(call("--help"), repeats), "s (under 0.3)"),
            Row("rdp-bench list defenses", median(call("list", "defenses"), repeats), "s (under 0.3)"),
            Row("rdp-bench run, fully cached", median(call(*small), repeats), "s (under 3)"),
            Row("rdp-bench report", median(call("report", "--out", f"{folder}/out"), 3), "s (under 5)"),
        ]


def rows() -> list[Row]:
    """All measurements."""
    plugins.load()
    return store_rows("fgsm") + store_rows("mi-fgsm") + command_rows()


def main() -> None:
    """Print the table."""
    for row in rows():
        print(f"{row.name:<62} {row.value:9.2f} {row.note}")


if __name__ == "__main__":
    main()
