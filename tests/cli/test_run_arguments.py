"""How `run` is told what to do: the grid as an argument, additions to axes, lists, names of rows."""

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process

GRID = """
[axes]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/two"]
attacks = ["fgsm"]
defenses = ["none", "tiny/round"]
eps = [8]
"""

TITLED = '''
from dataclasses import dataclass

from rdp_bench import Purifier, defense


@defense("titled/half", source="made up", title="Half & half")
@dataclass(frozen=True)
class Half(Purifier):
    """Darkens."""

    factor: float = 0.5

    def purify(self, x, rng):
        return x * self.factor
'''


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "mine.toml").write_text(GRID)
        (path / "titled.py").write_text(TITLED)

    def run(self, *args: object, code: int = 0) -> str:
        plugins = ("--plugin", PLUGIN, "--plugin", self.path / "titled.py")
        with new_process():
            result = cli("run", *plugins, "--cache", self.path / "cache", "--out", self.path / "out", *args)
        assert result.exit_code == code, result.output
        return result.output

    @property
    def grid(self) -> str:
        return str(self.path / "mine.toml")

    def axis(self, name: str) -> list[str]:
        with (self.path / "out" / "results.csv").open() as file:
            return list(dict.fromkeys(row[name] for row in csv.DictReader(file) if row["attack"] != "clean"))

    def record(self) -> dict[str, object]:
        return json.loads((self.path / "out" / "runs" / "mine.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_grid_is_an_argument(folder: Folder) -> None:
    folder.run(folder.grid)
    assert folder.axis("defense") == ["none", "tiny/round"]


def test_the_option_still_works_and_both_may_agree(folder: Folder) -> None:
    folder.run("--grid", folder.grid)
    folder.run(folder.grid, "--grid", folder.grid)
    assert folder.axis("defense") == ["none", "tiny/round"]


def test_two_grids_are_refused(folder: Folder) -> None:
    assert "two grids are named" in folder.run("table1", "--grid", "table3", code=2)


def test_no_grid_is_refused_with_the_names(folder: Folder) -> None:
    output = folder.run(code=2)
    assert "no grid is named; try: rdp-bench run table1" in output
    assert "table3" in output


def test_plus_adds_to_an_axis(folder: Folder) -> None:
    folder.run(folder.grid, "--defense", "+titled/half", "--attack", "+i-fgsm", "--eps", "+16", "--source", "+tiny/two")
    assert folder.axis("defense") == ["none", "tiny/round", "titled/half"]
    assert folder.axis("attack") == ["fgsm", "i-fgsm"]
    assert folder.axis("eps") == ["8", "16"]
    assert folder.axis("source") == ["tiny/one", "tiny/two"]


def test_titles_and_names_are_printed_with_parameters_and_may_be_those_of_another_axis(folder: Folder) -> None:
    args = ("--defense", "none,titled/half(factor=.7)", "--name", "tiny/two=Ours", "--name", "fgsm=Ours")
    shown = folder.run(folder.grid, *args)
    assert "\nHalf & half(factor=.7) " in shown
    assert "       Ours\n" in shown
    report = cli("show", folder.path / "out", "--cache", folder.path / "cache").output
    assert "\nHalf & half(factor=.7) " in report
    assert "target Ours" in report


def test_a_name_of_no_label_of_its_grid_is_warned_of(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    grid = folder.path / "named.toml"
    grid.write_text(f'{GRID}\n[names]\n"tiny/rond" = "Ours"\n"tiny/round" = "Mine"\n')
    folder.run(grid, "--dry-run")
    said = [record.message for record in caplog.records if "[names]" in record.message]
    assert said == ["grid named: [names] has 'tiny/rond', and no axis of the grid has this label"]


def test_plus_of_what_is_there_adds_nothing(folder: Folder) -> None:
    folder.run(folder.grid, "--defense", "+tiny/round", "--target", "+tiny/one,tiny/two")
    assert folder.axis("defense") == ["none", "tiny/round"]
    assert folder.axis("target") == ["tiny/two", "tiny/one"]


def test_plus_before_every_name_of_a_list_is_plus_before_the_list(folder: Folder) -> None:
    folder.run(folder.grid, "--attack", "+i-fgsm,+mi-fgsm", "--eps", "+16,+4")
    assert folder.axis("attack") == ["fgsm", "i-fgsm", "mi-fgsm"]
    assert folder.axis("eps") == ["8", "16", "4"]
    assert "use one of the two" in folder.run(folder.grid, "--attack", "i-fgsm,+mi-fgsm", code=2)


def test_plus_in_every_grid_of_a_list(folder: Folder) -> None:
    clean = '[axes]\ndataset = "tiny/noise"\ntargets = ["tiny/two"]\ndefenses = ["none"]\n'
    (folder.path / "clean.toml").write_text(clean)
    (folder.path / "both.toml").write_text('grids = ["mine.toml", "clean.toml"]\n')
    folder.run(folder.path / "both.toml", "--defense", "+titled/half", "--attack", "+i-fgsm")
    with (folder.path / "out" / "results.csv").open() as file:
        found = {(row["grid"], row["defense"], row["attack"]) for row in csv.DictReader(file)}
    assert ("mine", "titled/half", "i-fgsm") in found
    assert ("clean", "titled/half", "clean") in found
    assert ("clean", "none", "i-fgsm") not in found


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--defense", "none", "--defense", "+titled/half"), "use one of the two"),
        (("--defense", "+"), "name what to add"),
        (("--defense", "+nothing"), "unknown defense 'nothing'"),
        (("--attack", "fgsm,,i-fgsm"), "a name is missing beside a comma"),
        (("--name", "half"), "expected LABEL=NAME"),
        (("--name", "jpeg=Ours"), "unknown label to name 'jpeg'"),
        (("--name", "tiny/round="), "one line of 1 to 60 letters"),
        (("--name", "tiny/round=Ours", "--name", "none=Ours"), "would both be called 'Ours'"),
        (("--name", "tiny/round=a\tb"), "one line of 1 to 60 letters"),
    ],
)
def test_what_cannot_be_is_refused(folder: Folder, args: tuple[str, ...], why: str) -> None:
    output = folder.run(folder.grid, *args, code=2)
    assert why in output
    assert not (folder.path / "out" / "results.csv").exists()


def test_lists_with_commas(folder: Folder) -> None:
    folder.run(
        folder.grid,
        "--attack",
        "fgsm,pgd(steps=2, alpha=1)",
        "--defense",
        "none, tiny/round(levels=2)",
        "--eps",
        "4,8/255",
    )
    assert folder.axis("attack") == ["fgsm", "pgd(step=1, steps=2)"] or len(folder.axis("attack")) == 2
    assert folder.axis("defense") == ["none", "tiny/round(levels=2)"]
    assert folder.axis("eps") == ["4", "8"]


def test_names_reach_page_csv_and_latex_but_not_results_csv(folder: Folder) -> None:
    folder.run(folder.grid, "--defense", "+titled/half", "--name", "tiny/round=Ours_<i>", "--name", "fgsm = One step")
    assert folder.record()["names"] == {"titled/half": "Half & half", "tiny/round": "Ours_<i>", "fgsm": "One step"}
    assert folder.axis("defense") == ["none", "tiny/round", "titled/half"]
    report = cli("report", "--out", folder.path / "out", "--cache", folder.path / "cache")
    assert report.exit_code == 0, report.output
    page = (folder.path / "out" / "report" / "index.html").read_text()
    assert "Ours_&lt;i&gt;" in page
    assert "Half &amp; half" in page
    assert "<i>" not in page.replace("Ours_&lt;i&gt;", "")
    tables = folder.path / "out" / "report" / "tables"
    latex = "".join(path.read_text() for path in tables.glob("*.tex"))
    assert r"Ours\_\textless{}i\textgreater{}" in latex
    assert r"Half \& half" in latex
    sheet = "".join(path.read_text() for path in tables.glob("*.csv"))
    assert "Ours_<i>" in sheet
    assert "One step" in sheet
    assert "tiny/round" not in sheet


def test_names_of_a_grid_file_and_of_labels_with_parameters(folder: Folder) -> None:
    with (folder.path / "mine.toml").open("a") as file:
        file.write('[names]\n"tiny/round" = "Rounded"\n"titled/half" = "From the grid"\n"jpeg" = "not in this run"\n')
    folder.run(folder.grid, "--defense", "+titled/half(factor=0.25)", "--name", "tiny/round=Ours")
    assert folder.record()["names"] == {"titled/half": "From the grid", "tiny/round": "Ours"}
    shown = cli("report", "--out", folder.path / "out", "--cache", folder.path / "cache")
    assert shown.exit_code == 0
    page = (folder.path / "out" / "report" / "index.html").read_text()
    assert "From the grid(factor=0.25)" in page


def test_a_bad_names_table_is_refused(folder: Folder) -> None:
    (folder.path / "mine.toml").write_text(GRID + "[names]\nfgsm = 3\n")
    assert "'names' is a table of texts" in folder.run(folder.grid, code=2)


def test_completion_knows_names() -> None:
    from rdp_bench.cli.complete import of_kind

    assert "table1" in of_kind("grid")(None, None, "ta")  # type: ignore[arg-type]
    assert of_kind("defense")(None, None, "+comd") == ["+comdefend"]  # type: ignore[arg-type]
    assert of_kind("defense")(None, None, "+jpeg,comd") == ["+jpeg,comdefend"]  # type: ignore[arg-type]
    assert "effnet-lite0" in of_kind("model")(None, None, "eff")  # type: ignore[arg-type]


def test_a_name_that_is_another_label_is_refused(folder: Folder) -> None:
    """CSV tables write labels: two rows would be called "none"."""
    said = folder.run(folder.grid, "--name", "none=tiny/round(levels=2)", "--defense", "+tiny/round(levels=2)", code=2)
    assert "'none' cannot be called 'tiny/round(levels=2)': that is another label of this axis" in said
    folder.run(folder.grid, "--name", "tiny/round=tiny/round", "--dry-run")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("tiny/round=none", "defense none"),
        ("tiny/round=RDP", "defense rdp"),
        ("none=half & HALF", "defense titled/half"),
        ("fgsm=mi-fgsm", "attack mi-fgsm"),
        ("tiny/two=effnet-lite2", "model effnet-lite2"),
    ],
)
def test_a_name_of_another_entry_is_refused(name: str, other: str, folder: Folder) -> None:
    label, _, shown = name.partition("=")
    said = folder.run(folder.grid, "--name", name, code=2)
    assert f"'{label}' cannot be called '{shown}': that is the {other}; give another name" in said


def test_a_dry_run_refuses_the_names_that_the_run_refuses(folder: Folder) -> None:
    assert "unknown label to name 'nosuch'" in folder.run(folder.grid, "--name", "nosuch=Ours", "--dry-run", code=2)


def test_an_empty_axis_names_its_flag(folder: Folder) -> None:
    for axis, old in (("eps", "eps = [8]"), ("defenses", 'defenses = ["none", "tiny/round"]')):
        (folder.path / "mine.toml").write_text(GRID.replace(old, f"{axis} = []"))
        flag = "--eps" if axis == "eps" else "--defense"
        assert f"give it in the file or with {flag}\n" in folder.run(folder.grid, code=2)


def test_from_what_is_no_file_says_what_to_name(folder: Folder) -> None:
    for path, said in ((folder.path / "nothing.json", "does not exist"), (folder.path, "is a folder")):
        output = folder.run("--from", path, code=2)
        assert f"--from {path}: it {said}; name the record of a run, OUT/runs/GRID.json" in output
