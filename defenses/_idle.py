"""Parameters that have no effect beside another one are refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def refuse_idle(entry: Any, beside: str, *names: str) -> None:
    """Raise where a field of `entry` in `names` differs from its default.

    Args:
        entry: a defense.
        beside: the parameter that leaves them without effect, such as `guide=none`.
        *names: the fields.

    Raises:
        ValueError: one of them is set.
    """
    for field in fields(entry):
        if field.name in names and getattr(entry, field.name) != field.default:
            raise ValueError(f"{field.name} has no effect with {beside}; leave it out")
