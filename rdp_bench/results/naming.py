"""Whether the labels of a run name what its keys hold, by the entries and models that are known here.

Only what another version of this package keeps is compared: the id of an entry, the numbers that the label of a
built-in entry contains, the models of a source and the gradient through a defense in front of them, and whether a
built-in model has the weights of another one. Of attacks, which share an engine,
the names of their parameters too, if the run is of this version. Labels that name files are not resolved.

The parameters of a plugin's entry need not repeat the numbers of its label: its `resolved` may change their units,
round or limit them, or choose a value for them.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from rdp_bench import plugins, registry
from rdp_bench.budgets import bounded, norm_of
from rdp_bench.data.adversarial import ELSEWHERE
from rdp_bench.environment import versions
from rdp_bench.errors import RdpBenchError
from rdp_bench.keys import Record
from rdp_bench.results import keyed
from rdp_bench.results.record import CellResult
from rdp_bench.specs import MODES, cut, parse_spec, show, split

_PACKAGE = "rdp-bench"


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
    attacks, defenses, sources = {}, {}, {}
    for cell in cells:
        if cell.adv_key and cell.adv_key in held:
            attacks[cell.attack, cell.eps] = held[cell.adv_key]["attack"]
            sources[keyed.source_of(record, cell)] = held[cell.adv_key]["source"]
        if cell.eval_key and cell.eval_key in held:
            defenses[cell.defense] = held[cell.eval_key]["defense"]
    for (label, eps), facts in attacks.items():
        yield from _unlike_label(registry.attack, label, keyed.attack_params(facts))
        if same_version:
            yield from _unlike_attack(label, eps, norm_of(record), facts)
    for label, facts in defenses.items():
        yield from _unlike_defense(label, facts)
    for label, facts in sources.items():
        yield from _unlike_source(label, facts)
    for label, source in record["sources"].items():
        if tuple(source["members"]) not in _members(record, label):
            yield f"source {label} consists of {', '.join(source['members'])}"
    known = _weights()
    for label, said in record["models"].items():
        own, found = known.get(label), said.get("sha256")
        if own and own != found and (others := [name for name in known if known[name] == found]):
            yield f"model {label} has the weights of {others[0]}"


def _unlike_defense(label: str, facts: Record) -> Iterator[str]:
    yield from _unlike_label(registry.defense, label, facts["params"])
    entry = registry.defense.entries.get(cut(label)[0])
    if entry and entry.id != facts["id"]:
        yield f"defense {label} has the keys of {facts['id']}"


def _unlike_source(label: str, facts: Record) -> Iterator[str]:
    """The gradient, the samples and the defense that a source names and its key has not."""
    behind, front = _behind(label), facts.get("attacked_defense")
    if bool(behind) != bool(front):
        yield f"source {label} has the keys of models {'behind a defense' if front else 'without a defense'}"
    elif behind and front:
        mode, defense, _, samples = behind
        if (mode, samples) != (front["mode"], front["samples"]):
            yield f"source {label} has the keys of {front['mode']} with {front['samples']} samples"
        yield from (f"source {label}: {problem}" for problem in _unlike_defense(defense, front["defense"]))


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
    if len(named) > 1 or label in _weights():
        return [named]
    ensembles = record.get("request", {}).get("axes", {}).get("ensembles", {})
    return [tuple(ensembles.get(label, named))]


def _built_in(entry: registry.Entry[Any] | None) -> bool:
    """Whether an entry is one of this package."""
    return entry is not None and entry.origin.startswith("rdp_bench.")


def _unlike_label(entries: registry.Registry[Any], label: str, params: Record) -> Iterator[str]:
    """Numbers and switches that the label of a built-in entry contains and its key does not."""
    try:
        spec = parse_spec(label)
    except RdpBenchError:
        return
    for name, word in spec.params if _built_in(entries.entries.get(spec.name)) else ():
        value = params.get(name)
        number = _number(word)
        if isinstance(value, bool | int | float) and number is not None and number != float(value):
            yield f"{entries.kind} {label} has keys with {name}={show(value)}"


def _number(word: str) -> float | None:
    """The number or switch that a word stands for; None if it is another word."""
    try:
        return float({"true": "1", "false": "0"}.get(word, word))
    except ValueError:
        return None


def _unlike_attack(label: str, eps: float, norm: str, facts: Record) -> Iterator[str]:
    if cut(label)[0] not in registry.attack.entries:
        return
    try:
        made = registry.attack.resolve(label)
        known = registry.identity(replace(made, value=bounded(label, made.value, norm)), eps)
    except RdpBenchError:
        return  # what this version cannot make
    here, there = keyed.attack_params(known).keys(), keyed.attack_params(facts).keys()
    if known["id"] != facts["id"]:
        yield f"attack {label} has the keys of {facts['id']}"
    elif apart := sorted(here ^ there):
        yield f"attack {label} has the keys of another attack: {apart[0]} is in one of the two alone"


@cache
def _weights() -> dict[str, str]:
    """The hash of the weights of each built-in model that states it."""
    table = tomllib.loads(files("rdp_bench.data").joinpath("models.toml").read_text("utf-8"))
    return {name: card["sha256"] for name, card in table.items() if "sha256" in card}
