"""The shelf of training-free defenses: what every entry promises, and each against something independent."""

import subprocess
import sys
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rdp_bench import plugins
from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense
from rdp_bench.rng import ImageRng

TRAINING_FREE = ["none", "jpeg", "fd", "bit-red", "tvm", "r&p", "r&p-30", "pixel-deflection", "wavelet"]

plugins.load()


def photo(n: int = 1, size: int = 37, seed: int = 0) -> Tensor:
    """Soft shapes with an edge, 8-bit: like a photograph to a codec."""
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    soft = interpolate(noise, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    soft[..., size // 3 : size // 2] *= 0.4
    return (soft * 255).round() / 255


def image_rng(*seeds: str) -> ImageRng:
    return ImageRng(seeds or ["a"])


def made(text: str) -> Purifier:
    value = defense.resolve(text).value
    assert isinstance(value, Purifier)
    return value


# What every entry promises.


@pytest.mark.parametrize("size", [8, 32, 37])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_output_is_an_image_of_the_promised_size(name: str, size: int) -> None:
    entry, x = made(name), photo(2, size)
    before = x.clone()

    purified = entry.purify(x, image_rng("a", "b"))

    assert purified.shape == (2, 3, round(entry.scale * size), round(entry.scale * size))
    assert purified.dtype == torch.float32
    assert 0 <= purified.min() <= purified.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_an_image_gets_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    entry, x = made(name), photo(3)

    together = entry.purify(x, image_rng("a", "b", "c"))

    assert torch.equal(together, entry.purify(x, image_rng("a", "b", "c")))
    for i, seed in enumerate("abc"):
        assert torch.equal(together[i : i + 1], entry.purify(x[i : i + 1], image_rng(seed)))
    assert torch.equal(together[[2, 0]], entry.purify(x[[2, 0]], image_rng("c", "a")))


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_it_is_random_where_it_says_so(name: str) -> None:
    entry, x = made(name), photo()

    differs = {not torch.equal(entry.purify(x, image_rng("a")), entry.purify(x, image_rng(s))) for s in "bcdef"}

    assert any(differs) == entry.random


@pytest.mark.parametrize("value", [0.0, 128 / 255, 1.0])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_flat_image_stays_about_flat(name: str, value: float) -> None:
    x = torch.full((1, 3, 32, 32), value)

    purified = made(name).purify(x, image_rng())

    # fd's step of 25 moves a mean by at most 12.5/8 grey levels; r&p pads with grey .5.
    error = (purified - value).abs()
    if name.startswith("r&p"):
        error = error[purified != 0.5]
    assert torch.isfinite(purified).all()
    assert error.numel() == 0 or error.max() <= (0.5 / 31 + 1e-6 if name == "bit-red" else 1.7 / 255)


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_backward_is_what_it_says(name: str) -> None:
    entry = made(name)
    x = photo(2, 32).requires_grad_()
    weight = torch.rand(entry.purify(x.detach(), image_rng("a", "b")).shape, generator=torch.Generator().manual_seed(1))

    out = entry.bpda(x, image_rng("a", "b"))
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)

    assert torch.allclose(out.detach(), entry.purify(x.detach(), image_rng("a", "b")), atol=1e-6)
    if entry.backward == "identity":
        assert torch.equal(gradient, weight)
    else:
        # Each of the entries here is linear in its input, up to a constant.
        step = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
        change = entry.purify(x.detach() + step, image_rng("a", "b")) - entry.purify(x.detach(), image_rng("a", "b"))
        assert torch.allclose((change * weight).sum(), (gradient * step).sum(), rtol=1e-4)
    assert entry.differentiable == (entry.backward == "exact")


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_every_entry_says_what_it_is_and_whose(name: str) -> None:
    entry = defense.get(name)

    assert len(entry.summary) > 20
    assert entry.source
    assert made(name).passes == (30 if name == "r&p-30" else 1)


@pytest.mark.parametrize(
    "text",
    [
        "jpeg(quality=0)",
        "jpeg(quality=101)",
        "bit-red(bits=0)",
        "bit-red(bits=9)",
        "fd(low=0)",
        "tvm(keep=0.0)",
        "tvm(keep=1.5)",
        "tvm(weight=0.0)",
        "tvm(steps=0)",
        "r&p(patterns=0)",
        "pixel-deflection(window=0)",
        "pixel-deflection(deflections=-1)",
        "pixel-deflection(sigma=-1.0)",
        "wavelet(sigma=-1.0)",
        "wavelet(jpeg=101)",
    ],
)
def test_impossible_parameters_are_refused_with_the_value_found(text: str) -> None:
    with pytest.raises(Exception, match=r"found (-1|\d)"):
        defense.resolve(text)


def test_the_shelf_can_be_listed_without_torch() -> None:
    script = (
        "import pkgutil, importlib, sys, rdp_bench.defenses as d\n"
        "names = [m.name for m in pkgutil.iter_modules(d.__path__) if not m.name.startswith('_')]\n"
        "[importlib.import_module(f'rdp_bench.defenses.{n}') for n in names]\n"
        "print(len(names), sorted({'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    count, _, heavy = done.stdout.strip().partition(" ")
    assert int(count) >= len(TRAINING_FREE) - 1  # r&p and r&p-30 share a file
    assert heavy == "[]"


# JPEG


@pytest.mark.parametrize("quality", [1, 75, 95])
def test_jpeg_is_pillow_to_the_bit(quality: int) -> None:
    x = photo(2, 45)

    purified = made(f"jpeg(quality={quality})").purify(x, image_rng("a", "b"))

    for image, found in zip(x, purified, strict=True):
        file = BytesIO()
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).astype(np.float32) / np.float32(255)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


# Bit reduction


def test_bit_reduction_by_hand() -> None:
    # 2 bits: levels 0, 1/3, 2/3, 1; borders at 1/6, 1/2, 5/6; an exact half goes to the even level.
    x = torch.tensor([0.0, 0.16, 0.17, 0.49, 0.5, 0.51, 0.83, 0.84, 1.0]).expand(1, 3, 1, 9)

    purified = made("bit-red(bits=2)").purify(x, image_rng())

    assert (purified[0, 0, 0] * 3).round().tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert torch.allclose(purified * 3, (purified * 3).round(), atol=1e-6)


def test_bit_reduction_has_32_levels_and_no_bias() -> None:
    grey = (torch.arange(256) / 255).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)

    purified = made("bit-red").purify(grey, image_rng())

    assert len(set(purified.flatten().tolist())) == 32
    assert abs((purified - grey).mean()) < 1e-4
    assert torch.equal(made("bit-red(bits=8)").purify(grey, image_rng()), grey)


