"""Budgets of other norms: attacks that have them keep them exactly, others are refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdp_bench.attacks._kernels.norms import norm_l2, project_l2, unit_l2
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.cache.store import Store
from rdp_bench.engine.levels import add_delta, to_delta, to_float, within
from rdp_bench.errors import RdpBenchError
from rdp_bench.registry import attack as attacks
from tests.helpers import toy
from tests.helpers.commands import cli
from tests.helpers.grid_runs import GridRuns
from tests.helpers.settings import setting

torchattacks = pytest.importorskip("torchattacks")

from rdp_bench.attacks.torchattacks import BUDGETS, WITHOUT_BUDGET  # noqa: E402

GRID = """
[axes]
dataset = "tiny/noise"
eps = [16]
attacks = ["fgsm"]
sources = ["tiny/one"]
defenses = ["none"]
targets = ["tiny/one", "tiny/two"]
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridRuns:
    return GridRuns.make(tmp_path, monkeypatch, GRID, name="budgets")


def stored(grid: GridRuns) -> list[tuple[dict[str, Any], Any]]:
    """Record and differences of every adversarial set."""
    store = Store(grid.cache)
    sets = [store.open(kind, key) for kind, key in store.everything() if kind == "adv"]
    return [(one.record, one.read()["delta"]) for one in sets]


# --- torchattacks ---


def test_every_class_of_torchattacks_has_a_budget_or_a_reason() -> None:
    classes = {n for n, k in vars(torchattacks).items() if isinstance(k, type) and hasattr(k, "forward")}
    known = BUDGETS["linf"] | BUDGETS["l2"] | set(WITHOUT_BUDGET)
    assert classes - {"MultiAttack", "LGV"} == known
    assert not (BUDGETS["linf"] | BUDGETS["l2"]) & set(WITHOUT_BUDGET)


@pytest.mark.parametrize("name", ["OnePixel", "JSMA", "SparseFool", "Pixle", "CW", "DeepFool", "EADL1", "VANILA"])
@pytest.mark.parametrize("flags", [(), ("--norm", "l2", "--eps", "3.0")])
def test_classes_without_a_budget_are_refused(grid: GridRuns, name: str, flags: tuple[str, ...]) -> None:
    found = grid.run("--attack", f"torchattacks:{name}", *flags)
    assert found.exit_code == 2
    assert f"'torchattacks:{name}' fits no budget: {WITHOUT_BUDGET[name]}" in found.output
    assert not (grid.out).exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--attack", "torchattacks:PGDL2"), "has an l2 budget here and the run's is linf; run it with --norm l2"),
        (("--attack", "torchattacks:APGD(norm=L2)"), "has an l2 budget here and the run's is linf"),
        (("--attack", "torchattacks:FAB(norm=L1)"), "has no l1 budget"),
        (("--attack", "torchattacks:PGD", "--norm", "l2", "--eps", "3"), "has an linf budget here"),
        (("--attack", "torchattacks:PGD(alpha=2)"), "did you mean alpha=0.0078?"),
        (("--attack", "tiny/sleepy", "--norm", "l2", "--eps", "3"), "'tiny/sleepy' has an L-infinity budget only"),
        (("--attack", "ssp", "--norm", "l2", "--eps", "3"), "'ssp' has an L-infinity budget only"),
        (("--attack", "ni-fgsm", "--norm", "l2", "--eps", "3"), "nesterov's look-ahead is defined for sign steps"),
        (("--attack", "dim", "--norm", "l2", "--eps", "3"), "steps=auto is a rule for eps in /255"),
        (("--attack", "I(5,2)", "--norm", "l2", "--eps", "3"), "alpha is in /255"),
        (("--attack", "mi-fgsm(norm=l2)"), "names norm=l2, and the run's is linf: use --norm l2"),
        (("--attack", "apgd-ce(norm=linf)", "--norm", "l2", "--eps", "3"), "names norm=linf, and the run's is l2"),
        (("--attack", "apgd-ce(targets=3)"), "targets has an effect with loss=targeted-dlr only"),
        (
            (
                "--norm",
                "l2",
            ),
            "--norm l2 needs --eps",
        ),
        (("--norm", "l2", "--eps", "-1"), "eps -1 is negative"),
    ],
)
def test_attacks_without_the_runs_budget_are_refused(grid: GridRuns, flags: tuple[str, ...], says: str) -> None:
    found = grid.run(*flags)
    assert (found.exit_code, says in found.output) == (2, True), found.output
    assert not (grid.out).exists()


def test_a_grid_of_l2_says_so_in_its_file(grid: GridRuns) -> None:
    grid.file.write_text(GRID.replace("eps = [16]", 'eps = [0.5]\nnorm = "l2"'))
    assert grid.run().exit_code == 0
    grid.file.write_text(GRID.replace("eps = [16]", 'eps = [16]\nnorm = "l3"'))
    assert "unknown norm 'l3' of grid budgets" in grid.run().output


