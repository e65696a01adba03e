"""Labels of a grid that mean the same. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rdp_bench.keys import Record, canonical_json

if TYPE_CHECKING:
    from rdp_bench.models.zoo import SourceSpec


def named_twice(records: Mapping[str, Mapping[str, Record]]) -> list[str]:
    """Remarks on labels with equal records: averages and tests count what they mean for each.

    Args:
        records: what identifies each label in cache keys, by kind and label.
    """
    found = []
    for kind, labels in records.items():
        first: dict[str, str] = {}
        for label, record in labels.items():
            same = first.setdefault(canonical_json(record), label)
            if same != label:
                found.append(f"{kind} '{label}' is {kind} '{same}': averages and tests count it twice")
    return found


def in_any_order(source: SourceSpec) -> Record:
    """What identifies a source, whatever the order of its members."""
    record = source.record()
    return {**record, "members": sorted(map(canonical_json, record["members"]))}
