"""SOAP against a plain loop over its paper, its gradient, its keys, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdp_bench import plugins, registry
from rdp_bench.errors import BadModelError, RdpBenchError
from rdp_bench.rng import ImageRng
from tests.helpers import auxiliary, far, toy
from tests.helpers.auxiliary import NAME, TwoViews
from tests.helpers.grid_runs import GridRuns
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

plugins.load()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda make=TwoViews: auxiliary.install(make, monkeypatch.setitem)


def made(text: str = "") -> Any:
    return registry.defense.resolve(f"soap(network={NAME}{text})").value


def by_hand(task: Any, x: Tensor, budgets: int = 10, steps: int = 5) -> tuple[Tensor, list[int]]:
    """The authors' loop for one image at a time; which budget each image got."""
    found, chosen = [], []
    for i in range(len(x)):
        image = x[i : i + 1]
        tried, losses = [], []
        for e in range(budgets + 1):
            delta = torch.zeros_like(image)
            for _ in range(steps):
                leaf = (image + delta).requires_grad_()
                (grad,) = torch.autograd.grad(task.auxiliary_loss(leaf).sum(), leaf)
                delta = torch.clamp(delta - 4 / 255 * torch.sign(grad), -4 * e / 255, 4 * e / 255)
                delta = torch.clamp(image + delta, 0, 1) - image
            tried.append(image + delta)
            losses.append(float(task.auxiliary_loss(image + delta)))
        chosen.append(losses.index(min(losses)))
        found.append(tried[chosen[-1]])
    return torch.cat(found), chosen


def test_it_is_the_loop_of_its_authors(install: Callable[..., None]) -> None:
    install()
    x = toy.images(6, 12)
    with torch.no_grad():
        found = made().purify(x, toy.image_rng(6))
    wanted, chosen = by_hand(TwoViews(), x)
    assert len(set(chosen)) > 2  # else one budget for the batch would pass
    assert float(((found - wanted).abs() > 1e-5).float().mean()) < 4e-3
    assert not made().random
    assert (made().budgets * made().budget_step, made().steps, made().step_size) == (40, 5, 4)


def test_the_largest_budget_is_tried(install: Callable[..., None]) -> None:
    install()
    x = toy.images(6, 12)
    wanted, chosen = by_hand(TwoViews(), x, budgets=1, steps=2)
    assert set(chosen) == {1}
    found = made(", budgets=1, steps=2").purify(x, toy.image_rng(6))
    assert float(((found - wanted).abs() > 1e-5).float().mean()) < 4e-3


def test_an_image_that_is_best_stays_as_it_is(install: Callable[..., None]) -> None:
    install()
    x = toy.images(2, 8)
    x = (x + x.flip(3)) / 2  # its own mirror image: loss 0
    assert torch.allclose(made().purify(x, toy.image_rng(2)), x, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch(install: Callable[..., None]) -> None:
    install()
    x = toy.images(4, 12)
    together = made(", budgets=3").purify(x, toy.image_rng(4))
    assert torch.equal(together[1:2], made(", budgets=3").purify(x[1:2], toy.image_rng(1)))


def test_its_gradient_is_that_of_finite_differences(install: Callable[..., None]) -> None:
    """Also at pixels whose change ended at black or white, or left and came back."""

    def double() -> TwoViews:
        task = TwoViews()
        task.net.double()
        return task

    install(double)
    x = (toy.images(2, 6).double() * 1.3 - 0.15).clamp(0.001, 0.999).requires_grad_()
    weight = toy.random(2, 3, 6, 6).double()
    entry = made(", budgets=4")
    out = entry.purify(x, toy.image_rng(2))
    (found,) = torch.autograd.grad((out * weight).sum(), x)
    near = ((x - x.round()).abs() < 16 / 255).flatten()  # black or white, which they may reach
    for index in [*near.nonzero()[:, 0].tolist(), *range(0, x.numel(), 20)]:
        moved = torch.zeros(x.numel(), dtype=torch.float64)
        moved[index] = 1e-7
        up, down = (entry.purify(x.detach() + s * moved.view(x.shape), toy.image_rng(2)) for s in (1, -1))
        slope = float(((up - down) * weight).sum()) / 2e-7
        assert abs(slope - float(found.flatten()[index])) < 1e-5
    assert 5 < int((found == 0).sum()) < 50
    assert torch.equal(found[found != 0], weight[found != 0])
    identity = entry.straight_through(x, toy.image_rng(2))
    assert torch.allclose(identity, out)
    (straight,) = torch.autograd.grad((identity * weight).sum(), x)
    assert torch.equal(straight, weight)


def test_what_it_needs_is_said() -> None:
    with pytest.raises(BadModelError, match=r"trained with a self-supervised task.*auxiliary_loss.*network=mine/net"):
        registry.defense.resolve("soap").value.resolved()


def test_a_network_without_the_task_is_refused(install: Callable[..., None]) -> None:
    install(toy.conv)
    with pytest.raises(BadModelError, match="toy/two-views has no method auxiliary_loss"):
        made().resolved()


class Wrong(TwoViews):
    """A task that returns something else."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def auxiliary_loss(self, x: Tensor) -> Any:
        return self.change(super().auxiliary_loss(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss: loss.mean(), r"returned \[\] for 2 images, expected float \[2\]"),
        (lambda loss: 1.0, "returned float for 2 images"),
        (lambda loss: loss * torch.nan, "is not finite"),
        (lambda loss: loss.detach(), "is not differentiable"),
    ],
)
def test_losses_are_checked(change: Callable[[Tensor], Any], says: str, install: Callable[..., None]) -> None:
    install(lambda: Wrong(change))
    with pytest.raises(RdpBenchError, match=says):
        made().purify(toy.images(2, 8), toy.image_rng(2))


def test_the_key_is_that_of_the_network(install: Callable[..., None]) -> None:
    class Other(TwoViews):
        def record(self) -> dict[str, Any]:
            return {"weights": "others"}

    install()
    one = registry.identity(registry.defense.resolve(f"soap(network={NAME})"))
    install(Other)
    other = registry.identity(registry.defense.resolve(f"soap(network={NAME})"))
    assert one["params"]["network"]["params"] == {"toy": NAME}
    assert other["params"]["network"]["params"] == {"weights": "others"}


def test_on_another_device(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    x = toy.images(2, 8)
    here = made(", budgets=2").purify(x, toy.image_rng(2))
    with far.device(monkeypatch) as device:
        there = made(", budgets=2").purify(x.to(device), ImageRng(["0", "1"], device))
        assert there.device.type == device
        assert torch.equal(there.cpu(), here)


GRID = """
title = "Soap"
[axes]
attacks = ["pgd(steps=2)"]
defenses = ["none", "soap(network=mine/net, budgets=2)"]
eps = [8]
[profile.embedded]
dataset = "mine/stripes(count=20)"
sources = ["white-box", "bpda(soap(network=mine/net, budgets=1), mine/net)"]
targets = ["mine/net"]
"""


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "soap_network.py"
    shutil.copy(ROOT / "docs" / "examples" / "soap_network.py", plugin)
    layers = nn.ModuleList(
        [
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 32, 3)),
            nn.Linear(512, 10),
            nn.Linear(512, 4),
        ]
    )
    state = {name: toy.random(*tensor.shape) * 0.05 for name, tensor in layers.state_dict().items()}
    torch.save(state, tmp_path / "rotation_net.pth")
    with new_process():
        runs = GridRuns.make(tmp_path, monkeypatch, GRID, plugin, ROOT / "docs" / "examples" / "small.py")
        runs.done("--limit", 2)
    rows = runs.rows()
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"done"}
