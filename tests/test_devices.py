"""The whole library on a device that is not the CPU: nothing is left behind, and no bit differs.

`far` plays the device. Attacks, defenses, gradients through defenses, trainers and a run of the command line do there
what they do here.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Generator, Tensor

from rdp_bench import environment, plugins, registry
from rdp_bench.cli.main import main
from rdp_bench.engine import tasks
from rdp_bench.models import zoo
from rdp_bench.numerics import fixed_layers, resizing
from rdp_bench.numerics.determinism import ordered_sums
from rdp_bench.rng import ImageRng
from rdp_bench.train import loop, recipes
from tests.helpers import far, toy, toy_train
from tests.helpers.golden_outputs import SMALLER

plugins.load()
PLUGIN = Path(__file__).parent / "plugin" / "tiny.py"
SEEDS = ["a", "b", "c"]
STEPS = {
    "fgsm": "", "sini-tidim": "(steps=1)", "si-ni-fgsm": "(steps=1)", "ssp": "(steps=2, level=1)", "noise": "",
    "square": "(queries=5)", "ilpd": "(steps=2, decay_layer=1)", "vmi-fgsm": "(steps=2, variance_samples=2)",
    "vni-fgsm": "(steps=2, variance_samples=2)", "gra": "(steps=2, relevance_samples=2)",
    "pgn": "(steps=2, flat_samples=2)", "ssa": "(steps=2, spectrum_copies=2)", "bsr": "(steps=2, shuffle_copies=2)",
    "sia": "(steps=2, structure_copies=2)", "svre-mi-fgsm": "(steps=2, reduction_steps=1)",
}  # fmt: skip
HOOKED = {"ilpd": lambda: toy.network(6), "tgr": lambda: toy.transformer(40, 6), "sgm": lambda: toy.transformer(40, 6)}
"""The networks of attacks that hook into layers."""
WEIGHTLESS = ("nrp-resg", "soap")
"""Defenses without a network of their own; `soap` is tested in tests/defenses/test_soap.py."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    toy_train.install(monkeypatch.setitem)
    with far.device(monkeypatch) as name:
        yield name


# --- the device itself ---


def test_the_device_notices(device: str) -> None:
    here, there = torch.ones(2), torch.ones(2, device=device)
    assert there.device.type == device
    assert torch.equal((there + there).cpu(), torch.tensor([2.0, 2.0]))
    assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0]  # one number may come from anywhere
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        there + here
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        there[[1, 0]] = here
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


def test_the_device_differentiates(device: str) -> None:
    leaf = torch.tensor([1.0, 3.0], device=device).requires_grad_()
    (slope,) = torch.autograd.grad((leaf**2).sum(), leaf)
    assert slope.device.type == device
    assert slope.tolist() == [2.0, 6.0]


# --- what runs on it ---


def crafted(attack: str, label: str, x: Tensor, device: str) -> Tensor:
    if make := HOOKED.get(attack.partition("(")[0]):
        source = toy.source(toy.Wrapped(make().to(device), 6))
    else:
        source = zoo.find_source(label, {"both": ["toy/one", "toy/two"]}).load(device)
    y = torch.tensor([0, 3, 5], device=device)
    adv: Tensor = registry.attack.resolve(attack).value(source, x.to(device), y, 16 / 255, ImageRng(SEEDS, device))
    assert adv.device.type == device
    return adv.cpu()


def builtin(entries: registry.Registry[Any]) -> list[str]:
    """Names of the package's own entries: those of plugins that other tests loaded have a slash."""
    return sorted(name for name in entries.entries if "/" not in name)


@pytest.mark.parametrize("name", builtin(registry.attack))
def test_attacks(name: str, device: str) -> None:
    attack, x = name + STEPS.get(name, "(steps=2)"), toy.images(3, 40)
    found = crafted(attack, "both", x, device)
    assert torch.equal(found, crafted(attack, "both", x, "cpu"))
    assert (found - x).abs().max() > 1 / 255


TABLE_1 = ["fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"]


@pytest.mark.parametrize("source", ["toy/one", "both"])
@pytest.mark.parametrize("name", TABLE_1)
def test_no_step_waits_for_the_host(name: str, source: str, device: str) -> None:
    """The attacks of Table 1: three steps wait as often as one."""

    def waits(steps: int) -> dict[str, int]:
        far.waits.clear()
        crafted(name if name == "fgsm" else f"{name}(steps={steps})", source, toy.images(3, 40), device)
        return dict(far.waits)

    waits(1)  # kernels and matrices that are kept
    once = waits(1)
    assert once  # images, labels and draws go there, and the result comes back
    assert waits(3) == once


def test_waiting_is_counted(device: str) -> None:
    there = torch.arange(4, device=device)
    far.waits.clear()
    assert int(there.max()) == 3
    there[there > 1]
    there[torch.tensor([0])]
    there.cpu()
    there + 1
    assert sum(far.waits.values()) == 4


