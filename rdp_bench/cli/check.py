"""`rdp-bench check`: whether the entries of a plugin keep the promises that the engine relies on."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rdp_bench.errors import RdpBenchError, UsageError, unknown_name
from rdp_bench.specs import cut

if TYPE_CHECKING:
    from rdp_bench.api.conformance import Check


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("labels", nargs=-1)
@click.option(
    "--size", default=128, show_default=True, type=click.IntRange(8), help="Width of the test images in pixels."
)
@click.option("--model", default="effnet-lite0", show_default=True, help="Source model for attacks.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
def check(file: Path, labels: tuple[str, ...], size: int, model: str, models_dir: Path | None) -> None:
    """Check the entries of a plugin FILE.py and print one line per property.

    LABELS are entries of the plugin with their parameters, such as "mine/net(weights=net.safetensors)"; without them,
    every entry is checked with its defaults.

    Properties: shape, range, determinism, independence of the batch, no global random numbers, gradients, and the cost
    of a call. The exit status is 1 if a check fails.
    """
    from rdp_bench import plugins, registry

    plugins.load()
    before = {kind: set(each.entries) for kind, each in registry.registries.items()}
    plugins.load((file,))
    new = [
        (kind, name) for kind, each in registry.registries.items() for name in each.entries
        if name not in before[kind]
    ]  # fmt: skip
    if not new:
        raise UsageError(f"{file} registers nothing; see @defense, @attack, @model and @dataset of rdp_bench")
    names = {name: kind for kind, name in new}
    for label in labels:
        if cut(label)[0] not in names:
            raise unknown_name("entry", cut(label)[0], names, f"They are those of {file}")
    failed = total = 0
    for kind, name in [(names[cut(label)[0]], label) for label in labels] or new:
        click.echo(f"{kind} {name}")
        try:
            for each in _checks(kind, name, size, model, models_dir):
                total += 1
                failed += not each.passed
                click.echo(f"  {each}")
        except RdpBenchError as error:
            total, failed = total + 1, failed + 1
            click.echo(f"  FAIL  it cannot be created: {error}")
    click.echo(f"{total - failed} of {total} checks passed")
    if failed:
        sys.exit(1)


def _checks(kind: str, name: str, size: int, model: str, models_dir: Path | None) -> "Iterator[Check]":
    import torch

    from rdp_bench import registry
    from rdp_bench.api import conformance, load_dataset
    from rdp_bench.api.loaded import as_source, classifier
    from rdp_bench.specs import FileSearch

    made: Any = registry.registries[kind].resolve(name, files=FileSearch(models_dir=models_dir)).value
    if kind == "dataset":
        yield from conformance.check_dataset(made)
        return
    x, _ = load_dataset("photos20", limit=conformance.COUNT, size=size, device="cpu")
    if kind == "defense":
        yield from conformance.check_defense(name, made, x)
    elif kind == "model":
        yield from conformance.check_model(name, made, x)
    else:
        source = as_source(classifier(model, models_dir, "cpu"), x)
        with torch.no_grad():
            labels = source.members[0](x).argmax(1)
        yield from conformance.check_attack(name, made, source, x, labels)
