"""What the built-in grids of a profile need and this machine lacks."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rdp_bench.errors import RdpBenchError


@contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Without warnings: "*" in a grid leaves out what it lacks, and each grid would say so."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def lacking(profile: str, models_dir: Path | None) -> dict[str, str]:
    """Data sets, models and defenses of the built-in grids under `profile` that cannot be used, and why."""
    from rdp_bench import registry
    from rdp_bench.audits import grid as audits
    from rdp_bench.data.adversarial import ELSEWHERE
    from rdp_bench.data.open import open_dataset
    from rdp_bench.engine import grid
    from rdp_bench.models import defended, zoo
    from rdp_bench.specs import split

    found: dict[str, str] = {}
    seen: set[str] = set()

    def need(what: str, use: Callable[[], object]) -> None:
        if what in seen:
            return
        seen.add(what)
        try:
            use()
        except RdpBenchError as error:
            found[what] = str(error)

    def settled(name: str) -> Iterator[grid.Grid]:
        """The grid, or the parts of its audits."""
        if not grid.is_audit(name):
            yield grid.settle(grid.load(name, profile, {})[0], models_dir)
            return
        several = audits.load(name, profile, {})
        for subject in several.subjects(models_dir):
            yield from (grid.settle(one, models_dir) for _, one in several.parts(subject))

    grids: list[grid.Grid] = []
    for name in grid.builtin():
        if grid.expand_suite(name) != [name]:
            continue
        try:
            with _quiet(grid.log):
                grids += settled(name)
        except RdpBenchError as error:
            found[f"grid {name}"] = str(error)
    for one in grids:
        axes, files = one.axes, one.files("defenses", models_dir)
        need(f"data set {axes.dataset}", lambda label=axes.dataset: open_dataset(label))  # type: ignore[misc]
        models = [*axes.targets, *axes.checks]
        for source in axes.sources if axes.attacks else ():
            while behind := defended.parse(source):
                source = behind[1]
            if source != ELSEWHERE and not defended.is_white_box(source):
                models += axes.ensembles.get(source) or split(source, "+")
        for label in dict.fromkeys(models):
            need(f"model {label}", lambda label=label: zoo.find(label, models_dir))  # type: ignore[misc]
        for label in axes.defenses:
            need(
                f"defense {label}",
                lambda label=label, files=files: registry.defense.resolve(label, files=files).value.resolved(),  # type: ignore[misc]
            )
    return found
