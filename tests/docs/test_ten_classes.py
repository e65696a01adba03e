"""The examples without ImageNet: the data set and networks of docs/cifar10.md, CIFAR-10, and the Hugging Face hub."""

import csv
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from rdp_bench import plugins
from rdp_bench.data.open import open_dataset
from rdp_bench.registry import registries
from tests.data.test_cifar10 import LABELS, binary, pixels
from tests.helpers.commands import cli
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "cifar10.md").read_text()


FILES = ("small.py", "small.toml", "blur.py", "hub.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples in which both networks have been trained as the page says."""
    folder = tmp_path_factory.mktemp("trained")
    for name in FILES:
        shutil.copy(EXAMPLES / name, folder)
    train(folder, "mine/stripes(split=train, count=2000)")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples as the current folder."""
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        shutil.copy(EXAMPLES / name, tmp_path)
    return tmp_path


def train(folder: Path, label: str) -> str:
    found = subprocess.run(
        [sys.executable, "small.py", label], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_page(folder: Path, trained: Path) -> None:
    """Both commands of the page, then the same grid on CIFAR-10: the networks learn, and the attacks transfer."""
    assert 'python docs/examples/small.py "mine/stripes(split=train, count=2000)"' in PAGE
    assert "rdp-bench run docs/examples/small.toml\n" in PAGE
    for name in ("small-a", "small-b"):
        shutil.copy(trained / f"{name}.safetensors", folder)
    with new_process():
        done = cli("run", "small.toml", "--dataset", "mine/stripes(count=60)", "--out", "stripes")
        assert done.exit_code == 0, done.output
        binary(folder / "cifar" / "test_batch.bin", pixels(), LABELS)
        assert cli("run", "small.toml", "--dataset", "cifar10(cifar)", "--eps", "8", "--out", "cifar").exit_code == 0
    found = {(row["attack"], row["eps"], row["defense"]): float(row["value"]) for row in rows(folder / "stripes")}
    assert len(found) == 3 * 2 * 4 + 4
    assert found["clean", "0", "none"] > 90  # accuracy
    assert found["mi-fgsm", "16", "none"] > 50  # error, on another network than the source
    assert found["mi-fgsm", "16", "none"] > found["mi-fgsm", "8", "none"] > 5
    of_cifar = rows(folder / "cifar")
    assert {row["dataset"] for row in of_cifar} == {"cifar10"}
    assert {(row["status"], row["n"]) for row in of_cifar} == {("done", str(len(LABELS)))}


def test_stripes_are_where_the_label_says(folder: Path) -> None:
    """The strongest frequency of the spectrum points in the direction of the label."""
    plugins.load((folder / "small.py",))
    found = open_dataset("mine/stripes(count=30)")
    for i, label in enumerate(found.labels):
        power = np.abs(np.fft.fft2(found.image(i).astype(float).mean(0) - 128))
        row, column = (np.fft.fftfreq(32)[k] for k in np.unravel_index(power.argmax(), power.shape))
        angle = np.degrees(np.arctan2(column, row)) % 180
        assert min(abs(angle - 18 * label), 180 - abs(angle - 18 * label)) < 12, label


def test_training_on_another_data_set_gives_other_weights(folder: Path, trained: Path) -> None:
    for i in range(1, 6):
        binary(folder / f"data_batch_{i}.bin", pixels(40, i), [k % 10 for k in range(40)])
    assert "small-a: training loss" in train(folder, "cifar10(., split=train)")
    for name in ("small-a", "small-b"):
        weights = [(each / f"{name}.safetensors").read_bytes() for each in (folder, trained)]
        assert weights[0] != weights[1]


def test_the_conversion_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's images, by way of class folders, are those that it returns."""
    images = pixels()

    class Theirs:
        def __init__(self, root: str, train: bool) -> None:
            assert (root, train) == ("data", False)

        def __iter__(self) -> Any:
            yield from ((Image.fromarray(image), label) for image, label in zip(images, LABELS, strict=True))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Theirs)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "torchvision" in block]
    (folder / "convert.py").write_text(code)
    runpy.run_path(str(folder / "convert.py"))
    found = open_dataset("cifar10(cifar10)")
    assert sorted(found.labels) == sorted(LABELS)
    for i, (id_, label) in enumerate(zip(found.ids, found.labels, strict=True)):
        number = int(Path(id_).stem)
        assert label == LABELS[number]
        np.testing.assert_array_equal(found.image(i).transpose(1, 2, 0), images[number])


class Rows(list[dict[str, Any]]):
    """What `datasets.load_dataset` returns, as far as the example uses it."""

    features: ClassVar = {"label": SimpleNamespace(num_classes=10)}

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command with stand-ins for both libraries: its accuracy is that of the network, run by hand."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    images = np.concatenate([pixels(), pixels(3, 1)])
    torch.manual_seed(0)
    net = resnet18(num_classes=10).eval()
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
        labels = net((x - 0.5) / 0.25).argmax(1).tolist()
    labels[0] = (labels[0] + 1) % 10
    save_file(net.state_dict(), folder / "weights.safetensors")
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Rows:
        asked.append((args, kwargs))
        return Rows({"img": Image.fromarray(i), "label": y} for i, y in zip(images, labels, strict=True))

    def hf_hub_download(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return str(folder / "weights.safetensors")

    stub = ModuleType("datasets")
    stub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert importlib.util.find_spec("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    text = (ROOT / "docs" / "extend" / "hub.md").read_text()
    assert '--dataset "mine/hub(repo=uoft-cs/cifar10)"' in text
    words = ["--plugin", "hub.py", "--dataset", "mine/hub(repo=uoft-cs/cifar10)", "--source", "mine/hub-resnet18"]
    words += ["--target", "mine/hub-resnet18", "--attack", "fgsm", "--defense", "none,jpeg", "--limit", "200"]
    kept = {kind: dict(registry.entries) for kind, registry in registries.items()}
    try:
        with new_process():
            done = cli("run", "--grid", "table1", *words, "--out", "hub")
    finally:
        for kind, entries in kept.items():
            registries[kind].entries = entries
    assert done.exit_code == 0, done.output
    found = {(row["attack"], row["defense"]): row for row in rows(folder / "hub")}
    assert float(found["clean", "none"]["value"]) == pytest.approx(90)
    assert found["fgsm", "jpeg"]["status"] == "done"
    assert (("uoft-cs/cifar10",), {"split": "test", "revision": "main"}) in asked
    assert (("mine/resnet18-cifar10", "model.safetensors"), {"revision": "main"}) in asked


def test_the_picture_shows_the_results() -> None:
    """The files are what the script draws, and the script reads the numbers of docs/results."""
    drawn = runpy.run_path(str(ROOT / "docs" / "results" / "overview.py"))
    for name, columns in drawn["FILES"].items():
        assert (ROOT / "docs" / name).read_text() == drawn["svg"](columns)
    clean, error = drawn["points"]("effnet-lite2-ens")["rdp"]
    assert (clean[0], error[0]) == (
        pytest.approx(88.0),
        pytest.approx(
            np.mean([31.0, 33.2, 45.8, 56.4, 45.6, 29.6, 31.2, 42.8, 53.4, 42.4, 35.8, 38.0, 52.6, 66.8, 53.0])
        ),
    )
    assert error[1] < error[0] < error[2]
