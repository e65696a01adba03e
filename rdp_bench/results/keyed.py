"""In what the facts behind the keys of a cell differ from what the run record says, each as (keyed, recorded)."""

from typing import Any

from rdp_bench.keys import Record, canonical_json
from rdp_bench.results.record import CellResult
from rdp_bench.specs import UNDEFENDED, WHITE_BOX, cut, plain, show

Pairs = dict[str, tuple[Any, Any]]

ENGINE = "gradient-sign"
"""The id of attacks that are made of parts; see `attacks/gradient_sign.py`."""

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
    if facts["id"] != ENGINE:
        return params
    parts = params["parts"].values()
    return {name: value for part in parts for name, value in part.items() if name != "version"}


def source_of(record: Record, cell: CellResult) -> str:
    """What the record calls the source of a cell; for `white-box`, the cell's target behind the cell's defense."""
    name, samples = cut(cell.source)
    if name != WHITE_BOX:
        return cell.source
    if plain(cell.defense) == UNDEFENDED:
        return cell.target
    random = record["defenses"].get(cell.defense, {}).get("random")
    more = f", {int(samples) if samples.isdecimal() else samples}" if samples and random else ""
    return f"adaptive({cell.defense}, {cell.target}{more})"


def of_source(record: Record, cell: CellResult, facts: Record, defense: Record) -> Pairs:
    """Of a cell's source: its models, and the defense in front of them; `defense` is that of the cell in its key."""
    said = record["sources"].get(label := source_of(record, cell))
    if not said:
        return {f"source {label}": (f"{len(facts['members'])} models", _ABSENT)}
    front = facts.get("attacked_defense")
    found: Pairs = {
        "number of models of the source": (len(facts["members"]), len(said["members"])),
        "defense in front of the source": (canonical_json({"": front}), canonical_json({"": said["attacked_defense"]})),
    }
    if label != cell.source and label != cell.target:
        own = {name: value for name, value in defense.items() if name != "passes"}
        known = front["defense"] if front else None
        found["defense that the white box knows"] = (canonical_json({"": known}), canonical_json({"": own}))
    for stored, member in zip(facts["members"], said["members"], strict=False):
        found |= {f"{name} of the source": pair for name, pair in of_model(record, member, stored).items()}
    return found
