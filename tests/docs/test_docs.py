"""The documentation is correct: its examples run as shown, and every command in it can be parsed."""

import contextlib
import csv
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from rdp_bench import plugins, specs
from rdp_bench.attacks.parts import WORDS
from rdp_bench.audits import grid as audits
from rdp_bench.cache.store import Store
from rdp_bench.cli.main import main
from rdp_bench.engine import grid
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.models import defended, zoo
from rdp_bench.registry import registries
from rdp_bench.results.rows import COLUMNS
from rdp_bench.specs import split
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
TINY = ROOT / "tests" / "plugin" / "tiny.py"
NOISE = ["--plugin", TINY, "--dataset", "tiny/noise"]
ABSENT = () if find_spec("torchattacks") else ("torchattacks:",)
LINEAR = ["--source", "tiny/one", "--target", "tiny/two"]

# --- commands --------------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """Every command line of a page: in a block of shell lines, or in backticks."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`(rdp-bench [^`]+)`", text)]
    parts = [part.strip() for line in lines + inline for part in re.split(r"&&|#", line)]
    return [part for part in parts if part.startswith("rdp-bench ")]


PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
COMMANDS = sorted({line for page in PAGES for line in commands(page.read_text())})


def parse(line: str) -> click.Context:
    """The context of the innermost command, by click's own parser."""
    words = shlex.split(line.replace("train NAME", "train rdp"))[1:]
    context = main.make_context("rdp-bench", words)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.fixture
