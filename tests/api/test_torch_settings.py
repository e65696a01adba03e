"""Scripts that have changed torch's settings get the numbers of a run, and keep their settings."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import rdp_bench
from defenses import _learned
from rdp_bench import plugins, torch_settings
from rdp_bench.models import classifier
from rdp_bench.numerics import resizing
from tests.helpers import toy
from tests.helpers.stores import contents

PHOTOS, LABELS = toy.images(2, 40), torch.tensor([1, 2])


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """As in a new process; and nothing of this one is left for other tests."""

    def clear() -> None:
        for kept in (classifier._loaded, _learned._networks()):
            kept.clear()
        for matrices in (resizing.resize_matrix, resizing._transposed):
            matrices.cache_clear()

    clear()
    yield
    clear()


@contextmanager
def during(change: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: during(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: during(torch.set_default_device, "meta", None),
    "device context": lambda: torch.device("meta"),
    "bfloat16 products": lambda: during(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": lambda: during(torch.use_deterministic_algorithms, True, False),
}

if hasattr(torch.backends, "fp32_precision"):  # torch 2.9
    SETTINGS["bfloat16 everywhere"] = lambda: during(partial(setattr, torch.backends, "fp32_precision"), "bf16", "none")


def run(cache: Path) -> tuple[list[float], dict[Any, str]]:
    """Numbers of a run with an empty cache, and the bits of what it stored."""
    found = rdp_bench.evaluate(
        defenses=["none", "rdp", "r&p", "dds"], attacks=["dim(steps=2)", "apgd-ce(steps=2)"], sources="effnet-lite0",
        targets="effnet-lite2-ens", limit=2, image_size=64, eps=16, dataset="photos20", cache=cache, progress=False,
    )  # fmt: skip
    frame = found.to_dataframe()
    assert set(frame["status"]) == {"done"}, set(frame["reason"])
    return [float(value) for value in frame["value"]], contents(cache)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[Any, str]]:
    return run(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_has_the_same_bits_and_leaves_settings(name: str, expected: Any, tmp_path: Path) -> None:
    def now() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return torch_settings.read(), torch.is_inference_mode_enabled(), cudnn.benchmark, cudnn.deterministic

    with SETTINGS[name]():
        before = now()
        found = run(tmp_path)
        assert now() == before
    assert found == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_loaded_parts_are_those_of_a_run(name: str) -> None:
    def outputs() -> list[torch.Tensor]:
        model, defense = rdp_bench.load_model("effnet-lite0"), rdp_bench.load_defense("rdp")
        attack = rdp_bench.load_attack("dim(steps=2)")
        return [defense(PHOTOS), attack(model, PHOTOS, LABELS, 8 / 255)]

    with SETTINGS[name]():
        first = outputs()
    assert not any(tensor.is_inference() for tensor in first)
    for inside, outside in zip(first, outputs(), strict=True):
        assert torch.equal(inside, outside)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_defense_has_a_gradient_where_its_caller_wants_one(gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        purified = rdp_bench.load_defense("rdp")(PHOTOS.clone().requires_grad_())
    assert purified.requires_grad == gradients


@pytest.mark.parametrize("name", ["hgd", "rdp", "dds"])
def test_what_was_loaded_in_inference_mode_has_gradients(name: str) -> None:
    with torch.inference_mode():
        model, defense = rdp_bench.load_model("effnet-lite0"), rdp_bench.load_defense(name)
        judged = model(defense(PHOTOS))
    x = PHOTOS.clone().requires_grad_()
    assert torch.equal(model(defense(PHOTOS)), judged)
    (grad,) = torch.autograd.grad(model(defense(x)).logsumexp(1).sum(), x)
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


def test_what_a_plugin_sets_when_it_is_imported_is_undone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "hasty.py"
    file.write_text(
        "import torch\n"
        "torch.set_grad_enabled(False)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.set_default_device('meta')\n"
        "torch.autocast('cpu').__enter__()\n"
        "torch.set_float32_matmul_precision('medium')\n"
    )
    before = torch_settings.read()
    plugins.load((file,))
    assert torch_settings.read() == before
    (said,) = (record.getMessage() for record in caplog.records)
    assert "hasty.py changed torch's default type and torch's default device and the gradient mode and autocast" in said
