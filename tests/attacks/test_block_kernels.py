"""Transforms of blocks and spectra against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats
import torch

from rdp_bench.attacks._kernels import block_changes
from rdp_bench.attacks._kernels.block_changes import CHANGES, Draw, change_blocks
from rdp_bench.attacks._kernels.blocks import rotated_blocks, strips, truncated_normal
from rdp_bench.attacks._kernels.cosine import dct, inverse_dct
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.errors import UsageError
from tests.helpers import toy


def test_the_cosine_transform_is_scipys() -> None:
    x = toy.random(2, 3, 9, 14)
    wanted = scipy.fft.dctn(x.double().numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(dct(x).numpy() - wanted).max() < 1e-5
    assert float((inverse_dct(dct(x)) - x).abs().max()) < 1e-5


def test_strips_are_a_permutation_of_random_lengths() -> None:
    cut = strips(31, 3, toy.image_rng(200))
    pixels = cut.source + torch.arange(31) - cut.first
    assert torch.equal(pixels.sort(1).values, torch.arange(31).expand(200, 31))
    orders = {tuple(dict.fromkeys(row.tolist())) for row in cut.source}
    assert len({tuple(row.tolist()) for row in pixels}) > 80
    assert len(orders) > 100
    moved = (pixels != torch.arange(31)).any(1).float().mean()
    assert 0.7 < float(moved) < 0.95  # 5 of 6 orders of three strips are not the identity


def test_rotated_blocks_are_scipys_rotations() -> None:
    n, size, count = 4, 21, 2
    x, rng = toy.images(n, size), toy.image_rng(n)
    rows, columns = strips(size, count, rng), strips(size, count, rng)
    angles = 0.4 * truncated_normal(rng, count, count)
    found = rotated_blocks(x, rows, columns, angles).double().numpy()
    for k in range(n):
        for i in rows.block[k].unique().tolist():
            for j in columns.block[k].unique().tolist():
                ys, xs = (rows.block[k] == i).nonzero()[:, 0], (columns.block[k] == j).nonzero()[:, 0]
                top, left = int(rows.source[k, ys[0]]), int(columns.source[k, xs[0]])
                h, w, a = len(ys), len(xs), float(angles[k, i, j])
                block = x[k, :, top : top + h, left : left + w].double().numpy() - 0.5
                turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
                centre = np.array([(h - 1) / 2, (w - 1) / 2])
                wanted = [
                    scipy.ndimage.affine_transform(
                        channel, turn, centre - turn @ centre, order=1, mode="grid-constant", cval=0
                    )
                    for channel in block
                ]
                part = found[k][:, ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] - 0.5
                assert np.abs(part - np.array(wanted)).max() < 1e-5


def test_truncated_normal() -> None:
    draws = truncated_normal(toy.image_rng(40), 100).flatten().numpy()
    assert np.abs(draws).max() <= 2
    assert scipy.stats.kstest(draws, scipy.stats.truncnorm(-2, 2).cdf).pvalue > 0.01


def test_one_block_without_rotation_changes_nothing() -> None:
    x, y = toy.images(3, 24), torch.arange(3)
    source = toy.source(toy.conv())
    plain = compose("MI|I(3)")(source, x, y, 16 / 255, toy.image_rng(3))
    shuffled = compose("MI|I(3)|BSR(2, blocks=1, angle=0)")(source, x, y, 16 / 255, toy.image_rng(3))
    assert float(((plain - shuffled).abs() > 1e-5).float().mean()) < 1e-3


def block_draw(unit: float, height: int, width: int) -> Draw:
    return Draw(unit, torch.tensor([0.05, 0.1, 0.9]), 2 * toy.images(1, 40, seed=5)[0][:, :height, :width] - 1)


def test_the_ten_changes() -> None:
    height, width, unit = 11, 14, 0.63
    block, draw = toy.images(1, 40)[0][:, :height, :width], block_draw(unit, height, width)
    b = block.double().numpy()
    spectrum = scipy.fft.dctn(b, axes=(1, 2))
    spectrum[:, -int(height * 0.4) :, :] = 0
    spectrum[:, :, -int(width * 0.4) :] = 0
    small = torch.nn.functional.interpolate(block[None], (int(height * 0.8) + 1, int(width * 0.8) + 1), mode="bilinear")
    wanted = {
        "resize": torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0].double().numpy(),
        "shift_rows": np.roll(b, int(unit * height), 1),
        "shift_columns": np.roll(b, int(unit * width), 2),
        "flip_rows": b[:, ::-1],
        "flip_columns": b[:, :, ::-1],
        "rotate": np.rot90(b, 2, (1, 2)),
        "scale": b * unit,
        "add_noise": np.clip(b + 16 / 255 * draw.noise.double().numpy(), 0, 1),
        "low_pass": scipy.fft.idctn(spectrum, axes=(1, 2)),
        "drop_channels": np.stack([0 * b[0], b[1] / 0.9, b[2] / 0.9]),
    }
    assert [change.__name__ for change in CHANGES] == list(wanted)
    for change in CHANGES:
        found = change(block, draw).double().numpy()
        assert np.abs(found - wanted[change.__name__]).max() < 1e-5, change.__name__
        assert np.abs(found - b).max() > 0.05, change.__name__


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (3, 1)])
def test_blocks_of_a_few_pixels_are_changed_too(change: block_changes.Change, height: int, width: int) -> None:
    found = change(toy.images(1, 40)[0][:, :height, :width], block_draw(0.99, height, width))
    assert found.shape == (3, height, width)
    assert torch.isfinite(found).all()


def test_blocks_are_cut_at_random_and_each_is_changed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1, 1000))
    monkeypatch.setattr(block_changes, "CHANGES", (lambda block, _: torch.full_like(block, next(numbers)),))
    found = change_blocks(toy.images(30, 20), 3, toy.image_rng(30))
    sizes = set()
    for k, image in enumerate(found):
        assert image.unique().tolist() == list(range(9 * k + 1, 9 * k + 10))
        sizes.add(int((image == 9 * k + 1).sum()))
    assert len(sizes) > 8


def test_every_change_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tuple(lambda block, _, number=number: torch.full_like(block, number) for number in range(10))
    monkeypatch.setattr(block_changes, "CHANGES", marks)
    found = change_blocks(toy.images(200, 6), 1, toy.image_rng(200))[:, 0, 0, 0]
    counts = found.long().bincount(minlength=10).tolist()
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_more_blocks_than_pixels_are_refused() -> None:
    with pytest.raises(UsageError, match="9 x 9 blocks need images of at least 9 pixels"):
        change_blocks(toy.images(1, 8), 9, toy.image_rng(1))
