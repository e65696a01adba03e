"""Shell completion: names of entries, models, data sets and grids."""

from collections.abc import Callable
from typing import Any

import click


def of_kind(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A completion function for the names of a kind: attack, defense, model, dataset or grid."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
        plus = "+" if incomplete.startswith("+") else ""
        before, comma, last = incomplete.removeprefix("+").rpartition(",")  # names of a list, and what is being typed
        return [plus + before + comma + name for name in _names(kind) if name.startswith(last)]

    return complete


def _names(kind: str) -> list[str]:
    from rdp_bench import plugins, registry

    if kind == "grid":
        from rdp_bench.engine import grid

        return sorted(grid.builtin())
    plugins.load()
    reg: registry.Registry[Any] = registry.registries[kind]
    names = set(reg.entries)
    if kind == "model":
        from rdp_bench.models.card import cards

        names |= set(cards())
    return sorted(names)
