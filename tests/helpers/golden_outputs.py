"""Pinned outputs of every built-in attack, defense and embedded model: `golden/outputs.json`, and how it is made.

    python -m tests.helpers.golden_outputs      # writes the pins of entries that are new or whose version changed

An output is pinned by its sha256, by the version of its entry, and by random projections. The hash decides where it
is equal. Where a codec, a thread count or another processor may round otherwise, the projections p = S x / sqrt(N),
with S of random signs, decide: the root mean square of p - p' estimates that of x - x', whatever changed in the image.
"""

import json
from collections.abc import Iterator
from hashlib import sha256, shake_256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdp_bench import plugins, registry
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadModelError
from rdp_bench.models import card, zoo
from rdp_bench.rng import ImageRng
from rdp_bench.weights import files as weight_files
from tests.helpers import auxiliary, toy
from tests.helpers.paths import TESTS

FILE = TESTS / "golden" / "outputs.json"
KINDS = ("attack", "defense", "model")
EMBEDDED = ("effnet-lite0", "effnet-lite1", "effnet-lite2", "effnet-lite2-ens")
PROJECTIONS = 16

TOLERANCE = {"attack": 0.3, "defense": 0.05, "model": 1e-3}
"""Root mean square in levels of 255 for images, in logits for models."""
TOLERANCE_OF = {
    # libjpeg's versions round differently.
    "jpeg": 1.0,
    "wavelet": 1.0,
    "sr": 1.0,
    # Values at a rounding tie of the quantiser move by a whole step.
    "bit-red": 0.3,
    "fd": 0.5,
    "comdefend": 0.3,
}


SMALLER = {
    "dip": "dip(steps=3, width=4, levels=3)",
    "diffpure": "diffpure(stride=10)",
    "gradual": "gradual(stride=10)",
    "soap": f"soap(network={auxiliary.NAME})",
}
"""Entries whose defaults take too long, with fewer steps, and one that needs a network."""
LABELS = {
    "ilpd": "ilpd(decay_layer=1, steps=10)",
    "apgd-ce": "apgd-ce(steps=20)",
    "apgd-dlr": "apgd-dlr(steps=20)",
    "apgd-t": "apgd-t(steps=10, targets=2)",
    "fab-t": "fab-t(steps=10, targets=2)",
    "square": "square(queries=60)",
    "spsa": "spsa(steps=2, samples=8)",
    "autoattack": "autoattack(steps=10, targets=2, queries=20)",
    "autoattack-rand": "autoattack-rand(steps=10)",
}
"""Labels of entries that need arguments on the toy networks, or that take minutes as they are."""


class Featured(toy.Toy):
    """The toy network with its first layers as a feature map, for attacks on features."""

    def __init__(self) -> None:
        self.net = toy.network(5)
        super().__init__(self.net, 5, "conv-0")

    def features(self, x: torch.Tensor, levels: tuple[int, ...] = (2,), zoom: float = 1.0) -> list[torch.Tensor]:
        return [self.net[:2](x) for _ in levels]


class Transformer(toy.Toy):
    """The toy transformer, for attacks on its tokens and its residual branches."""

    def __init__(self) -> None:
        self.net = toy.transformer(64)
        super().__init__(self.net, 5, "transformer")


def photos(size: int) -> NDArray[np.uint8]:
    """Two photographs, uint8 `[2, 3, size, size]`."""
    dataset = open_dataset(f"photos20(size={size})", limit=2)
    return np.stack([dataset.image(index) for index in range(2)])


