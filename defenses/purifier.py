"""A weight file of this package as the defense that its metadata names: `purifier:FILE.safetensors`."""

from __future__ import annotations

from dataclasses import replace

from rdp_bench.errors import BadModelError
from rdp_bench.protocols import Defense
from rdp_bench.registry import Resolved, defense
from rdp_bench.specs import Quoted, file_name, parse_spec, refuse_weights, with_params
from rdp_bench.weights import files


def of_file(text: str) -> Resolved[Defense]:
    """`purifier:FILE(key=value)`: the entry that the file names, with these weights and parameters."""
    spec = parse_spec(text)
    name = spec.name.removeprefix("purifier:")
    refuse_weights(text, spec)
    spec = replace(spec, params=(*spec.params, ("weights", Quoted(name))))
    path = files.find("purifier", file_name(name))
    kind = files.read_metadata(path).get("defense")
    if not isinstance(kind, str):
        raise BadModelError(
            f"{path}: its metadata names no defense; files of 'rdp-bench train' do. For other files name the "
            f"defense, as in nrp(weights={name})"
        )
    entry = defense.get(kind)
    value = with_params(entry.factory(), spec, "defense")
    return Resolved(text, value, entry.summary, entry.source, entry.version, entry.id)


defense.label_scheme("weight file of ours", r"purifier:.+", "purifier:FILE", of_file)
