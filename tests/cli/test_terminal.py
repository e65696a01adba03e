"""What reaches a terminal, and a terminal that goes away."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdp_bench import errors, plugins, registry
from rdp_bench.cache import user
from rdp_bench.csvtext import read, records, safe, unsafe
from rdp_bench.engine import grid
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.registry import registries
from rdp_bench.terminal import Terminal, printable
from tests.helpers.commands import PLUGIN, ROOT, cli

GRID = """
[axes]
attacks = ["fgsm"]
defenses = ["none"]
eps = [16]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    plugins.load((PLUGIN,))
    for each in registries.values():  # what a test adds is forgotten after it
        monkeypatch.setattr(each, "entries", dict(each.entries))
    (tmp_path / "tiny.toml").write_text(GRID)
    return tmp_path


def shell(line: str, here: Path) -> "subprocess.CompletedProcess[bytes]":
    """A line of bash in which $RUN is a run of the tiny grid."""
    run = f"{sys.executable} -m rdp_bench run --grid tiny.toml --plugin {PLUGIN} --out out"
    environment = {**os.environ, "RUN": run, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=here, env=environment, capture_output=True, timeout=120)


def statuses(here: Path) -> list[str]:
    with (here / "out" / "results.csv").open(newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


# --- a terminal that goes away ---


@pytest.mark.parametrize("progress", ["", "--progress"])
def test_a_run_whose_output_nobody_reads_ends_its_work(here: Path, progress: str) -> None:
    found = shell(f"$RUN {progress} 2>&1 | true; exit ${{PIPESTATUS[0]}}", here)
    assert found.returncode == 0, found
    assert statuses(here) == ["done"] * 2


def test_its_exit_status_is_still_that_of_its_cells(here: Path) -> None:
    found = shell("$RUN --defense none --defense tiny/nan 2>&1 | true; exit ${PIPESTATUS[0]}", here)
    assert found.returncode == 1
    assert sorted(statuses(here)) == ["done", "done", "failed", "failed"]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_a_run_without_standard_streams(here: Path, closed: str) -> None:
    found = shell(f"$RUN --progress {closed}", here)
    assert found.returncode == 0, found
    assert statuses(here) == ["done"] * 2
    again = shell("$RUN", here)  # what it stored is whole
    assert b"2 of 2 cells done" in again.stdout


def test_a_list_into_head(here: Path) -> None:
    found = shell(f"{sys.executable} -m rdp_bench list attacks | head -1; exit ${{PIPESTATUS[0]}}", here)
    assert (found.returncode, found.stderr) == (0, b"")


# --- control characters ---


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\r\x07\x7f\x9b\u202e\udce9") == r"a\x1b[2Jb\x0d\x07\x7f\x9b\u202e\xe9"
    assert printable("é\t界\n") == "é\t界\n"
    assert printable("a\nb", lines=False) == r"a\nb"


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset", "./bad\x1b[2J\rname"],
        ["--plugin", "bad\x1b]0;title\x07.py"],
        ["--defense", "rdp(weights=bad\x1b[31m.pth)"],
        ["--bad\x1b[31m"],
        ["--limit", "\x1b[31m"],
        ["--out", "tiny.toml/\x1b[31m"],
    ],
)
def test_escapes_in_names_do_not_reach_the_terminal(here: Path, flags: list[str]) -> None:
    found = cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN, *flags)
    assert found.exit_code in (1, 2)
    assert r"\x1b" in found.output
    assert not set("\x1b\r\x07") & set(found.output)


def test_nor_by_a_warning_or_the_list(here: Path) -> None:
    (here / "p.py").write_text(
        "import logging\nfrom rdp_bench import Purifier, defense\n"
        "logging.getLogger('rdp_bench').warning('bad\\x1b[31m\\nname')\nprint('\\x1b[32m')\n"
        "@defense('mine/red', source='\\x1b[31m')\nclass Red(Purifier):\n    'Red \\x1b[31m.'\n"
    )
    found = shell(f"{sys.executable} -m rdp_bench list defenses --plugin p.py", here)
    assert found.returncode == 0
    assert b"\x1b" not in found.stdout + found.stderr
    assert rb"WARNING: bad\x1b[31m\nname" in found.stderr
    assert b"Red " in found.stdout


