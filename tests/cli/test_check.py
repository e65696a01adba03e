"""`rdp-bench check` finds every way in which an entry may break a promise."""

from pathlib import Path

import pytest
import timm  # noqa: F401 - new_process() forgets modules that were first imported inside
import torch
from safetensors.torch import save_file

from rdp_bench import plugins
from rdp_bench.registry import registries
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

HEAD = """
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rdp_bench import Purifier, attack, defense

GENERATOR = torch.Generator()


@defense("checked/one", source="made up")
@dataclass(frozen=True)
class One(Purifier):
    \"\"\"Checked.\"\"\"
"""

DEFENSES = {
    "good": ("    def purify(self, x, rng):\n        return x * 0.5", "8 of 8 checks passed"),
    "good random": (
        "    random = differentiable = True\n    def purify(self, x, rng):\n        return x * rng.uniform(1, 1, 1)",
        "8 of 8 checks passed",
    ),
    "shape": ("    def purify(self, x, rng):\n        return x[..., :-1]", "FAIL  shape and range"),
    "range": ("    def purify(self, x, rng):\n        return x + 1", "left the range [0, 1]"),
    "raises": ("    def purify(self, x, rng):\n        return x / None", "FAIL  shape and range"),
    "undeclared": (
        "    def purify(self, x, rng):\n        return 0.5 * x + 0.1 * rng.uniform(*x.shape[1:])",
        "FAIL  determinism: other random numbers change its output; declare random = True",
    ),
    "falsely random": (
        "    random = True\n    def purify(self, x, rng):\n        return x",
        "FAIL  determinism: it declares random = True, but its output never changes",
    ),
    "torch's stream": (
        "    random = True\n    def purify(self, x, rng):\n        return 0.5 * x + 0.1 * torch.rand_like(x)",
        "FAIL  no global randomness: it changes the global stream of torch",
    ),
    "numpy's stream": (
        "    def purify(self, x, rng):\n        return x * float(np.random.rand() > 2)",
        "FAIL  no global randomness: it changes the global stream of numpy",
    ),
    "random's stream": (
        "    def purify(self, x, rng):\n        return x * float(random.random() > 2)",
        "FAIL  no global randomness: it changes the global stream of random",
    ),
    "a generator for all": (
        "    def purify(self, x, rng):\n        return 0.5 * x + 0.1 * torch.rand(x.shape, generator=GENERATOR)",
        "FAIL  determinism: two calls with the same random numbers differ",
    ),
    "batch": (
        "    def purify(self, x, rng):\n        return (x - x.mean() + 0.5).clamp(0, 1)",
        "FAIL  batch independence",
    ),
    "no gradient": (
        "    differentiable = True\n    def purify(self, x, rng):\n        return x.detach()",
        "FAIL  gradient: it declares differentiable = True, but autograd gives no gradient",
    ),
    "wrong gradient": (
        "    differentiable = True\n    def purify(self, x, rng):\n        return (x * 31).round() / 31",
        "FAIL  gradient: it declares differentiable = True, but autograd differs from finite differences",
    ),
    "straight through": (
        "    differentiable = True\n    def purify(self, x, rng):\n        return x + (x.round() - x).detach()",
        "FAIL  gradient: it declares differentiable = True, but autograd differs from finite differences",
    ),
    "unkeyed": (
        "    def purify(self, x, rng):\n        return x\n    def resolved(self):\n        return {'a': object()}",
        "FAIL  parameters",
    ),
}


@pytest.mark.parametrize("kind", DEFENSES)
def test_a_defense(kind: str, tmp_path: Path) -> None:
    body, expected = DEFENSES[kind]
    (tmp_path / "one.py").write_text(f"{HEAD}\n{body}\n")
    with new_process():
        result = cli("check", tmp_path / "one.py", "--size", 64)
    assert expected in result.output
    assert result.exit_code == (0 if kind.startswith("good") else 1), result.output


ATTACK = """

class Attack:
    def resolved(self, eps_255):
        return {{}}

    def gradients(self, eps_255):
        return 1

    def __call__(self, source, x, y, eps, rng):
        {body}


@attack("checked/two", source="made up")
def two():
    \"\"\"Checked.\"\"\"
    return Attack()
"""

