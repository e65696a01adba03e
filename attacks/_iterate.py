"""The loop of `GradientSign` in torch: `iterate`, and its parts as functions of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, pad

from rdp_bench.errors import UsageError

GradientSign = Any
"""The settings, `gradient_sign.GradientSign`: that module imports this one."""

if TYPE_CHECKING:
    from rdp_bench.protocols import Classifier, Source
    from rdp_bench.rng import ImageRng

GREY = 0.5
STRIP = 75  # columns: of many widths tried, the fastest on a CPU


def iterate(attack: GradientSign, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
    """Run `attack`; `eps` in [0, 1], or an L2 norm. The result is within `eps` of `x` and in [0, 1].

    `y` are the labels; for an attack that aims at the data set's targets, those.
    """
    if attack.kernel_size > 2 * max(x.shape[2:]) + 1:
        raise UsageError(
            f"kernel {attack.kernel_size} is longer than twice the images, {x.shape[3]} x {x.shape[2]} pixels"
        )
    l2 = attack.norm == "l2"
    unit = 1 if l2 else 255
    alpha, mu = attack.step(eps * unit) / unit, attack.momentum
    low, high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
    adv = x.clone()
    if attack.random_start and l2:
        direction, length = unit_l2(rng.normal(*x.shape[1:])), eps * rng.uniform()
        adv += length.view(-1, 1, 1, 1) * direction
    elif attack.random_start:
        adv += rng.uniform(*x.shape[1:], low=-eps, high=eps)
        if attack.clip_start:
            adv.clamp_(0, 1)
    sign = -1.0 if attack.targeted else 1.0
    labels: Tensor | None = None if attack.label == "predicted" else y
    if attack.targeted and attack.target == "random":
        # Uniform over the wrong classes: y + U{1 .. classes - 1}.
        classes = source.members[0].classes
        labels = (y + rng.integers(1, classes).to(y.device)) % classes
    velocity, sign_of = torch.zeros_like(x), torch.empty_like(x)
    for _ in range(attack.count(eps * unit)):
        at = adv + sign * mu * alpha * velocity if attack.nesterov else adv
        grad, labels = _gradient(attack, source, at, labels, rng)
        if attack.kernel_size > 1:
            grad = smooth(grad, attack.kernel_size)
        if mu > 0:
            grad = velocity = normalise(grad).add_(velocity, alpha=mu)
        if l2:
            adv = project_l2(adv + sign * alpha * unit_l2(grad), x, eps).clamp_(0, 1)
            continue
        adv.add_(torch.sign(grad, out=sign_of), alpha=sign * alpha)
        torch.clamp(adv, low, high, out=adv)
    return adv


def _gradient(
    attack: GradientSign, source: Source, at: Tensor, labels: Tensor | None, rng: ImageRng
) -> tuple[Tensor, Tensor]:
    """Sum over the copies of the loss gradient at `at`, and the labels used."""
    total: Tensor | None = None
    # EOT averages over draws of the source's defense; a sum has the same sign, as it has over copies.
    for i in [i for i in range(attack.scale_copies) for _ in range(getattr(source, "samples", 1))]:
        leaf = at.detach().requires_grad_()
        # Lin et al. scale images of [-1, 1] by 1/2^i; autograd brings the factor 2^-i of copy i.
        z = leaf if i == 0 else GREY + (leaf - GREY) * 0.5**i
        outputs = [_logits(attack, member, z, rng) for member in source.members]
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


def _logits(attack: GradientSign, member: Classifier, z: Tensor, rng: ImageRng) -> tuple[Tensor, Tensor | None]:
    """Logits (and auxiliary logits) of one source member behind its own draw of input diversity."""

    def look(images: Tensor, zoom: float = 1.0, which: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if drawn := getattr(member, "stochastic_logits", None):  # a defense's randomness, fresh in every gradient
            return drawn(images, rng if which is None else rng.select(which), zoom), None
        if attack.aux_weight and (both := getattr(member, "logits_and_aux", None)):
            main, aux = both(images, zoom)
            return main, aux
        return member(images, zoom), None

    if attack.diversity_prob == 0:
        return look(z)
    applied, rows, columns = sample_diversity(attack, z.shape[-1], rng)

    def taken(
        images: Tensor, rows: Tensor, columns: Tensor, zoom: float, which: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        # Up to a size of 2 at most two taken pixels are one: their gradients' sum has one order everywhere.
        if (
            not attack.aux_weight
            and attack.diversity_size <= 2
            and (fused := getattr(member, "logits_of_gathered", None))
        ):
            return fused(images, rows, columns, zoom), None
        return look(gather_pixels(images, rows, columns), zoom, which)

    if attack.resize_back:
        return taken(z, rows, columns, 1.0)
    zoom = rows.shape[1] / z.shape[-1]
    if applied.all():
        return taken(z, rows, columns, zoom)
    if not applied.any():
        return look(z)
    # Two sizes cannot share a batch.
    some, rest = (index[:, 0] for index in (applied.nonzero(), (~applied).nonzero()))
    z_some, z_rest = _Split.apply(z, some.to(z.device), rest.to(z.device))
    parts = [taken(z_some, rows[some], columns[some], zoom, some), look(z_rest, which=rest)]
    back = torch.cat([some, rest]).argsort().to(z.device)
    heads = [aux for _, aux in parts if aux is not None]
    return torch.cat([main for main, _ in parts])[back], torch.cat(heads)[back] if heads else None


class _Split(torch.autograd.Function):
    """Two parts of a batch; plain indexing would sum two gradients of the whole batch."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(one, two)
        return z.index_select(0, one), z.index_select(0, two)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        one, two = ctx.saved_tensors
        total = grads[0].new_empty(len(one) + len(two), *grads[0].shape[1:])
        return total.index_copy_(0, one, grads[0]).index_copy_(0, two, grads[1]), None, None


