"""What OUT/runs/<grid>.json says of a run: its setting, every resolved parameter, and in time its cells."""

from dataclasses import asdict
from datetime import UTC, datetime

from rdp_bench.environment import describe
from rdp_bench.keys import Record
from rdp_bench.models import Member
from rdp_bench.plan import Plan, dataset_digest
from rdp_bench.specs import show

FORMAT = 1


def header(plan: Plan, command: str) -> Record:
    """The record of a run of `plan` before any of its cells is done."""
    axes = plan.grid.axes
    models = {}
    for label, model in plan.models.items():
        card = asdict(model.card)
        if isinstance(model, Member):
            card["sha256"] = model.weights_hash()
            card["from"] = model.file.name if model.file else "timm's hub"
        models[label] = card
    attacks = {
        label: {
            "summary": made.summary,
            "source": made.source,
            "version": made.version,
            "resolved": {show(eps): made.value.resolved(eps) for eps in axes.eps},
        }
        for label, made in plan.attacks.items()
    }
    defenses = {
        label: {
            "summary": made.summary,
            "source": made.source,
            "version": made.version,
            **{
                name: getattr(made.value, name, None)
                for name in ("random", "differentiable", "backward", "scale", "passes")
            },
            "resolved": made.value.resolved(),
        }
        for label, made in plan.defenses.items()
    }
    return {
        "format": FORMAT,
        "grid": plan.grid.name,
        "title": plan.grid.title,
        "profile": plan.grid.profile,
        "note": axes.note,
        "dataset": {
            "name": plan.dataset.name,
            "n": plan.n,
            "size": plan.dataset.size,
            "image_size": axes.image_size,
            "images": dataset_digest(plan),
        },
        "seed": plan.seed,
        "command": command,
        "started": now(),
        "finished": None,
        "seconds": 0.0,
        "environment": describe(plan.device),
        "axes": {
            "sources": list(axes.sources),
            "targets": list(axes.targets),
            "attacks": list(axes.attacks),
            "eps": list(axes.eps),
            "defenses": list(axes.defenses),
            "clean": axes.clean,
            "draws": axes.draws,
        },
        "figures": list(axes.figures),
        "samples": axes.samples,
        "models": models,
        "sources": {
            label: {
                "members": [member.name for member in source.members],
                "through": source.through.record() if source.through else None,
            }
            for label, source in plan.sources.items()
        },
        "attacks": attacks,
        "defenses": defenses,
        "warnings": [],
        "checks": [],
        "cells": {},
    }


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
