"""Calls of users' classifiers: every optional method gets a copy, and its logits are checked."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdp_bench import plugins, registry, torch_settings
from rdp_bench.api.wrap import as_defense
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.entry_calls import (
    checked,
    device_failed,
    is_out_of_memory,
    naming_entry,
    not_even_one,
    written_elsewhere,
)
from tests.helpers import toy
from tests.helpers.commands import PLUGIN

OPTIONAL = {"stochastic_logits": 1, "logits_of_gathered": 2}  # name -> arguments after the images


class Careless:
    """Writes into its input, and returns `out` from every method."""

    name = "mine/careless"
    classes = 3

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        x.zero_()
        return self.out

    stochastic_logits = logits_of_gathered = __call__

    def record(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("method", OPTIONAL)
def test_an_optional_method_gets_a_copy(method: str) -> None:
    x = torch.rand(2, 3, 4, 4)
    before = x.clone()
    logits = getattr(checked(Careless(torch.ones(2, 3)), "mine/careless"), method)(x, *[None] * OPTIONAL[method])
    assert torch.equal(x, before)
    assert torch.equal(logits, torch.ones(2, 3))


@pytest.mark.parametrize("method", OPTIONAL)
def test_the_logits_of_an_optional_method_are_checked(method: str) -> None:
    model = checked(Careless(torch.ones(2, 4)), "mine/careless")
    with pytest.raises(RdpBenchError, match=rf"{method} of model 'mine/careless' returned shape \[2, 4\]"):
        getattr(model, method)(torch.rand(2, 3, 4, 4), *[None] * OPTIONAL[method])


@pytest.mark.parametrize(
    "text",
    [
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_every_way_to_say_that_memory_ran_out(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not device_failed(RuntimeError(text))
    assert text in str(not_even_one("cuda", RuntimeError(text)))


def test_a_failed_gpu_is_seen_through_the_error_that_names_the_entry() -> None:
    with pytest.raises(RdpBenchError) as raised, naming_entry("attack 'x'"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert device_failed(raised.value)
    assert not device_failed(RuntimeError("shape [2] is invalid"))


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), type("Own", (BaseException,), {})("no")])
def test_an_entry_that_exits_fails_like_any_other(error: BaseException) -> None:
    with pytest.raises(RdpBenchError, match=f"defense 'x': {type(error).__name__}"), naming_entry("defense 'x'"):
        raise error


def test_control_c_is_no_fault_of_an_entry() -> None:
    with pytest.raises(KeyboardInterrupt), naming_entry("defense 'x'"):
        raise KeyboardInterrupt


SETTERS: dict[str, Callable[[Path], object]] = {
    "torch's default type": lambda _: torch.set_default_dtype(torch.float64),
    "the gradient mode": lambda _: torch.set_grad_enabled(mode=False),
    "torch's deterministic mode": lambda _: torch.use_deterministic_algorithms(mode=True),
    "torch's default device": lambda _: torch.set_default_device("meta"),
    "autocast": lambda _: torch.autocast("cpu").__enter__(),
    "the precision of matrix products": lambda _: torch.set_float32_matmul_precision("medium"),
    "the current folder": os.chdir,
}


@pytest.mark.parametrize("what", SETTERS)
def test_settings_that_an_entry_changes_fail_it_and_are_restored(what: str, tmp_path: Path) -> None:
    def now() -> tuple[object, ...]:
        modes = torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
        kinds = torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()
        return *modes, *kinds, Path.cwd()

    before = now()
    with pytest.raises(RdpBenchError, match=f"defense 'x' changed {what}"), naming_entry("defense 'x'"):
        SETTERS[what](tmp_path)
    assert now() == before


def test_setting_what_is_set_is_no_change() -> None:
    before = torch_settings.read()
    with naming_entry("defense 'x'"):
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    assert torch_settings.read() == before


def test_draws_do_not_depend_on_the_default_type() -> None:
    before = [toy.image_rng(2).uniform(3), toy.image_rng(2).normal(3)]
    torch.set_default_dtype(torch.float64)
    try:
        now = [toy.image_rng(2).uniform(3), toy.image_rng(2).normal(3)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(before, now, strict=True))


def test_whose_code_a_defense_is() -> None:
    resolve = registry.defense.resolve
    plugins.load((PLUGIN,))
    assert not any(written_elsewhere(resolve(each).value) for each in ("none", "jpeg", "jpeg >> rdp"))
    assert all(written_elsewhere(resolve(each).value) for each in ("tiny/round", "jpeg >> tiny/round"))
    assert written_elsewhere(as_defense("mine", lambda x: x))