def made(kind: str, name: str) -> NDArray[Any]:
    """The output that is pinned: uint8 images, or float32 logits."""
    if kind == "model":
        x = torch.from_numpy(photos(224)).float() / 255
        with torch.no_grad():
            logits: NDArray[np.float32] = zoo.find(name).load("cpu")(x).numpy()
        return logits
    x = torch.from_numpy(photos(64)).float() / 255
    rng = ImageRng(["golden 0", "golden 1"])
    if kind == "attack":
        attack = registry.attack.resolve(LABELS.get(name, name)).value
        model = Transformer() if name in ("tgr", "sgm") else Featured()
        out = attack(toy.source(model), x, torch.tensor([0, 3]), 16 / 255, rng)
    else:
        with torch.no_grad():
            out = defense(name).purify(x, rng)
    image: NDArray[np.uint8] = (out * 255).round().clamp(0, 255).byte().numpy()
    return image


def defense(name: str) -> Any:
    """The defense of a label; a network that ships without weights gets small fixed ones."""
    if name == "soap":
        with auxiliary.installed():
            found: Any = registry.defense.resolve(SMALLER[name]).value
            found.resolved()  # finds the network while it is registered
            return found
    if name != "nrp-resg":
        return registry.defense.resolve(SMALLER.get(name, name)).value
    net = registry.defense.make(name).build()  # type: ignore[attr-defined]
    state = {
        key: toy.random(*value.shape, seed=seed) * 0.05 for seed, (key, value) in enumerate(net.state_dict().items())
    }
    with TemporaryDirectory() as folder:
        file = Path(folder) / "net.safetensors"
        weight_files.save(file, state, {"defense": name, "net": {}}, half=False)
        made = registry.defense.resolve(f"{name}(weights={file})").value
        made.net("cpu")  # read while the file exists
    return made


def entries() -> Iterator[tuple[str, str, str]]:
    """Kind, name and version of everything that must have a pin."""
    plugins.load()
    for kind, entries, at in (("attack", registry.attack, (16.0,)), ("defense", registry.defense, ())):
        for name in entries.entries:
            if "/" in name:  # names with a slash are plugins' that another test registered
                continue
            try:
                yield kind, name, versions(registry.identity(entries.resolve(name), *at))
            except BadModelError:  # a network that ships without weights
                yield kind, name, entries.get(name).version
    for name in EMBEDDED:
        yield "model", name, str(card.NUMERICS)


def versions(identity: dict[str, Any]) -> str:
    """The version of an engine or entry, and of each part that is beyond its first."""
    parts = identity["params"].get("parts", {}).items()
    later = [f"{name}={part['version']}" for name, part in parts if part["version"] != "1"]
    return " ".join([identity["version"], *later])


def projections(output: NDArray[Any]) -> list[float]:
    """`PROJECTIONS` numbers of an image or of logits, a sum with random signs each."""
    flat = output.astype(np.float64).ravel()
    found = []
    for number in range(PROJECTIONS):
        bits = np.frombuffer(shake_256(f"projection {number}".encode()).digest(-(-len(flat) // 8)), np.uint8)
        signs = 1.0 - 2.0 * np.unpackbits(bits)[: len(flat)]
        found.append(round(float(signs @ flat) / len(flat) ** 0.5, 6))
    return found


def pin(kind: str, name: str, version: str) -> dict[str, Any]:
    """What `outputs.json` says of an entry."""
    output = made(kind, name)
    return {
        "version": version,
        "shape": list(output.shape),
        "sha256": sha256(np.ascontiguousarray(output).tobytes()).hexdigest(),
        "projections": projections(output),
    }


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Estimated root mean square of the difference of two pinned outputs; infinite where their shapes differ."""
    if a["shape"] != b["shape"]:
        return float("inf")
    if a["sha256"] == b["sha256"]:
        return 0.0
    difference = np.subtract(a["projections"], b["projections"])
    return float(np.sqrt(np.mean(difference**2)))


def write() -> None:
    """Write pins of new entries and of those whose version changed; the others stay as they are."""
    old = json.loads(FILE.read_text()) if FILE.exists() else {}
    new: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for kind, name, version in entries():
        kept = old.get(kind, {}).get(name)
        new[kind][name] = kept if kept and kept["version"] == version else pin(kind, name, version)
    FILE.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