def clean_registries() -> Iterator[None]:
    """What a page's plugin adds is gone after the test."""
    plugins.load((TINY,))
    kept = {kind: dict(registry.entries) for kind, registry in registries.items()}
    loaded = set(plugins._loaded)
    yield
    for kind, entries in kept.items():
        registries[kind].entries = {name: entry for name, entry in registries[kind].entries.items() if name in entries}
        registries[kind].entries.update(entries)
    for name in set(plugins._loaded) - loaded:
        del plugins._loaded[name]


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.usefixtures("clean_registries")
def test_commands_can_be_typed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, values, grids, profiles and the names of attacks, defenses and models are all known."""
    monkeypatch.chdir(ROOT)
    try:
        found = parse(line)
    except click.exceptions.Exit:
        return  # --help, --version
    except click.MissingParameter:
        assert len(line.split()) < 4 or "NAME" in line, line  # a command's name in running text
        return
    except click.UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from None
    if found.command.name != "run":
        return
    given = found.params
    plugins.load(tuple(path for path in given["plugins_"] if path.exists()))
    if given["grid_name"] is None:
        assert given["record"] or len(line.split()) < 4, line  # --from, or a command's name in running text
        return
    for name in grid.expand_suite(given["grid_name"]) if known_grid(given["grid_name"]) else ():
        (audits if grid.is_audit(name) else grid).load(name, given["profile"], {})
    unwritten = () if all(path.exists() for path in given["plugins_"]) else ("mine/",)  # a file that the reader writes
    for kind in ("attack", "defense"):
        for label in (part for text in given[kind] for part in split(text, ",")):
            if not label.startswith(("purifier:", "spandrel:", *ABSENT, *unwritten)):
                registries[kind].resolve(label.removeprefix("+"))
    for label in given["source"] + given["target"]:
        source = label.removeprefix("+")
        while behind := defended.parse(source):
            source = behind[1]
        for name in source.split("+"):
            if not (defended.is_white_box(name) or name.startswith("timm:")):
                with_weights_or_without(name)


def known_grid(name: str) -> bool:
    """False for a file that the reader is to write."""
    return not name.endswith(".toml") or (ROOT / name).exists()


def with_weights_or_without(name: str) -> None:
    with contextlib.suppress(BadModelError):  # a known name whose weights are elsewhere
        zoo.find(name)


def test_commands_are_found_and_a_wrong_one_is_noticed() -> None:
    assert len(COMMANDS) > 30
    assert commands("x `rdp-bench list\nattacks` y\n```sh\nmake && rdp-bench run \\\n  --grid a  # b\n```\n") == [
        "rdp-bench run    --grid a",
        "rdp-bench list attacks",
    ]
    with pytest.raises(click.UsageError, match="No such option"):
        parse("rdp-bench run --grid table1 --epsilon 4")
    with pytest.raises(UsageError):
        with_weights_or_without("effnet-lite9")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("extend/grid.md", {axis.name for axis in fields(grid.Axes)}),
        ("extend/attack.md", set(WORDS)),
        ("report.md", set(COLUMNS)),
        ("threats.md", {f"{mode}(DEFENSE, SOURCE)" for mode in specs.MODES}),
    ],
)
def test_nothing_is_left_out(page: str, names: set[str]) -> None:
    assert names <= set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))


def test_every_grid_of_the_paper_is_on_its_page() -> None:
    shown = re.findall(r"--grid ([\w-]+)", (DOCS / "paper.md").read_text())
    assert set(grid.builtin()) == set(shown)


FOLDERS = ("attacks/", "benchmarks/", "data/", "defenses/", "docs/", "rdp_bench/", "reports/", "tests/")


def paths(text: str) -> set[str]:
    """The repository's files and folders that a page names in backticks, without placeholders and wildcards."""
    named = {name for name in re.findall(r"`([\w./-]+)`", text) if name.startswith(FOLDERS)}
    return {name for name in named if not re.search("NAME|TO/", name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    assert not {name for name in paths(page.read_text()) if not (ROOT / name).exists()}


def test_a_missing_file_is_noticed() -> None:
    assert paths("`rdp_bench/gone.py`, `attacks/NAME.py`, `x/y.py`") == {"rdp_bench/gone.py"}
    assert sum(len(paths(page.read_text())) for page in PAGES) > 20


def test_every_package_is_in_the_design() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    named = (DOCS / "design.md").read_text()
    assert not [name for name in packages if f"{name.removeprefix('rdp_bench.').replace('.', '/')}" not in named]


def test_a_glossary_term_has_one_entry() -> None:
    terms = [term for line in re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
             if (term := line.strip()) != "term" and not term.startswith("-")]  # fmt: skip
    assert len(terms) > 50
    assert len(set(terms)) == len(terms)


# --- examples --------------------------------------------------------------------------------------------


class Example:
    """The command of a page, run as it stands there but on tiny images and networks."""

    def __init__(self, tmp_path: Path) -> None:
        self.out = tmp_path / "out"

    def run(self, page: str, name: str, *flags: object, swap: tuple[str, object] = ("", "")) -> list[dict[str, str]]:
        """Rows of results.csv after the page's command that names `name`, with `flags` behind it."""
        shown = [line for line in commands((DOCS / "extend" / page).read_text()) if name in line and " run " in line]
        assert shown, f"{page} shows no command with {name}"
        words = shlex.split(shown[0].replace(swap[0], str(swap[1])) if swap[0] else shown[0])[1:]
        done = CliRunner().invoke(main, [*words, *map(str, flags), "--out", str(self.out)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        with (self.out / "results.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registries: None) -> Example:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    return Example(tmp_path)


def one(rows: list[dict[str, str]], **want: str) -> dict[str, str]:
    (row,) = [row for row in rows if all(row[name] == text for name, text in want.items())]
    return row


def value(rows: list[dict[str, str]], **want: str) -> float:
    return float(one(rows, **want)["value"])


def stored(kind: str, key: str) -> dict[str, NDArray[np.generic]]:
    return Store(Path(os.environ["RDP_BENCH_CACHE"])).open(kind, key).read()


def noise() -> tuple[NDArray[np.uint8], list[int]]:
    """Images and labels of tiny/noise."""
    found = registries["dataset"].get("tiny/noise").factory()
    return np.stack([found.image(i) for i in range(len(found.ids))]), list(found.labels)


def linear(name: str, images: NDArray[np.floating]) -> list[int]:
    """What tiny/one or tiny/two says to images `[n, 3, 16, 16]` in [0, 1], in numpy."""
    weight = registries["model"].get(name).factory().weight.numpy()
    said: list[int] = ((images - 0.5).reshape(len(images), -1) @ weight.T).argmax(1).tolist()
    return said


SMOOTH = "mine/smooth(weights=smooth.safetensors)"


def test_attack(example: Example) -> None:
    """Steps of 8, 4, 2, ... of eps 16 come to 15.94 in sum, so nowhere beyond 16 and, all in one direction, to 16."""
    rows = example.run("attack.md", "mine/halfstep", *NOISE, "--source", "tiny/one", "--target", "tiny/one")
    assert value(rows, attack="clean", defense="none") == 100.0  # tiny/one labels the images
    assert value(rows, attack="mine/halfstep", defense="none") == value(rows, attack="fgsm", defense="none") == 100.0
    images, _ = noise()
    key = one(rows, attack="mine/halfstep", defense="none")["adv_key"]
    delta = np.abs(stored("adv", key)["delta"].astype(int))
    room = np.minimum(images, 255 - images) >= 16
    assert delta.max() == 16
    assert np.mean(delta[room] == 16) > 0.9  # on a linear network the gradient's sign seldom turns


def test_defense(example: Example) -> None:
    """What the target says to every image is what it says to one averaged by hand, also with another parameter."""
    rows = example.run("defense.md", "mine/coarsen", *NOISE, *LINEAR, "--attack", "fgsm")
    images, _ = noise()
    for name, side in {"mine/coarsen": 2, "mine/coarsen(factor=4)": 4}.items():
        blocks = (images / 255).reshape(-1, 3, 16 // side, side, 16 // side, side).mean((3, 5))
        said = linear("tiny/two", blocks.repeat(side, 2).repeat(side, 3))
        assert stored("eval", one(rows, attack="clean", defense=name)["eval_key"])["predicted"].tolist() == said


def test_network(example: Example, tmp_path: Path) -> None:
    """With the weights of the identity it changes no number; with those of a black image, every answer is one class."""
    from safetensors.numpy import save_file

    identity = np.zeros((3, 1, 5, 5), np.float32)
    identity[:, 0, 2, 2] = 1
    flags = [*NOISE, *LINEAR, "--attack", "fgsm", "--models-dir", tmp_path]
    save_file({"weight": identity, "bias": np.zeros(3, np.float32)}, tmp_path / "smooth.safetensors")
    rows = example.run("defense.md", "mine/smooth", *flags)
    for attack in ("clean", "fgsm"):
        bare, smooth = (value(rows, attack=attack, defense=name) for name in ("none", SMOOTH))
        assert bare == smooth
    save_file({"weight": 0 * identity, "bias": np.zeros(3, np.float32)}, tmp_path / "black.safetensors")
    rows = example.run("defense.md", "mine/smooth", *flags, swap=("smooth.safetensors", "black.safetensors"))
    black = one(rows, attack="clean", defense=SMOOTH.replace("smooth.s", "black.s"))
    assert stored("eval", black["eval_key"])["predicted"].tolist() == linear("tiny/two", np.zeros((12, 3, 16, 16)))


def test_model(example: Example, tmp_path: Path) -> None:
    """Its accuracy is torchvision's own, with torchvision's own preprocessing, on the same images."""
    import torch
    from torchvision.models import shufflenet_v2_x0_5
    from torchvision.transforms.functional import normalize

    shutil.copy(DOCS / "examples" / "model.py", tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = shufflenet_v2_x0_5().eval()
    torch.save(net.state_dict(), tmp_path / "shufflenet.pth")
    flags = ["--plugin", DOCS / "examples" / "dataset.py", "--dataset", f"mine/arrays(file={tmp_path / 'said.npz'})"]
    flags += ["--source", "mine/shufflenet", "--attack", "fgsm"]
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 224, 224), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(images) / 255
        said = net(normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).argmax(1).numpy()
    np.savez(tmp_path / "said.npz", images=images, labels=np.where(np.arange(6) < 4, said, (said + 1) % 1000))
    rows = example.run("model.md", "mine/shufflenet", *flags, swap=("docs/examples", tmp_path))
    assert value(rows, attack="clean", defense="none") == pytest.approx(100 * 4 / 6, abs=1e-3)
    assert value(rows, attack="fgsm", defense="none") > 0


def test_dataset(example: Example, tmp_path: Path) -> None:
    """tiny/noise out of a file is as good as tiny/noise."""
    plugins.load((TINY,))
    images, labels = noise()
    np.savez(tmp_path / "photos.npz", images=images, labels=labels)
    flags = ["--plugin", TINY, "--source", "tiny/one", "--target", "tiny/one", "--attack", "fgsm"]
    rows = example.run("dataset.md", "mine/arrays", *flags, swap=("photos.npz", tmp_path / "photos.npz"))
    assert {row["n"] for row in rows} == {str(len(labels))}
    assert value(rows, attack="clean", defense="none") == 100.0


def test_grid(example: Example) -> None:
    """Every combination is a cell; the plugin that the grid names is loaded."""
    rows = example.run("grid.md", "docs/examples/grid.toml", *NOISE, *LINEAR)
    assert all(row["status"] == "done" for row in rows)
    cells = {(row["attack"], row["eps"], row["defense"]) for row in rows}
    defenses = {"none", "jpeg", "jpeg(quality=50)", "mine/coarsen"}
    attacks = {("mi-fgsm", "4"), ("mi-fgsm", "16"), ("MI|TI(7)", "4"), ("MI|TI(7)", "16"), ("clean", "0")}
    assert cells == {(attack, eps, defense) for attack, eps in attacks for defense in defenses}


def test_the_worst_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images one falls to the first attack, another to the second: an attacker with both has two."""
    head = "grid,dataset,target,eps,defense,attack,index,correct"
    lines = ["g,d,t,0,none,clean,0,0", *(f"g,other,t,16,none,a,{i},1" for i in range(4))]
    lines += [
        f"g,d,t,16,none,{attack},{i},{int(i != falls)}" for attack, falls in (("a", 1), ("b", 2)) for i in range(4)
    ]
    (tmp_path / "predictions.csv").write_text("\n".join([head, *lines]))
    monkeypatch.setattr(sys, "argv", ["worst.py", str(tmp_path / "predictions.csv")])
    runpy.run_path(str(DOCS / "examples" / "worst.py"))
    first, second = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert first[-5:] == ["d", "t", "16", "none", "50.0"]
    assert second[-1] == "0.0"  # images of another data set stay apart
