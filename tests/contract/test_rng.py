"""Random streams that belong to images: bounds, uniformity, and nothing shared between neighbours."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import scipy.stats
import torch
from torch import Generator, Tensor

from rdp_bench import rng as streams
from rdp_bench.rng import ImageRng
from tests.helpers import toy


def test_same_seed_same_bits() -> None:
    for kind in ("uniform", "normal"):
        one, two = (getattr(ImageRng(["a", "b"]), kind)(3, 4) for _ in range(2))
        assert torch.equal(one, two)
        assert one.shape == (2, 3, 4)
        assert one.dtype == torch.float32
    assert not torch.equal(ImageRng(["a"]).uniform(8), ImageRng(["b"]).uniform(8))
    assert len(ImageRng(["a", "b", "c"])) == 3


def test_known_bits() -> None:
    """Stored sets stay valid only while these streams do: sha256 of the string, Mersenne Twister, 24 bits."""
    seed = int.from_bytes(hashlib.sha256(b"image").digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(ImageRng(["image"]).uniform(5)[0], torch.rand(5, generator=generator))
    rng = ImageRng(["image"])
    assert [round(v, 6) for v in rng.uniform(2)[0].tolist()] == [0.500854, 0.4684]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_stream_does_not_depend_on_its_neighbours(kind: str) -> None:
    together = [getattr(rng, kind)(4) for rng in [ImageRng(["a", "b", "c"])] for _ in range(3)]
    for i, name in enumerate("abc"):
        alone = ImageRng([name])
        assert all(torch.equal(getattr(alone, kind)(4)[0], step[i]) for step in together)
    turned = ImageRng(["c", "a"])
    assert all(torch.equal(getattr(turned, kind)(4), step[[2, 0]]) for step in together)


def test_equal_strings_give_equal_streams() -> None:
    one, two = ImageRng(["a", "a"]).uniform(5)
    assert torch.equal(one, two)


def test_calls_advance_the_stream() -> None:
    rng = ImageRng(["a"])
    assert not torch.equal(rng.uniform(5), rng.uniform(5))


def test_fork_is_another_stream_and_leaves_this_one() -> None:
    rng = ImageRng(["a", "b"])
    child, again, other = rng.fork("x"), rng.fork("x"), rng.fork("y")
    values = child.uniform(6)
    assert torch.equal(values, again.uniform(6))
    assert not torch.equal(values, other.uniform(6))
    assert torch.equal(rng.uniform(6), ImageRng(["a", "b"]).uniform(6))
    assert not torch.equal(values, ImageRng(["a", "b"]).uniform(6))
    rng.uniform(6)
    assert torch.equal(rng.fork("x").uniform(6), values)  # whatever was drawn in between
    assert len({tuple(row.tolist()) for row in values}) == 2


def test_pick_shares_the_streams() -> None:
    rng, whole = ImageRng(["a", "b", "c"]), ImageRng(["a", "b", "c"])
    first, second = whole.uniform(3), whole.uniform(3)
    part = rng.select(torch.tensor([2, 0]))
    assert len(part) == 2
    assert torch.equal(part.uniform(3), first[[2, 0]])
    after = rng.uniform(3)  # "a" and "c" have advanced, "b" has not
    assert torch.equal(after, torch.stack([second[0], first[1], second[2]]))
    assert torch.equal(part.fork("x").uniform(3), rng.fork("x").select(torch.tensor([2, 0])).uniform(3))


def test_uniform() -> None:
    values = toy.image_rng(20).uniform(2000, low=-0.25, high=0.75)
    assert values.min() >= -0.25
    assert values.max() < 0.75
    assert scipy.stats.kstest(values.flatten().numpy(), scipy.stats.uniform(-0.25, 1).cdf).pvalue > 1e-4
    across = toy.image_rng(5000).uniform()  # one number of each of many streams
    assert across.shape == (5000,)
    assert scipy.stats.kstest(across.numpy(), "uniform").pvalue > 1e-4


def test_normal() -> None:
    values = toy.image_rng(20).normal(2000)
    assert scipy.stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-4
    rows = torch.corrcoef(toy.image_rng(6).normal(5000)) - torch.eye(6)
    assert rows.abs().max() < 0.08  # five sigma


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 5), (299, 330), (-3, 3)])
def test_integers(low: int, high: int) -> None:
    values = toy.image_rng(30).integers(low, high, 400)
    assert values.dtype == torch.int64
    assert values.shape == (30, 400)
    assert sorted(set(values.flatten().tolist())) == list(range(low, high))  # upper end exclusive, all others met
    if high - low > 1:
        assert scipy.stats.chisquare(torch.bincount(values.flatten() - low)).pvalue > 1e-4
    across = toy.image_rng(3000).integers(low, high)
    assert across.shape == (3000,)
    assert sorted(set(across.tolist())) == list(range(low, high))


def test_integers_with_a_bound_an_image() -> None:
    bounds = torch.tensor([1, 2, 5, 31])
    values = toy.image_rng(4).integers(0, bounds, 2000)
    for row, bound in zip(values, bounds.tolist(), strict=True):
        assert sorted(set(row.tolist())) == list(range(bound))
    assert toy.image_rng(4).integers(0, bounds).shape == (4,)
    two = torch.tensor([3, 30])
    assert (toy.image_rng(2).integers(1, two, 500) < two[:, None]).all()


def test_integers_never_reach_the_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for the largest double below 1."""
    almost_one = torch.tensor(1 - 2**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: almost_one)
    for high in (1, 3, 5, 31, 1000, 2**31, 2**53):
        assert int(ImageRng(["a"]).integers(0, high)) == high - 1


def test_the_global_stream_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    rng = toy.image_rng(3)
    rng.uniform(2), rng.normal(2), rng.integers(0, 5), rng.fork("x").uniform()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stream_that_images_share_is_drawn_from_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class LastFirst:
        def map(self, draw: Callable[[Generator], Tensor], streams: Sequence[Generator]) -> Iterator[Tensor]:
            return reversed([draw(stream) for stream in reversed(streams)])

    monkeypatch.setattr(streams, "_drawers", LastFirst)
    here, beside_a_gpu = (
        ImageRng(["a"], device).select(torch.zeros(3, dtype=torch.int64)) for device in ("cpu", "meta")
    )
    monkeypatch.setattr(beside_a_gpu, "_moved", lambda drawn: drawn)
    assert torch.equal(beside_a_gpu.normal(2), here.normal(2))
