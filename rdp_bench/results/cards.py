"""OUT/audit/<name>.json: what an audit says of a defense; its schema, how it is written and read.

`sha256` is over everything else in the file: an edited card is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rdp_bench import schema
from rdp_bench.cache.store import write_atomic
from rdp_bench.errors import UsageError
from rdp_bench.results.record import checksum, sealed
from rdp_bench.specs import show

FORMAT = 1
"""Version of the file. Bump it when this version would misread what another one wrote."""

FOLDER = "audit"
"""Of the cards, in OUT."""

Status = Literal["PASS", "WARN", "FAIL", "n/a"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    id: str
    """C1 to C13, with a letter of its own after a point where a check has several parts."""
    title: str
    status: Status
    evidence: str
    """The number behind it; for `n/a`, what is missing."""
    meaning: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Tier:
    """The accuracy that one kind of attacker leaves, in percent."""

    name: str
    accuracy: float
    """Mean over images of the share of draws that are right, under the worst attack for each image; of a random
    defense, the worst on the other half of the draws."""
    low: float
    high: float
    worst: float
    """Share of images that are right in every draw: of a random defense under the attack that leaves least on average,
    of a deterministic one under every attack."""
    vote: float
    """Share of images whose commonest prediction is right, under the same attack or attacks."""
    n: int
    attacks: tuple[str, ...]
    undefended: float | None = None
    """The same without the defense, where it was measured, under those of the attacks that have no defense in them."""
    title: str = ""
    """What its attacker knows, in words."""
    failed: tuple[str, ...] = ()
    """Attacks of the tier that were planned and have no number: the accuracy may be too high."""


@dataclass(frozen=True)
class AttackFacts:
    """An attack of an audit."""

    label: str
    eps: float
    sources: tuple[str, ...]
    """What it differentiates or asks, as cells name it."""
    parts: tuple[str, ...]
    """Of the audit."""
    gradients: float
    """Per image and source, those of all draws of EOT together; passes forward and backward count as one."""
    params: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What an audit took."""

    gradients: float
    """Per image, at most: of all attacks together, with the rows without the defense."""
    minutes: float
    """From the first job to the card, in the command that wrote it."""
    jobs: int = 0
    cached: int = 0
    """Jobs and probes, and how many of them that command found in the cache."""


@dataclass(frozen=True)
class Card:
    """What an audit says."""

    defense: str
    target: str
    dataset: str
    n: int
    """Images."""
    eps: float
    budget: str
    random: bool
    """Whether the defense is."""
    verdict: str
    tiers: tuple[Tier, ...]
    findings: tuple[Finding, ...]
    attacks: tuple[AttackFacts, ...] = ()
    cost: Cost | None = None
    command: str = ""
    failed: tuple[str, ...] = ()
    """Cells and probes without a number, and why."""
    grid: str = FOLDER
    """That the audit belongs to."""
    runs: tuple[str, ...] = ()
    """Grids of its parts: their records are in OUT/runs."""
    names: dict[str, str] = field(default_factory=dict)
    """How reports write labels."""

    @property
    def name(self) -> str:
        """Of its files, without their endings."""
        return name_of(self.defense, self.target, self.dataset, self.eps, self.budget)

    def says_the_same(self, other: Card) -> bool:
        """Whether both have equal numbers of equal images, whatever they took and however they were asked for."""
        return replace(self, cost=other.cost, command=other.command, grid=other.grid) == other

    def tier(self, name: str) -> Tier | None:
        """The tier of this name, if it was measured."""
        return next((tier for tier in self.tiers if tier.name == name), None)

    @property
    def headline(self) -> Tier | None:
        """The tier of the lowest accuracy under attack; None where no attack was measured."""
        return headline(self.tiers)

    def of(self, status: Status) -> list[Finding]:
        """The findings of a status."""
        return [finding for finding in self.findings if finding.status == status]


def headline(tiers: Sequence[Tier]) -> Tier | None:
    """The tier of the lowest accuracy under attack, of equal ones the last; None where no attack was measured."""
    attacked = [tier for tier in reversed(tiers) if tier.name != "clean"]
    return min(attacked, key=lambda tier: tier.accuracy, default=None)


def name_of(defense: str, target: str, dataset: str, eps: float, budget: str) -> str:
    """What the files of an audit are called; different audits have different names.

    >>> name_of("jpeg", "effnet-lite2", "photos20", 4.0, "quick")
    'jpeg-effnet-lite2-photos20-eps4-quick'
    """
    return "-".join([*map(slug, (defense, target, dataset)), f"eps{slug(show(eps))}", slug(budget)])


def slug(label: str) -> str:
    """A label as part of a file's name: a-z, 0-9 and single hyphens; of a label that has others, with its hash.

    >>> slug("effnet-lite2"), slug("mine/net")
    ('effnet-lite2', 'mine-net-21130a')
    """
    safe = "-".join(re.findall(r"[a-z0-9]+", label.lower()))[-40:]
    return safe if safe and safe == label else f"{safe}-{hashlib.sha256(label.encode()).hexdigest()[:6]}".lstrip("-")


def write(card: Card, out: Path) -> Path:
    """Write a card into OUT/audit; returns its file.

    Raises:
        StorageError: it cannot be written.
    """
    path = out / FOLDER / f"{card.name}.json"
    write_atomic(path, to_json(card).encode())
    return path


def to_json(card: Card) -> str:
    """The text of a card's file."""
    return sealed({"format": FORMAT, **schema.plain(card)})


def read(path: Path) -> Card:
    """A card as it was written.

    Raises:
        UsageError: it is not one, is of another format, or was edited.
    """
    try:
        raw = json.loads(path.read_bytes())
        found = raw.pop("sha256", None)
        if raw.get("format") != FORMAT:
            raise UsageError(f"{path}: format {raw.get('format')}, this version reads {FORMAT}; run the audit again")
        if found != checksum(raw):
            raise UsageError(f"{path} was changed after the audit wrote it (its checksum differs); run the audit again")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not the card of an audit ({error!r}); run the audit again") from error
    del raw["format"]
    return schema.read(raw, Card, f"{path}, the card of an audit")


def load(out: Path, complain: Callable[[str], None] | None = None) -> list[Card]:
    """Every card of OUT/audit that can be read, by target, eps and name; `complain` gets a line for each other."""
    found = []
    for path in sorted((out / FOLDER).glob("*.json")):
        try:
            card = read(path)
            if path.stem != card.name:
                raise UsageError(f"{path} is the card of another audit, {card.name}; move it away")
            found.append(card)
        except UsageError as error:
            if complain:
                complain(str(error))
    return sorted(found, key=lambda card: (card.dataset, card.target, card.eps, card.budget, card.defense))
