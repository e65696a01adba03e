"""Labels of a grid that mean the same. No torch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rdp_bench.data.adversarial import AdversarialFiles
from rdp_bench.errors import RdpBenchError
from rdp_bench.keys import canonical_json
from rdp_bench.models.zoo import SourceSpec
from rdp_bench.protocols import Attack, Defense
from rdp_bench.registry import Resolved, identity


def named_twice(
    attacks: Mapping[str, Resolved[Attack]],
    defenses: Mapping[str, Resolved[Defense]],
    sources: Mapping[str, SourceSpec],
    eps: float,
) -> list[str]:
    """Remarks on labels that mean the same: averages and tests count it for each."""
    facts: dict[str, dict[str, Callable[[], Any]]] = {
        "attack": {label: partial(identity, made, eps) for label, made in attacks.items()
                   if not isinstance(made.value, AdversarialFiles)},
        "defense": {label: partial(identity, made) for label, made in defenses.items()},
        "source": {label: partial(_in_any_order, spec) for label, spec in sources.items() if spec.members},
    }  # fmt: skip
    found = []
    for kind, labels in facts.items():
        first: dict[str, str] = {}
        for label, fact in labels.items():
            try:
                same = first.setdefault(canonical_json(fact()), label)
            except (RdpBenchError, TypeError, ValueError):
                continue  # a cell of it says why
            if same != label:
                found.append(f"{kind} '{label}' is {kind} '{same}': averages and tests count it twice")
    return found


def _in_any_order(source: SourceSpec) -> dict[str, Any]:
    record = source.record()
    return {**record, "members": sorted(map(canonical_json, record["members"]))}