def test_a_terminal_gets_no_escapes_but_a_bars_carriage_return() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    click.echo("a\x1b[31mb\r", file=Terminal(stream))  # type: ignore[arg-type]
    Terminal(stream).write("\r50 %\rx")
    assert stream.getvalue() == "a\\x1b[31mb\\x0d\n\r50 %\\x0dx"


def test_an_error_is_one_line(here: Path) -> None:
    found = cli("run", "--grid", "a\nerror: b.toml")
    assert found.output == "error: grid file a\\nerror: b.toml does not exist\n"


def test_a_terminal_without_the_letters(here: Path) -> None:
    found = shell("PYTHONIOENCODING=ascii $RUN --dataset ./caf\u00e9", here)
    assert found.returncode == 2
    assert rb"./caf\xe9" in found.stderr


# --- tables ---


def test_headers_tell_columns_apart(here: Path) -> None:
    attacks = ["tiny/sleepy(stray=0)", "tiny/sleepy(stray=-1)", "fgsm"]
    found = cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN, *(part for a in attacks for part in ("--attack", a)))
    assert found.exit_code == 0, found.output
    head, numbers = found.stdout.split("eps 16\n")[1].splitlines()[:2]
    assert head.split() == attacks
    assert [len(head[: head.index(a) + len(a)].rstrip()) for a in attacks][-1] == len(head)
    assert len(numbers) == len(head)  # numbers stand under their names


def test_the_nearest_names_of_very_many() -> None:
    names = [f"resnet{i}" for i in range(1000)] + ["nopenet"]
    text = str(errors.unknown_name("timm model", "nope", names))
    assert len(text) < 300
    assert "1001 are known, the nearest: nopenet" in text
    assert str(errors.unknown_name("timm model", "\0", names)).endswith("1001 are known")


def test_an_unknown_timm_model_is_one_line(here: Path) -> None:
    found = cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN, "--target", "timm:nope")
    assert found.exit_code == 2
    assert len(found.output) < 500
    assert "unknown timm model 'nope'" in found.output
    assert "the nearest: " in found.output


def test_a_huge_grid_says_how_many_cells(here: Path) -> None:
    axes = f"eps = {list(range(1, 201))}\nattacks = {[f'I({i})' for i in range(1, 301)]}\n"
    text = GRID.replace("eps = [16]\n", "").replace('attacks = ["fgsm"]\n', axes)
    text = text.replace('["none"]', str([f"jpeg(quality={i})" for i in range(1, 101)]))
    (here / "huge.toml").write_text(text)
    found = cli("run", "--grid", "huge.toml", "--plugin", PLUGIN)
    assert found.exit_code == 2
    assert "6,000,100 cells (1 sources x 300 attacks x 200 eps x 100 defenses x 1 targets)" in found.output
    assert "at most 1,000,000" in found.output


@pytest.mark.parametrize("name", ["table1", "table4", "table3", "figure4"])
def test_cells_are_counted_without_making_them(name: str) -> None:
    plugins.load()
    made, _ = grid.load(name, "embedded", {})
    assert made.count == sum(1 for _ in made.cells())


# --- CSV ---


@pytest.mark.parametrize("cell", ["=1+1", "+mine", "@SUM(A1)", "-cmd", "\t=1", "\r=1", "'=1", "''-x"])
def test_a_spreadsheet_sees_a_text(cell: str) -> None:
    assert safe(cell) == "'" + cell
    assert read(records(["a", "b"], [{"a": cell, "b": "x"}])) == (("a", "b"), [{"a": cell, "b": "x"}])


@pytest.mark.parametrize("cell", ["-", "-1.5", "+2", "-1e-05", "1", "", "jpeg", "'tis", "a=b", 0.5, -3])
def test_numbers_and_names_stay_as_they_are(cell: object) -> None:
    assert safe(cell) == str(cell)


