"""TGR: gradients inside vision transformers without their extreme tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rdp_bench.attacks.parts.base import Run


@dataclass(frozen=True)
class TokenGradients(Part):
    """Gradients at three places of a block are scaled, and zero at extreme tokens (Zhang et al. 2023, Sec. 3.3).

    In each channel of the qkv projection and of the MLP, the tokens of largest and smallest gradient get zero; in
    each head of the attention map, their rows and columns. Factors are those of jpzhang1810/TGR, whose code handles
    one image at a time; here each image of a batch has its own extremes. Their hook on the attention map is a module's
    old backward hook on its dropout, which does nothing in evaluation: it gets the gradient of the scores before the
    softmax. Here it is the gradient of the map, after the softmax. It needs transformers with timm's blocks.
    """

    id: ClassVar[str] = "token-gradients"
    order: ClassVar[int] = 36
    off: ClassVar[Any] = False

    token_gradients: bool = True
    attention_factor: float = 0.25
    qkv_factor: float = 0.75
    mlp_factor: float = 0.5

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        factors = (self.attention_factor, self.qkv_factor, self.mlp_factor)
        return {"factors of TGR are from 0 to 1": all(0 <= each <= 1 for each in factors)}

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Hooks in every block of every member of the source."""
        from rdp_bench.attacks.parts.networks import network

        with ExitStack() as stack:
            for member in run.source.members:
                for block in _blocks(network(member, "TGR"), member.name):
                    # The fused operation never makes the attention map.
                    stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
                    block.attn.fused_attn = False
                    for module, change in (
                        (block.attn.attn_drop, partial(without_extreme_pairs, factor=self.attention_factor)),
                        (block.attn.qkv, partial(without_extreme_tokens, factor=self.qkv_factor)),
                        (block.mlp, partial(without_extreme_tokens, factor=self.mlp_factor)),
                    ):
                        stack.callback(module.register_forward_hook(partial(_change_gradient, change)).remove)
            yield


def without_extreme_tokens(grad: Tensor, factor: float) -> Tensor:
    """`factor * grad` `[n, tokens, channels]`, zero at each channel's tokens of largest and smallest gradient."""
    out = factor * grad
    # `max` and `min` are twice as fast as `argmax` and `argmin` along this axis, and choose the same of equal ones.
    for index in (grad.max(1, keepdim=True).indices, grad.min(1, keepdim=True).indices):
        out.scatter_(1, index, 0.0)
    return out


def without_extreme_pairs(grad: Tensor, factor: float) -> Tensor:
    """`factor * grad` `[n, heads, tokens, tokens]`, zero in each head's rows and columns of the two extreme entries."""
    n, heads, rows, columns = grad.shape
    flat, out = grad.reshape(n, heads, -1), factor * grad
    for index in (flat.argmax(2), flat.argmin(2)):
        row, column = (index // columns)[..., None, None], (index % columns)[..., None, None]
        out.scatter_(2, row.expand(n, heads, 1, columns), 0.0)
        out.scatter_(3, column.expand(n, heads, rows, 1), 0.0)
    return out


def _change_gradient(change: Callable[[Tensor], Tensor], _: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
    if output.requires_grad:
        output.register_hook(change)  # type: ignore[no-untyped-call]


def _blocks(net: nn.Module, member: str) -> list[Any]:
    """The blocks of a transformer of timm."""
    blocks: Any = list(getattr(net, "blocks", []))
    needed = ("qkv", "attn_drop", "fused_attn")
    if not blocks or not all(
        hasattr(block, "mlp") and all(hasattr(getattr(block, "attn", None), name) for name in needed)
        for block in blocks
    ):
        raise UsageError(f"TGR needs a vision transformer with timm's blocks (blocks.0.attn.qkv); {member} has none")
    return list(blocks)
