"""`rdp-bench cite`: BibTeX of this benchmark and of the paper whose evaluation it reproduces."""

from pathlib import Path

import click

from rdp_bench import __version__
from rdp_bench.errors import UsageError

BIBTEX = """@software{{rdp_bench,
  title   = {{rdp-bench: a benchmark of input purification against transfer attacks}},
  author  = {{{{The rdp-bench authors}}}},
  version = {{{version}}}
}}

@article{{bai2021rdp,
  title   = {{Adversarial Purification through Representation Disentanglement}},
  author  = {{Bai, Tao and Zhao, Jun and Guo, Lanqing and Wen, Bihan}},
  journal = {{arXiv preprint arXiv:2110.07801}},
  year    = {{2021}}
}}"""


@click.command()
@click.argument("out", type=click.Path(path_type=Path), required=False)
def cite(out: Path | None) -> None:
    """Print BibTeX entries for this benchmark and for the RDP paper.

    With a results folder OUT, also the sources of the attacks and defenses that its runs use, as comments.
    """
    if out is None:
        click.echo(BIBTEX.format(version=__version__))
        return
    from rdp_bench.results.record import read_run

    paths = sorted((out / "runs").glob("*.json"))
    if not paths:
        raise UsageError(f"{out} holds no run; start with: rdp-bench run table1 --out {out}")
    used = {
        (kind, label): part["source"]
        for record in (read_run(path).header for path in paths)
        for kind in ("attacks", "defenses")
        for label, part in record[kind].items()
    }
    click.echo(BIBTEX.format(version=__version__))
    click.echo("\n% cite the sources of what these runs use:")
    for (kind, label), source in sorted(used.items()):
        click.echo(f"% {kind.removesuffix('s')} {label}: {source}")
