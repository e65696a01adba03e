"""What an entry reads when it is made is in its keys; what it reads while it works is warned of."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from rdp_bench import plugins, user_reads
from rdp_bench.models.entry_calls import CheckedClassifier
from rdp_bench.models.zoo import PluginModelRef
from rdp_bench.registry import defense
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

DEFENSE = '''
import os
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import safetensors.torch
import torch
from rdp_bench import Purifier, defense

HERE = Path(__file__).parent

class Scale(Purifier):
    """Multiplies by a factor."""
    def __init__(self):
        self.factor = {factor}
    def purify(self, x, rng):
        return x * self.factor
    def resolved(self):
        return {{}}

@defense("mine/scale", source="made up")
def scale():
    """A function that makes the defense."""
    return Scale()

@defense("mine/field", source="made up")
@dataclass(frozen=True)
class Field(Purifier):
    """Reads the file that its parameter names."""
    file: str = ""
    def __post_init__(self):
        if self.file:
            object.__setattr__(self, "factor", float(Path(self.file).read_text()))
    def purify(self, x, rng):
        return x * self.factor
'''

MODEL = '''
from pathlib import Path
import torch
from rdp_bench import model

class Net:
    """Reads its weights when it is made, or when it is first called."""
    name, classes, weight = "mine/net", 5, None
    def read(self):
        return torch.load(Path(__file__).parent / "net.pt", weights_only=True)
    def __call__(self, x, zoom=1.0):
        if self.weight is None:
            self.weight = self.read()
        return x.flatten(1) @ self.weight.T
    def record(self):
        return {"version": 7}

@model("mine/net", source="made up")
def net():
    """Made with its weights."""
    made = Net()
    made.weight = made.read()
    return made

@model("mine/late", source="made up")
def late():
    """Made without."""
    return Net()
'''


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(user_reads, "keyed", {})
    monkeypatch.setattr(user_reads, "unkeyed", {})
    with new_process():
        yield


def version(plugin: Path, label: str) -> str:
    with new_process():
        plugins.load((plugin,))
        return defense.resolve(label).version


def write(folder: Path, value: float) -> None:
    """The factor in every form that the plugins read."""
    (folder / "factor.txt").write_text(str(value))
    np.save(folder / "factor.npy", np.array([value]))
    save_file({"factor": torch.tensor([value])}, folder / "factor.safetensors")
    torch.save(torch.tensor([value]), folder / "factor.pt")


@pytest.mark.parametrize(
    "factor",
    [
        'float((HERE / "factor.txt").read_text())',
        'float(np.load(HERE / "factor.npy")[0])',
        'float(torch.load(HERE / "factor.pt", weights_only=True)[0])',
        'float(torch.load(HERE / "factor.pt", weights_only=True, mmap=True)[0])',
        'float(safetensors.torch.load_file(HERE / "factor.safetensors")["factor"][0])',
        'float(os.environ.get("FACTOR", "1"))',
    ],
)
def test_what_a_factory_reads_is_in_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: str) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(DEFENSE.format(factor=factor))
    write(tmp_path, 1.0)
    before = version(plugin, "mine/scale")
    assert before == version(plugin, "mine/scale")
    write(tmp_path, 0.0)
    monkeypatch.setenv("FACTOR", "0")
    assert version(plugin, "mine/scale") != before


def test_a_file_that_a_parameter_names_is_in_the_version(tmp_path: Path) -> None:
    plugin, file = tmp_path / "mine.py", tmp_path / "a.txt"
    plugin.write_text(DEFENSE.format(factor="1.0"))
    file.write_text("1.0")
    before = version(plugin, f'mine/field(file="{file}")')
    file.write_text("0.0")
    assert version(plugin, f'mine/field(file="{file}")') != before


def test_a_models_weights_are_in_its_record(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    records = []
    for seed in (1, 1, 2):
        torch.save(torch.full((5, 12), float(seed)), tmp_path / "net.pt")
        with new_process():
            plugins.load((tmp_path / "mine.py",))
            records.append(PluginModelRef("mine/net").record())
    assert records[0] == records[1] != records[2]


@pytest.mark.parametrize(("name", "remarks"), [("mine/net", 0), ("mine/late", 1)])
def test_a_file_read_while_a_model_works_is_remarked_on(tmp_path: Path, name: str, remarks: int) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    torch.save(torch.ones(5, 12), tmp_path / "net.pt")
    plugins.load((tmp_path / "mine.py",))
    ref = PluginModelRef(name)
    ref.record()
    made = ref.load("cpu")
    assert isinstance(made, CheckedClassifier)
    made(torch.zeros(1, 3, 2, 2))
    assert len(user_reads.unkeyed) == remarks
    assert all(f"'{name}' reads {tmp_path / 'net.pt'} while it works" in remark for remark in user_reads.unkeyed)


def test_what_a_users_script_reads_itself_changes_no_key(tmp_path: Path) -> None:
    """The frames of a script that calls this package are not an entry's."""
    script = tmp_path / "script.py"
    script.write_text(
        "from rdp_bench import plugins\nfrom rdp_bench.registry import defense\nplugins.load()\n"
        "print([defense.resolve(label).version for label in ('jpeg', 'rdp', 'comdefend')])\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )
    plugins.load()
    assert done.stdout.strip() == str([defense.resolve(label).version for label in ("jpeg", "rdp", "comdefend")])


def test_a_library_that_is_first_imported_within_a_block_works_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the function that notes reads, and there is no block any more."""
    monkeypatch.setattr(safetensors, "torch", safetensors.torch)
    monkeypatch.delitem(sys.modules, "safetensors.torch")
    with user_reads.watching():
        fresh = importlib.import_module("safetensors.torch")
    save_file({"factor": torch.tensor([3.0])}, tmp_path / "factor.safetensors")
    assert fresh.load_file(tmp_path / "factor.safetensors")["factor"].item() == 3
