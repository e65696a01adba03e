"""An audit from its subject to its card."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rdp_bench.audits.card import Card, card_of
from rdp_bench.audits.evidence import Cell, Evidence, cells_of
from rdp_bench.audits.parts import WHITE_BOX, Subject, grids
from rdp_bench.audits.training_images import overlap
from rdp_bench.errors import RdpBenchError

if TYPE_CHECKING:
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run
    from rdp_bench.models.zoo import LoadedSource, SourceSpec

log = logging.getLogger(__name__)


def planned(subject: Subject, plan_of: Callable[[Grid], Plan]) -> list[tuple[str, Plan]]:
    """The plans of all parts: whatever is misspelled or has no backward pass is refused before anything runs.

    Raises:
        UsageError, BadModelError, BadImageError: as `make_plan`.
    """
    return [(part, plan_of(grid)) for part, grid in grids(subject)]


def audit(subject: Subject, plans: list[tuple[str, Plan]], perform: Callable[[Plan, str], Run], command: str) -> Card:
    """Perform the parts in order, measure the probes, and read them.

    Args:
        subject: what is audited.
        plans: of `planned`.
        perform: does what a plan still lacks; gets the plan and a heading.
        command: how the audit was asked for.
    """
    begin = time.perf_counter()
    cells: list[Cell] = []
    attacks: dict[str, Any] = {}
    models: dict[str, dict[str, float]] = {}
    gradients = 0
    white: Plan | None = None
    for number, (part, plan) in enumerate(plans, 1):
        run = perform(plan, f"[{number}/{len(plans)}] ")
        models |= _accuracies(run)
        cells += cells_of(part, run)
        white = plan if part == WHITE_BOX else white
        for label, made in plan.attacks.items():
            for eps in plan.grid.axes.eps:
                attacks[label] = {"label": label, "params": made.value.resolved(eps)}
                gradients += made.value.gradients(eps)
    assert white is not None
    evidence = Evidence(
        subject,
        subject.random,
        tuple(cells),
        {**_probes(subject, white), "models": models, "photographs": overlap(subject.made, white)},
    )
    cost = {"gradients": float(gradients), "minutes": (time.perf_counter() - begin) / 60}
    return card_of(evidence, attacks=list(attacks.values()), cost=cost, command=command)


def _probes(subject: Subject, plan: Plan) -> dict[str, Any]:
    """The probes of the source that the white-box part attacks, on its first images."""
    import torch

    from rdp_bench.audits import probes
    from rdp_bench.data.image_hashes import batch

    (label,) = [name for name in plan.sources if name != subject.target] or [subject.target]
    n = min(plan.n, probes.MOST_IMAGES)
    try:
        x = torch.from_numpy(batch(plan.dataset, 0, n, plan.image_hashes)).to(plan.device).float() / 255
        y = torch.tensor(list(plan.dataset.labels[:n]), device=plan.device)
        spec = plan.sources[label]
        fresh = partial(_copy, spec, plan.device) if spec.attacked_defense else None
        context = probes.Context(spec.load(plan.device), x, y, subject.random, subject.settings.eot,
            subject.eps / 255, subject.settings.traced, subject.settings.planted, fresh,
        )  # fmt: skip
        return probes.measure(context)
    except RdpBenchError as error:
        log.warning("probes of %s: %s", label, error)
        return {}


def _copy(spec: SourceSpec, device: str) -> LoadedSource:
    """The source with a copy of its defense, which keeps from here on what it sees to itself."""
    behind = spec.attacked_defense
    assert behind is not None
    own = replace(behind.defense, value=copy.deepcopy(behind.defense.value))
    return replace(spec, attacked_defense=replace(behind, defense=own)).load(device)


def _accuracies(run: Run) -> dict[str, dict[str, float]]:
    """The measured and the published clean accuracy, in percent, of every model of a run that has both."""
    found = {}
    for label, facts in run.record.get("models", {}).items():
        known = run.plan.models[label].card.known_accuracy(run.plan.dataset.name, run.plan.n)
        if known is not None and facts.get("measured_accuracy") is not None:
            found[label] = {"measured": facts["measured_accuracy"], "known": known}
    return found