ATTACKS = {
    "good": ("return (x + eps * rng.normal(*x.shape[1:]).sign()).clamp(0, 1)", "determinism: random"),
    "far": ("return (x + 2 * eps).clamp(0, 1)", "FAIL  shape, range and budget at eps 8/255"),
    "idle": ("return x", "FAIL  effect: it changes no pixel"),
    "global": (
        "return (x + eps * torch.randn_like(x).sign()).clamp(0, 1)",
        "FAIL  determinism: two calls with the same random numbers differ",
    ),
    "batch": ("return (x + eps * (x - x.mean(0)).sign()).clamp(0, 1)", "FAIL  batch independence"),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack(kind: str, tmp_path: Path) -> None:
    body, expected = ATTACKS[kind]
    (tmp_path / "two.py").write_text("import torch\nfrom rdp_bench import attack\n" + ATTACK.format(body=body))
    with new_process():
        result = cli("check", tmp_path / "two.py", "--size", 64)
    assert expected in result.output
    assert result.exit_code == (0 if kind == "good" else 1), result.output


def test_models_and_data_sets(tmp_path: Path) -> None:
    with new_process():
        for kind in registries.values():
            for name in [name for name in kind.entries if name.startswith("tiny/")]:
                del kind.entries[name]
        plugins._loaded.clear()
        result = cli("check", PLUGIN, "--size", 16)
    assert "model tiny/one" in result.output
    assert "defense 'tiny/nan' returned NaN or infinite pixels" in result.output
    assert "40 of 41 checks passed" in result.output
    assert result.exit_code == 1


def test_a_broken_model_and_data_set(tmp_path: Path) -> None:
    (tmp_path / "three.py").write_text(
        "import numpy as np\nimport torch\nfrom rdp_bench import dataset, model\n"
        "class Net:\n    name, classes = 'checked/net', 5\n"
        "    def __call__(self, x, zoom=1.0):\n        return torch.rand(len(x), 5)\n"
        "    def record(self):\n        return {}\n"
        "@model('checked/net', source='made up')\ndef net():\n    return Net()\n"
        "class Set:\n    name, size, ids, labels = 'checked/set', 8, ['a', 'a'], [0, 1]\n"
        "    def image(self, index):\n        return np.zeros((8, 8, 3), np.uint8)\n"
        "@dataset('checked/set', source='made up')\ndef images():\n    return Set()\n"
    )
    with new_process():
        result = cli("check", tmp_path / "three.py", "--size", 16)
    assert result.exit_code == 1
    assert "FAIL  determinism: two calls differ" in result.output
    assert "FAIL  no global randomness" in result.output
    assert "FAIL  gradient: no gradient reaches the images" in result.output
    assert "FAIL  ids and labels: an id occurs twice" in result.output
    assert "expected uint8 [3, 8, 8]" in result.output


def test_a_file_without_entries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("x = 1\n")
    result = cli("check", tmp_path / "nothing.py")
    assert result.exit_code == 2
    assert "registers nothing" in result.output


def test_the_example_passes() -> None:
    with new_process():
        result = cli("check", ROOT / "docs" / "examples" / "defense.py", "--size", 32)
    assert "8 of 8 checks passed" in result.output


def test_labels_name_what_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose weights are in a file has no defaults to be checked with."""
    monkeypatch.chdir(tmp_path)
    example = ROOT / "docs" / "examples" / "network.py"
    torch.manual_seed(0)
    save_file(torch.nn.Conv2d(3, 3, 5, padding=2, groups=3).state_dict(), "smooth.safetensors")
    with new_process():
        result = cli("check", example, "mine/smooth(weights=smooth.safetensors)", "--size", 32)
    assert result.exit_code == 0, result.output
    assert "defense mine/smooth(weights=smooth.safetensors)" in result.output
    assert "8 of 8 checks passed" in result.output
    with new_process():
        result = cli("check", example, "--size", 32)
    assert result.exit_code == 1
    assert "mine/smooth(weights=FILE)" in result.output
    with new_process():
        result = cli("check", example, "mine/smoth", "jpeg")
    assert result.exit_code == 2
    assert "unknown entry 'mine/smoth'. Did you mean 'mine/smooth'?" in result.output
