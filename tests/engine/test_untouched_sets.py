"""An attack that changes nothing is refused where that is known before, and warned of where it shows afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdp_bench.budgets import parse_eps
from rdp_bench.errors import UsageError
from rdp_bench.registry import attack
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process

IDLE = '''
from dataclasses import dataclass
from rdp_bench import attack

@attack("idle/some", source="made up")
@dataclass(frozen=True)
class Some:
    """Changes one image of every batch by `level`, and the others not at all."""
    level: int = 0

    def __call__(self, source, x, y, eps, rng):
        x[0] = (x[0] + self.level / 255).clamp(0, 1)
        return x

    def resolved(self, eps_255):
        return {"level": self.level}

    def gradients(self, eps_255):
        return 1
'''
GRID = """
[axes]
dataset = "tiny/noise"
sources = ["tiny/one"]
targets = ["tiny/one"]
defenses = ["none"]
clean = true
"""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with new_process():
        yield


@pytest.mark.parametrize(("label", "warned"), [("idle/some", True), ("idle/some(level=1)", False)])
def test_a_set_that_is_the_clean_images_is_warned_of(tmp_path: Path, label: str, warned: bool) -> None:
    (tmp_path / "idle.py").write_text(IDLE)
    (tmp_path / "toy.toml").write_text(GRID)
    run = ("run", "--grid", tmp_path / "toy.toml", "--plugin", PLUGIN, "--plugin", tmp_path / "idle.py", "--attack",
           label, "--eps", "8", "--cache", tmp_path / "cache", "--out", tmp_path / "out")  # fmt: skip
    for _ in range(2):  # the second time from the cache
        result = cli(*run)
        assert result.exit_code == 0, result.output
        told = json.loads((tmp_path / "out/runs/toy.json").read_text())["warnings"]
        assert any("no pixel of any image changed" in warning for warning in told) is warned, told


@pytest.mark.parametrize("eps", [0.001, "0.5/255", 0.0039])
def test_an_l2_budget_below_one_level_is_refused(eps: float | str) -> None:
    with pytest.raises(UsageError, match=r"below one level.*no image could change"):
        parse_eps(eps, "l2")
    assert parse_eps(0, "l2") == 0
    assert parse_eps("1/255", "l2") == 1 / 255


@pytest.mark.parametrize(
    "text", ["DIFGSM(steps=0)", "PGD(steps=-3)", "MIFGSM(alpha=0.0001)", "PGD(alpha=0, random_start=false)"]
)
def test_steps_of_torchattacks_that_change_nothing_are_refused(text: str) -> None:
    pytest.importorskip("torchattacks")
    with pytest.raises(UsageError, match=r"at least 1|change no 8-bit pixel"):
        attack.resolve(f"torchattacks:{text}")
