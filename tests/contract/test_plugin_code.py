"""An edited plugin never meets old results: whatever local code, data and settings its entries come from."""

import importlib
import linecache
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rdp_bench import local_code, plugins
from rdp_bench.errors import UsageError
from rdp_bench.registry import defense, model
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process, plan

BODY = '''
from dataclasses import dataclass
from rdp_bench import Purifier, defense

@defense("mine/scale", source="made up")
@dataclass(frozen=True)
class Scale(Purifier):
    """Multiplies by a factor."""
    def purify(self, x, draws):
        return x * factor()
'''


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with new_process():
        yield


def stamp(*files: Path, name: str = "mine/scale") -> str:
    """Version of an entry in a process of its own."""
    with new_process():
        plugins.load(files)
        return defense.resolve(name).version


def factor(value: float | str) -> str:
    return f"def factor():\n    return {value}\n"


Edit = Callable[[Path], None]

# name -> files of the plugin, the edit that changes what it computes
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "the file itself": ({"mine.py": BODY + factor(1)}, {"mine.py": BODY + factor(0)}),
    "a second file": (
        {"mine.py": "from helper import factor" + BODY, "helper.py": factor(1)}, {"helper.py": factor(0)},
    ),
    "a file that the second imports": (
        {"mine.py": "import a.b as b\nfactor = b.factor" + BODY, "a/__init__.py": "", "a/b.py": "from .c import factor",
         "a/c.py": factor(1)},
        {"a/c.py": factor(0)},
    ),
    "a file imported when it is called": (
        {"mine.py": BODY + "def factor():\n    from helper import factor\n    return factor()\n",
         "helper.py": factor(1)},
        {"helper.py": factor(0)},
    ),
    "a module named at import": (
        {"mine.py": "import importlib\nfactor = importlib.import_module('hel' + 'per').factor" + BODY,
         "helper.py": factor(1)},
        {"helper.py": factor(0)},
    ),
    "a data file": (
        {"mine.py": "from pathlib import Path\nN = float(Path(__file__).with_name('n.txt').read_text())\n" + BODY
         + "def factor():\n    return N\n", "n.txt": "1"},
        {"n.txt": "0"},
    ),
    "a data file that numpy reads in a helper": (
        {"mine.py": "from helper import factor" + BODY,
         "helper.py": "import numpy as np\nfrom pathlib import Path\n"
                      "N = np.loadtxt(Path(__file__).with_name('n.txt'))\ndef factor():\n    return float(N)\n",
         "n.txt": "1"},
        {"n.txt": "0"},
    ),
}  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_an_edit_changes_the_version(tmp_path: Path, case: str) -> None:
    """Within the same second and with the same size: no `.pyc` may stand in for the source."""
    files, edit = CASES[case]
    write(tmp_path, files)
    path = tmp_path / "mine.py"
    before = stamp(path)
    assert stamp(path) == before
    with new_process():
        plugins.load((path,))
        assert defense.resolve("mine/scale").value.purify(2.0, None) == 2.0  # type: ignore[arg-type]
    write(tmp_path, edit)
    assert stamp(path) != before
    with new_process():
        plugins.load((path,))
        assert defense.resolve("mine/scale").value.purify(2.0, None) == 0.0  # type: ignore[arg-type]
    write(tmp_path, files)
    assert stamp(path) == before


def test_a_file_that_nothing_uses_changes_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"mine.py": "from helper import factor" + BODY, "helper.py": factor(1), "other.py": "x = 1", "n.txt": ""},
    )
    before = stamp(tmp_path / "mine.py")
    write(tmp_path, {"other.py": "x = 2", "n.txt": "1"})
    assert stamp(tmp_path / "mine.py") == before


def test_where_a_plugin_lies_changes_nothing(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, {"mine.py": "from helper import factor" + BODY, "helper.py": factor(1)})
        found.append(stamp(tmp_path / name / "mine.py"))
    assert len(set(found)) == 1


