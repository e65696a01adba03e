"""`rdp-bench list`: the names of every registry."""

from pathlib import Path
from typing import Any

import click

from rdp_bench.cli import common


@click.command("list")
@click.argument("kind", type=click.Choice(["attacks", "defenses", "models", "datasets", "grids"]))
@common.plugins
def list_(kind: str, plugins_: tuple[Path, ...]) -> None:
    """List attacks, defenses, models, datasets or grids."""
    from rdp_bench import plugins, registry

    package_name = {"attacks": ("attacks",), "defenses": ("defenses",), "datasets": ("data",)}.get(kind, ())
    plugins.load(plugins_, package_name)
    if kind == "grids":
        from rdp_bench.engine import grid

        rows = list(grid.builtin().items())
    else:
        reg: registry.Registry[Any] = registry.registries[kind.removesuffix("s")]
        rows = [(name, f"{entry.summary}  [{entry.source}]") for name, entry in sorted(reg.entries.items())]
        rows += [(scheme.example, f"any {scheme.name}") for scheme in reg.label_schemes]
    if kind == "models":
        from rdp_bench.models.card import cards

        rows = [(card.name, f"{card.summary}  [{_where(card)}]") for card in cards().values()] + rows
        rows.append(("timm:<name>", "any network of timm, pretrained  [network, or a file in --models-dir]"))
    if kind == "datasets":
        rows.append(("<folder>", "images/ + dev_dataset.csv (NIPS-2017), or one folder per class (synset or number)"))
        rows.append(("<file.csv>", "columns path,label"))
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        click.echo(f"{name:{width}}  {about}")


def _where(card: Any) -> str:
    kind = card.weights.partition(":")[0]
    places = {"shipped": "with this package", "package": "pip", "hub": "network", "file": "a file in --models-dir"}
    return places.get(kind, str(kind))
