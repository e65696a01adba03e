"""The gradient through a chain of steps against autograd through all of them, with the memory of one step."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from rdp_bench.defenses._replay import Noise, chain
from tests.helpers import toy
from tests.helpers.learned import image_rng

Pair = tuple[Tensor, ...]


def step(i: int, states: Pair, shared: Pair) -> Pair:
    a, b = states
    (guide,) = shared
    return torch.tanh(a + 0.3 * b * guide + i / 10), b * torch.cos(a) + guide**2


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    a, b, guide = (toy.random(2, 3, 4, 4, seed=i).double().requires_grad_() for i in range(3))
    return a, b, guide


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_gradients_equal_those_of_plain_backpropagation(count: int) -> None:
    weights = [toy.random(2, 3, 4, 4, seed=9 + i).double() for i in range(2)]
    a, b, guide = leaves()
    plain: Pair = (a, b)
    for i in range(count):
        plain = step(i, plain, (guide,))
    replayed = chain(step, count, (a, b), (guide,))
    found, expected = (
        torch.autograd.grad(
            sum((w * s).sum() for w, s in zip(weights, of, strict=True)), (a, b, guide), allow_unused=True
        )
        for of in (replayed, plain)
    )
    for one, other, result, wanted in zip(found, expected, (*replayed, None), (*plain, None), strict=False):
        if other is not None:
            assert torch.allclose(one, other, atol=1e-12)
            assert count == 0 or other.abs().max() > 1e-3
        if result is not None:
            assert torch.equal(result, wanted)


def test_only_what_needs_a_gradient_gets_one() -> None:
    a, b, guide = leaves()
    out, _ = chain(step, 3, (a, b.detach()), (guide.detach(),))
    (found,) = torch.autograd.grad(out.sum(), a)
    plain: Pair = (a, b.detach())
    for i in range(3):
        plain = step(i, plain, (guide.detach(),))
    assert torch.allclose(found, torch.autograd.grad(plain[0].sum(), a)[0], atol=1e-12)


def test_a_state_may_be_a_constant() -> None:
    """ADP's second state says which images go on; it depends on the first, but not differentiably."""

    def stopping(_: int, states: Pair, __: Pair) -> Pair:
        x, running = states
        running = running * (x.detach().mean((1, 2, 3)) < 0.4).to(running)
        return x * (1 + 0.1 * running.view(-1, 1, 1, 1)), running

    x = (toy.random(3, 3, 4, 4).double().sigmoid() * torch.tensor([0.2, 0.8, 1]).view(3, 1, 1, 1)).requires_grad_()
    out, running = chain(stopping, 4, (x, torch.ones(3).double()))
    (found,) = torch.autograd.grad(out.sum(), x)
    assert 0 < running.sum() < 3
    assert torch.allclose(found, (out / x).detach(), atol=1e-9)


def alive(count: int, way: Any) -> int:
    """The largest number of tensors that autograd keeps at once, forward and backward."""
    living: set[int] = set()
    most = 0

    def pack(tensor: Tensor) -> Any:
        nonlocal most
        kept = [tensor]

        class Box:
            value = kept

        box = Box()
        living.add(id(box))
        weakref.finalize(box, living.discard, id(box))
        most = max(most, len(living))
        return box

    a, b, guide = leaves()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.value[0]):
        out = way(count, (a, b), (guide,))
        torch.autograd.grad(out[0].sum(), (a, b, guide))
    del out
    gc.collect()
    return most


def test_memory_is_that_of_one_step_whatever_the_number() -> None:
    def plain(count: int, states: Pair, shared: Pair) -> Pair:
        for i in range(count):
            states = step(i, states, shared)
        return states

    assert alive(12, lambda *given: chain(step, *given)) == alive(2, lambda *given: chain(step, *given)) < 20
    assert alive(12, plain) > 4 * alive(2, plain)


def test_second_derivatives_are_refused() -> None:
    a, b, guide = leaves()
    out, _ = chain(step, 2, (a, b), (guide,))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(out.square().sum(), a, create_graph=True)


def test_noise_is_drawn_in_order_and_kept_for_the_backward_pass() -> None:
    like = torch.zeros(2, 3, 4, 4)
    noise, streams = Noise(image_rng(2), like, keep=True), image_rng(2)
    drawn = [noise(i) for i in (-1, 0, 1)]
    for one in drawn:
        assert torch.equal(one, streams.normal(3, 4, 4))
    assert all(torch.equal(noise(i), one) for i, one in zip((-1, 0, 1), drawn, strict=True))
    forgetful = Noise(image_rng(2), like, keep=False)
    assert not torch.equal(forgetful(0), forgetful(0))