@pytest.mark.parametrize("read", ["os.environ['FACTOR']", "os.environ.get('FACTOR', 1)", "os.getenv('FACTOR')"])
def test_an_environment_variable_that_is_read_at_import(
    tmp_path: Path, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"mine.py": f"import os\nN = float({read})\n" + BODY + "def factor():\n    return N\n"})
    monkeypatch.setenv("FACTOR", "1")
    monkeypatch.setenv("UNUSED", "1")
    before = stamp(tmp_path / "mine.py")
    monkeypatch.setenv("UNUSED", "2")
    assert stamp(tmp_path / "mine.py") == before
    monkeypatch.setenv("FACTOR", "0")
    assert stamp(tmp_path / "mine.py") != before
    assert type(os.environ).__getitem__.__qualname__ == "_Environ.__getitem__"  # put back


def test_a_copy_of_the_whole_environment_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all its variables most differ from shell to shell."""
    write(tmp_path, {"mine.py": "import os\nN = float(os.environ.copy()['FACTOR'])\n" + BODY + factor("N")})
    monkeypatch.setenv("FACTOR", "1")
    before = stamp(tmp_path / "mine.py")
    assert "copies all environment variables" in caplog.text
    monkeypatch.setenv("UNUSED", "2")
    assert stamp(tmp_path / "mine.py") == before


def test_what_libraries_read_while_they_are_imported_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib reads its settings and its list of fonts; both differ from machine to machine."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "one"))
    write(tmp_path, {"mine.py": "import matplotlib" + BODY + factor(1)})
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / name))
        for each in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, each)
        found.append(stamp(tmp_path / "mine.py"))
    assert len(set(found)) == 1


def test_a_module_that_was_imported_before_is_part_of_the_plugin_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"mine.py": "from earlier import factor" + BODY, "earlier.py": factor(1)})
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for value in (1, 22):
        write(tmp_path, {"earlier.py": factor(value)})
        with new_process():
            importlib.invalidate_caches()
            importlib.import_module("earlier")
            plugins.load((tmp_path / "mine.py",))
            found.append(defense.resolve("mine/scale").version)
        found.append(stamp(tmp_path / "mine.py"))
    assert found[0] == found[1] != found[2] == found[3]


def test_what_a_module_read_when_the_program_imported_it_is_part_of_the_plugin_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the plugin imports it first: a worker elsewhere must come to the same key."""
    helper = """
import os
from pathlib import Path
N = float(Path(__file__).with_name("n.txt").read_text()) * float(os.environ.get("FACTOR", 1))
def factor():
    return N
"""
    write(tmp_path, {"mine.py": "from earlier import factor" + BODY, "earlier.py": helper, "n.txt": "1"})
    os.utime(tmp_path / "n.txt", (0, 0))
    monkeypatch.syspath_prepend(tmp_path)
    alone = stamp(tmp_path / "mine.py")
    found = []
    for value, variable in (("1", "1"), ("0", "1"), ("1", "0")):
        write(tmp_path, {"n.txt": value})
        os.utime(tmp_path / "n.txt", (0, 0))
        monkeypatch.setenv("FACTOR", variable)
        with new_process():
            importlib.import_module("earlier")
            found.append(stamp(tmp_path / "mine.py"))
    assert len({*found}) == 3
    monkeypatch.delenv("FACTOR")
    with new_process():
        importlib.import_module("earlier")
        assert stamp(tmp_path / "mine.py") == alone
        (tmp_path / "n.txt").touch()
        with pytest.raises(UsageError, match=r"n\.txt was changed after this process began"):
            stamp(tmp_path / "mine.py")


def test_a_module_that_was_edited_after_it_was_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process would run the old code under the new file's key."""
    write(tmp_path, {"mine.py": "from earlier import factor" + BODY, "earlier.py": factor(1)})
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("earlier")
    write(tmp_path, {"earlier.py": factor(0)})
    with pytest.raises(
        UsageError, match=r"earlier\.py (was edited|changed) after this process imported it.*start a new"
    ):
        plugins.load((tmp_path / "mine.py",))
    assert "mine/scale" not in defense.entries


