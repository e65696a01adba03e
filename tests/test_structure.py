"""The tree keeps its shape: who may import whom, what stays out of a cold start, what a wheel holds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHELVES = ("attacks", "defenses", "data", "reports")

# What a module may import from this package (docs/design.md); * is every module of that shelf.
MAY = {
    "errors": set(),
    "specs": {"errors"},
    "keys": set(),
    "terminal": set(),
    "csvtext": set(),
    "protocols": {"draws", "errors"},
    "budgets": {"errors", "specs"},
    "entry_calls": {"errors", "protocols"},
    "draws": set(),
    "local_code": {"errors", "keys"},
    "registry": {"errors", "keys", "local_code", "protocols", "specs"},
    "plugins": {"errors", "keys", "local_code", "registry", "attacks.*", "defenses.*", "data.*"},
    "grid": {"errors", "registry", "specs"},
    "models": {"errors", "keys", "protocols", "registry", "network", "specs", "through"},
    "through": {"draws", "errors", "keys", "protocols", "registry", "specs"},
    "folding": set(),
    "network": {"errors", "folding", "keys", "models", "resnet_denoise", "resnet_v2", "weights"},
    "resnet_v2": {"weights"},
    "resnet_denoise": {"resnet_v2", "weights"},
    "store": {"errors", "keys"},
    "weights": {"errors", "keys", "store", "tfcheckpoint"},
    "tfcheckpoint": set(),
    "executor": {"errors", "keys"},
    "crosscheck": {"specs", "stats"},
    "download": {"errors"},
    "obtain": {"data.*", "download", "errors", "keys", "store"},
    "plan": {
        "budgets", "crosscheck", "data.*", "errors", "executor", "grid", "keys", "models", "perceptual", "protocols",
        "registry", "specs", "store", "through", "weights",
    },
    "work": {
        "data.*", "draws", "environment", "errors", "executor", "keys", "models", "plan", "protocols", "restoration",
        "specs", "store",
    },
    "restoration": {"perceptual"},
    "perceptual": {"errors", "keys", "weights"},
    "lending": {"data.*", "executor", "keys", "plan", "store"},
    "cost": {"draws", "environment", "keys", "plan", "protocols", "work"},
    "environment": {"errors", "keys"},
    "progress": {"draws", "executor", "models", "plan", "protocols", "specs", "work"},
    "stats": {"errors"},
    "outcomes": set(),
    "verdict": {"stats"},
    "table": {"environment", "errors", "keys", "outcomes", "specs", "stats", "store", "verdict"},
    "export": {"data.*", "errors", "protocols", "store", "table"},
    "record": {"keys", "models", "plan", "specs", "table"},
    "run": {
        "cost", "crosscheck", "environment", "errors", "executor", "grid", "keys", "lending", "outcomes", "plan",
        "protocols", "record",
        "specs", "stats", "store", "table",
    },
}  # fmt: skip

# The same for rdp_bench/train, where the loop knows no recipe and a recipe no loop.
RECIPE = {"defenses.*", "errors", "train.inputs", "train.losses", "train.recipe"}
MAY_TRAIN = {
    "options": {"errors"},
    "losses": set(),
    "photos": {"data.*", "errors", "keys", "store"},
    "extractor": {"errors", "models"},
    "inputs": {"attacks.*", "train.extractor", "train.options"},
    "validate": {"attacks.*", "draws", "models", "protocols", "train.losses"},
    "recipe": {"defenses.*", "draws", "errors", "train.extractor", "train.options", "train.validate"},
    "critic": RECIPE,
    "rdp": RECIPE | {"train.critic"},
    "nrp": RECIPE | {"train.critic"},
    "hgd": RECIPE,
    "comdefend": RECIPE,
    "sr": RECIPE,
    "ens_adv": {
        "attacks.*", "draws", "errors", "models", "network", "train.extractor", "train.losses", "train.recipe",
    },
    "recipes": {
        "errors", "train.comdefend", "train.ens_adv", "train.hgd", "train.nrp", "train.rdp", "train.recipe", "train.sr",
    },
    "loop": {
        "environment", "errors", "keys", "weights", "train.options", "train.photos", "train.recipe", "train.scalars",
    },
    "scalars": {"csvtext", "store"},
    "curves": {"train.scalars"},
}  # fmt: skip
MAY_SHELF = {
    "csvtext", "errors", "specs", "keys", "protocols", "registry", "draws", "store", "stats", "table", "verdict",
    "weights",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Names of this package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rdp_bench"):
            inside = node.module.removeprefix("rdp_bench").removeprefix(".")
            found |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.startswith("rdp_bench."))
            found |= {name.removeprefix("rdp_bench.") for name in names}
    return found - {"__version__"}


def allowed(name: str, may: set[str]) -> bool:
    shelf = name.partition(".")[0]
    return name in may or (shelf in SHELVES and f"{shelf}.*" in may)


@pytest.mark.parametrize("module", sorted(MAY))
def test_arrows_point_one_way(module: str) -> None:
    bad = {name for name in imports(ROOT / "rdp_bench" / f"{module}.py") if not allowed(name, MAY[module])}
    assert not bad, f"{module} imports {bad}; docs/design.md says what it may"


def test_every_module_is_in_the_table() -> None:
    commands = {"__init__", "__main__", "cli", "cli_cache", "cli_data", "cli_run", "cli_series", "cli_train"}
    here = {path.stem for path in (ROOT / "rdp_bench").glob("*.py")} - commands
    assert here == set(MAY)
    assert {path.stem for path in (ROOT / "rdp_bench" / "train").glob("*.py")} - commands == set(MAY_TRAIN)


@pytest.mark.parametrize("module", sorted(MAY_TRAIN))
def test_arrows_in_training_point_one_way(module: str) -> None:
    found = imports(ROOT / "rdp_bench" / "train" / f"{module}.py")
    bad = {name for name in found if not allowed(name, MAY_TRAIN[module])}
    assert not bad, f"train/{module} imports {bad}"


@pytest.mark.parametrize("shelf", SHELVES)
def test_shelves_do_not_reach_into_the_engine_or_each_other(shelf: str) -> None:
    for path in (ROOT / shelf).glob("*.py"):
        bad = {name for name in imports(path) if not allowed(name, MAY_SHELF | {f"{shelf}.*"})}
        assert not bad, f"{shelf}/{path.name} imports {bad}"


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


def test_links_show_the_shelves_under_the_package() -> None:
    for shelf in SHELVES:
        link = ROOT / "rdp_bench" / shelf
        assert link.resolve() == ROOT / shelf


def test_a_wheel_holds_every_file_of_the_shelves(tmp_path: Path) -> None:
    import zipfile

    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    built = subprocess.run(pip, capture_output=True, text=True, cwd=ROOT)
    if built.returncode:
        # Without setuptools in the environment there is no building without the network.
        assert "setuptools" in built.stderr
        pytest.skip("setuptools is not installed here")
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    listed = subprocess.run(
        ["git", "ls-files", *SHELVES, "rdp_bench/*.py", "rdp_bench/py.typed"], capture_output=True, text=True, cwd=ROOT
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        inside = name if name.startswith("rdp_bench/") else f"rdp_bench/{name}"
        assert inside in names