@pytest.mark.parametrize("attack", ["torchattacks:PGD(steps=2)", "torchattacks:MIFGSM(steps=2)"])
def test_foreign_attacks(attack: str, device: str) -> None:
    pytest.importorskip("torchattacks")
    x = toy.images(3, 40)
    assert torch.equal(crafted(attack, "toy/one", x, device), crafted(attack, "toy/one", x, "cpu"))


@pytest.mark.parametrize(
    "label",
    ["exact(r&p, toy/one, 2)", "bpda(jpeg, toy/one)", "bpda(fd, toy/one)", "adaptive(rdp(dynamic=true), toy/one)"],
)
def test_gradients_through_defenses(label: str, device: str) -> None:
    found = crafted("dim(steps=2)", label, toy.images(3, 40), device)
    assert torch.equal(found, crafted("dim(steps=2)", label, toy.images(3, 40), "cpu"))


def test_a_real_network(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its resizing, folded layers and fused input diversity, as a device without oneDNN computes them."""
    monkeypatch.setattr(fixed_layers, "AVAILABLE", False)
    monkeypatch.setattr(resizing, "fits", lambda _: False)
    source, x = "effnet-lite0", toy.images(3, 64)
    found = crafted("dim(steps=1)", source, x, device)
    assert torch.equal(found, crafted("dim(steps=1)", source, x, "cpu"))


@pytest.mark.parametrize("name", [name for name in builtin(registry.defense) if name not in WEIGHTLESS])
def test_defenses(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_layers, "AVAILABLE", False)
    x = toy.images(3, 48)

    def purified(where: str) -> Tensor:
        with torch.no_grad():
            found: Tensor = registry.defense.resolve(SMALLER.get(name, name)).value.purify(
                x.to(where), ImageRng(SEEDS, where)
            )
        assert found.device.type == where
        return found.cpu()

    assert torch.equal(purified(device), purified("cpu"))


@pytest.mark.parametrize("label", ["wavelet(jpeg=0)", "fd", "pixel-deflection", "r&p", "bit-red", "tvm"])
def test_a_batch_takes_as_many_kernels_as_an_image(label: str, device: str) -> None:
    defense = registry.defense.resolve(label).value

    def calls(n: int) -> dict[str, int]:
        rng = ImageRng([str(i) for i in range(n)], device)
        there = toy.images(n, 40).to(device)
        far.calls.clear()
        with torch.no_grad():
            defense.purify(there, rng)
        return dict(far.calls)

    calls(2)  # networks and matrices that are kept
    two = calls(2)
    assert sum(two.values()) >= 3
    assert calls(7) == two


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernels that torch has for devices it knows."""
    adam, clip = torch.optim.Adam, torch.nn.utils.clip_grad_norm_
    slow = {"foreach": False}
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **kw: adam(*args, **{**kw, **slow, "fused": False}))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **kw: clip(*args, **{**kw, **slow}))
    monkeypatch.setattr(loop, "Generator", lambda *_: Generator())


@pytest.mark.parametrize("attack", ["paper", "wide"])
@pytest.mark.parametrize("name", toy_train.NAMES)
def test_trainers(name: str, attack: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)

    def trained(where: str) -> dict[str, Tensor]:
        kind = recipes.get(name)
        training = loop.Training(
            kind(kind.settings("tiny", {} if "attack" in kind.without_effect else {"attack": attack}), where),
            toy_train.photos(),
            tmp_path / where,
        )
        for step in range(2):
            training.step(training._crops(step))
        assert not training.skipped
        return {key: value.cpu() for key, value in toy_train.states(training).items()}

    assert toy_train.same(trained(device), trained("cpu"))


def test_a_run(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line to its sheet, restoration included."""
    monkeypatch.setattr(environment, "choose_device", lambda asked: asked)
    monkeypatch.setitem(tasks.BATCH, device, 5)
    grid = tmp_path / "tiny.toml"
    grid.write_text(
        '[axes]\nattacks = ["fgsm", "pgd-targeted(steps=2)"]\ndefenses = ["none", "jpeg", "r&p"]\neps = [16]\n'
        'clean = true\nimage_quality = true\ndataset = "tiny/noise"\n'
        'sources = ["tiny/one", "white-box(2)"]\ntargets = ["tiny/two"]\n'
    )

    columns = ("source", "attack", "defense", "metric", "status", "value")

    def cells(where: str) -> list[list[str]]:
        out = tmp_path / where
        found = CliRunner().invoke(
            main,
            [
                "run",
                "--grid",
                str(grid),
                "--plugin",
                str(PLUGIN),
                "--device",
                where,
                "--defense-samples",
                "3",
                "--out",
                str(out),
            ],
            env={"RDP_BENCH_CACHE": str(tmp_path / "cache")},
        )
        assert found.exit_code == 0, found.output
        with (out / "results.csv").open() as file:
            return [[row[name] for name in columns] for row in csv.DictReader(file)]

    found = cells(device)
    assert {status for *_, status, _ in found} == {"done"}
    assert found == cells("cpu")


def test_sums_are_ordered_on_a_gpu_only_and_only_while_a_job_is_done() -> None:
    def now() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = now()
    for device, inside in (("cuda:1", (True, True)), ("cpu", before)):
        with ordered_sums(device):
            assert now() == inside
        assert now() == before
