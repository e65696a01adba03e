"""Audits of toy defenses, whole: plans, runs, probes and the card."""

from dataclasses import replace
from pathlib import Path

from rdp_bench import plugins
from rdp_bench.audits.card import Card
from rdp_bench.audits.parts import BUDGETS, Subject
from rdp_bench.audits.run import audit, planned
from rdp_bench.cache.store import Store
from rdp_bench.engine.grid import Grid
from rdp_bench.engine.plan import Plan, make_plan
from rdp_bench.engine.run import Run
from rdp_bench.engine.worker import Worker
from tests.helpers.commands import PLUGIN

FAULTS = PLUGIN.parent / "faults.py"

TOY = replace(
    BUDGETS["quick"], transfer=("fgsm",), gradient=("apgd-ce(steps=10)",), doubled=("apgd-ce(steps=20)",),
    black_box=("square(queries=60)",), sweep=(16.0,), eot=8, draws=8,
)  # fmt: skip

FEW = replace(
    TOY, gradient=("apgd-ce(steps=8, stop=true)",), doubled=("apgd-ce(steps=16, stop=true)",),
    black_box=("square(queries=20)",), sweep=(), grey_box=("fgsm",), traced=8, planted=(2, 20),
)  # fmt: skip


def card(folder: Path, defense: str, target: str = "fault/one", *, eps: float = 4.0, seed: int = 0) -> Card:
    """The card of an audit on the images of tests/plugin/faults.py."""
    plugins.load((FAULTS,))
    BUDGETS.setdefault("toy", TOY)
    return card_of(folder, Subject(defense, target, "fault/photos", eps, "toy", ("fault/two",)), seed=seed)


def robust_card(folder: Path) -> Card:
    """The card of the adversarially fine-tuned target without a defense, on a few small photographs."""
    plugins.load()
    BUDGETS.setdefault("few", FEW)
    subject = Subject("none", "effnet-lite2-ens", "photos20", 1.0, "few", ("effnet-lite0",), image_size=64)
    return card_of(folder, subject, limit=3)


def card_of(folder: Path, subject: Subject, *, seed: int = 0, limit: int | None = None) -> Card:
    """The card of an audit whose cache and results are in a folder."""

    def plan_of(grid: Grid) -> Plan:
        return make_plan(grid, Store(folder / "cache"), seed=seed, device="cpu", limit=limit, models_dir=None)

    def perform(plan: Plan, heading: str) -> Run:
        running = Run(plan, folder / "out", "")
        running.execute(running.start(), Worker(plan))
        return running

    return audit(subject, planned(subject, plan_of), perform, "")
