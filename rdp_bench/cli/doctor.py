"""`rdp-bench doctor`: what is installed, and what is missing."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rdp_bench.cli import common
from rdp_bench.errors import RdpBenchError

if TYPE_CHECKING:
    from rdp_bench.cache.files import Location


@click.command()
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder searched first for weight files.")
@common.cache
def doctor(models_dir: Path | None, cache: "Location | None") -> None:
    """Print what is installed (device, weights, data), and what each profile lacks and how to get it."""
    from rdp_bench import environment, plugins, registry
    from rdp_bench.cache.locations import default_root
    from rdp_bench.cli.profiles import lacking
    from rdp_bench.data.open import open_dataset
    from rdp_bench.metrics.measurements import MEASUREMENTS
    from rdp_bench.models import zoo
    from rdp_bench.models.card import cards
    from rdp_bench.specs import FileSearch

    plugins.load()
    files = FileSearch(models_dir=models_dir)
    for name, value in environment.versions().items():
        click.echo(f"{name:14} {value}")
    for extra in ("torchattacks", "torchattack", "spandrel"):
        if extra not in environment.versions():
            click.echo(f"{extra:14} absent (optional): pip install '.[{extra}]' in the checkout")
    click.echo(f"{'processor':14} {environment.processor()}, {os.cpu_count()} threads")
    device = environment.choose_device("auto")
    click.echo(f"{'device':14} {environment.describe(device)['device_name'] if device != 'cpu' else 'cpu (no CUDA)'}")
    root = cache or default_root()
    click.echo(f"{'cache':14} {root}")
    click.echo("\nmodels")
    for name, card in cards().items():
        try:
            member = zoo.find(name, models_dir)
            here = "here" if isinstance(member, zoo.ModelRef) and member.file else "downloaded at first use (network)"
        except RdpBenchError as error:
            here = f"missing: {error}"
        click.echo(f"  {card.name:18} {here}")
    click.echo("\ndefenses")
    for name in registry.defense.entries:
        try:
            registry.defense.resolve(name, files=files).value.resolved()
            click.echo(f"  {name:18} here")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")
    click.echo("\nmeasurements")
    for name, each in MEASUREMENTS.items():
        click.echo(f"  {name:18} {'here' if each.facts() is not None else f'missing (optional): {each.install}'}")
    click.echo("\ndata sets")
    for name in registry.dataset.entries:
        try:
            click.echo(f"  {name:18} here, {len(open_dataset(name).labels)} images")
        except RdpBenchError as error:
            click.echo(f"  {name:18} missing: {error}")
    click.echo("\nprofiles")
    for profile in ("embedded", "paper"):
        missing = lacking(profile, models_dir)
        click.echo(f"  {profile:18} {'ready' if not missing else f'lacks {len(missing)}:'}")
        for what, why in missing.items():
            click.echo(f"    {what}: {why}")
