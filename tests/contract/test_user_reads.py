"""What an entry reads when it is made is in its keys; what it reads while it works is warned of."""

import importlib
import os
import subprocess
import sys
import threading
import time
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


@pytest.mark.parametrize(
    "factor",
    [
        'runpy.run_path(str(HERE / "by_path.py"))["FACTOR"]',
        'exec((HERE / "by_path.py").read_text(), names := {}) or names["FACTOR"]',
        'loaded(importlib.util.spec_from_file_location("by_path", HERE / "by_path.py")).FACTOR',
    ],
)
def test_python_that_a_factory_reads_by_its_path_is_in_the_version(tmp_path: Path, factor: str) -> None:
    plugin, file = tmp_path / "mine.py", tmp_path / "by_path.py"
    loaded = """
import importlib.util, runpy

def loaded(spec):
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
"""
    plugin.write_text(loaded + DEFENSE.format(factor=factor))
    file.write_text("FACTOR = 1.0")
    before = version(plugin, "mine/scale")
    assert before == version(plugin, "mine/scale")
    file.write_text("FACTOR = 0.25")
    assert version(plugin, "mine/scale") != before


@pytest.mark.parametrize("when", ["import", "make"])
def test_files_that_trade_their_contents_change_the_version(tmp_path: Path, when: str) -> None:
    read = 'float((HERE / "a" / "n.txt").read_text()) - float((HERE / "b" / "n.txt").read_text())'
    text = DEFENSE.format(factor=read)
    if when == "import":
        text = DEFENSE.replace("class Scale", f"FACTOR = {read}\n\nclass Scale").format(factor="FACTOR")
    (tmp_path / "mine.py").write_text(text)
    found = []
    for one, two in (("1.0", "0.5"), ("1.0", "0.5"), ("0.5", "1.0")):
        for name, value in (("a", one), ("b", two)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "n.txt").write_text(value)
        found.append(version(tmp_path / "mine.py", "mine/scale"))
    assert found[0] == found[1] != found[2]


def test_a_copy_of_the_environment_when_an_entry_is_made_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(DEFENSE.format(factor='float(dict(os.environ).get("FACTOR", "1"))'))
    version(tmp_path / "mine.py", "mine/scale")
    assert "mine/scale copies all environment variables" in caplog.text


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


HELPER = """
import json
from pathlib import Path
FACTOR = json.loads(Path(__file__).with_name("factor.json").read_text())
"""

ENTRY = """
{imports}
from dataclasses import dataclass
from rdp_bench import Purifier, defense

@defense("mine/{name}", source="made up")
@dataclass(frozen=True)
class Mine(Purifier):
    "Multiplies by a factor."
    gain: float = 1.0
    def __post_init__(self):
        object.__setattr__(self, "factor", {factor})
    def purify(self, x, rng):
        return x * self.factor
"""


def entry(folder: Path, name: str, imports: str, factor: str = "FACTOR") -> Path:
    file = folder / f"{name}.py"
    file.write_text(ENTRY.format(imports=imports, name=name, factor=factor))
    return file


def versions(files: list[Path], labels: list[str]) -> list[str]:
    """Of several labels in one process that loads several plugins."""
    with new_process():
        plugins.load(tuple(files))
        return [defense.resolve(label).version for label in labels]


def test_what_a_shared_module_reads_is_in_the_key_of_every_plugin(tmp_path: Path) -> None:
    """Also of those that did not import it first, and in every order."""
    (tmp_path / "shared_factor.py").write_text(HELPER)
    a, b = (entry(tmp_path, name, "from shared_factor import FACTOR") for name in "ab")
    (tmp_path / "factor.json").write_text("1.0")
    labels = ["mine/a", "mine/b"]
    before = versions([a, b], labels)
    assert before == versions([b, a], labels) == [*versions([a], labels[:1]), *versions([b], labels[1:])]
    (tmp_path / "factor.json").write_text("0.0")
    after = versions([a, b], labels)
    assert before[0] != after[0]
    assert before[1] != after[1]


MEMORY = """
import functools
from pathlib import Path
HERE = Path(__file__).parent

@functools.cache
def shift():
    return float((HERE / "shift.txt").read_text())

class Store:
    @staticmethod
    @functools.lru_cache(maxsize=3)
    def shift():
        return float((HERE / "shift.txt").read_text())
"""


@pytest.mark.parametrize("factor", ["shift()", "Store.shift()"])
def test_what_a_function_remembers_is_in_the_key_of_every_entry(tmp_path: Path, factor: str) -> None:
    plugin = entry(tmp_path, "c", MEMORY, factor)
    (tmp_path / "shift.txt").write_text("1.0")
    labels = ["mine/c", "mine/c(gain=2)"]
    before = versions([plugin], labels)
    assert before == versions([plugin], labels[::-1])[::-1]
    assert before[1] == versions([plugin], labels[1:])[0]
    (tmp_path / "shift.txt").write_text("0.0")
    after = versions([plugin], labels)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "imports",
    [
        """
import importlib.util
from pathlib import Path
_spec = importlib.util.spec_from_file_location("by_path", Path(__file__).with_name("by_path.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
FACTOR = _module.FACTOR
""",
        """
from pathlib import Path
exec(Path(__file__).with_name("by_path.py").read_text())
""",
        """
import runpy
from pathlib import Path
FACTOR = runpy.run_path(str(Path(__file__).with_name("by_path.py")))["FACTOR"]
""",
        """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
with ThreadPoolExecutor(1) as pool:
    (text,) = pool.map(Path.read_text, [Path(__file__).with_name("by_path.py")])
FACTOR = float(text.rpartition("=")[2])
""",
    ],
)
def test_python_that_no_import_statement_names_is_in_the_version(tmp_path: Path, imports: str) -> None:
    """Loaded by its path, executed, run, or read by a thread; also where it is compiled already."""
    plugin, file = entry(tmp_path, "d", imports), tmp_path / "by_path.py"
    file.write_text("FACTOR = 1.0")
    before = versions([plugin], ["mine/d"])
    assert before == versions([plugin], ["mine/d"])
    file.write_text("FACTOR = 0.25")
    assert before != versions([plugin], ["mine/d"])


