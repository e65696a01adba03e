"""The loop of `GradientSign` in torch: `iterate`, and its parts as functions of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, pad

from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from rdp_bench.attacks.gradient_sign import GradientSign
    from rdp_bench.draws import Draws
    from rdp_bench.protocols import Classifier, Source

GREY = 0.5


def iterate(attack: GradientSign, source: Source, x: Tensor, y: Tensor, eps: float, draws: Draws) -> Tensor:
    """Run `attack`; `eps` in [0, 1]. The result is within `eps` of `x` and in [0, 1]."""
    in_255 = eps * 255
    alpha, mu = attack.step(in_255) / 255, attack.momentum
    low, high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
    adv = x.clone()
    if attack.random_start:
        adv += draws.uniform(*x.shape[1:], low=-eps, high=eps)
        if attack.start_in_range:
            adv.clamp_(0, 1)
    sign = -1.0 if attack.targeted else 1.0
    labels: Tensor | None = None if attack.label == "own" else y
    if attack.targeted:
        # Uniform over the wrong classes: y + U{1 .. classes - 1}.
        classes = source.members[0].classes
        labels = (y + draws.integers(1, classes).to(y.device)) % classes
    velocity = torch.zeros_like(x)
    for _ in range(attack.count(in_255)):
        at = adv + sign * mu * alpha * velocity if attack.nesterov else adv
        grad, labels = _gradient(attack, source, at, labels, draws)
        if attack.kernel > 1:
            grad = smooth(grad, attack.kernel)
        if mu > 0:
            grad = velocity = normalise(grad).add_(velocity, alpha=mu)
        adv = torch.clamp(adv.add(grad.sign(), alpha=sign * alpha), low, high)
    return adv


def _gradient(
    attack: GradientSign, source: Source, at: Tensor, labels: Tensor | None, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Sum over the copies of the loss gradient at `at`, and the labels used."""
    total: Tensor | None = None
    for i in range(attack.copies):
        leaf = at.detach().requires_grad_()
        # Lin et al. scale images of [-1, 1] by 1/2^i; autograd brings the factor 2^-i of copy i.
        z = leaf if i == 0 else GREY + (leaf - GREY) * 0.5**i
        outputs = [_logits(attack, member, z, draws) for member in source.members]
        logits = _mean([main for main, _ in outputs])
        if labels is None:
            labels = _mean([main.detach().softmax(1) for main, _ in outputs]).argmax(1)
        # A sum, not a mean, over the batch: an image's gradient must not depend on its neighbours.
        loss = cross_entropy(logits, labels, reduction="sum")
        if attack.aux_weight:
            heads = [aux for _, aux in outputs if aux is not None]
            if not heads:
                raise UsageError(f"source '{source.name}' has no auxiliary head; leave out aux_weight")
            loss = loss + attack.aux_weight * cross_entropy(_mean(heads), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        # Not in place: the gradient of a mean or sum is one number seen many times.
        total = grad if total is None else total + grad
    assert total is not None
    assert labels is not None
    return total, labels


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def _logits(attack: GradientSign, member: Classifier, z: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
    """Logits (and auxiliary logits) of one source member behind its own draw of input diversity."""

    def look(images: Tensor, zoom: float = 1.0) -> tuple[Tensor, Tensor | None]:
        if attack.aux_weight and (both := getattr(member, "logits_and_aux", None)):
            main, aux = both(images, zoom)
            return main, aux
        return member(images, zoom), None

    if attack.diversity == 0:
        return look(z)
    applied, rows, columns = draw_diversity(attack, z.shape[-1], draws)
    if attack.diversity_back:
        return look(take_pixels(z, rows, columns))
    zoom = rows.shape[1] / z.shape[-1]
    parts, order = [], []
    for use in (True, False):  # two sizes cannot share a batch
        index = (applied == use).nonzero()[:, 0]
        if len(index):
            some = z if len(index) == len(z) else z[index.to(z.device)]
            parts.append(look(take_pixels(some, rows[index], columns[index]), zoom) if use else look(some))
            order.append(index)
    back = torch.cat(order).argsort().to(z.device)
    aux = [part for _, part in parts if part is not None]
    return torch.cat([main for main, _ in parts])[back], torch.cat(aux)[back] if aux else None


def normalise(grad: Tensor) -> Tensor:
    """Each image's gradient divided by its mean absolute value; a zero gradient stays zero.

    Dong et al. 2018, Eq. 6 divide by the L1 norm, their code by the mean: the sign of the sum is the
    same for one norm, so either; we follow the code.
    """
    mean = grad.abs().mean(dim=(1, 2, 3), keepdim=True)
    return grad / mean.masked_fill_(mean == 0, 1)


@lru_cache(maxsize=8)
def gaussian(length: int) -> Tensor:
    """Normal density at `length` points of [-3, 3], summing to 1 (Dong et al. 2019, their code)."""
    density = torch.exp(-(torch.linspace(-3, 3, length, dtype=torch.float64) ** 2) / 2)
    return (density / density.sum()).float()


def smooth(grad: Tensor, length: int) -> Tensor:
    """Gradient `[n, 3, h, w]` convolved with the TI kernel, zero padding, borders not renormalised.

    The kernel is an outer product, so two one-dimensional passes give the same sum.
    """
    kernel = gaussian(length).to(grad.device)
    half, channels = length // 2, grad.shape[1]
    grad = grad.contiguous(memory_format=torch.channels_last)
    down = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    out = conv2d(conv2d(grad, down, padding=(half, 0), groups=channels), across, padding=(0, half), groups=channels)
    return out.contiguous()


def draw_diversity(attack: GradientSign, size: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """One draw of input diversity an image: applied `[n]`, and source row and column of each output pixel.

    A resized image of U{size .. padded - 1} pixels sits at U{0 .. rest - 1} in a padded one (Xie et al.,
    upper ends exclusive as in their code; they draw once a batch, we once an image). -1 is padding. With
    `diversity_back` the maps `[n, size]` include the way back, and are the identity where not applied.
    """
    padded = round(size * attack.diversity_size)
    applied = draws.uniform().cpu() < attack.diversity
    resized = draws.integers(size, padded)
    rest = padded - resized
    maps = []
    for offset in (draws.integers(0, rest), draws.integers(0, rest)):
        at = torch.arange(padded) - offset[:, None]
        inside = (at >= 0) & (at < resized[:, None])
        # Nearest neighbour as TF and torch have it: floor(i * in / out).
        maps.append(torch.where(inside, at * size // resized[:, None], -1))
    rows, columns = maps
    if attack.diversity_back:
        back = torch.arange(size) * padded // size
        same = torch.arange(size).expand(len(draws), size)
        rows = torch.where(applied[:, None], rows[:, back], same)
        columns = torch.where(applied[:, None], columns[:, back], same)
    return applied, rows, columns


def take_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Output pixel (i, j) of image k is `x[k, :, rows[k, i], columns[k, j]]`, or mid-grey where either is -1.

    `x` `[n, c, h, w]`; `rows` `[n, H]` and `columns` `[n, W]` grow along each image. Differentiable in `x`.
    """
    out: Tensor = _TakePixels.apply(x, rows, columns)
    return out


class _TakePixels(torch.autograd.Function):
    """A gather whose backward is a gather too: fast, and free of the order of atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        n, c, h, w = x.shape
        ctx.size = (h, w)
        ctx.save_for_backward(rows, columns)
        # One grey pixel behind the last stands for the padding.
        flat = pad(x.reshape(n, c, h * w), (0, 1), value=GREY)
        index = rows[:, :, None] * w + columns[:, None, :]
        index[(rows < 0)[:, :, None] | (columns < 0)[:, None, :]] = h * w
        index = index.reshape(n, 1, -1).to(x.device)
        return flat.gather(2, index.expand(n, c, -1)).view(n, c, rows.shape[1], columns.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        rows, columns = ctx.saved_tensors
        h, w = ctx.size
        grad = _collect(grad, rows, h, 2)
        return _collect(grad, columns, w, 3), None, None


def _collect(grad: Tensor, index: Tensor, size: int, dim: int) -> Tensor:
    """Sum along `dim` of the entries that came from each of `size` places: the transpose of taking them.

    `index` grows, so the entries of one place are neighbours: at most `reach` of them.
    """
    n, length = index.shape
    counts = torch.zeros(n, size + 1, dtype=torch.long)
    counts.scatter_add_(1, index + 1, torch.ones_like(index))  # column 0 counts the padding
    # Leading padding comes before place 0; padding behind comes after the last place.
    leading = (index < 0).long().cumprod(1).sum(1, keepdim=True)
    counts = counts[:, 1:]
    first = leading + counts.cumsum(1) - counts
    shape = [n, 1, 1, 1]
    shape[dim] = size
    full = list(grad.shape)
    full[dim] = size
    total = torch.zeros(full, dtype=grad.dtype, device=grad.device)
    for k in range(int(counts.max())):
        at = (first + k).clamp(max=length - 1).view(shape).to(grad.device)
        there = (counts > k).view(shape).to(grad.device)
        total += grad.gather(dim, at.expand(full)) * there
    return total
