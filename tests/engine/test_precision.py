"""--precision: what it changes, what it leaves, what it is refused for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rdp_bench
from rdp_bench import registry
from rdp_bench.cache.store import Store
from rdp_bench.engine import precision as rules
from rdp_bench.engine.plan import make_plan
from rdp_bench.errors import UsageError
from rdp_bench.keys import key_of
from rdp_bench.models import zoo
from rdp_bench.numerics import precision
from rdp_bench.rng import ImageRng
from tests.helpers import plans, toy
from tests.helpers.commands import PLUGIN


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_has_bfloat16", lambda: True)


def test_gradients_and_purifiers_are_lowered_and_decisions_are_not() -> None:
    model, rdp, x = zoo.find("effnet-lite0").load("cpu"), registry.defense.resolve("rdp").value, toy.images(2, 64)

    def seen(name: str) -> tuple[torch.Tensor, ...]:
        with precision.using(name):
            leaf = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)
            with torch.no_grad():
                return grad, rdp.purify(x.clone(), ImageRng(["", ""])), model(x)

    usual, low = seen("float32"), seen("bfloat16")
    assert all(one.dtype == torch.float32 for one in low)
    for one, two in zip(usual[:2], low[:2], strict=True):
        assert not torch.equal(one, two)
        assert torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.9
    assert torch.equal(usual[2], low[2])
    for one, two in zip(usual, seen("float32"), strict=True):
        assert torch.equal(one, two)


def test_settings_of_torch_are_restored() -> None:
    torch.backends.cudnn.allow_tf32 = False
    with precision.using("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_it_is_part_of_keys_unless_it_is_float32(tmp_path: Path) -> None:
    from dataclasses import replace

    plan = plans.plan(tmp_path)
    low = replace(plan, precision="bfloat16")
    for one, two in zip(plan.jobs, low.jobs, strict=True):
        assert one.key != two.key
        assert "precision" not in one.record
    assert {key_of(record) for job in plan.jobs for record in job.records}.isdisjoint(
        key_of(record) for job in low.jobs for record in job.records
    )


@pytest.mark.parametrize(
    ("name", "device", "crafts", "defenses", "why"),
    [
        ("float16", "cpu", True, (), "expected one of float32, tf32, bfloat16"),
        ("tf32", "cpu", True, ("rdp",), "NVIDIA"),
        ("bfloat16", "cpu", False, ("none", "jpeg"), "this run has neither"),
        ("bfloat16", "cuda", False, ("jpeg >> tvm",), "this run has neither"),
        ("bfloat16", "cuda", False, ("diffpure", "fixed(dds)", "jpeg >> denoiser"), "this run has neither"),
    ],
)
def test_what_has_no_effect_is_refused(
    name: str, device: str, crafts: bool, defenses: tuple[str, ...], why: str, native: None
) -> None:
    with pytest.raises(UsageError, match=why):
        rules.check(name, device, [registry.defense.resolve(each).value for each in defenses], crafts=crafts)


def test_what_has_an_effect_is_not(native: None) -> None:
    for name, device, defenses in (
        ("tf32", "cuda:1", ()),
        ("bfloat16", "cpu", ("jpeg >> rdp",)),
        ("bfloat16", "cpu", ("fixed(nrp(dynamic=true))",)),
        ("float32", "cpu", ()),
    ):
        rules.check(name, device, [registry.defense.resolve(each).value for each in defenses], crafts=False)


def test_a_processor_without_the_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model name: x\nflags\t\t: fpu avx512f avx512_bf16\n")
    assert rules._has_bfloat16(file)
    file.write_text("Features : fp asimd\n")
    assert not rules._has_bfloat16(file)
    assert rules._has_bfloat16(tmp_path / "none")
    monkeypatch.setattr(rules, "_has_bfloat16", lambda: False)
    with pytest.raises(UsageError, match="slower"):
        rules.check("bfloat16", "cpu", (), crafts=True)


def test_the_record_states_it(tmp_path: Path, native: None) -> None:
    from click.testing import CliRunner

    from rdp_bench.cli.main import main

    flags = ["--plugin", str(PLUGIN), "--dataset", "tiny/noise", "--source", "tiny/one", "--target", "tiny/two"]
    flags += ["--attack", "fgsm", "--defense", "none,rdp", "--limit", "2", "--out", str(tmp_path / "out")]
    env = {"RDP_BENCH_CACHE": str(tmp_path / "cache")}
    found = CliRunner().invoke(main, ["run", "table1", *flags, "--precision", "bfloat16"], env=env)
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "out" / "runs" / "table1.json").read_text())
    assert record["precision"] == "bfloat16"


def test_code_that_set_tf32_in_the_newer_way_is_respected() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has one way to set TF32")
    script = """
import torch
from rdp_bench.numerics import precision
operations = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
for operation in operations:
    operation.fp32_precision = "tf32"
with precision.using("float32"):
    print(*(operation.fp32_precision for operation in operations))
with precision.using("tf32"), precision.exactly():
    print(*(operation.fp32_precision for operation in operations))
print(*(operation.fp32_precision for operation in operations))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["ieee"] * 6 + ["tf32"] * 3


def test_what_is_no_network_is_exact_in_a_run_with_tf32() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with precision.using("tf32"):
        with precision.exactly():
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)


def test_calls_in_python_compute_as_a_run_does() -> None:
    cudnn = torch.backends.cudnn
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
        return x

    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = False, True
    try:
        rdp_bench.load_defense(look)(toy.images(2, 8))
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    finally:
        cudnn.deterministic, cudnn.benchmark = before
    assert set(seen) == {(False, True, False)}


@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
def test_gpus_before_ampere_have_neither(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_capability", lambda _: (7, 5))
    with pytest.raises(UsageError, match=r"compute capability 7\.5"):
        rules.check(name, "cuda", (), crafts=True)
    monkeypatch.setattr(rules, "_capability", lambda _: (8, 0))
    rules.check(name, "cuda", (), crafts=True)


def test_bfloat16_changes_no_network_of_a_plugin(tmp_path: Path, native: None) -> None:
    grid, store = plans.plan(tmp_path).grid, Store(tmp_path / "cache")
    with pytest.raises(UsageError, match="this run has neither"):
        make_plan(grid, store, seed=0, device="cpu", limit=None, models_dir=None, precision="bfloat16")


def test_gradients_of_feature_maps_are_lowered_too() -> None:
    """SSP differentiates feature maps: the key of its images says bfloat16."""
    model: Any = zoo.find("effnet-lite0").load("cpu")
    found = []
    for name in ("float32", "bfloat16"):
        leaf = toy.images(2, 64).requires_grad_()
        with precision.using(name):
            (last,) = model.features(leaf)
            found.append(torch.autograd.grad(last.square().sum(), leaf)[0])
            assert last.dtype == torch.float32
    assert not torch.equal(*found)
    assert torch.nn.functional.cosine_similarity(found[0].flatten(), found[1].flatten(), dim=0) > 0.9