@pytest.mark.parametrize("edited", ["mine.py", "helper.py", "n.txt"])
def test_a_plugin_that_is_edited_after_it_was_loaded_is_refused(tmp_path: Path, edited: str) -> None:
    path = tmp_path / "mine.py"
    text = "from helper import factor\nopen(__file__[:-7] + 'n.txt').close()" + BODY
    write(tmp_path, {"mine.py": text, "helper.py": factor(1), "n.txt": "1"})
    plugins.load((path,))
    plugins.load((path,))
    write(tmp_path, {edited: (tmp_path / edited).read_text() + "\n"})
    with pytest.raises(UsageError, match=rf"{edited} changed after this process loaded it; start a new process"):
        plugins.load((path,))


def test_a_helper_of_two_plugins_that_is_edited_between_them_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"one.py": "import helper", "mine.py": "from helper import factor" + BODY, "helper.py": factor(1)})
    plugins.load((tmp_path / "one.py",))
    write(tmp_path, {"helper.py": factor(0)})
    with pytest.raises(UsageError, match=r"helper\.py (changed|was edited) after this process imported it"):
        plugins.load((tmp_path / "mine.py",))


def test_a_helper_of_the_same_name_in_another_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 0)):
        (tmp_path / name).mkdir()
        text = "from helper import factor" + BODY.replace("mine/scale", f"mine/{name}")
        write(tmp_path / name, {"mine.py": text, "helper.py": factor(value)})
    plugins.load((tmp_path / "one" / "mine.py",))
    with pytest.raises(UsageError, match=r"it imports helper from .*one.helper\.py, .* not .*two.helper\.py"):
        plugins.load((tmp_path / "two" / "mine.py",))


def test_a_module_that_appears_only_at_work_is_refused(tmp_path: Path) -> None:
    late = "def factor():\n    import importlib\n    return importlib.import_module('la' + 'te').factor()\n"
    write(tmp_path, {"mine.py": BODY + late, "late.py": factor(1)})
    plugins.load((tmp_path / "mine.py",))
    with pytest.raises(ImportError, match=r"late\.py is imported at run time and is part of no cache key"):
        defense.resolve("mine/scale").value.purify(2.0, None)  # type: ignore[arg-type]


def test_a_module_from_elsewhere_that_appears_only_at_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "def factor():\n    import importlib\n    return importlib.import_module('la' + 'te').factor()\n"
    write(tmp_path, {"mine/mine.py": BODY + late, "elsewhere/late.py": factor(1)})
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    plugins.load((tmp_path / "mine" / "mine.py",))
    with pytest.raises(ImportError, match=r"late\.py is imported at run time and is part of no cache key"):
        defense.resolve("mine/scale").value.purify(2.0, None)  # type: ignore[arg-type]


def test_a_helper_that_is_edited_before_its_first_use_is_refused(tmp_path: Path) -> None:
    late = "def factor():\n    from late import factor\n    return factor()\n"
    write(tmp_path, {"mine.py": BODY + late, "late.py": factor(1)})
    plugins.load((tmp_path / "mine.py",))
    write(tmp_path, {"late.py": factor(0)})
    with pytest.raises(ImportError, match=r"late\.py changed after the plugin was loaded; run again"):
        defense.resolve("mine/scale").value.purify(2.0, None)  # type: ignore[arg-type]


def test_of_a_plugin_that_fails_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    write(tmp_path, {"mine.py": "from helper import factor" + BODY + "1 / 0", "helper.py": factor(1)})
    with pytest.raises(UsageError, match="cannot be loaded: ZeroDivisionError"):
        plugins.load((path,))
    assert "mine/scale" not in defense.entries
    assert "helper" not in sys.modules
    write(tmp_path, {"mine.py": "from helper import factor" + BODY})
    plugins.load((path,))
    assert defense.resolve("mine/scale").version.startswith("1+")


def test_the_record_of_a_plugin_model_does_not_overwrite_its_stamp(tmp_path: Path) -> None:
    text = '''
from rdp_bench import model
@model("mine/net", source="made up")
class Net:
    """Five logits."""
    name, classes = "mine/net", 5
    def __call__(self, x, zoom=1.0):
        return SIGN * x.flatten(1)[:, :5]
    def record(self):
        return {"version": "1.0", "plugin": "mine", "id": "mine"}
'''
    found = []
    for sign in (1, -1):
        write(tmp_path, {"net.py": f"SIGN = {sign}\n{text}"})
        with new_process():
            made = plan(tmp_path, tmp_path / "net.py", targets=("mine/net",))
            found.append(made.models["mine/net"].record())
            assert found[-1]["version"] == model.get("mine/net").version
    assert found[0]["params"] == found[1]["params"]
    assert found[0] != found[1]


