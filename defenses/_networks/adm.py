"""ADM: the U-Net of Dhariwal & Nichol 2021 (App. I), with the names of the tensors of openai/guided-diffusion's files.

`256x256_diffusion_uncond.pt` is the network of DiffPure, GDMP and DDS on ImageNet: 552,814,086 parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from rdp_bench.defenses._networks.score import NoisePredicting

GROUPS = 32
BLOCKS = 2
"""Residual blocks a level, in the files of 256 and 512 pixels."""


class ResBlock(nn.Module):
    """Two convolutions behind group norms; the time scales and shifts the second norm; may halve or double the size."""

    def __init__(self, old: int, new: int, embedded: int, resize: str = "") -> None:
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, old), nn.SiLU(), nn.Conv2d(old, new, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * new))
        # The identity is where their dropout is.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, new), nn.SiLU(), nn.Identity(), nn.Conv2d(new, new, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if old == new else nn.Conv2d(old, new, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`[n, old, h, w]` and the embedded time `[n, embedded]` to `[n, new, h', w']`."""
        norm, activation, conv = self.in_layers
        hidden = conv(self._resized(activation(norm(x))))
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        hidden = norm(hidden) * (1 + scale) + shift
        for layer in rest:
            hidden = layer(hidden)
        out: Tensor = self.skip_connection(self._resized(x)) + hidden
        return out

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "up":
            return interpolate(x, scale_factor=2, mode="nearest")
        return avg_pool2d(x, 2) if self.resize == "down" else x


class Attention(nn.Module):
    """Self-attention over positions; each head's q, k and v are neighbours in the channels of `qkv`."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.heads = width // head
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """`[n, width, h, w]` to the same."""
        flat = x.flatten(2)
        parts = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1))
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(2))
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj_out(seen.transpose(2, 3).flatten(1, 2))
        return (flat + out).view_as(x)


class First(nn.Conv2d):
    """The first convolution, called like the other layers of a block."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
        """`[n, 3, h, w]` to `[n, width, h, w]`."""
        return super().forward(x)


class ADM(NoisePredicting):
    """The U-Net. Its outputs are the noise and, in the last three channels, the place of the variance."""

    def __init__(
        self,
        width: int = 256,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        attention: tuple[int, ...] = (3, 4, 5),
        head: int = 64,
        size: int | None = 256,
    ) -> None:
        """The network.

        Args:
            width: channels of the first level.
            multipliers: of the width, a level; each level has half the size of the one before.
            attention: levels with self-attention, counted from 0.
            head: channels of an attention head.
            size: height and width of the images that it was trained on.
        """
        super().__init__()
        self.width, self.size, self.multiple = width, size, 2 ** (len(multipliers) - 1)
        embedded = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))

        def block(old: int, new: int, level: int) -> list[nn.Module]:
            return [ResBlock(old, new, embedded), *([Attention(new, head)] if level in attention else [])]

        now = width
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(3, width, 3, padding=1)])])
        kept = [now]
        for level, times in enumerate(multipliers):
            for _ in range(BLOCKS):
                self.input_blocks.append(nn.ModuleList(block(now, times * width, level)))
                now = times * width
                kept.append(now)
            if level + 1 < len(multipliers):
                self.input_blocks.append(nn.ModuleList([ResBlock(now, now, embedded, "down")]))
                kept.append(now)
        self.middle_block = nn.ModuleList(
            [ResBlock(now, now, embedded), Attention(now, head), ResBlock(now, now, embedded)]
        )
        self.output_blocks = nn.ModuleList()
        for level, times in reversed([*enumerate(multipliers)]):
            for i in range(BLOCKS + 1):
                layers = block(now + kept.pop(), times * width, level)
                now = times * width
                if level and i == BLOCKS:
                    layers.append(ResBlock(now, now, embedded, "up"))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, now), nn.SiLU(), nn.Conv2d(now, 6, 3, padding=1))

    def outputs(self, x: Tensor, step: Tensor) -> Tensor:
        """See `NoisePredicting`: `[n, 6, h, w]`."""
        half = self.width // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=x.device) / half)
        angles = step[:, None].float() * rates
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype))
        kept: list[Tensor] = []
        for layers in self.input_blocks:
            x = _through(layers, x, time)
            kept.append(x)
        x = _through(self.middle_block, x, time)
        for layers in self.output_blocks:
            x = _through(layers, torch.cat([x, kept.pop()], 1), time)
        out: Tensor = self.out(x)
        return out

    forward = outputs


def _through(layers: Any, x: Tensor, time: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, time)
    return x


def arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `ADM` for the tensors of a file.

    Raises:
        ValueError: it is another member of the family: class-conditional, or with plain resizing.
    """
    if "label_emb.weight" in state:
        raise ValueError("a class-conditional network; the unconditional one is 256x256_diffusion_uncond.pt")
    width = len(state["input_blocks.0.0.weight"])
    count = 1 + max(int(found[1]) for name in state if (found := re.match(r"input_blocks\.(\d+)\.", name)))
    levels, rest = divmod(count, BLOCKS + 1)
    if rest:
        raise ValueError(f"{count} input blocks, which is no multiple of {BLOCKS + 1}")
    first = [1 + (BLOCKS + 1) * level for level in range(levels)]
    return {
        "width": width,
        "multipliers": tuple(len(state[f"input_blocks.{i}.0.in_layers.2.weight"]) // width for i in first),
        "attention": tuple(level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in state),
    }