@pytest.mark.parametrize(
    "imports",
    [
        """
from pathlib import Path
from safetensors.torch import load_file
FACTOR = float(load_file(str(Path(__file__).with_name("w.safetensors")))["s"][0])
""",
        """
from pathlib import Path
from safetensors import safe_open
with safe_open(str(Path(__file__).with_name("w.safetensors")), "pt") as file:
    FACTOR = float(file.get_tensor("s")[0])
""",
    ],
)
def test_safetensors_that_a_plugin_imports_first(tmp_path: Path, imports: str) -> None:
    """As from the command line, which loads plugins before torch and safetensors."""
    plugin = entry(tmp_path, "s", imports)
    script = (
        "import sys; from pathlib import Path; from rdp_bench import plugins; from rdp_bench.registry import defense;"
        "assert 'safetensors' not in sys.modules;"
        f"plugins.load((Path({str(plugin)!r}),)); print(defense.resolve('mine/s').version)"
    )
    found = []
    for value in (1.0, 1.0, 0.0):
        save_file({"s": torch.tensor([value])}, tmp_path / "w.safetensors")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
        found.append(done.stdout)
    assert found[0] == found[1] != found[2]


SLOW = '''
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from rdp_bench import Purifier, defense

class Slow(Purifier):
    """Reads its factor in a thread of its own, and takes its time."""
    def __init__(self):
        with ThreadPoolExecutor(1) as pool:
            self.factor = float(pool.submit(Path.read_text, Path(__file__).with_name("factor.txt")).result())
        time.sleep(0.2)
    def purify(self, x, rng):
        reader = threading.Thread(target=Path(__file__).with_name("late.txt").read_text)
        reader.start()
        reader.join()
        return x * self.factor

@defense("mine/slow", source="made up")
def slow():
    """A function that makes the defense."""
    return Slow()
'''


def test_only_the_threads_that_an_entry_starts_read_for_it(tmp_path: Path) -> None:
    """The program that calls this package may read what it likes meanwhile, and ask for variables."""
    plugin, mine, others = tmp_path / "slow.py", tmp_path / "factor.txt", tmp_path / "others.txt"
    plugin.write_text(SLOW)
    done, rounds = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            rounds.append((others.read_text(), os.environ.get("OTHERS")))

    def under(factor: str, text: str) -> str:
        mine.write_text(factor)
        others.write_text(text)
        os.environ["OTHERS"] = text
        return version(plugin, "mine/slow")

    others.touch()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        first, second, third = under("1", "a"), under("1", "b"), under("2", "b")
    finally:
        os.environ.pop("OTHERS", None)
        done.set()
        thread.join()
    assert first == second != third
    assert len(rounds) > 10


SLOW_IMPORT = '''
import time
from pathlib import Path
from threading import Thread
from importlib import import_module
from rdp_bench import Purifier, defense

HERE = Path(__file__).parent
(HERE / "begun").touch()
while not (HERE / "go").exists():
    time.sleep(0.01)
import_module("shared")
own = Thread(target=import_module, args=("of_a_thread",))
own.start()
own.join()

@defense("mine/slow", source="made up")
class Slow(Purifier):
    """Leaves images as they are."""
    def purify(self, x, rng):
        return x
'''


def test_only_modules_that_a_plugin_imports_are_in_its_version(tmp_path: Path) -> None:
    """Not those that the program's other threads import meanwhile, unless it imports them, too."""

    def under(meanwhile: tuple[str, ...], **texts: str) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        plugin = folder / "slow.py"
        plugin.write_text(SLOW_IMPORT)
        texts = {"shared": "", "of_a_thread": "", "other": "", **texts}
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text)

        def beside() -> None:
            while not (folder / "begun").exists():
                time.sleep(0.01)
            for name in meanwhile:
                importlib.import_module(name)
            (folder / "go").touch()

        thread = threading.Thread(target=beside)
        thread.start()
        found = version(plugin, "mine/slow")
        thread.join()
        return found

    alone = under(())
    assert under(("other",)) == under(("other",), other="text = 1") == alone
    assert under(("other",), shared="text = 1") != alone
    assert under(("other",), of_a_thread="text = 1") != alone


def test_a_file_that_a_thread_of_an_entry_reads_while_it_works_is_remarked_on(tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    (tmp_path / "factor.txt").write_text("1")
    (tmp_path / "late.txt").write_text("")
    plugins.load((plugin,))
    made = defense.make("mine/slow")
    with user_reads.noting_unkeyed("defense 'mine/slow'"):
        made.purify(torch.zeros(1, 3, 2, 2), None)
    (remark,) = user_reads.unkeyed
    assert remark.startswith(f"defense 'mine/slow' reads {tmp_path / 'late.txt'} while it works")
