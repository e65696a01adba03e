"""`open_dataset`: names, paths, limits, sizes, and checks of registered data sets."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench import registry
from rdp_bench.data import _images
from rdp_bench.data.image_hashes import batch, hash_images
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadImageError, UsageError
from rdp_bench.keys import hash_pixels
from tests.helpers.images import Pixels, save
from tests.helpers.paths import ROOT


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown dataset 'photo20'\. Did you mean 'photos20'\?.*folder"):
        open_dataset("photo20")
    with pytest.raises(UsageError, match=r"'photos20'.*'sise'|'sise'.*Did you mean 'size'"):
        open_dataset("photos20(sise=3)")


def test_registered_name_goes_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "photos20" / "7" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("photos20").ids) == 20
    assert list(open_dataset("./photos20").ids) == ["7/a.png"]


def test_missing_path_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "imagenet-val").mkdir()
    with pytest.raises(BadImageError, match=r"no such folder or file\. Did you mean '.*imagenet-val'\?"):
        open_dataset(str(tmp_path / "imagenet-vall"))
    with pytest.raises(BadImageError, match=r"no dataset at 'mine\.csv'"):
        open_dataset("mine.csv")


def test_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"a\.png: expected a folder, a \.csv file"):
        open_dataset(str(save(tmp_path / "a.png")))


@pytest.mark.parametrize(("limit", "n"), [(1, 1), (3, 3), (4, 4), (99, 4), (None, 4)])
def test_limit(listed: Path, limit: int | None, n: int) -> None:
    found = open_dataset(str(listed), limit=limit)
    assert list(found.labels) == list(range(n))
    assert len(found.ids) == n
    with pytest.raises(IndexError):
        found.image(n)


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_1_is_refused(listed: Path, limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit must be at least 1, found {limit}"):
        open_dataset(str(listed), limit=limit)


def test_limit_needs_only_its_own_files(listed: Path) -> None:
    (listed.parent / "3.png").unlink()
    assert len(open_dataset(str(listed), limit=3).ids) == 3


@pytest.mark.parametrize("spec", ["photos20", "four.csv"])
def test_size_below_1_is_refused(listed: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(listed.parent)
    with pytest.raises(UsageError, match="size must be at least 1, found 0"):
        open_dataset(spec, size=0)


def test_nothing_is_decoded_on_opening(listed: Path, nips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "decode", lambda path: pytest.fail(f"decoded {path}"))
    for spec in (str(listed), str(nips), "photos20"):
        open_dataset(spec)


@dataclass
class Stranger:
    """A plugin's dataset: two flat images, without files."""

    name: str = "stranger"
    size: int = 8
    ids: Sequence[str] = ("a", "b")
    labels: Sequence[int] = (5, 6)
    threads: set[int] = field(default_factory=set)

    def image(self, index: int) -> Pixels:
        return np.full((3, self.size, self.size), self.labels[index], np.uint8)


@pytest.mark.parametrize(("changes", "message"), [
    ({"ids": ()}, "no images"),
    ({"ids": ("a", "a")}, "id 'a' is repeated"),
    ({"labels": (5,)}, "2 ids but 1 labels"),
    ({"labels": (5, 1000)}, "image 'b' has label 1000"),
])  # fmt: skip
def test_registered_dataset_is_checked(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
    registry.dataset("test/stranger", source="this file")(lambda: Stranger(**changes))  # type: ignore[arg-type]
    with pytest.raises(BadImageError, match=f"dataset 'stranger': {message}"):
        open_dataset("test/stranger")


def test_registered_dataset_without_files_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
    registry.dataset("test/stranger", source="this file")(Stranger)
    found = open_dataset("test/stranger", limit=1)
    assert batch(found, 0, 1).tolist() == np.full((1, 3, 8, 8), 5).tolist()
    assert hash_images(found, tmp_path) == [hash_pixels(found.image(0))]
    with pytest.raises(IndexError):
        found.image(1)
    assert open_dataset("test/stranger(size=4)").image(0).shape == (3, 4, 4)


def test_a_limit_keeps_what_a_registered_dataset_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoken(Stranger):
        targets = (7, 8)
        classes = 10
        note = "half of it is synthetic"

    monkeypatch.setattr(registry.dataset, "entries", dict(registry.dataset.entries))
    registry.dataset("test/stranger", source="this file")(Spoken)
    found: Any = open_dataset("test/stranger", limit=1)
    assert (list(found.targets), found.classes, found.note) == ([7], 10, "half of it is synthetic")


def test_image_of_another_shape_is_named() -> None:
    wrong = Stranger(labels=(5, 6))
    wrong.image = lambda index: np.zeros((8, 8, 3), np.uint8)  # type: ignore[method-assign]
    with pytest.raises(BadImageError, match=r"image 'a' should be uint8 \[3, 8, 8\], is uint8 \[8, 8, 3\]"):
        batch(wrong, 0, 1)


HEAVY = "{'numpy', 'PIL', 'torch', 'timm', 'foolbox', 'pandas'}"


def loaded_by(code: str) -> str:
    """What of `HEAVY` is loaded after `code` ran in a fresh interpreter."""
    code = f"{code}\nimport sys\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loaders_and_opening_datasets_loads_nothing_heavy(nips: Path) -> None:
    names = sorted(path.stem for path in (ROOT / "data").glob("*.py"))
    assert {"photos20", "nips2017", "open"} < set(names)
    imports = "\n".join(f"import rdp_bench.data.{name}" for name in names if name != "__init__")
    opened = f"from rdp_bench.data.open import open_dataset as o\no('photos20'); o({str(nips)!r})"
    assert loaded_by(f"{imports}\n{opened}") == "[]"


def test_the_test_of_lightness_can_fail() -> None:
    assert loaded_by("import PIL") == "['PIL']"


def test_reading_images_loads_no_torch() -> None:
    code = "from rdp_bench.data.open import open_dataset as o\no('photos20', size=8).image(0)"
    assert loaded_by(code) == "['PIL', 'numpy']"
