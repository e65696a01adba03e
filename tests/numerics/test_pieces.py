"""A batch that is computed in pieces: fewer images at a time, and the same bits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rdp_bench import plugins, registry
from rdp_bench.attacks import _pieces
from rdp_bench.models import zoo
from rdp_bench.models.classifier import PixelClassifier
from rdp_bench.numerics import pieces, precision
from rdp_bench.numerics.fixed_layers import fix_layers
from rdp_bench.rng import ImageRng
from tests.helpers import toy
from tests.numerics.test_fixed_layers import photos

plugins.load()
N = 5


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images networks saw at a time."""
    counts: list[int] = []
    monkeypatch.setattr(pieces, "CRAFTED", 6)
    monkeypatch.setattr(pieces.size, "__defaults__", (pieces.USUAL, 3))
    usual = PixelClassifier.logits_of_input

    def count(self: PixelClassifier, x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            net = self.net.forward
            patch.setattr(self.net, "forward", lambda part: counts.append(len(part)) or net(part))
            return usual(self, x)

    monkeypatch.setattr(PixelClassifier, "logits_of_input", count)
    return counts


@pytest.mark.parametrize(
    ("attack", "label", "at_once"),
    [
        ("dim(steps=2)", "effnet-lite0+effnet-lite1+effnet-lite2", 2),
        ("pgd-targeted(steps=1)", "effnet-lite0+effnet-lite1+effnet-lite2", 2),
        ("mi-fgsm(steps=2)", "effnet-lite0", 4),
    ],
)
def test_a_source_is_differentiated_in_pieces(
    attack: str, label: str, at_once: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input sizes that are odd, labels that the source predicts, random streams."""
    if at_once == 4:
        monkeypatch.setattr(pieces, "CRAFTED", at_once)
    source, (x, y) = zoo.find_source(label, {}).load("cpu"), photos(N)
    made = registry.attack.resolve(attack).value

    def crafted() -> Tensor:
        seen.clear()
        found: Tensor = made(source, x.clone(), y, 16 / 255, ImageRng([str(i) for i in range(N)]))
        return found

    found = crafted()
    assert max(seen) == at_once  # six images of a network, for three networks; four of one
    with pieces.using(N):
        assert torch.equal(found, crafted())
    assert max(seen) > at_once


@pytest.mark.parametrize("defense", ["sr", "hgd", "rdp", "comdefend"])
def test_purifying_and_judging_in_pieces(defense: str, seen: list[int]) -> None:
    model, (x, _) = zoo.find("effnet-lite2-ens").load("cpu"), photos(4)
    purifier = registry.defense.resolve(defense).value

    def judged() -> Tensor:
        seen.clear()
        with torch.no_grad():
            purified = purifier.purify(x.clone(), ImageRng([""] * 4))
            found: Tensor = model(purified, purified.shape[-1] / x.shape[-1])
        return found

    found = judged()
    assert max(seen) == (1 if defense == "sr" else 3)  # enlarged images have four times the pixels
    with pieces.using(4):
        assert torch.equal(found, judged())
    assert max(seen) == 4


def test_matrix_products_get_the_whole_batch() -> None:
    assert pieces.independent(fix_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2))))
    assert not pieces.independent(fix_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4))))
    assert not pieces.independent(nn.MultiheadAttention(4, 2))


def test_what_is_computed_at_once() -> None:
    x = torch.empty(20, 3, 299, 299)
    assert pieces.size(x) == pieces.AT_ONCE
    assert pieces.size(torch.empty(20, 3, 598, 598, device="meta").new_empty(1, 3, 598, 598, device="cpu")) == 2
    assert pieces.size(x.to("meta")) is None
    with precision.using("bfloat16"):
        assert pieces.size(x) is None
    with pieces.using(64):
        assert pieces.size(x) is None


def test_parts_that_need_the_batch_get_it() -> None:
    """A part that is not known to work in pieces, and a member that has none."""
    source, (x, y) = zoo.find_source("effnet-lite0+effnet-lite1", {}).load("cpu"), photos(2)
    asked: list[int | None] = []
    usual = _pieces.size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CRAFTED", 2)
        patch.setattr(_pieces, "size", lambda *args: asked.append(usual(*args)) or asked[-1])
        for attack in ("fgsm", "I(1)|MI|VT(variance_samples=1)"):
            registry.attack.resolve(attack).value(source, x.clone(), y, 16 / 255, ImageRng(["a", "b"]))
    assert asked[0] == 1
    assert set(asked[1:]) == {None}


def test_batches_of_a_gpu_have_few_sizes_and_the_same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = zoo.find("effnet-lite0").load("cpu")
    x, seen = toy.images(11, 32), []

    def gradient() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), leaf)[0]

    usual = gradient()
    monkeypatch.setattr(pieces, "_on_gpu", lambda _: True)
    with monkeypatch.context() as patched:
        real = pieces.computed
        patched.setattr(pieces, "computed", lambda net, x, n: (seen.append(len(x)), real(net, x, n))[1])
        for one, two in zip(usual, gradient(), strict=True):
            assert torch.allclose(one, two, atol=1e-5)
    assert seen == [16]
    assert [len(pieces.filled(torch.zeros(n, 1))) for n in (1, 7, 8, 9, 16, 62)] == [1, 7, 8, 16, 16, 64]
