"""Grids of audits: a TOML file with [audit], several defenses at once, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import rdp_bench
from rdp_bench import plugins
from rdp_bench.audits import grid
from rdp_bench.audits.parts import BUDGETS, Subject, grids
from rdp_bench.cli import suite
from rdp_bench.engine import grid as engine_grid
from rdp_bench.errors import UsageError
from tests.helpers import audits
from tests.helpers.commands import cli


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BUDGETS, "quick", audits.TOY)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))


def parts(label: str) -> int:
    """How many parts an audit has."""
    plugins.load((audits.FAULTS,))
    return len(list(grids(Subject(label, "fault/one", "fault/photos"))))


def file(folder: Path, more: str = "", **axes: str) -> Path:
    """A grid of two toy defenses."""
    usual = {
        "defenses": '["honest/average", "fault/sign"]', "targets": '["fault/one"]', "sources": '["fault/two"]',
        "dataset": '"fault/photos"', "limit": "4",
    }  # fmt: skip
    lines = [f"{axis} = {value}" for axis, value in {**usual, **axes}.items()]
    path = folder / "mine.toml"
    path.write_text("\n".join([f'title = "Mine"\nplugins = ["{audits.FAULTS}"]', more, "[audit]", *lines]) + "\n")
    return path


def cards(out: Path) -> dict[str, Any]:
    return {card["defense"]: card for card in map(json.loads, (p.read_text() for p in (out / "audit").glob("*.json")))}


def test_a_file_of_audits_is_planned_run_cached_and_reported(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", file(tmp_path, '[names]\n"honest/average" = "Ours"\n')
    before = cli("run", mine, "--out", out, "--dry-run")
    both = parts("honest/average") + parts("fault/sign")
    assert before.exit_code == 0, before.output
    assert sum(" cells on 4 images; " in line for line in before.output.splitlines()) == both
    assert "estimated time: " in before.output
    assert not out.exists()
    first = cli("run", mine, "--out", out)
    assert first.exit_code == 0, first.output
    assert f"[2/2] [{parts('fault/sign')}/{parts('fault/sign')}] Audit of fault/sign: doubled" in first.output
    assert "2 of 2 audits are complete" in first.output
    made = cards(out)
    assert {name: card["grid"] for name, card in made.items()} == {"honest/average": "mine", "fault/sign": "mine"}
    assert {name for card in made.values() for name in card["runs"]} == {p.stem for p in (out / "runs").glob("*.json")}
    assert all(card["cost"]["cached"] < card["cost"]["jobs"] for card in made.values())
    shared = made["fault/sign"]["cost"]["cached"]  # the rows without a defense, which the first audit made
    assert 0 < shared < made["fault/sign"]["cost"]["jobs"]

    again = cli("run", mine, "--out", out)
    assert [line for line in again.stdout.splitlines() if "[" in line] == [
        line for line in first.stdout.splitlines() if "[" in line
    ]
    assert {name: card["cost"] for name, card in cards(out).items()} == {
        name: card["cost"] for name, card in made.items()
    }
    reported = cli("report", "--out", out)
    assert reported.exit_code == 0, reported.output
    page = (out / "report" / "index.html").read_text()
    assert "Ours in front of fault/one" in page
    assert "fault/sign in front of fault/one" in page
    assert "Audit of honest/average: transfer" not in page  # its parts are no runs of their own


def test_fresh_computes_everything_again(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", file(tmp_path, defenses='["honest/average"]')
    for flags in ((), ("--fresh",)):
        assert cli("run", mine, "--out", out, *flags).exit_code == 0
        assert cards(out)["honest/average"]["cost"]["cached"] == 0


def test_flags_replace_axes_and_add_to_them(tmp_path: Path) -> None:
    flags = ("--defense", "+honest/half", "--eps", "2,8", "--limit", "3", "--dry-run", "--out", tmp_path / "out")
    found = cli("run", file(tmp_path), *flags)
    assert found.exit_code == 0, found.output
    names = {line.partition("  ")[0] for line in found.output.splitlines() if " cells on 3 images" in line}
    assert len(names) == 2 * sum(map(parts, ("honest/average", "fault/sign", "honest/half")))
    assert sum("honest-half" in name and "eps8" in name for name in names) == parts("honest/half")


def test_plus_of_an_eps_that_is_there_adds_nothing(tmp_path: Path) -> None:
    axes = grid.load(str(file(tmp_path, eps='["4/255"]')), "embedded", {}).extend({"eps": ("4", "8")}).axes
    assert axes.eps == ("4/255", "8")


def test_sources_that_the_budget_chooses_are_no_list_to_add_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--source \+fault/two: .*name all of them, without \+"):
        grid.load(str(file(tmp_path, sources="[]")), "embedded", {}).extend({"sources": ("fault/two",)})


@pytest.mark.parametrize("asked", [3, 6])
def test_a_dry_run_counts_the_images_that_the_run_uses(asked: int, tmp_path: Path) -> None:
    """The file says four."""
    found = cli("run", file(tmp_path), "--limit", asked, "--dry-run", "--out", tmp_path / "out")
    assert f"on {asked} images" in found.output
    assert "on 4 images" not in found.output


def test_several_defenses_on_the_command_line(tmp_path: Path) -> None:
    models = ("--target", "fault/one,fault/two", "--source", "fault/one,fault/two")
    flags = ("--dataset", "fault/photos", "--plugin", audits.FAULTS)
    found = cli("audit", "honest/average, fault/sign", *models, *flags, "--dry-run", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert sum(" images; " in line for line in found.output.splitlines()) == 2 * (
        parts("honest/average") + parts("fault/sign")
    )


def test_runs_name_the_plugins_of_the_command_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --from` asks for those that a record names, and reports give their commit."""
    seen: list[engine_grid.Grid] = []
    monkeypatch.setattr(suite, "dry_run", lambda grids, _: seen.extend(grids) or 0)
    models = ("--target", "fault/one", "--source", "fault/two", "--dataset", "fault/photos")
    found = cli("audit", "honest/average", *models, "--plugin", audits.FAULTS, "--dry-run", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert {grid.plugins for grid in seen} == {(audits.FAULTS,)}


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--attack", "fgsm"), "--attack is not for an audit: its budget says which attacks"),
        (("--norm", "l2"), "--norm is not for an audit"),
        (("--defense-samples", "3"), "--defense-samples is not for an audit"),
        (("--success",), "--success is not for an audit"),
        (("--defense", "fault/sign,fault/sign"), "the axis 'defenses' of the audit lists fault/sign twice"),
        (("--eps", "4,4"), "the axis 'eps' of the audit lists 4 twice"),
        (("--profile", "papre"), "unknown profile 'papre' of grid mine"),
        (("--name", "jpeg=Ours"), "unknown label to name 'jpeg'"),
        (("--shard", "1/2", "--executor", "ray"), "--shard does one share in this process"),
        (("--attack", "+fgsm"), "--attack is not for an audit: its budget says which attacks"),
    ],
)
def test_what_no_audit_can_have_is_refused(flags: tuple[str, ...], why: str, tmp_path: Path) -> None:
    found = cli("run", file(tmp_path, "[profile.embedded]\n"), *flags, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert why in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        ({"defenses": "[]"}, "the axis 'defenses' of the audit is empty"),
        ({"attacks": '["pgd"]'}, "unknown axis 'attacks' of grid mine"),
        ({"eps": "4"}, "'eps' is a list of numbers"),
        ({"budget": '"huge"'}, "unknown budget 'huge'"),
        ({"limit": "0"}, "at least one image is needed"),
    ],
)
def test_what_a_file_cannot_say_is_refused(axes: dict[str, str], why: str, tmp_path: Path) -> None:
    found = cli("run", file(tmp_path, **axes), "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert why in found.output


def test_paths_start_at_the_file_and_profiles_win(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    text = (
        '[audit]\ndefenses = ["jpeg"]\ndataset = "photos"\n[profile.embedded]\n[profile.paper]\nbudget = "standard"\n'
    )
    (tmp_path / "g.toml").write_text(text)
    assert engine_grid.is_audit(str(tmp_path / "g.toml"))
    found = grid.load(str(tmp_path / "g.toml"), "paper", {})
    assert (found.axes.dataset, found.axes.budget, found.axes.targets) == (
        str(tmp_path / "photos"), "standard", ("effnet-lite2",)
    )  # fmt: skip


def test_the_built_in_grid_of_audits_can_be_planned(tmp_path: Path) -> None:
    assert "audit" in engine_grid.builtin()
    assert not engine_grid.is_audit("table1")
    found = cli("run", "audit", "--dry-run", "--limit", "1", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "audit-rdp-effnet-lite2-ens-photos20-eps4-quick-white-box" in found.output


def test_a_name_that_no_report_can_have_writes_nothing(tmp_path: Path) -> None:
    plugins.load((audits.FAULTS,))
    models = {"target": "fault/one", "sources": "fault/two", "dataset": "fault/photos", "device": "cpu"}
    with pytest.raises(UsageError, match="one line of 1 to 60 letters"):
        rdp_bench.audit({"x" * 61: "honest/average"}, **models, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_an_audit_is_no_grid_of_cells(tmp_path: Path) -> None:
    mine = file(tmp_path)
    with pytest.raises(UsageError, match="grid mine holds audits"):
        rdp_bench.evaluate(grid=str(mine), progress=False)
    (tmp_path / "suite.toml").write_text('grids = ["mine.toml"]\n')
    found = cli("run", tmp_path / "suite.toml", "--out", tmp_path / "out")
    assert (found.exit_code, "holds audits" in found.output) == (2, True)
    found = cli("audit", mine)
    assert (found.exit_code, f"run its audits with: rdp-bench run {mine}" in found.output) == (2, True)


def test_shares_leave_the_card_to_the_last(tmp_path: Path) -> None:
    mine, out = file(tmp_path, defenses='["honest/average"]'), tmp_path / "out"
    for shard in ("1/2", "2/2"):
        found = cli("run", mine, "--out", out, "--shard", shard, "--batch-size", "2")
        assert found.exit_code == 0, found.output
        done = (out / "audit").exists()
        assert done == (shard == "2/2")
        assert ("cells are not done yet" in found.output) != done
