"""The audit from the command line and from Python: planned, cached, resumed, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rdp_bench
from rdp_bench.audits.parts import BUDGETS
from rdp_bench.results.cards import Card
from rdp_bench.rng import ImageRng
from tests.helpers import audits
from tests.helpers.commands import cli

FLAGS = ("--target", "fault/one", "--source", "fault/two", "--dataset", "fault/photos", "--plugin", audits.FAULTS)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BUDGETS, "quick", audits.TOY)
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))


def test_an_audit_prints_its_card_writes_it_and_computes_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = cli("audit", "honest/average", *FLAGS, "--limit", "4", "--out", out)
    assert first.exit_code == 0, first.output
    assert "At eps 4 an attacker" in first.output
    (name,) = (path.stem for path in (out / "audit").glob("*.json"))
    card = json.loads((out / "audit" / f"{name}.json").read_text())
    assert card["tiers"][0]["n"] == 4
    assert {each["id"] for each in card["findings"]} >= {"C1", "C3.a", "C5", "C6", "C9", "C10", "C12", "C13.b"}
    assert any(attack["params"]["steps"] == 10 for attack in card["attacks"] if attack["label"].startswith("apgd"))
    assert {path.suffix for path in (out / "audit").iterdir()} == {".json", ".md", ".tex", ".html"}
    left = cli("audit", "honest/average", *FLAGS, "--limit", "4", "--out", out, "--dry-run")
    lines = [line for line in left.output.splitlines() if " cells on " in line]
    assert lines
    assert all("; 0 sets and 0 evaluations to run" in line for line in lines)
    again = cli("audit", "honest/average", *FLAGS, "--limit", "4", "--out", out)
    assert [line for line in again.stdout.splitlines() if "At eps" in line] == [
        line for line in first.stdout.splitlines() if "At eps" in line
    ]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--budget", "huge"), "budget"),
        (("--eps", "0.03"), "did you mean 8"),
        (("--target", "nothing"), "model"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(flags: tuple[str, ...], error: str, tmp_path: Path) -> None:
    found = cli("audit", "honest/average", *FLAGS, *flags, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert error in found.output
    assert not (tmp_path / "out").exists()


def test_a_module_is_attacked_through_its_own_gradient(tmp_path: Path) -> None:
    """Mirrors the image: through the identity, the gradient would be of the mirrored pixels and the attack weak."""

    class Mirror(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.flip(torch.flip(x, (3,)) * 1.0, (3,)).flip(2).flip(2)

    audits.plugins.load((audits.FAULTS,))
    card = rdp_bench.audit(
        {"Mine": Mirror()}, target="fault/one", sources="fault/two", dataset="fault/photos", eps=np.float64(4),
        limit=np.int64(6), seed=np.int32(0), progress=np.bool_(False), out=tmp_path / "out",
    )  # fmt: skip
    assert card.defense == "mine"
    assert " an attacker who knows Mine leaves " in card.verdict
    assert cli("verify", tmp_path / "out").exit_code == 0  # which computes the verdict again
    assert (card.eps, type(card.eps)) == (4, float)
    assert [tier.name for tier in card.tiers] == ["clean", "transfer", "blind", "grey-box", "black-box", "white-box"]
    assert card.tiers[0].accuracy == 100
    assert card.tiers[-1].accuracy < 60
    assert not [each for each in card.findings if each.status == "FAIL"]
    (path,) = (tmp_path / "out" / "audit").glob("mine-*.md")
    assert "# Audit of Mine in front of" in path.read_text()


def test_a_random_function_keeps_its_name_in_every_part(tmp_path: Path) -> None:
    """One part has the defense in fixed(...) alone."""

    def noise(x: Tensor, rng: ImageRng) -> Tensor:
        return (x + 0.05 * rng.normal(*x.shape[1:])).clamp(0, 1)

    audits.plugins.load((audits.FAULTS,))
    card = _audit(noise, tmp_path)
    assert card.names["ours-noise"] == "Ours (noise)"
    (fixed,) = (tmp_path / "out" / "runs").glob("*-fixed.json")
    assert cli("verify", tmp_path / "out").exit_code == 0
    assert fixed.stem in (tmp_path / "out" / "results.csv").read_text()
    _audit(lambda x: (x * 15).round() / 15, tmp_path)  # the name is the same; this one draws nothing
    assert not list((tmp_path / "out").rglob(f"{fixed.stem}*"))
    assert fixed.stem not in (tmp_path / "out" / "results.csv").read_text()
    found = cli("verify", tmp_path / "out")
    assert found.exit_code == 0, found.output


def _audit(defense: Any, folder: Path) -> Card:
    return rdp_bench.audit(
        {"Ours (noise)": defense}, target="fault/one", sources="fault/two", dataset="fault/photos", eps=4, limit=2,
        progress=False, out=folder / "out",
    )  # fmt: skip
