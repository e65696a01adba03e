"""ILPD and TGR, which hook into layers of the source, against networks rewritten with the changes in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rdp_bench import plugins
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.errors import UsageError
from rdp_bench.models.zoo import LoadedSource, find
from rdp_bench.numerics import pieces
from tests.helpers import toy

EPS, STEPS = 16 / 255, 3
ALPHA = EPS / STEPS


def wrapped(net: nn.Module) -> toy.Wrapped:
    return toy.Wrapped(net, 5)


def clip(adv: Tensor, x: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(adv, x - EPS), x + EPS).clamp(0, 1)


def different(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() > 1e-5).float().mean())


def test_ilpd_mixes_clean_features_into_one_layer() -> None:
    net, x, y = toy.network(5, 3), toy.images(3, 24), torch.arange(3)
    head, tail = net[:2], net[2:]
    rng, adv = toy.image_rng(3), x
    for _ in range(STEPS):
        kept = head(x + 0.05 * rng.normal(3, 24, 24))
        leaf = adv.clone().requires_grad_()
        logits = tail(0.1 * head(leaf) + 0.9 * kept)
        (grad,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), leaf)
        adv = clip(adv + ALPHA * grad.sign(), x)
    found = compose(f"I({STEPS})|ILPD(layer=1)")(toy.source(wrapped(net)), x, y, EPS, toy.image_rng(3))
    assert different(found, adv) < 4e-3
    plain = compose(f"I({STEPS})")(toy.source(wrapped(net)), x, y, EPS, toy.image_rng(3))
    assert different(found, plain) > 0.02
    assert not any(module._forward_hooks for module in net.modules())


def test_ilpd_finds_the_stage_at_an_eighth_of_the_side() -> None:
    from rdp_bench.attacks.parts.intermediate import _layer

    for name, layer in {"resnet18": "layer2", "tf_efficientnet_lite0": "blocks.2", "inception_v3": "Mixed_5d"}.items():
        net = timm.create_model(name, pretrained=False)
        assert _layer(net, "auto", name) is net.get_submodule(layer), name


@pytest.mark.parametrize(
    ("text", "member", "says"),
    [
        ("ILPD", toy.conv(), "hooks into the layers of the source; 'conv-0' is not a torch.nn.Module"),
        ("ILPD", wrapped(toy.network(5)), "timm names no stages of net: choose a layer"),
        ("ILPD(layer=stem)", wrapped(toy.network(5)), "net has no layer 'stem'; its first are 0, 1, 2, 3, 4, 5, 6"),
        ("TGR", wrapped(toy.network(5)), "TGR needs a vision transformer with timm's blocks"),
    ],
)
def test_sources_without_the_layers_are_refused(text: str, member: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compose(text)(toy.source(member), toy.images(1, 24), torch.tensor([0]), EPS, toy.image_rng(1))


@pytest.mark.parametrize("part", ["ILPD", "SGM"])
def test_a_network_may_compute_a_batch_in_pieces(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load()
    source = LoadedSource("effnet-lite0", (find("effnet-lite0").load("cpu"),))
    x, y = toy.images(3, 64), torch.arange(3)
    found = []
    for images in (2, 3):
        monkeypatch.setattr(pieces, "size", lambda *_, at_once=images: at_once)
        found.append(compose(f"I(2)|{part}")(source, x, y, EPS, toy.image_rng(3)))
    assert torch.equal(*found)


def test_ilpd_refuses_a_layer_that_runs_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.tail = nn.Conv2d(3, 3, 3, padding=1), toy.network(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.tail(self.shared(self.shared(x)))
            return out

    with pytest.raises(UsageError, match="layer shared of net ran 2 times for each image; name another"):
        compose("I(1)|ILPD(layer=shared)")(
            toy.source(wrapped(Twice())), toy.images(2, 24), torch.arange(2), EPS, toy.image_rng(2)
        )


def test_ilpd_refuses_images_of_changing_size() -> None:
    with pytest.raises(ValueError, match="diversity changes the size of images"):
        compose("MI|DI|ILPD")


class Regularised(torch.autograd.Function):
    """The identity, whose backward pass changes the gradient of each image, channel by channel, in numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, pairs: bool) -> Tensor:
        ctx.factor, ctx.pairs = factor, pairs
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].numpy().copy()
        out = ctx.factor * grad
        for image, changed in zip(grad, out, strict=True):
            if ctx.pairs:
                for head in range(len(image)):
                    for at in (image[head].argmax(), image[head].argmin()):
                        row, column = np.unravel_index(at, image[head].shape)
                        changed[head, row, :] = 0
                        changed[head, :, column] = 0
            else:
                for channel in range(image.shape[1]):
                    changed[image[:, channel].argmax(), channel] = 0
                    changed[image[:, channel].argmin(), channel] = 0
        return torch.from_numpy(out), None, None


