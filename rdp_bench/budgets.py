"""Perturbation budgets: their norms, and how eps is read and shown."""

from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

from rdp_bench.errors import UsageError
from rdp_bench.protocols import ChoosesNorm
from rdp_bench.specs import parse_spec, show, show_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rdp_bench.protocols import Attack

Norm = Literal["linf", "l2"]
LINF: Norm = "linf"
NORMS: tuple[Norm, ...] = get_args(Norm)


def parse_eps(value: Any, norm: str = LINF) -> float:
    """The budget given as a number or as a text such as `8/255`.

    Returns:
        For `linf`, levels of 8-bit images: /255. For `l2`, the L2 norm of an image's change, pixels in [0, 1] at the
        data set's resolution.

    Raises:
        UsageError: not a number; an L-infinity budget between 0 and 1 (a fraction instead of levels) or above 255.
    """
    number, is_fraction = _number(value, norm)
    if norm != LINF:
        if not number >= 0:
            raise UsageError(
                f"eps {show(value)} is negative; an L2 budget is a number like 3.0, pixels being in [0, 1]"
            )
        if 0 < number < 1 / 255:
            raise UsageError(
                f"eps {show(value)} is an L2 norm below one level of one 8-bit pixel, 1/255 = 0.0039: no image could "
                "change; an L2 budget is a number like 3.0, pixels being in [0, 1]"
            )
        return number
    if 0 < number < 1:
        if is_fraction:
            raise UsageError(f"eps {value} is below one level of 8-bit images, which are what is stored; use 1 or more")
        nearest = max(1, round(number * 255))
        raise UsageError(
            f"eps {show(value)} is in /255 and would be {show(value)}/255; did you mean {nearest}? ({nearest}/255 = "
            f"{nearest / 255:.4f})"
        )
    if not 0 <= number <= 255:
        raise UsageError(f"eps {show(value)} is not within 0 and 255 (it is in /255: 16 means 16/255)")
    return number


def _number(value: Any, norm: str) -> tuple[float, bool]:
    """The number, for `linf` in /255, and whether it was written as a fraction."""
    wanted = UsageError(f"eps {value!r}: expected a number like 8, or a fraction like 8/255")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wanted
    top, slash, bottom = str(value).partition("/")
    try:
        number, divisor = float(top), float(bottom) if slash else 1.0
    except ValueError:
        raise wanted from None
    if not isfinite(number) or not isfinite(divisor) or divisor <= 0:
        raise wanted
    if not slash:
        return number, False
    if norm != LINF:
        return number / divisor, True
    if divisor != 255:
        raise UsageError(f"eps {value}: a fraction is of 255, like 8/255; found one of {bottom.strip()}")
    return number, True


def bounded(label: str, attack: "Attack", norm: str) -> "Attack":
    """The attack with its budget in `norm`.

    Args:
        label: of the attack, which may name its norm.
        attack: the object.
        norm: of the run.

    Raises:
        UsageError: it has no such budget, or its label names another.
    """
    if isinstance(attack, ChoosesNorm):
        named = norm
        with suppress(UsageError):  # a label of another form names no norm
            named = dict(parse_spec(label).params).get("norm", norm)
        if named != norm and named in NORMS:
            raise UsageError(f"attack '{label}' names norm={named}, and the run's is {norm}: use --norm {named}")
        try:
            return attack.with_norm(norm)
        except ValueError as error:
            raise UsageError(f"attack '{label}' under --norm {norm}: {error}") from error
    if norm != LINF:
        raise UsageError(
            f"attack '{label}' has an L-infinity budget only; leave out --norm {norm}, or use an attack that has "
            "both, such as fgsm, mi-fgsm or pgd"
        )
    return attack


def norm_of(run: Mapping[str, Any]) -> str:
    """The norm of the budgets of a run, from its record."""
    return str(run.get("axes", {}).get("norm", LINF))


def show_eps(eps: float, norm: str) -> str:
    """A budget for tables: in /255 for L-infinity, with the name of any other norm.

    >>> show_eps(16.0, "linf"), show_eps(0.1 + 0.2, "l2")
    ('16', '0.3 (L2)')
    """
    return show_level(eps) if norm == LINF else f"{show_level(eps)} ({norm.upper()})"


def allowed(eps: float, norm: str) -> str:
    """A budget with its unit, for errors.

    >>> allowed(16.0, "linf"), allowed(3.0, "l2")
    ('16/255', 'L2 norm 3')
    """
    return f"{show_level(eps)}/255" if norm == LINF else f"{norm.upper()} norm {show_level(eps)}"


def levels_within_l2(delta: "NDArray[np.int16]", wanted: "NDArray[np.float64]", eps: float) -> "NDArray[np.int16]":
    """One image's levels within an L2 norm of `eps`, near `wanted`, which they were rounded from.

    Levels go one step towards the clean image, those first that rounding took farthest away from it.
    """
    import numpy as np

    flat, exact = delta.astype(np.int64).ravel(), np.abs(wanted.ravel())
    limit = (255 * eps) ** 2
    while (excess := float(flat @ flat) - limit) > 0:
        size = np.abs(flat)
        order = np.argsort(np.where(size > 0, exact - size, np.inf), kind="stable")
        gains = np.cumsum(np.maximum(2 * size[order] - 1, 0))
        some = order[: int(np.searchsorted(gains, excess)) + 1]
        flat[some] -= np.sign(flat[some])
    return flat.astype(np.int16).reshape(delta.shape)