# Feature distillation


def test_fd_is_the_quantised_cosine_transform_of_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = photo(1, 32)
    step = np.full((8, 8), 30.0)
    step[:4, :4] = 25.0

    purified = made("fd").purify(x, image_rng())

    for colour in range(3):
        for top in range(0, 32, 8):
            for left in range(0, 32, 8):
                block = x[0, colour, top : top + 8, left : left + 8].double().mul(255).round().numpy()
                scaled = np.round(fft.dctn(block, norm="ortho") / step, 9)
                expected = np.clip(fft.idctn(np.round(scaled) * step, norm="ortho") / 255, 0, 1)
                found = purified[0, colour, top : top + 8, left : left + 8].numpy()
                assert np.allclose(found, expected, atol=1e-6)


def test_fd_rounds_a_mean_half_way_between_levels_to_the_even_one() -> None:
    # A flat block of value v has the one coefficient 8 v: 8 * 14.0625 = 112.5 = 4.5 steps of 25.
    x = torch.full((1, 3, 8, 8), 14.0625 / 255)

    assert torch.allclose(made("fd").purify(x, image_rng()) * 255, torch.tensor(4 * 25 / 8))


def test_fd_pads_with_the_edge() -> None:
    x = photo(1, 37)

    padded = made("fd").purify(pad(x, (0, 3, 0, 3), mode="replicate"), image_rng())

    assert torch.equal(made("fd").purify(x, image_rng()), padded[..., :37, :37])


# Random resizing and padding


