"""Data sets of a few small images."""

from pathlib import Path

import pytest
from PIL import Image

from rdp_bench.data import _images
from rdp_bench.data._images import decode
from tests.helpers.images import noise, save, table


@pytest.fixture
def nips(tmp_path: Path) -> Path:
    """Three images in NIPS-2017's layout, labelled with ImageNet's first, second and last class."""
    folder = tmp_path / "mine"
    for seed, name in enumerate(("one", "two", "three")):
        save(folder / "images" / f"{name}.png", noise(seed))
    table(folder / "dev_dataset.csv", "ImageId,TrueLabel,TargetClass", "two,1,1000", "one,2,7", "three,1000,1")
    return folder


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A CSV of four images, labelled 0, 1, 2, 3."""
    for seed in range(4):
        save(tmp_path / f"{seed}.png", noise(seed))
    return table(tmp_path / "four.csv", "path,label", *(f"{i}.png,{i}" for i in range(4)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded, as it goes on."""
    names: list[str] = []

    def noted(path: Path) -> Image.Image:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(_images, "decode", noted)
    return names
