"""Whether the labels of a run name what its keys hold, by the entries and models that are known here.

If the run is of this version, each label of a built-in entry is made again, and all its parameters are compared, those
that it does not state included; files are not read. Of a run of another version, whose defaults may be others, the id
of an entry and the numbers that its label contains are compared. In both, the models of a source, the gradient through
a defense in front of them, whether a built-in model has the weights of another one, and whether a label is shown by the
name of another entry.

The parameters of a plugin's entry need not repeat the numbers of its label: its `resolved` may change their units,
round or limit them, or choose a value for them. Only its id is compared.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rdp_bench import plugins, registry
from rdp_bench.budgets import bounded, norm_of
from rdp_bench.data.adversarial import ELSEWHERE, SCHEME
from rdp_bench.environment import versions
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.keys import Record, canonical_json, plain, without_neutral
from rdp_bench.results import keyed
from rdp_bench.results.display import built_in_models, misleading
from rdp_bench.results.record import CellResult
from rdp_bench.specs import MODES, FileName, cut, parse_spec, show, split

_PACKAGE = "rdp-bench"

_FILES = ("purifier:", "spandrel:")
"""Schemes of defenses that are a file."""

_LIBRARIES = ("torchattack", "torchattacks")
"""Packages whose version is a parameter of their attacks."""


def misnamed(record: Record, cells: Sequence[CellResult], held: Mapping[str, Record]) -> Iterator[str]:
    """A line for each label of a run that names something else than its keys hold.

    Args:
        record: the run record, without the cells.
        cells: its cells.
        held: the facts behind each key.
    """
    plugins.load()
    try:
        yield from _misnamed(record, cells, held)
    except (RdpBenchError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"its labels and its keys cannot be compared ({error!r})"


def _misnamed(record: Record, cells: Sequence[CellResult], held: Mapping[str, Record]) -> Iterator[str]:
    same_version = record["environment"].get(_PACKAGE) == versions().get(_PACKAGE)
    attacks, defenses, sources, models = {}, {}, {}, {}
    for cell in cells:
        if cell.adv_key and cell.adv_key in held:
            attacks[cell.attack, cell.eps] = held[cell.adv_key]["attack"]
            sources[keyed.source_of(record, cell)] = held[cell.adv_key]["source"]
        if cell.eval_key and cell.eval_key in held:
            defenses[cell.defense] = held[cell.eval_key]["defense"]
            models[cell.target] = held[cell.eval_key]["target"]
    for (label, eps), facts in attacks.items():
        yield from _unlike_attack(record, label, eps, facts, same_version=same_version)
    for label, facts in defenses.items():
        yield from _unlike_defense(label, facts, same_version=same_version)
        if same_version:
            yield from _invented(label, facts, record["defenses"].get(label, {}).get("resolved", {}))
    for label, facts in sources.items():
        yield from _unlike_source(label, facts, same_version=same_version)
        models |= dict(zip(record["sources"][label]["members"], facts["members"], strict=False))
    for label, facts in models.items():
        if label in built_in_models() and "weights" not in facts:
            yield f"model {label} has the keys of {facts['id']}"
    for label, source in record["sources"].items():
        if tuple(source["members"]) not in _members(record, label):
            yield f"source {label} consists of {', '.join(source['members'])}"
    if same_version:
        axes = record.get("request", {}).get("axes", record["axes"])  # with baselines
        yield from misleading(record.get("names", {}), axes, built_in=True)
    known = _weights()
    for label, said in record["models"].items():
        own, found = known.get(label), said.get("sha256")
        if own and own != found and (others := [name for name in known if known[name] == found]):
            yield f"model {label} has the weights of {others[0]}"


def _unlike_defense(label: str, facts: Record, *, same_version: bool) -> Iterator[str]:
    """What the label of a defense, or of a part of one, names and its key has otherwise."""
    name, inside = cut(label)
    entry, params = registry.defense.entries.get(name), facts["params"]
    if entry and entry.id != facts["id"]:
        yield f"defense {label} has the keys of {facts['id']}"
    elif entry and _is_ours(entry.origin):
        if same_version and facts["version"] == entry.version:
            yield from _unlike_object(label, params)
        else:
            yield from _unlike_numbers("defense", label, params)
    elif not entry and len(labels := split(label, ">>")) > 1:
        parts = params["parts"] if facts["id"] == "chain" else [facts]
        if len(parts) != len(labels):
            yield f"defense {label} has the keys of {' >> '.join(part['id'] for part in parts)}"
            return
        for part, stored in zip(labels, parts, strict=True):
            yield from _unlike_defense(part, stored, same_version=same_version)
    elif not entry and name == "fixed" and inside:
        if facts["id"] != "fixed":
            yield f"defense {label} has the keys of {facts['id']}, whose noise is not fixed"
        else:
            yield from _unlike_defense(inside, params["defense"], same_version=same_version)
    elif not entry and name.startswith(_FILES):
        if "weights" not in params:
            yield f"defense {label} has the keys of {facts['id']}, which reads no file"
        yield from _unlike_numbers("defense", label, params)


def _invented(label: str, facts: Record, said: Record) -> Iterator[str]:
    """Parameters that the record gives a defense of this package and its key has not, except at their neutral value."""
    if "+" in facts["version"]:
        return  # a plugin's, whose neutral values are not known here
    entry = next((each for each in registry.defense.entries.values() if each.id == facts["id"]), None)
    kept = without_neutral(type(entry.factory()), said) if entry and _is_ours(entry.origin) else said
    for name in sorted(kept.keys() - facts["params"].keys()):
        yield f"defense {label} is said to have the parameter {name} {show(said[name])}, and has it absent"


def _unlike_object(label: str, params: Record) -> Iterator[str]:
    """Fields of the built-in defense that a label makes which are others in its key.

    Files are not read, and what is chosen when they are is not compared.
    """
    try:
        made: Any = registry.defense.resolve(label).value
    except UsageError:  # no such parameter, or a value that was refused later than the run was made
        unknown = [name for name, _ in parse_spec(label).params if name not in params]
        yield from (f"defense {label} has keys without {name}" for name in unknown)
        yield from _unlike_numbers("defense", label, params)
        return
    known = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    values = {field.name: getattr(made, field.name) for field in known if field.init}
    keyed_values = without_neutral(type(made), values)
    for name, value in values.items():
        stored = params.get(name)
        chosen = value is None or isinstance(value, FileName) or isinstance(stored, dict)
        if not chosen and canonical_json({"": keyed_values.get(name)}) != canonical_json({"": stored}):
            yield f"defense {label} has keys with {name}={show(stored)}"


def _unlike_source(label: str, facts: Record, *, same_version: bool) -> Iterator[str]:
    """The gradient, the samples and the defense that a source names and its key has not."""
    behind, front = _behind(label), facts.get("attacked_defense")
    if bool(behind) != bool(front):
        yield f"source {label} has the keys of models {'behind a defense' if front else 'without a defense'}"
    elif behind and front:
        mode, defense, _, samples = behind
        if (mode, samples) != (front["mode"], front["samples"]):
            yield f"source {label} has the keys of {front['mode']} with {front['samples']} samples"
        unlike = _unlike_defense(defense, front["defense"], same_version=same_version)
        yield from (f"source {label}: {problem}" for problem in unlike)


def _behind(label: str) -> tuple[str, str, str, int] | None:
    """The mode, the defense, the source and the samples of `MODE(DEFENSE, SOURCE, SAMPLES)`; None for models alone."""
    mode, inside = cut(label)
    if mode not in MODES or inside is None:
        return None
    defense, source, *samples = split(inside, ",")
    return mode, defense, source, int(samples[0]) if samples else 1


def _members(record: Record, label: str) -> list[tuple[str, ...]]:
    """The models that a source may consist of by its label."""
    if behind := _behind(label):
        label = behind[2]
    if label == ELSEWHERE:
        return [()]
    named = tuple(split(label, "+"))
    if label in record["models"]:
        return [named, (label,)]  # a baseline may have a name with a plus
    if len(named) > 1 or label in built_in_models():
        return [named]
    ensembles = record.get("request", {}).get("axes", {}).get("ensembles", {})
    return [tuple(ensembles.get(label, named))]


def _is_ours(origin: str) -> bool:
    """Whether an entry or a scheme is one of this package."""
    return origin.startswith("rdp_bench.")


def _unlike_numbers(kind: str, label: str, params: Record) -> Iterator[str]:
    """Numbers and switches that the label of a built-in entry contains and its key does not."""
    for name, word in parse_spec(label).params:
        value = params.get(name)
        number = _number(word)
        if isinstance(value, bool | int | float) and number is not None and number != float(value):
            yield f"{kind} {label} has keys with {name}={show(value)}"


def _number(word: str) -> float | None:
    """The number or switch that a word stands for; None if it is another word."""
    try:
        return float({"true": "1", "false": "0"}.get(word, word))
    except ValueError:
        return None


def _unlike_attack(record: Record, label: str, eps: float, facts: Record, *, same_version: bool) -> Iterator[str]:
    """What the label of an attack names and its key has otherwise, and what the record says besides."""
    if label.startswith(SCHEME) or not facts["id"]:
        if not label.startswith(SCHEME) or facts["id"]:
            yield f"attack {label} has the keys of {facts['id'] or 'images crafted elsewhere'}"
        return
    attacks, there = registry.attack, keyed.attack_params(facts)
    entry = attacks.entries.get(cut(label)[0])
    scheme = next((each for each in attacks.label_schemes if each.matches(label)), None)
    if not _is_ours(entry.origin if entry else scheme.make.__module__ if scheme else ""):
        return
    try:
        made = attacks.resolve(label)
        made = replace(made, value=bounded(label, made.value, norm_of(record)))
        known, wanted = registry.identity(made, eps), plain(made.value.resolved(eps))
    except RdpBenchError:  # a part of a plugin, or a library that is not installed
        same_version, known, wanted = False, {}, {}
    if not same_version:
        if entry:
            yield from _unlike_numbers("attack", label, there)
        return
    here = keyed.attack_params(known)
    if known["id"] != facts["id"]:
        yield f"attack {label} has the keys of {facts['id']}"
    elif not _of_one_version(known, facts):
        return
    elif apart := sorted(here.keys() ^ there.keys()):
        yield f"attack {label} has the keys of another attack: {apart[0]} is in one of the two alone"
    else:
        for name in here:
            if canonical_json({"": here[name]}) != canonical_json({"": there[name]}):
                yield f"attack {label} has keys with {name}={show(there[name])}"
        said = record["attacks"].get(label, {}).get("resolved", {}).get(show(eps), {})
        for name in sorted((said.keys() | wanted.keys()) - here.keys()):
            one, two = (show(each[name]) if name in each else "absent" for each in (said, wanted))
            if one != two:
                yield f"attack {label} is said to have the parameter {name} {one}, and has it {two}"


def _of_one_version(one: Record, two: Record) -> bool:
    """Whether two identities of an attack are of one version of its code, of the parts in both and of its library."""
    params = one["params"], two["params"]
    parts, others = (each["parts"] if one["id"] == keyed.ENGINE else {} for each in params)
    return (
        one["version"] == two["version"]
        and all(parts[name]["version"] == others[name]["version"] for name in parts.keys() & others.keys())
        and all(params[0].get(name) == params[1].get(name) for name in _LIBRARIES)
    )


def _weights() -> dict[str, str]:
    """The hash of the weights of each built-in model that states it."""
    return {name: card["sha256"] for name, card in built_in_models().items() if "sha256" in card}