@given(st.lists(st.lists(st.text(st.sampled_from("=+-@\t\r\n'\",1ae."), max_size=6), min_size=2, max_size=2)))
def test_every_table_round_trips(lines: list[list[str]]) -> None:
    rows = [dict(zip("ab", line, strict=True)) for line in lines]
    assert read(records(["a", "b"], rows)) == (("a", "b"), rows)
    for line in lines:
        for cell in line:
            assert unsafe(safe(cell)) == cell
            assert safe(cell) == cell or safe(cell).startswith("'")


def test_exports_of_a_data_set_with_such_names(here: Path) -> None:
    """Through images named by a CSV, to predictions.csv; and results.csv is read again by the next run."""
    (here / "photos").mkdir()
    write_photos(here / "photos", ["=1+1.png", "@x.png"])
    (here / "photos" / "list.csv").write_text("path,label\n=1+1.png,0\n@x.png,1\n")
    (here / "plain.py").write_text(WIDE)
    flags = ("--plugin", "plain.py", "--source", "wide", "--target", "wide", "--attack", "fgsm")
    found = cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN, "--dataset", "photos/list.csv", *flags)
    assert found.exit_code == 0, found.output
    assert cli("export", "--dataset", "photos/list.csv").exit_code == 0
    text = (here / "rdp-bench-out" / "export" / "predictions.csv").read_text()
    assert {row["id"] for row in read(text)[1]} == {"=1+1.png", "@x.png"}
    assert not any(cell[:1] in "=@" for line in csv.reader(text.splitlines()) for cell in line if cell)


WIDE = """
import torch
from rdp_bench import model
class Wide:
    name, classes = "wide", 1000
    def __call__(self, x, zoom=1.0):
        return torch.cat([x.mean((2, 3)), x.new_zeros(len(x), 997) - 9], 1)
    def record(self):
        return {}
@model("wide", source="made up")
def wide():
    "A thousand classes."
    return Wide()
"""


def write_photos(folder: Path, names: list[str]) -> None:
    from PIL import Image

    for number, name in enumerate(names):
        Image.effect_noise((40, 40), 40 + number).convert("RGB").save(folder / name)


# --- paths ---


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="its file names are Unicode")
def test_paths_that_are_not_utf8(here: Path) -> None:
    folder = os.fsdecode(b"caf\xe9")
    (here / folder / "0").mkdir(parents=True)
    write_photos(here / folder / "0", [os.fsdecode(b"\xff1.png"), "2.png"])
    (here / "plain.py").write_text(WIDE)
    flags = ("--plugin", "plain.py", "--source", "wide", "--target", "wide", "--attack", "fgsm")
    found = cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN, "--dataset", folder, "--out", folder + "-out", *flags)
    assert found.exit_code == 0, found.output
    assert r"caf\xe9" in found.output
    assert (
        cli(
            "run", "--grid", "tiny.toml", "--plugin", PLUGIN, "--dataset", folder, "--out", folder + "-out", *flags
        ).exit_code
        == 0
    )
    report = cli("report", "--out", folder + "-out")
    assert report.exit_code == 0, report.output
    assert "caf\\udce9" in (here / (folder + "-out") / "report" / "index.html").read_text("utf-8")
    exported = cli("export", "--images", "--out", folder + "-out", "--plugin", "plain.py")
    assert exported.exit_code == 0, exported.output
    text = (here / (folder + "-out") / "export" / "predictions.csv").read_text("utf-8")
    assert r"0/\udcff1.png" in text


