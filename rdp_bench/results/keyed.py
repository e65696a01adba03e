"""In what the facts behind the keys of a cell differ from what the run record says, each as (keyed, recorded)."""

from typing import Any

from rdp_bench.keys import Record, canonical_json
from rdp_bench.results.record import CellResult
from rdp_bench.specs import UNDEFENDED, cut, plain, show

Pairs = dict[str, tuple[Any, Any]]

WHITE_BOX = "white-box"
"""What the names of sources begin with that have a set for each defense."""

_ABSENT = "nothing of this name"


def of_defense(record: Record, label: str, facts: Record) -> Pairs:
    """Of a cell's defense: its version, its passes and every parameter in the key."""
    said = record["defenses"].get(label)
    if not said:
        return {"defense": (facts["id"], _ABSENT)}
    resolved = {name: said["resolved"].get(name) for name in facts["params"]}
    return {
        "version of the defense": (facts["version"], said["version"]),
        "parameters of the defense": (canonical_json(facts["params"]), canonical_json(resolved)),
        "passes of the defense": (facts["passes"], said["passes"]),
    }


def of_model(record: Record, label: str, facts: Record) -> Pairs:
    """Of a model: its weights, and what is between pixels and logits. The record of a plugin's model has neither."""
    said = record["models"].get(label)
    if not said:
        return {f"model {label}": (facts.get("weights") or facts.get("id"), _ABSENT)}
    if not said.get("sha256"):
        return {f"name of the model {label}": (label, said["name"])}
    card = {name: said.get(name) for name in facts.get("card", {})}
    return {
        f"name of the model {label}": (label, said["name"]),
        f"weights of the model {label}": (facts.get("weights"), said["sha256"]),
        f"settings of the model {label}": (canonical_json(facts.get("card", {})), canonical_json(card)),
    }


def of_attack(record: Record, cell: CellResult, facts: Record) -> Pairs:
    """Of a cell's attack: its version and every parameter in the key. What the key leaves out may be neutral there."""
    said = record["attacks"].get(cell.attack)
    if not said:
        return {"attack": (facts["id"], _ABSENT)}
    resolved = said["resolved"].get(show(cell.eps), {})
    return {
        "version of the attack": (facts["version"], said["version"]),
        **{f"{name} of the attack": (value, resolved.get(name)) for name, value in attack_params(facts).items()},
    }


def attack_params(facts: Record) -> Record:
    """The parameters of an attack as `resolved` returns them; keys of this package's engine have them by part."""
    params: Record = facts["params"]
    if facts["id"] != "gradient-sign":
        return params
    parts = params["parts"].values()
    return {name: value for part in parts for name, value in part.items() if name != "version"}


def of_source(record: Record, cell: CellResult, facts: Record, defense: Record) -> Pairs:
    """Of a cell's source: its models, and the defense in front of them; `defense` is that of the cell in its key."""
    if cut(cell.source)[0] == WHITE_BOX:
        said = _white_box(record, cell, defense)
    elif cell.source in record["sources"]:
        said = record["sources"][cell.source]
    else:
        return {"source": (f"{len(facts['members'])} models", _ABSENT)}
    found: Pairs = {
        "number of models of the source": (len(facts["members"]), len(said["members"])),
        "defense in front of the source": (
            canonical_json({"": facts.get("attacked_defense")}), canonical_json({"": said["attacked_defense"]})
        ),
    }  # fmt: skip
    for stored, label in zip(facts["members"], said["members"], strict=False):
        found |= {f"{name} of the source": pair for name, pair in of_model(record, label, stored).items()}
    return found


def _white_box(record: Record, cell: CellResult, defense: Record) -> Record:
    """What a source says that is the target of the cell behind its defense."""
    if plain(cell.defense) == UNDEFENDED:
        return {"members": [cell.target], "attacked_defense": None}
    said = record["defenses"].get(cell.defense, {})
    samples = cut(cell.source)[1] if said.get("random") else None
    label = f"adaptive({cell.defense}, {cell.target}{f', {samples}' if samples else ''})"
    source: Record = record["sources"].get(label, {"members": [cell.target], "attacked_defense": None})
    front = source["attacked_defense"]
    identity = {name: value for name, value in defense.items() if name != "passes"}
    return {**source, "attacked_defense": {**front, "defense": identity} if front else None}