@pytest.mark.parametrize("name", sorted(BUDGETS["l2"] - {"AutoAttack"}))
def test_classes_with_an_l2_budget_use_it(name: str) -> None:
    """At the radius 2 and not at 2/255, on a network that is easy to fool."""
    x, y = toy.images(3, 16), torch.arange(3)
    made = attacks.resolve(f"torchattacks:{name}").value.with_norm("l2")  # type: ignore[attr-defined]
    source = toy.source(toy.conv())
    adv = made(source, x, y, 2.0, toy.image_rng(3))
    far = norm_l2(adv - x).flatten()
    assert float(far.max()) <= 2.0 + 1e-4
    assert made.resolved(2.0)["params"]["eps"] == 2.0
    assert made.resolved(2.0)["params"].get("norm", "L2") == "L2"
    if name.startswith("PGD"):
        assert float(far.min()) > 1.0


def test_pifgsm_gets_the_budget_under_its_own_name() -> None:
    x, y = toy.images(2, 16), torch.arange(2)
    made = attacks.resolve("torchattacks:PIFGSM").value.with_norm("linf")  # type: ignore[attr-defined]
    adv = made(toy.source(toy.conv()), x, y, 4 / 255, toy.image_rng(2))
    assert made.notes() == []
    assert float((adv - x).abs().max()) <= 4 / 255 + 1e-6
    assert made.resolved(4)["params"]["max_epsilon"] == 4


def test_pixels_moved_back_are_told_with_the_farthest(grid: GridRuns) -> None:
    assert grid.run("--attack", "torchattacks:GN(std=.5)").exit_code == 0
    warning = json.loads((grid.out / "runs" / "budgets.json").read_text())["warnings"][-1]
    assert "torchattacks:GN left its budget and was cut back to it" in warning
    assert "255/255 away from the clean one, allowed 16/255" in warning
    assert grid.run("--attack", "torchattacks:FGSM").exit_code == 0
    warnings = json.loads((grid.out / "runs" / "budgets.json").read_text())["warnings"]
    assert not any("torchattacks" in each for each in warnings)


# --- our iteration ---


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("eps", [0.3, 2.0])
def test_equal_to_pgdl2_of_torchattacks(steps: int, eps: float) -> None:
    net = toy.network()
    x, y = toy.images(5, 16), torch.arange(5) % 5
    theirs = torchattacks.PGDL2(net, eps=eps, alpha=2.5 * eps / steps, steps=steps, random_start=False)(x, y)
    ours = setting(steps=steps, step_ratio=2.5, norm="l2")(toy.source(toy.Toy(net, 5)), x, y, eps, toy.image_rng(5))
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float(norm_l2(ours - x).max()) > 0.5 * eps


def test_equal_to_l2_pgd_of_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    net = toy.network()
    x, y = toy.images(5, 16), torch.arange(5) % 5
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    method = foolbox.attacks.L2PGD(abs_stepsize=0.25, steps=6, random_start=False)
    _, theirs, _ = method(model, x, y, epsilons=1.0)
    ours = setting(steps=6, step_ratio=1.5, norm="l2")
    found = ours(toy.source(toy.Toy(net, 5)), x, y, 1.0, toy.image_rng(5))
    assert float((found - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("text", ["FGSM", "PGD", "MI", "MI|DI|TI(5)|SI(2)", "TARGETED", "OWN|MI"])
def test_the_family_keeps_an_l2_budget(text: str) -> None:
    x, y = toy.images(4, 16), torch.arange(4)
    adv = compose(text).with_norm("l2")(toy.source(toy.conv()), x, y, 1.5, toy.image_rng(4))
    far = norm_l2(adv - x).flatten()
    assert float(far.max()) <= 1.5 + 1e-5
    assert float(far.min()) > 0.5
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1


def test_projection_and_direction() -> None:
    x = torch.zeros(2, 3, 4, 4)
    far = torch.full_like(x, 0.5)
    assert norm_l2(project_l2(far, x, 0.25)).flatten().tolist() == pytest.approx([0.25, 0.25])
    assert torch.equal(project_l2(0.01 * far, x, 1.0), 0.01 * far)
    assert torch.equal(unit_l2(x), x)
    assert norm_l2(unit_l2(far)).flatten().tolist() == pytest.approx([1, 1])


# --- stored sets ---


@pytest.mark.parametrize("eps", [0.05, 0.3, 1.0, 5.0])
def test_stored_levels_are_within_the_budget_exactly(eps: float) -> None:
    clean = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 16), np.uint8)
    x = to_float(clean, "cpu")
    adv = project_l2(x + toy.random(*x.shape), x, eps).clamp(0, 1)
    delta = to_delta(adv, x, clean, eps, "attack", "l2")
    assert delta.dtype == np.int16
    total = (delta.astype(np.int64) ** 2).sum((1, 2, 3))
    assert (total <= (255 * eps) ** 2).all()
    assert within(delta, eps, "l2")
    stored = add_delta(clean, delta)
    wanted = adv.numpy() * 255
    assert np.abs(stored - wanted).max() <= 1.5 + 1e-3  # rounding, and at most one level back
    if eps > 0.1:  # below, most changes are less than half a level
        assert float(norm_l2(to_float(stored, "cpu") - x).min()) > 0.9 * float(norm_l2(adv - x).min())