def test_no_home(here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import pwd

    def nobody(_: int) -> None:
        raise KeyError("uid")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "RDP_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    user.warn_once.cache_clear()
    for command in (
        ("doctor",),
        ("run", "--grid", "tiny.toml", "--plugin", PLUGIN),
        ("report",),
        ("export", "--plugin", PLUGIN),
    ):
        found = cli(*command)
        assert found.exit_code == 0, found.output
    assert caplog.text.count("this user has no home folder") == 1
    assert (here / ".cache" / "rdp-bench" / "eval").is_dir()


def test_a_grid_with_a_byte_order_mark(here: Path) -> None:
    (here / "tiny.toml").write_text(GRID, encoding="utf-8-sig")
    assert cli("run", "--grid", "tiny.toml", "--plugin", PLUGIN).exit_code == 0


def test_export_after_a_data_set_with_parameters(here: Path) -> None:
    (here / "plain.py").write_text(WIDE)
    flags = ("--plugin", "plain.py", "--source", "wide", "--target", "wide", "--attack", "fgsm")
    found = cli(
        "run", "--grid", "tiny.toml", "--plugin", PLUGIN, "--dataset", "photos20(size=64)", "--limit", 2, *flags
    )
    assert found.exit_code == 0, found.output
    found = cli("export", "--images")
    assert found.exit_code == 0, found.output
    assert "4 predictions, 2 images" in found.output


# --- where relative paths start ---

PATHS = """
plugins = ["plain.py"]
[axes]
attacks = ["fgsm"]
defenses = ["none", "jpeg >> rdp(weights=nets/w.safetensors)", "purifier:nets/w.safetensors"]
eps = [16]
dataset = "photos/list.csv"
sources = ["wide", "bpda(rdp(weights=nets/w.safetensors), wide)"]
targets = ["wide"]
"""


@pytest.fixture
def lab(here: Path) -> Path:
    """A grid in a folder of its own, with everything that it names beside it, run from elsewhere."""
    from rdp_bench.weights import files as weight_files

    folder = here / "lab"
    (folder / "photos").mkdir(parents=True)
    (folder / "nets").mkdir()
    write_photos(folder / "photos", ["a.png"])
    (folder / "photos" / "list.csv").write_text("path,label\na.png,0\n")
    (folder / "plain.py").write_text(WIDE)
    shipped = weight_files.find("rdp", None)
    (folder / "nets" / "w.safetensors").write_bytes(shipped.read_bytes())
    (folder / "g.toml").write_text(PATHS)
    return folder


def test_a_grids_paths_start_from_its_folder(lab: Path) -> None:
    found = cli("run", "--grid", "lab/g.toml", "--dry-run")
    assert found.exit_code == 0, found.output
    assert "9 cells" in found.output


def test_and_never_from_the_current_one(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab / "nets").rename(lab.parent / "nets")
    found = cli("run", "--grid", "lab/g.toml", "--dry-run")
    assert found.exit_code == 2
    assert "lab/nets/w.safetensors" in found.output
    (lab.parent / "nets").rename(lab / "nets")
    (lab / "photos").rename(lab.parent / "photos")
    assert "no dataset at 'lab/photos/list.csv'" in cli("run", "--grid", "lab/g.toml", "--dry-run").output


def test_paths_of_the_command_line_start_from_the_current_folder(lab: Path) -> None:
    flags = ("--defense", "rdp(weights=nets/w.safetensors)", "--source", "wide")
    found = cli("run", "--grid", "lab/g.toml", "--dry-run", *flags)
    assert found.exit_code == 2  # lab/nets has it, nets has not
    assert "lab" not in found.output
    flags = ("--defense", "rdp(weights=lab/nets/w.safetensors)", "--source", "wide", "--dataset", "lab/photos/list.csv")
    assert cli("run", "--grid", "lab/g.toml", "--dry-run", *flags).exit_code == 0


# --- torchattacks ---


def test_torchattacks_know_the_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="an extra: pip install '.[torchattacks]'")
    import torch

    from tests.helpers import toy

    plugins.load()
    seen: list[int] = []
    real = torchattacks.APGDT.__init__

    def init(self: object, *args: object, **kwargs: int) -> None:
        seen.append(kwargs["n_classes"])
        real(self, *args, **kwargs)

    # Its signature is what the adapter reads.
    init.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(torchattacks.APGDT, "__init__", init)
    attack = registry.attack.resolve("torchattacks:APGDT(steps=1)").value
    attack(toy.source(toy.conv(5)), toy.images(1, 8), torch.tensor([0]), 8 / 255, toy.image_rng(1))
    assert seen == [5]
    assert attack.resolved(8)["params"]["n_classes"] == "the source's"
    with pytest.raises(UsageError, match="n_classes"):
        registry.attack.resolve("torchattacks:APGDT(n_classes=3)")
    assert issubclass(UsageError, RdpBenchError)
