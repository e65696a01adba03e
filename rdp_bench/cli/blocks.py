"""The measured numbers as plain text, a block per source and target, each printed as soon as it is complete."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from rdp_bench.budgets import show_eps
from rdp_bench.data.adversarial import ELSEWHERE
from rdp_bench.results import crosscheck
from rdp_bench.results.rows import given_name, shown_names
from rdp_bench.specs import CellKey
from rdp_bench.terminal import columns, left, printable, right

if TYPE_CHECKING:
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run


@dataclass(frozen=True)
class Block:
    """A piece of the table: its title, the names of its columns, and the cells of each row."""

    title: str
    heads: Sequence[str]
    rows: Mapping[str, Sequence[CellKey]]


class Blocks:
    """The blocks of a plan in the order in which its jobs complete them: clean images first, then source by source."""

    def __init__(self, plan: "Plan") -> None:
        self._left = list(_blocks(plan))
        # Whether the networks are those of others is said before any number that is to be compared with theirs.
        self._wait = (plan.grid.profile, plan.dataset.name) == (crosscheck.PROFILE, crosscheck.DATASET)

    def __call__(self, running: "Run") -> None:
        """Print the blocks that are complete by now."""
        while self._left and not self._wait and _complete(self._left[0], running):
            self._print(running)

    def finish(self, running: "Run") -> None:
        """Print all that is left, complete or not."""
        while self._left:
            self._print(running)

    def _print(self, running: "Run") -> None:
        block = self._left.pop(0)
        labels = running.plan.grid.axes.defenses
        with shown_names(running.record.get("names", {})):
            heads = [printable(given_name(head), lines=False) for head in block.heads]
            names = {label: printable(given_name(label), lines=False) for label in labels}
        wide = [max(10, columns(head)) for head in heads]  # never cut: two names may begin alike
        width = max(map(columns, names.values()))
        lines = ["", block.title]
        if any(heads):
            lines.append(f"{'':{width}} {' '.join(map(right, heads, wide))}")
        for defense, cells in block.rows.items():
            numbers = (_number(running, cell, size) for cell, size in zip(cells, wide, strict=True))
            lines.append(f"{left(names[defense], width)} {' '.join(numbers)}")
        _echo("\n".join(lines))


def _blocks(plan: "Plan") -> list[Block]:
    axes = plan.grid.axes
    targets = {
        target: [defense for defense in axes.defenses if target in axes.targets_for(defense)]
        for target in axes.targets + axes.baselines
    }
    found = []
    for target, defenses in targets.items() if axes.clean else ():
        rows = {defense: [CellKey.clean(target, defense)] for defense in defenses}
        found.append(Block(f"accuracy % of {target} on clean images", ("",), rows))
    for eps in axes.eps if axes.attacks else ():
        for source in axes.sources:
            crafted = source if source == ELSEWHERE else f"on {source}"
            for target, defenses in targets.items():
                title = f"error % of {target}, crafted {crafted}, eps {show_eps(eps, axes.norm)}"
                rows = {
                    defense: [CellKey(source, attack, eps, target, defense) for attack in axes.attacks]
                    for defense in defenses
                }
                found.append(Block(title, axes.attacks, rows))
    return [block for block in found if block.rows]


def _complete(block: Block, running: "Run") -> bool:
    return all(running.cells[cell].status != "pending" for cells in block.rows.values() for cell in cells)


def _number(running: "Run", cell: CellKey, width: int) -> str:
    row = running.rows.get(cell, {"value": "", "status": ""})
    return f"{float(row['value']):{width}.1f}" if row["value"] not in ("", None) else f"{row['status']:>{width}}"


def _echo(text: str) -> None:
    """Print beside a progress bar, if there is one."""
    if "tqdm" not in sys.modules:
        click.echo(text)
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stdout):
        click.echo(text)