def test_more_than_127_levels_survive_storage() -> None:
    clean = np.array([0, 255, 100], np.uint8).reshape(1, 3, 1, 1).repeat(2, 2).repeat(2, 3)
    x = to_float(clean, "cpu")
    adv = x.clone()
    adv[0, 0, 0, 0], adv[0, 1, 0, 0] = 1.0, 0.0
    delta = to_delta(adv, x, clean, 2.0, "attack", "l2")
    assert (add_delta(clean, delta) == (adv * 255).byte().numpy()).all()


def test_an_attack_beyond_its_l2_budget_fails() -> None:
    clean = np.full((1, 3, 4, 4), 100, np.uint8)
    x = to_float(clean, "cpu")
    with pytest.raises(RdpBenchError, match=r"moved an image by an L2 norm of 0\.6928, allowed L2 norm 0\.5"):
        to_delta(x + 0.1, x, clean, 0.5, "attack", "l2")


def test_within_sees_what_is_outside() -> None:
    delta = np.zeros((2, 3, 4, 4), np.int16)
    delta[1, 0, 0, 0] = 51
    assert within(delta, 0.2, "l2")
    assert not within(delta, 0.199, "l2")
    assert within(delta, 51, "linf")
    assert not within(delta, 50.9, "linf")
    assert not within(-delta, 50, "linf")


def test_a_stored_set_beyond_its_budget_is_not_used(grid: GridRuns) -> None:
    assert grid.run().exit_code == 0
    store = Store(grid.cache)
    ((kind, key),) = [found for found in store.everything() if found[0] == "adv"]
    artefact = store.open(kind, key)
    delta = artefact.read()["delta"]
    delta = np.where(delta == 16, 17, delta).astype(np.int8)
    artefact.write(0, len(delta), {"delta": delta})
    found = grid.run("--defense", "tiny/round")
    assert found.exit_code == 1
    assert "not within 16/255 of the clean ones" in found.output


def test_an_l2_run_from_start_to_report(grid: GridRuns) -> None:
    flags = ("--norm", "l2", "--eps", "1.5", "--attack", "fgsm", "--attack", "torchattacks:PGDL2(alpha=.5)")
    found = grid.run(*flags)
    assert found.exit_code == 0, found.output
    assert "crafted on tiny/one, eps 1.5 (L2)" in found.output
    sets = stored(grid)
    assert len(sets) == 2
    for record, delta in sets:
        assert record["norm"] == "l2"
        assert record["eps"] == 1.5
        assert within(delta, 1.5, "l2")
        assert (delta.astype(np.int64) ** 2).sum((1, 2, 3)).min() > (255 * 1.2) ** 2
    assert {(row["attack"] == "clean", row["metric"]) for row in grid.rows()} == {
        (True, "accuracy"),
        (False, "error_l2"),
    }
    assert {row["eps"] for row in grid.rows()} == {"0", "1.5"}
    done = cli("report", "--out", grid.out)
    assert done.exit_code == 0, done.output
    page = (grid.out / "report" / "index.html").read_text()
    assert "1.5 (L2)" in page
    assert "ε = 1.5," not in page
    tables = list((grid.out / "report" / "tables").glob("*l2-eps1.5*.tests.csv"))
    assert tables
    assert "error_l2" in tables[0].read_text()


def test_the_key_of_a_linf_set_names_no_norm(grid: GridRuns) -> None:
    assert grid.run().exit_code == 0
    ((record, _),) = stored(grid)
    assert "norm" not in record
    assert "norm" not in record["attack"]


def test_runs_of_two_norms_are_not_compared(grid: GridRuns) -> None:
    assert grid.run().exit_code == 0
    out = grid.out
    out.rename(grid.file.parent / "A")
    assert grid.run("--norm", "l2", "--eps", "16").exit_code == 0
    found = cli("report", "--compare", grid.file.parent / "A", out, "--out", grid.file.parent / "C")
    assert found.exit_code == 2
    assert "budgets in linf and in l2" in found.output
