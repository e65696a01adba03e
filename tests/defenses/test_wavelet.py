"""Pixel deflection and the wavelet step that follows it, by hand and against scikit-image."""

import numpy as np
import pytest
import torch

from rdp_bench import plugins
from tests.helpers.training_free import image_rng, made, photo

plugins.load()


def test_deflections_are_copies_from_the_window_one_after_another() -> None:
    entry = made("pixel-deflection(sigma=0.0, deflections=3000)")
    x = torch.arange(3 * 37 * 37).reshape(1, 3, 37, 37) / 5000

    purified = entry.purify(x, image_rng())[0]

    moved = (purified != x[0]).nonzero()
    assert 1000 < len(moved) < 3000
    direct, rows, columns = 0, set(), set()
    for colour, row, column in moved.tolist():
        origin = round(float(purified[colour, row, column]) * 5000)
        from_colour, from_row, from_column = origin // 37**2, origin // 37 % 37, origin % 37
        assert from_colour == colour
        rows.add(from_row)
        columns.add(from_column)
        direct += max(abs(from_row - row), abs(from_column - column)) <= 10
    assert rows == columns == set(range(37))
    # A value copied twice may come from farther; most have been copied once.
    assert len(moved) * 0.6 < direct < len(moved)


def test_two_hundred_values_are_deflected_in_whole_rounds() -> None:
    x = torch.arange(3 * 299 * 299, dtype=torch.float64).reshape(1, 3, 299, 299) / 3e5

    purified = made("pixel-deflection(sigma=0.0)").purify(x, image_rng())

    each = (purified != x).sum((0, 2, 3)).tolist()
    assert all(65 <= k <= 67 for k in each)  # 67 rounds of 3; few meet or copy themselves


def test_deflection_is_followed_by_the_wavelet_step() -> None:
    x = photo()
    raw = made("pixel-deflection(sigma=0.0)").purify(x, image_rng())

    purified = made("pixel-deflection").purify(x, image_rng())

    assert torch.equal(purified, made("wavelet(jpeg=0)").purify(raw, image_rng()))


def haar(signal: list[float]) -> tuple[list[float], list[float]]:
    """One level in one dimension, by hand."""
    even = signal + signal[-1:] * (len(signal) % 2)
    pairs = list(zip(even[::2], even[1::2], strict=True))
    return [(a + b) / 2**0.5 for a, b in pairs], [(a - b) / 2**0.5 for a, b in pairs]


def test_haar_by_hand_and_back() -> None:
    from rdp_bench.defenses._wavelet import join, split

    x = photo(1, 5)[0]
    rows = [[haar(row) for row in colour] for colour in x.double().tolist()]

    mean, down, across, both = split(x)

    for c in range(3):
        for j in range(3):
            low, high = ([r[k][j] for r in rows[c]] for k in (0, 1))
            assert mean[c, :, j].tolist() == pytest.approx(haar(low)[0], abs=1e-6)
            assert down[c, :, j].tolist() == pytest.approx(haar(low)[1], abs=1e-6)
            assert across[c, :, j].tolist() == pytest.approx(haar(high)[0], abs=1e-6)
            assert both[c, :, j].tolist() == pytest.approx(haar(high)[1], abs=1e-6)
    assert torch.allclose(join(mean, down, across, both)[:, :5, :5], x, atol=1e-6)


def test_bayes_shrink_by_hand() -> None:
    from rdp_bench.defenses._wavelet import shrink

    # 2 x 2 tiles a b / a b: one detail band, +-d everywhere, so its power is d^2 exactly.
    sigma, d = 0.04, 0.1
    tile = torch.tensor([[0.5 + d / 2, 0.5 - d / 2]] * 2).repeat(4, 4)[None]

    purified = shrink(tile, sigma)

    threshold = sigma**2 / (d**2 - sigma**2) ** 0.5
    assert torch.allclose(purified[0, 0, :2], torch.tensor([0.5 + (d - threshold) / 2, 0.5 - (d - threshold) / 2]))
    assert torch.allclose(shrink(0.5 + (tile - 0.5) * 0.3, sigma), torch.tensor(0.5))  # below the noise: gone


def test_wavelet_stretches_every_channel_so_that_contrast_does_not_matter() -> None:
    x = (photo(1, 64) + 0.03 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    entry = made("wavelet(jpeg=0)")

    faint = entry.purify(0.5 + 0.1 * (x - 0.5), image_rng())

    inner = entry.purify(x, image_rng()) > 0.02
    inner &= entry.purify(x, image_rng()) < 0.98  # where nothing was clipped
    assert inner.float().mean() > 0.8
    assert torch.allclose(faint[inner], (0.5 + 0.1 * (entry.purify(x, image_rng()) - 0.5))[inner], atol=1e-5)
    assert (entry.purify(x, image_rng()) - x).abs().max() > 0.05


def test_wavelet_depth() -> None:
    from rdp_bench.defenses._wavelet import levels_of

    assert [levels_of(s, s) for s in (8, 16, 32, 224, 299, 512)] == [1, 1, 2, 4, 5, 6]


def test_wavelet_equals_scikit_image_channel_by_channel() -> None:
    pytest.importorskip("pywt", reason="scikit-image needs PyWavelets for its wavelets")
    color = pytest.importorskip("skimage.color")
    restoration = pytest.importorskip("skimage.restoration")
    x = (photo(1, 75) + 0.03 * torch.randn(1, 3, 75, 75, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    ycbcr = color.rgb2ycbcr(x[0].double().permute(1, 2, 0).numpy())
    for c in range(3):
        low, high = ycbcr[..., c].min(), ycbcr[..., c].max()
        clean = restoration.denoise_wavelet(
            (ycbcr[..., c] - low) / (high - low), sigma=0.04, wavelet="haar", method="BayesShrink", rescale_sigma=False
        )
        ycbcr[..., c] = np.clip(clean, 0, 1) * (high - low) + low
    expected = np.clip(color.ycbcr2rgb(ycbcr), 0, 1)

    purified = made("wavelet(jpeg=0)").purify(x, image_rng())

    assert np.abs(purified[0].permute(1, 2, 0).numpy() - expected).max() < 2e-4


def test_wavelet_is_saved_as_jpeg_95() -> None:
    x = photo()
    clean = made("wavelet(jpeg=0)").purify(x, image_rng())

    assert torch.equal(made("wavelet").purify(x, image_rng()), made("jpeg(quality=95)").purify(clean, image_rng()))
    assert (made("wavelet").purify(x, image_rng()) != clean).any()