@pytest.mark.parametrize("size", [32, 299])
def test_rp_shows_the_image_resized_on_grey(size: int) -> None:
    least, most = round(310 / 299 * size), round(331 / 299 * size)
    x = photo(1, size) * 0.4  # never grey .5
    seen: set[int] = set()
    for seed in range(12):
        purified = made("r&p").purify(x, image_rng(str(seed)))[0]
        inside = (purified != 0.5).all(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        edge = len(rows)
        assert len(columns) == edge
        assert least <= edge < most
        assert inside.sum() == edge * edge  # one square, grey all around

        # Ratios in float32, as TensorFlow has them: that decides where a product is whole.
        source = [int(np.float32(k) * (np.float32(size) / np.float32(edge))) for k in range(edge)]
        resized = x[0][:, source][:, :, source]
        shown = purified[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mirrored = torch.equal(shown, resized.flip(2))
        assert mirrored or torch.equal(shown, resized)
        seen.add(edge + 1000 * mirrored)
    assert {s // 1000 for s in seen} == {0, 1}
    assert size < 100 or len({s % 1000 for s in seen}) > 4


def test_rp_draws_every_size_and_place() -> None:
    x = torch.zeros(400, 3, 32, 32)  # 33 or 34, in 35

    purified = made("r&p").purify(x, image_rng(*map(str, range(400))))

    inside = (purified == 0)[:, 0]
    places = {(int(i.any(1).sum()), int(i.any(1).nonzero()[0]), int(i.any(0).nonzero()[0])) for i in inside}
    expected = {(edge, top, left) for edge in (33, 34) for top in range(36 - edge) for left in range(36 - edge)}
    assert places == expected


# Pixel deflection


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


# Wavelets


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


# Total variation


def bregman(x: Tensor, kept: Tensor, mu: float, tolerance: float, sweeps: int = 10) -> Tensor:
    """The authors' algorithm, pixel after pixel in float64, borders mended; one plane."""
    height, width = x.shape
    image, mask = x.double().tolist(), kept.tolist()
    u = [[v * m for v, m in zip(*rows, strict=True)] for rows in zip(image, mask, strict=True)]
    zeros = np.zeros((height, width))
    dx, dy, bx, by = zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy()
    lam = 2 * mu
    for _ in range(100):
        before = np.array(u)
        for _ in range(sweeps):
            for i in range(height):
                for j in range(width):
                    total, count = 0.0, 0
                    if j + 1 < width:
                        total, count = total + u[i][j + 1] - dx[i, j] + bx[i, j], count + 1
                    if i + 1 < height:
                        total, count = total + u[i + 1][j] - dy[i, j] + by[i, j], count + 1
                    if j:
                        total, count = total + u[i][j - 1] + dx[i, j - 1] - bx[i, j - 1], count + 1
                    if i:
                        total, count = total + u[i - 1][j] + dy[i - 1, j] - by[i - 1, j], count + 1
                    if mask[i][j]:
                        u[i][j] = (lam * total + mu * image[i][j]) / (mu + count * lam)
                    else:
                        u[i][j] = total / count
        now = np.array(u)
        tx, ty = bx.copy(), by.copy()
        tx[:, :-1] += np.diff(now, axis=1)
        ty[:-1] += np.diff(now, axis=0)
        length = np.hypot(tx, ty)
        dx, dy = (length * lam / (length * lam + 1) * t for t in (tx, ty))
        bx, by = tx - dx, ty - dy
        if np.sqrt(np.mean((now - before) ** 2)) <= tolerance:
            break
    return torch.tensor(u)


def minimum(x: Tensor, kept: Tensor, mu: float, steps: int = 2000) -> Tensor:
    """The minimiser, by the plain (not relaxed) primal-dual method of Chambolle & Pock 2011, in float64."""
    u = x.double() * kept
    ahead, tau = u, 0.02
    across, down = torch.zeros_like(u[..., 1:]), torch.zeros_like(u[..., 1:, :])
    for _ in range(steps):
        across, down = across + ahead.diff(dim=-1) / (8 * tau), down + ahead.diff(dim=-2) / (8 * tau)
        length = (pad(across, (0, 1)) ** 2 + pad(down, (0, 0, 0, 1)) ** 2).sqrt().clamp(min=1)
        across, down = across / length[..., :-1], down / length[..., :-1, :]
        div = pad(across, (0, 1)) - pad(across, (1, 0)) + pad(down, (0, 0, 0, 1)) - pad(down, (0, 0, 1, 0))
        new = (u + tau * (div + mu * kept * x)) / (1 + tau * mu * kept)
        ahead, u = 2 * new - u, new
    return u


def masked(size: int) -> tuple[Tensor, Tensor]:
    x = photo(1, size)
    return x, (torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.5).float()


def test_tvm_reaches_the_minimum() -> None:
    from rdp_bench.defenses._tv import inpaint, objective

    x, kept = masked(24)
    best = minimum(x, kept, 1 / 0.03)
    least = objective(best, x, kept, 1 / 0.03)

    few, many = inpaint(x, kept, 1 / 0.03, 12), inpaint(x, kept, 1 / 0.03, 1000)

    assert least * (1 - 1e-6) <= objective(many, x, kept, 1 / 0.03) <= least * 1.0005
    assert objective(few, x, kept, 1 / 0.03) <= least * 1.02
    assert (many - best).square().mean().sqrt() < 1e-3
    assert (few - best).square().mean().sqrt() < 0.025  # the authors' stopping point is as far off


def test_tvm_objective_is_below_where_the_authors_stop() -> None:
    from rdp_bench.defenses._tv import inpaint, objective

    x, kept = masked(24)
    x, kept = x[:, :1], kept[:, :1]
    stopped = bregman(x[0, 0], kept[0, 0], 1 / 0.03, tolerance=0.01)
    run_on = bregman(x[0, 0], kept[0, 0], 1 / 0.03, tolerance=1e-4)

    ours = objective(inpaint(x, kept, 1 / 0.03, 12), x, kept, 1 / 0.03)

    assert ours < objective(run_on[None, None], x, kept, 1 / 0.03) < objective(stopped[None, None], x, kept, 1 / 0.03)


def test_the_objective_by_hand() -> None:
    from rdp_bench.defenses._tv import objective

    u = torch.tensor([[[[0.0, 3.0], [4.0, 4.0]]]])
    kept = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])

    # |(3, 4)| + |(0, 1)| down the right, nothing along the bottom; 2/2 * (1 + 0 + 0 + 4)
    assert objective(u, torch.tensor([[[[1.0, 9.0], [4.0, 2.0]]]]), kept, 2.0).item() == pytest.approx(11)


def test_tvm_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.defenses import _tv

    x, kept = masked(37)
    whole = _tv.inpaint(x, kept, 30.0, 20)

    for band in (1, 3 * 37 * 5):  # the least, 2 rows, and 5 rows a band
        monkeypatch.setattr(_tv, "BAND", band)
        assert torch.allclose(_tv.inpaint(x, kept, 30.0, 20), whole, atol=1e-5)


def test_tvm_has_no_dark_frame() -> None:
    x = torch.full((1, 3, 40, 40), 0.8)

    purified = made("tvm").purify(x, image_rng())

    assert torch.allclose(purified, x, atol=1e-3)


def test_tvm_fits_closer_the_more_it_may() -> None:
    x = photo()

    errors = [(made(f"tvm(weight={w})").purify(x, image_rng()) - x).square().mean() for w in (0.003, 0.03, 0.3)]

    assert all(a < b for a, b in pairwise(errors))


def test_tvm_drops_values_not_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.defenses import _tv

    seen: list[tuple[Tensor, float]] = []

    def spy(x: Tensor, kept: Tensor, mu: float, steps: int) -> Tensor:
        seen.append((kept, mu))
        return x

    monkeypatch.setattr(_tv, "inpaint", spy)
    made("tvm").purify(photo(1, 64), image_rng())
    kept, mu = seen[0]

    assert mu == pytest.approx(1 / 0.03)
    assert abs(kept.mean() - 0.5) < 0.02
    together = (kept[:, 0] == kept[:, 1]).float().mean()
    assert abs(together - 0.5) < 0.04