def norm_l2(x: Tensor) -> Tensor:
    """L2 norm of each image, `[n, 1, 1, 1]`."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm


def unit_l2(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zero stays zero."""
    norm = norm_l2(x)
    return x / norm.masked_fill(norm == 0, 1)


def project_l2(adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to `adv` whose L2 distance to `x` is at most `eps`, per image."""
    delta = adv - x
    norm = norm_l2(delta)
    return x + delta * (eps / norm.masked_fill(norm == 0, 1)).clamp(max=1)


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
    """Gradient `[n, c, h, w]` convolved with the TI kernel, zero padding, borders not renormalised.

    The kernel is an outer product, so two one-dimensional passes give the same sum. The first takes an
    image's columns for channels of a depthwise convolution: in memory they lie as channels-last wants them.
    The second is a product with a band matrix, a strip of columns at a time.
    """
    n, c, h, w = grad.shape
    half = length // 2
    kernel = gaussian(length).to(grad.device).view(1, 1, -1, 1).expand(w, 1, -1, 1)
    columns = grad.reshape(n * c, h, 1, w).permute(0, 3, 1, 2)
    with torch.autocast(grad.device.type, enabled=False):  # a training under way may have lowered the precision
        rows = conv2d(columns, kernel, padding=(half, 0), groups=w).permute(0, 2, 3, 1).reshape(-1, w)
        band = _band(w, length, grad.device)
        out = torch.empty_like(rows)
        for left in range(0, w, STRIP):
            right = min(left + STRIP, w)
            reach = slice(max(0, left - half), right + half)
            torch.mm(rows[:, reach], band[reach, left:right], out=out[:, left:right])
    return out.view(n, c, h, w)


@lru_cache(maxsize=8)
def _band(size: int, length: int, device: torch.device) -> Tensor:
    """The matrix `[size, size]` that convolves with `gaussian(length)` and pads with zeros."""
    kernel, half = gaussian(length), length // 2
    offset = torch.arange(size)[:, None] - torch.arange(size) + half
    return torch.where((offset >= 0) & (offset < length), kernel[offset.clamp(0, length - 1)], 0.0).to(device)


def sample_diversity(attack: GradientSign, size: int, rng: ImageRng) -> tuple[Tensor, Tensor, Tensor]:
    """One draw of input diversity an image: applied `[n]`, and source row and column of each output pixel.

    A resized image of U{size .. padded - 1} pixels sits at U{0 .. rest - 1} in a padded one (Xie et al.,
    upper ends exclusive as in their code; they draw once a batch, we once an image). -1 is padding. With
    `resize_back` the maps `[n, size]` include the way back, and are the identity where not applied.
    """
    padded = round(size * attack.diversity_size)
    applied = rng.uniform().cpu() < attack.diversity_prob
    resized = rng.integers(size, padded)
    rest = padded - resized
    maps = []
    for offset in (rng.integers(0, rest), rng.integers(0, rest)):
        at = torch.arange(padded) - offset[:, None]
        inside = (at >= 0) & (at < resized[:, None])
        # Nearest neighbour as TF and torch have it: floor(i * in / out).
        maps.append(torch.where(inside, at * size // resized[:, None], -1))
    rows, columns = maps
    if attack.resize_back:
        back = torch.arange(size) * padded // size
        same = torch.arange(size).expand(len(rng), size)
        rows = torch.where(applied[:, None], rows[:, back], same)
        columns = torch.where(applied[:, None], columns[:, back], same)
    return applied, rows, columns


def gather_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Output pixel (i, j) of image k is `x[k, :, rows[k, i], columns[k, j]]`, or mid-grey where either is -1.

    `x` `[n, c, h, w]`; `rows` `[n, H]` and `columns` `[n, W]` grow along each image. Differentiable in `x`.
    """
    out: Tensor = _GatherPixels.apply(x, rows, columns)
    return out


class _GatherPixels(torch.autograd.Function):
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