def by_hand(net: Any, x: Tensor) -> Tensor:
    """The transformer's logits, with the changes of TGR in the backward pass."""
    tokens = net.patch_embed(x)
    tokens = torch.cat([net.cls_token.expand(len(x), -1, -1), tokens], 1) + net.pos_embed
    for block in net.blocks:
        z = block.norm1(tokens)
        n, t, c = z.shape
        qkv = Regularised.apply(block.attn.qkv(z), 0.75, False)
        q, k, v = qkv.reshape(n, t, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        attention = ((q * (c // 3) ** -0.5) @ k.mT).softmax(-1)
        attention = Regularised.apply(attention, 0.25, True)
        tokens = tokens + block.attn.proj((attention @ v).transpose(1, 2).reshape(n, t, c))
        tokens = tokens + Regularised.apply(block.mlp(block.norm2(tokens)), 0.5, False)
    logits: Tensor = net.head(net.fc_norm(net.norm(tokens)[:, 0]))
    return logits


def test_tgr_is_a_transformer_with_changed_gradients() -> None:
    net, x, y = toy.transformer(), toy.images(3, 24), torch.arange(3)
    assert torch.allclose(by_hand(net, x), net(x), atol=1e-4)
    adv, g = x, torch.zeros_like(x)
    for _ in range(STEPS):
        leaf = adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(by_hand(net, leaf), y, reduction="sum"), leaf)
        g = g + grad / grad.abs().mean((1, 2, 3), keepdim=True)
        adv = clip(adv + ALPHA * g.sign(), x)
    fused = [block.attn.fused_attn for block in net.blocks]
    found = compose(f"MI|I({STEPS})|TGR")(toy.source(wrapped(net)), x, y, EPS, toy.image_rng(3))
    assert different(found, adv) < 1e-2
    plain = compose(f"MI|I({STEPS})")(toy.source(wrapped(net)), x, y, EPS, toy.image_rng(3))
    assert different(found, plain) > 0.05
    assert [block.attn.fused_attn for block in net.blocks] == fused
    assert not any(module._forward_hooks for module in net.modules())
    alone = compose(f"MI|I({STEPS})|TGR")(toy.source(wrapped(net)), x[1:2], y[1:2], EPS, toy.image_rng(3))
    assert different(alone, found[1:2]) < 4e-3


def test_hooks_reach_the_network_behind_a_defense() -> None:
    from rdp_bench.attacks.parts.networks import network
    from rdp_bench.models.defended import DefendedClassifier, parse

    plugins.load()
    found = parse("bpda(bit-red, effnet-lite0)")
    assert found is not None
    net = toy.network(5)
    member = DefendedClassifier(wrapped(net), found[0])
    assert network(member, "ILPD") is net
    x, y = toy.images(2, 24), torch.arange(2)
    adv = compose("I(2)|ILPD(layer=1)")(LoadedSource("defended", (member,)), x, y, EPS, toy.image_rng(2))
    assert different(adv, x) > 0.1
