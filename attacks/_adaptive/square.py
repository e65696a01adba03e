"""Square attack: Andriushchenko et al., "Square Attack", ECCV 2020, Alg. 1-3. It needs no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from rdp_bench.attacks._adaptive.victim import Victim
from rdp_bench.attacks._kernels.losses import TINY, margin
from rdp_bench.attacks._kernels.norms import norm_l2, unit_l2
from rdp_bench.budgets import LINF

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of pixels that a square covers is halved."""

BLOCK = 64
"""Queries whose draws are made at once."""


def share(query: int, first: float) -> float:
    """The share p of the pixels that the square of a query (0, 1, ...) covers.

    >>> share(10, 0.8), share(11, 0.8), share(4999, 0.8)
    (0.8, 0.4, 0.00625)
    """
    return first * 0.5 ** len([after for after in HALVED_AFTER if query > after])


def side(p: float, height: int, width: int, *, l2: bool = False) -> int:
    """The side of a square that covers the share `p`; odd and at least 3 under L2."""
    size = max(round(sqrt(p * height * width)), 3 if l2 else 1)
    return min(size + (1 - size % 2 if l2 else 0), height, width)


class Draw(NamedTuple):
    """Random numbers of one query, one row per image."""

    place: Tensor
    """Uniform `[n, 4]`: row and column of the square, and of the one that gives its norm away (L2)."""
    signs: Tensor
    """-1 or 1, `[n, c]`."""
    turned: Tensor
    """Whether a square is transposed (L2), bool `[n]`."""


class Draws:
    """The draws of all queries, made in blocks; an image's own do not depend on who else is left."""

    def __init__(self, victim: Victim) -> None:
        self.own, self.channels = victim.own, victim.x.shape[1]
        self.block = self._next()
        self.at = 0

    def _next(self) -> Tensor:
        return self.own.uniform(BLOCK, 5 + self.channels)

    def __call__(self) -> Draw:
        if self.at == BLOCK:
            self.block, self.at = self._next(), 0
        unit = self.block[:, self.at]
        self.at += 1
        return Draw(unit[:, :4], torch.where(unit[:, 5:] < 0.5, -1.0, 1.0), unit[:, 4] > 0.5)

    def select(self, victim: Victim, which: Tensor) -> None:
        """Keep the images at `which`, those of `victim`."""
        self.own, self.block = victim.own, self.block[which.to(self.block.device)]


