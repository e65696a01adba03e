"""Images as whole levels of 8 bits, differences to the clean ones, and what attacks and defenses must keep to."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdp_bench.budgets import LINF, allowed, levels_within_l2
from rdp_bench.errors import RdpBenchError
from rdp_bench.models.entry_calls import checked_images


def to_float(images: NDArray[np.uint8], device: str) -> Tensor:
    """uint8 images as float32 in [0, 1] on `device`."""
    found = torch.from_numpy(images)
    if torch.device(device).type == "cuda":
        found = found.pin_memory()  # the copy does not wait for what the GPU still computes
    return found.to(device, non_blocking=True).float() / 255


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Float images in [0, 1] rounded to the nearest of 256 levels: never truncated, never stretched."""
    array: NDArray[np.uint8] = (images * 255).round().clamp(0, 255).byte().cpu().numpy()
    return array


def to_delta(
    adv: Tensor, x: Tensor, clean: NDArray[np.uint8], eps_255: float, what: str, norm: str = LINF
) -> NDArray[np.integer]:
    """What an attack added, in 8-bit levels, after checking what the attack promised.

    Args:
        adv: adversarial images `[n, 3, h, w]` in [0, 1].
        x: the clean ones.
        clean: the clean ones in 8 bits.
        eps_255: the budget; in /255 where `norm` is "linf", else the L2 norm with pixels in [0, 1].
        what: how errors begin.
        norm: "linf" or "l2".

    Returns:
        As `delta_of`.

    Raises:
        RdpBenchError: wrong shape, NaN, out of [0, 1], or farther than eps.
    """
    check_adversarial(adv, x, eps_255, what, norm)
    return delta_of(on_host(adv, norm), clean, eps_255)


def check_adversarial(adv: Tensor, x: Tensor, eps_255: float, what: str, norm: str = LINF) -> None:
    """Raise the errors of `to_delta`, whose arguments these are."""
    if not isinstance(adv, Tensor):
        raise RdpBenchError(f"{what}: returned {type(adv).__name__}, not a tensor")
    adv = adv.detach()
    if adv.shape != x.shape:
        raise RdpBenchError(f"{what}: returned shape {list(adv.shape)}, expected {list(x.shape)}")
    if not torch.isfinite(adv).all():
        raise RdpBenchError(f"{what}: returned NaN or infinite pixels")
    if norm == LINF:
        moved = float((adv - x).abs().max()) * 255
        if moved > eps_255 + 1e-2:
            raise RdpBenchError(f"{what}: moved a pixel by {moved:.2f}/255, allowed {allowed(eps_255, norm)}")
    else:
        moved = float((adv - x).flatten(1).norm(dim=1).max())
        if moved > eps_255 * (1 + 1e-4) + 1e-4:
            raise RdpBenchError(
                f"{what}: moved an image by an L2 norm of {moved:.4f}, allowed {allowed(eps_255, norm)}"
            )
    if float(adv.min()) < -1e-4 or float(adv.max()) > 1 + 1e-4:
        raise RdpBenchError(f"{what}: left the range [0, 1]: {float(adv.min()):.4f} to {float(adv.max()):.4f}")


def on_host(adv: Tensor, norm: str = LINF) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None]:
    """Adversarial images for `delta_of`: in 8 bits, and for L2 also exactly, in levels."""
    adv = adv.detach()
    return to_uint8(adv), None if norm == LINF else adv.cpu().double().numpy() * 255


def delta_of(
    found: tuple[NDArray[np.uint8], NDArray[np.float64] | None],
    clean: NDArray[np.uint8],
    eps_255: float,
) -> NDArray[np.integer]:
    """The difference to `clean` in 8-bit levels. It calls no torch.

    Rounding to levels leaves the budget by a little; the levels are then moved back until they are within it, exactly.

    Args:
        found: what `on_host` gave.
        clean: see `to_delta`.
        eps_255: see `to_delta`.

    Returns:
        `[n, 3, h, w]`; int8 where no level can change by more than 127, else int16.
    """
    levels, exact = found
    delta = levels.astype(np.int16) - clean
    if exact is not None:
        wanted = exact - clean
        return np.stack([levels_within_l2(*pair, eps_255) for pair in zip(delta, wanted, strict=True)])
    # Rounding moves by up to half a level: with a fractional eps that can lead outside it.
    delta = delta.clip(-int(eps_255), int(eps_255))
    return delta.astype(np.int8 if eps_255 < 128 else np.int16)


def within(delta: NDArray[np.generic], eps: float, norm: str) -> bool:
    """Whether every image's stored difference `[n, 3, h, w]` is within the budget; exact, in whole levels."""
    if not delta.size:
        return True
    if norm == LINF:
        return bool(-int(eps) <= delta.min() and delta.max() <= int(eps))
    flat = delta.reshape(len(delta), -1).astype(np.int64)
    return bool((flat * flat).sum(1).max() <= (255 * eps) ** 2)


def add_delta(clean: NDArray[np.uint8], delta: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Clean images plus stored differences; the inverse of `to_delta`.

    Sums modulo 256, which the sums of one image's own difference never need: the key names the images,
    and both were checked against their hashes.
    """
    return clean + delta.astype(np.int8, copy=False).view(np.uint8)


def check_purified(purified: Tensor, x: Tensor, what: str) -> Tensor:
    """A defense's output as float32 in [0, 1], or an error that names it."""
    return checked_images(purified, x, f"defense '{what}'").float().clamp(0, 1)
