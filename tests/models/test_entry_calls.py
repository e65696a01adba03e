"""Calls of users' classifiers: every optional method gets a copy, and its logits are checked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rdp_bench.errors import RdpBenchError
from rdp_bench.models.entry_calls import checked

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
