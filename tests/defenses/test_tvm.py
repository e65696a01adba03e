"""Total variation minimisation against an independent solver."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from rdp_bench import plugins
from tests.helpers.training_free import image_rng, made, photo

plugins.load()


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
