"""A small network with random weights of each family beyond plain convolutions: ViT, Swin and ConvNeXt of timm."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdp_bench.models.card import Card
from rdp_bench.models.classifier import PixelClassifier, create, prepared
from rdp_bench.weights import files
from tests.helpers import toy

SIZE = 32
"""The input of all of them, in pixels; ViT and Swin take no other."""


def _card(name: str, arch: str, *, fixed_size: bool, **kwargs: Any) -> Card:
    return Card(
        name=name,
        summary="random weights",
        arch=arch,
        weights="file",
        input_size=SIZE,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        kwargs=kwargs,
        fixed_size=fixed_size,
    )


CARDS = {
    card.name: card
    for card in (
        _card("vit", "vit_tiny_patch16_224", fixed_size=True, img_size=SIZE, patch_size=8, depth=2, embed_dim=48),
        _card(
            "swin", "swin_tiny_patch4_window7_224", fixed_size=True,
            img_size=SIZE, window_size=4, embed_dim=24, depths=(1, 2), num_heads=(2, 3),
        ),
        _card("convnext", "convnext_atto", fixed_size=False, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    )
}  # fmt: skip


def network(name: str) -> nn.Module:
    """timm's network of this card, with weights that make its classes differ."""
    with torch.random.fork_rng(devices=[]):
        net = create(CARDS[name])
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            spread = 0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.copy_((weight.ndim == 1) + spread * toy.random(*weight.shape, seed=number))
    return net.requires_grad_(False).eval()


@cache
def classifier(name: str) -> PixelClassifier:
    """The network as a run prepares it."""
    return prepared(network(name), CARDS[name], f"random {name}")


def write_weights(folder: Path) -> None:
    """The weight files of all of them, for `--models-dir`."""
    folder.mkdir()
    for name in CARDS:
        files.save(folder / f"{name}.safetensors", network(name).state_dict(), {}, half=False)
