"""What OUT/runs/<grid>.json says of a run besides its cells: its setting and every resolved parameter."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rdp_bench import schema
from rdp_bench.data.image_hashes import digest
from rdp_bench.engine.plan import Plan
from rdp_bench.git_state import commit_of
from rdp_bench.keys import KEY_VERSION, Record, hash_file, plain
from rdp_bench.models.zoo import ModelRef
from rdp_bench.protocols import aims_at_targets, classes_of, defense_facts
from rdp_bench.results.record import FORMAT
from rdp_bench.specs import show


def header(plan: Plan, command: str) -> Record:
    """The record of a run of `plan` (`results.record.RunRecord`) without cells, before any work."""
    axes = plan.grid.axes
    models = {}
    for label, model in plan.models.items():
        card = asdict(model.card)
        if isinstance(model, ModelRef):
            card["sha256"] = model.weights_hash()
            card["from"] = model.file.name if model.file else "timm's hub"
        models[label] = card
    attacks = {
        label: {
            "summary": made.summary,
            "source": made.source,
            "version": made.version,
            "aims_at_targets": aims_at_targets(made.value),
            "resolved": {show(eps): plain(made.value.resolved(eps)) for eps in axes.eps},
        }
        for label, made in plan.attacks.items()
    }
    defenses = {
        label: {
            "summary": made.summary,
            "source": made.source,
            "version": made.version,
            **plain(defense_facts(made.value)),
            "resolved": plain(made.value.resolved()),
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
            "label": plan.grid.axes.dataset,
            "n": plan.n,
            "size": plan.dataset.size,
            "image_size": axes.image_size,
            "images": digest(plan.image_hashes, plan.dataset.labels),
            "classes": classes_of(plan.dataset),
            **({"targets": list(plan.targets_of_images)} if _aim(plan) else {}),
        },
        "seed": plan.seed,
        "precision": plan.precision,
        "command": command,
        "started": now(),
        "finished": None,
        "seconds": 0.0,
        "environment": {},  # of what made the results; known once they are read
        "axes": {
            "sources": list(axes.sources),
            "targets": list(axes.targets),
            "attacks": list(axes.attacks),
            "eps": list(axes.eps),
            "norm": axes.norm,
            "success": axes.success,
            "defenses": list(axes.defenses),
            "clean": axes.clean,
            "defense_samples": axes.defense_samples,
        },
        "figures": list(axes.figures),
        "samples": axes.samples,
        "models": models,
        "sources": {
            label: {
                "members": [member.name for member in source.members],
                "attacked_defense": plain(source.attacked_defense.record()) if source.attacked_defense else None,
            }
            for label, source in plan.sources.items()
        },
        "attacks": attacks,
        "defenses": defenses,
        "warnings": [],
        "checks": [],
        "request": _request(plan),
        "code": _code(plan),
    }


def _request(plan: Plan) -> Record:
    """What `run --from` needs to make this plan again (`results.record.RequestFacts`)."""
    grid = plan.grid
    return {
        "axes": schema.plain(grid.axes),
        "device": plan.device.partition(":")[0],
        "key_format": KEY_VERSION,
        "plugins": [{"name": path.name, "sha256": hash_file(path)} for path in dict.fromkeys(grid.plugins)],
    }


def _code(plan: Plan) -> list[Record]:
    """The commits of the repositories of the working directory and of plugins (`results.record.CodeFacts`)."""
    places = {"working directory": Path.cwd(), **{path.name: path.resolve() for path in plan.grid.plugins}}
    found = [(what, commit_of(path)) for what, path in places.items()]
    return [{"what": what, **commit} for what, commit in found if commit]


def _aim(plan: Plan) -> bool:
    return any(aims_at_targets(made.value) for made in plan.attacks.values())


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