class Window(NamedTuple):
    """Indices of a square in each image of a batch, to read and write `[n, c, s, s]` of `[n, c, h, w]`."""

    image: Tensor
    channel: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def at(cls, top: Tensor, left: Tensor, size: int, channels: int) -> Window:
        """The squares of side `size` whose corners are `top` and `left`, int64 `[n]`."""
        device, span = top.device, torch.arange(size, device=top.device)
        image = torch.arange(len(top), device=device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
        return cls(image, channel, (top[:, None] + span)[:, None, :, None], (left[:, None] + span)[:, None, None, :])


@dataclass
class _State:
    """The images that are still attacked."""

    victim: Victim
    number: Tensor
    """Their index in the batch that the search began with, int64 on the CPU."""
    best: Tensor
    loss: Tensor
    """The margin at `best`, `[n]`; not negative where it is misclassified."""
    asked: Tensor
    """Whether `best` is known to be right once it is stored, bool `[n]`."""
    low: Tensor
    """Smallest values within the budget under L-infinity, of the images' shape."""
    high: Tensor
    """The largest."""


@torch.no_grad()
def search(victim: Victim, queries: int, first: float) -> Tensor:
    """The point of the smallest margin that random squares lead to, or the first that is misclassified as it is stored.

    Args:
        victim: what is attacked; where it is random, a query is the mean over its draws, and no image stops early.
        queries: evaluations of the source per image after the first.
        first: the share of the pixels that the first squares cover.
    """
    draws = Draws(victim)
    linf = victim.norm == LINF
    best = _stripes(victim) if linf else _tiles(victim)
    out = best.clone()
    asked = torch.zeros(len(victim), dtype=torch.bool, device=best.device)
    state = _State(victim, torch.arange(len(victim)), best, _loss(victim, best), asked, *_bounds(victim))
    height, width = victim.x.shape[2:]
    for query in range(queries):
        if not victim.random:
            _drop_fooled(state, draws, out)
            if not len(state.number):
                return out
        size = side(share(query, first), height, width, l2=not linf)
        (_try_square if linf else _try_square_l2)(state, draws(), size)
    out[state.number.to(out.device)] = state.best
    return out


def _bounds(victim: Victim) -> tuple[Tensor, Tensor]:
    return (victim.x - victim.eps).clamp_(0, 1), (victim.x + victim.eps).clamp_(0, 1)


def _loss(victim: Victim, images: Tensor) -> Tensor:
    return margin(victim.mean_logits(images), victim.y)


def _drop_fooled(state: _State, draws: Draws, out: Tensor) -> None:
    """Move images that stay misclassified when they are stored from `state` to `out`."""
    asked = (state.loss >= 0) & ~state.asked
    if not asked.any():
        return
    done, left = state.victim.finished(state.best, asked)
    out[state.number[done].to(out.device)] = state.best[done.to(out.device)]
    at = left.to(out.device)
    state.victim, state.number = state.victim.select(left), state.number[left]
    state.best, state.loss = state.best[at], state.loss[at]
    state.asked = state.loss >= 0
    state.low, state.high = state.low[at], state.high[at]
    draws.select(state.victim, left)


def _stripes(victim: Victim) -> Tensor:
    """Vertical stripes of one pixel, each -eps or +eps in each channel."""
    channels, _, width = victim.x.shape[1:]
    signs = torch.where(victim.own.uniform(channels, 1, width) < 0.5, -1.0, 1.0)
    return (victim.x + victim.eps * signs).clamp(0, 1)


def _corner(unit: Tensor, room: int) -> Tensor:
    """Where a square begins; the last place is never taken, as in the authors' code."""
    return (unit * room).long()


def _try_square(state: _State, draw: Draw, size: int) -> None:
    """Move a square by 2 eps up or down in each channel, within the budget; keep it where the margin falls."""
    x, eps = state.victim.x, state.victim.eps
    rows, columns = (_inside(draw.place[:, i], x.shape[2 + i], size).to(x) for i in (0, 1))
    # Outside its square an image moves by 0, and is within the bounds already.
    step = (2 * eps * draw.signs)[:, :, None, None] * rows[:, None, :, None]
    tried_images = (step * columns[:, None, None, :]).add_(state.best)
    tried_images = torch.clamp(tried_images, state.low, state.high, out=tried_images)
    _accept(state, tried_images, _loss(state.victim, tried_images))


def _inside(unit: Tensor, length: int, size: int) -> Tensor:
    """Which rows or columns a square covers, bool `[n, length]`."""
    begin = _corner(unit, length - size)[:, None]
    at = torch.arange(length, device=unit.device)
    return (at >= begin) & (at < begin + size)


def _accept(state: _State, images: Tensor, tried: Tensor) -> None:
    """Keep those of `images` whose margin `tried` is smaller."""
    better = (tried > state.loss).nonzero()[:, 0]
    state.best[better] = images[better]
    state.asked &= tried <= state.loss
    state.loss = torch.maximum(state.loss, tried)


def _tiles(victim: Victim) -> Tensor:
    """Five by five tiles with the pattern of the squares, of random signs, at the border of the budget."""
    n, channels, height, width = victim.x.shape
    size = max(min(height, width) // 5, 1)
    change = torch.zeros_like(victim.x)
    unit = victim.own.uniform(25, 1 + channels)
    for tile in range(25):
        row, column = divmod(tile, 5)
        top, left = (height - 5 * size) // 2 + size * row, (width - 5 * size) // 2 + size * column
        pattern = _patterns(size, unit[:, tile, 0] > 0.5)
        signs = torch.where(unit[:, tile, 1:] < 0.5, -1.0, 1.0).view(n, channels, 1, 1)
        change[:, :, top : top + size, left : left + size] = pattern * signs
    return (victim.x + victim.eps * unit_l2(change)).clamp(0, 1)


def _try_square_l2(state: _State, draw: Draw, size: int) -> None:
    """Move the norm of one square, and what the budget leaves, to another; keep it where the margin falls."""
    x, eps, best = state.victim.x, state.victim.eps, state.best
    channels = x.shape[1]
    corners = [_corner(draw.place[:, i], x.shape[2 + i % 2] - size) for i in range(4)]
    new, gives = (Window.at(corners[i], corners[i + 1], size, channels) for i in (0, 2))
    change = best - x
    covered = torch.zeros_like(change[:, :1], dtype=torch.bool).expand_as(change).clone()
    covered[new] = covered[gives] = True
    there = change[new]
    pattern = _patterns(size, draw.turned) * draw.signs[:, :, None, None] + there / (TINY + _norm(there))
    spare = (eps**2 - norm_l2(change) ** 2).clamp(min=0) / channels
    held = (change * covered).square().sum((2, 3), keepdim=True)
    change[gives] = 0
    change[new] = pattern / (TINY + _norm(pattern)) * (spare + held).sqrt()
    tried_images = (x + eps * change / (norm_l2(change) + TINY)).clamp(0, 1)
    _accept(state, tried_images, _loss(state.victim, tried_images))


def _norm(channels: Tensor) -> Tensor:
    """L2 norm of each channel, `[n, c, 1, 1]`."""
    return channels.square().sum((2, 3), keepdim=True).sqrt()


def _patterns(size: int, turned: Tensor) -> Tensor:
    """The pattern of side `size` for each image, transposed where `turned`; `[n, 1, size, size]`."""
    one = pattern(size).to(turned.device)
    return torch.where(turned.view(-1, 1, 1, 1), one.T, one)


@lru_cache(maxsize=64)
def pattern(size: int) -> Tensor:
    """Two bumps of opposite sign, one above the other, of L2 norm 1 together (Sec. 4.2); `[size, size]`."""
    half = size // 2
    both = torch.cat([_bump(half, size), -_bump(size - half, size)])
    normed: Tensor = both / both.norm()
    return normed


def _bump(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the k-th from within adding 1/k^2; of L2 norm 1."""
    if not height:
        return torch.zeros(0, width)
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None])  # the first rectangle that covers a pixel
    count = max(height // 2, width // 2) + 1
    weights = torch.arange(1, count + 1).double().pow(-2).flip(0).cumsum(0).flip(0)  # sum of 1/k^2 from there on
    bump = weights[ring].float()
    normed: Tensor = bump / bump.norm()
    return normed
