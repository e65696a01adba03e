"""The tree keeps its shape: which room may import which, what stays out of a cold start, what a wheel holds."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDERS = ("attacks", "defenses", "data", "reports")

# A room is a package; `contract` is the files directly in rdp_bench/. What each may import besides itself
# (docs/design.md shows the same as a picture). A room stands below everything that imports it: no circles.
MAY_IMPORT = {
    "contract": set(),
    "cache": {"contract"},
    "weights": {"contract", "cache"},
    "metrics": {"contract", "cache", "weights"},
    "models": {"contract", "weights", "numerics"},
    "numerics": {"contract"},
    "attacks._kernels": {"contract"},
    "attacks.parts": {"contract", "attacks._kernels"},
    "attacks._adaptive": {"contract", "attacks._kernels"},
    "attacks": {"contract", "attacks.parts", "attacks._adaptive", "attacks._kernels"},
    "defenses": {"contract", "weights", "numerics", "attacks._kernels", "defenses._networks"},
    "defenses._networks": set(),
    "data": {"contract", "cache"},
    "download": {"contract", "cache", "data"},
    "results": {"contract", "cache", "metrics", "data"},
    "engine": {"contract", "numerics", "cache", "weights", "metrics", "models", "results", "data", "reports.figures"},
    "engine.executors": {"contract", "cache", "engine"},
    "audits": {
        "contract", "cache", "weights", "numerics", "metrics", "models", "results", "data", "engine",
        "attacks._kernels", "attacks._adaptive",
    },
    "train": {"contract", "cache", "weights", "metrics", "models", "attacks", "attacks._kernels", "defenses",
        "defenses._networks", "data",
    },
    "train.recipes": {"contract", "models", "numerics", "attacks", "attacks.parts", "defenses", "defenses._networks",
        "train",
    },
    "reports.tables": {"contract", "metrics", "results"},
    "reports.figures": {"contract", "cache", "metrics", "results", "reports.tables"},
    "reports.claims": {"contract", "metrics", "results", "reports.tables", "reports.figures"},
    "reports.formats": {"contract", "reports.tables", "reports.figures"},
    "reports": {
        "contract", "cache", "metrics", "results",
        "reports.tables", "reports.figures", "reports.claims", "reports.formats",
    },
}  # fmt: skip
ANYTHING = {"cli", "api"}
"""The command line and `import rdp_bench` itself stand on top."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `rdp_bench.`."""
    found = {}
    for base in ("rdp_bench", *FOLDERS):
        for path in (ROOT / base).rglob("*.py"):
            if any(folder.is_symlink() for folder in path.parents):
                continue  # rdp_bench/attacks and the other links
            inside = path.relative_to(ROOT / base if base == "rdp_bench" else ROOT).with_suffix("")
            found[".".join(inside.parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room that a module is in."""
    if module in ("__init__", "__main__"):
        return "api"
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0] or "contract"


def imports(module: str) -> set[str]:
    """The package's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rdp_bench":
            inside = str(node.module).removeprefix("rdp_bench").removeprefix(".")
            for alias in node.names:
                full = f"{inside}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES else inside)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("rdp_bench.") for alias in node.names if "rdp_bench." in alias.name}
    return found & MODULES.keys()


def circles(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Every set of nodes that reach each other."""
    reach = {node: set(out) for node, out in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    seen: set[str] = set()
    for node in graph:
        if node in reach[node] and node not in seen:
            circle = {other for other in graph if other in reach[node] and node in reach[other]}
            seen |= circle
            yield circle


def test_every_room_has_a_rule() -> None:
    assert {room(module) for module in MODULES} == MAY_IMPORT.keys() | ANYTHING


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_stands_below_it(name: str) -> None:
    bad = {
        f"{module} imports {other}"
        for module in MODULES
        if room(module) == name
        for other in imports(module)
        if room(other) not in MAY_IMPORT[name] | {name}
    }
    assert not bad, "docs/design.md says what a room may import"


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not list(circles({module: imports(module) - {module} for module in MODULES}))


def test_a_circle_would_be_found() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()})) == [{"b", "c"}]


def test_the_rules_themselves_have_no_circle() -> None:
    assert not list(circles(MAY_IMPORT))


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`."""
    probe = f"{code}\nimport sys; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


HEAVY = {"torch", "timm", "numpy", "pandas", "matplotlib", "PIL", "jinja2", "tqdm"}


@pytest.mark.parametrize(
    "code", ["import rdp_bench", "import rdp_bench.cli.main; from rdp_bench import plugins; plugins.load()"]
)
def test_a_cold_start_is_light(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_the_probe_sees_a_heavy_import() -> None:
    """Without this, the test above could not fail."""
    assert "numpy" in loaded_by("import numpy")


def test_links_show_the_folders_under_the_package() -> None:
    for folder in FOLDERS:
        link = ROOT / "rdp_bench" / folder
        assert link.resolve() == ROOT / folder


def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    import zipfile

    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(pip, capture_output=True, text=True, cwd=ROOT, check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS, "rdp_bench/*.py", "rdp_bench/py.typed"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    for name in listed.stdout.split():
        inside = name if name.startswith("rdp_bench/") else f"rdp_bench/{name}"
        assert inside in names
