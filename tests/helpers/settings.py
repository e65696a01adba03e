"""Attacks of the engine by the flat names of their parts' fields, as labels say them."""

from dataclasses import fields, replace
from typing import Any

from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.attacks.parts import ALWAYS, WORDS, Part


def setting(**values: Any) -> GradientSign:
    """The attack whose parts hold these values, the others being off."""
    parts: dict[type[Part], Part] = {}
    kinds = dict.fromkeys([*map(type, ALWAYS), *(type(part) for word in WORDS.values() for part in word.parts)])
    for kind in kinds:
        own = {f.name: values.pop(f.name) for f in fields(kind) if f.name in values}
        if own:
            parts[kind] = replace(kind(), **own)
    assert not values, values
    return GradientSign(tuple(parts.values()))