# --- entry points --------------------------------------------------------------------------------------------


@pytest.fixture
def editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an entry point, as `pip install -e` leaves it: metadata apart, code where it is written."""
    code, site = tmp_path / "code", tmp_path / "site-packages"
    write(tmp_path, {"code/x": ""})
    info = site / "mine_pkg-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rdp_bench]\nmine = minepkg.entries\n")
    (info / "RECORD").write_text("")
    (code / "minepkg").mkdir()
    write(code / "minepkg", {
        "__init__.py": "", "entries.py": "from minepkg.helper import factor" + BODY, "helper.py": factor(1),
        "table.json": "1",
    })  # fmt: skip
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(code)
    return code / "minepkg"


@pytest.mark.parametrize("edited", ["entries.py", "helper.py", "table.json"])
def test_an_editable_package_is_known_by_its_files(editable: Path, edited: str) -> None:
    importlib.invalidate_caches()
    before = stamp()
    assert before.startswith("1+mine-1.0-")
    assert stamp() == before
    (editable / edited).write_text((editable / edited).read_text().replace("1", "0") + "\n")
    assert stamp() != before


def test_an_installed_package_is_known_by_its_version(
    editable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable.rename(tmp_path / "site-packages" / "minepkg")
    importlib.invalidate_caches()
    assert stamp() == "1+mine-1.0"


# --- scripts and notebooks -----------------------------------------------------------------------------------

SCRIPT = '''
from dataclasses import dataclass
from functools import wraps
from rdp_bench import Purifier, defense

FACTOR = 1.0
UNUSED = 1

def scaled(x):
    return x * FACTOR

@defense("script/scale", source="made up")
@dataclass(frozen=True)
class Scale(Purifier):
    """Multiplies."""
    power: float = 2.0
    offset = 0.0
    def purify(self, x, draws):
        return scaled(x) ** self.power + self.offset

def checked(make):
    @wraps(make)
    def again():
        found = make()
        return found
    return again

@defense("script/made", source="made up")
@checked
def made():
    """A factory."""
    return Scale(power=3.0)
'''
PRINT = """
from rdp_bench.registry import defense as registry
print(registry.get("script/scale").version, registry.get("script/made").version)
"""
EDITS = {
    "a method": ("+ self.offset", "- self.offset", 2),
    "a global number": ("FACTOR = 1.0", "FACTOR = 0.0", 2),
    "a function that it calls": ("return x * FACTOR", "return x + FACTOR", 2),
    "a default": ("power: float = 2.0", "power: float = 4.0", 2),
    "a class attribute": ("offset = 0.0", "offset = 1.0", 2),
    "a factory": ("power=3.0", "power=5.0", 1),
    "a decorator of the factory": ("found = make()", "found = Scale(power=9.0)", 1),
    "what nothing uses": ("UNUSED = 1", "UNUSED = 2", 0),
    "a comment": ("UNUSED = 1", "UNUSED = 1  # indeed", 0),
    "its place": ("UNUSED = 1", "UNUSED = 1\n\n\n", 0),
}


def notebook(text: str, cell: str = "<cell>") -> list[str]:
    """Versions of the entries of a notebook: its `__main__` has no file, its cells are known to linecache alone."""
    main = sys.modules["__main__"]
    fresh = type(sys)("__main__")
    sys.modules["__main__"] = fresh
    try:
        with new_process():
            linecache.cache[cell] = (len(text), None, text.splitlines(True), cell)
            exec(compile(text, cell, "exec"), vars(fresh))
            return [defense.get(name).version for name in ("script/scale", "script/made")]
    finally:
        sys.modules["__main__"] = main


@pytest.mark.parametrize("edit", EDITS)
def test_classes_of_a_notebook_are_known_by_their_code(edit: str) -> None:
    old, new, count = EDITS[edit]
    assert old in SCRIPT
    before, after = notebook(SCRIPT), notebook(SCRIPT.replace(old, new))
    assert all(len(version) == len("1+") + 16 for version in before)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == count


def test_a_notebook_that_trains_on_sees_its_network(tmp_path: Path) -> None:
    text = SCRIPT + textwrap.dedent("""
    import torch
    net = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.constant_(net.weight, %s)
    torch.nn.init.constant_(net.bias, 0)
    table = torch.zeros(4)
    def scaled(x):
        return net(x) + table[0]
    """)
    first, again, other = notebook(text % 1), notebook(text % 1), notebook(text % 2)
    assert first == again != other
    assert notebook(text % 1 + "table += 1\n") != first


def test_a_global_that_cannot_be_seen_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    notebook(SCRIPT.replace("FACTOR = 1.0", "FACTOR = (n for n in [1.0])"))
    assert "whose content is not part of cache keys" in caplog.text
    assert "--fresh" in caplog.text


def test_a_script_is_known_by_the_code_that_runs(tmp_path: Path) -> None:
    """In two processes the same; not by its text, which may be edited while it runs."""
    script = tmp_path / "script.py"
    edit = f"import pathlib\npathlib.Path(__file__).write_text({SCRIPT.replace('FACTOR = 1.0', 'FACTOR = 0.0')!r})\n"
    found = []
    for text in (SCRIPT + PRINT, SCRIPT + edit + PRINT, SCRIPT.replace("FACTOR = 1.0", "FACTOR = 0.0") + PRINT):
        script.write_text(text)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=env)
        found.append(done.stdout)
    assert found[0] == found[1] != found[2]


def test_a_module_that_a_script_imports_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for value in (1, 22):
        write(tmp_path, {"entries_of_mine.py": "from helper import factor" + BODY, "helper.py": factor(value)})
        importlib.invalidate_caches()
        with new_process():
            importlib.import_module("entries_of_mine")
            found.append(defense.get("mine/scale").version)
    assert found[0] != found[1]
    with new_process():
        importlib.import_module("entries_of_mine")
        write(tmp_path, {"helper.py": factor(333)})
        with pytest.raises(UsageError, match=r"helper\.py was edited after this process imported it"):
            defense.get("mine/scale").version  # noqa: B018


def test_entries_of_this_package_have_plain_versions() -> None:
    made: Any = defense.entries
    assert {entry.version for name, entry in made.items() if "/" not in name} <= {"1", "2"}  # without a stamp of code


def test_what_a_function_imports_from_its_package_and_from_an_archive_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "z.zip")
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for value in (1, 22, 22):
        write(tmp_path, {
            "pk/__init__.py": "", "pk/late.py": factor(value),
            "pk/user.py": "def ours(x):\n    from .late import factor\n    return x * factor()\n",
        })  # fmt: skip
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("zipped.py"), factor(value))
        importlib.invalidate_caches()
        with new_process():
            names = importlib.import_module("pk.user").ours, importlib.import_module("zipped").factor
            found.append([local_code.digest_of(each) for each in names])
        sys.modules.pop("zipped", None)
    assert all(a != b == c for a, b, c in zip(*found, strict=True))


def test_the_program_that_loads_a_plugin_is_no_part_of_it(tmp_path: Path) -> None:
    """multiprocessing, which torch imports, gives the program a second name; its keys then named the installation."""
    write(tmp_path, {"mine.py": "import multiprocessing\nfactor = lambda: 2.0\n" + BODY})
    found = []
    for name, first in (("one.py", ""), ("two.py", "import multiprocessing\n")):
        (tmp_path / name).write_text(
            f"{first}from pathlib import Path\nfrom rdp_bench import plugins\nfrom rdp_bench.registry import defense\n"
            "plugins.load((Path(__file__).parent / 'mine.py',), ())\nprint(defense.get('mine/scale').version)\n"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        found.append(subprocess.run([sys.executable, tmp_path / name], capture_output=True, check=True, env=env).stdout)
    assert found[0] == found[1]
