"""OUT/claims.json: what the authors of a published run say that it shows. Its schema, its limits, how it is read.

    {"format": 1, "title": "...", "authors": ["..."], "commands": ["rdp-bench run ..."],
     "claims": [{"says": "RDP has a lower error than NRP.", "grid": "table1",
                 "cells": {"source": "effnet-lite0", "attack": "*", "target": "effnet-lite2", "defense": "rdp"},
                 "compare": "lower", "than": {"defense": "nrp"}}]}

Nothing in it is believed: `results.submission_check` computes every claim again from OUT/predictions.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rdp_bench import schema
from rdp_bench.errors import UsageError
from rdp_bench.terminal import printable

FORMAT = 1
"""Version of claims.json. Bump it when this version would misread what an older one wrote."""

FILE = "claims.json"
MOST_BYTES = 200_000
MOST_CLAIMS = 200
_MOST_LINES = 50  # of any other list
_LONGEST = 500  # letters of a text; a command may have four times as many
_LINK = re.compile(r"https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~/?#%&=+:@,-]*)?")

Labels = Annotated[str | tuple[str, ...] | None, 'a label, a list of labels, or "*"']
Budgets = Annotated[float | str | tuple[float, ...] | None, 'a number, a list of numbers, or "*"']
ALL = "*"


@dataclass(frozen=True)
class Cells:
    """Cells of a run, every combination of the values of the axes.

    Attributes:
        source, attack, eps, target: a value, a list, or "*" for all that the run has ("*" does not include clean
            images). None: the only one that the run has.
        defense: a label; None: the only one that the run has.
    """

    source: Labels = None
    attack: Labels = None
    eps: Budgets = None
    target: Labels = None
    defense: Annotated[str | None, "the label of a defense"] = None


@dataclass(frozen=True)
class Rival(Cells):
    """The cells that a claim compares with: those of the claim, with these axes replaced."""

    grid: Annotated[str | None, "the name of a grid"] = None


@dataclass(frozen=True)
class SubmittedClaim:
    """A statement about cells of one run.

    Attributes:
        says: the statement in words.
        grid: the run, OUT/runs/GRID.json.
        cells: what it is about; of several cells, their mean.
        compare: "equal", "at most" and "at least" compare with `value`; "lower" and "higher" with `than`, by a paired
            test.
        metric: "error" or "accuracy", in percent of all images.
        value: the claimed percentage; for "lower" and "higher", the claimed difference in points, if one is claimed.
        than: the rival of "lower" and "higher".
    """

    says: str
    grid: str
    cells: Cells
    compare: Literal["equal", "at most", "at least", "lower", "higher"]
    metric: Literal["error", "accuracy"] = "error"
    value: Annotated[float | None, "a number, in percent"] = None
    than: Rival | None = None

    @property
    def tests(self) -> bool:
        """Whether it needs a significant difference."""
        return self.compare in ("lower", "higher")


@dataclass(frozen=True)
class Submission:
    """The schema of claims.json.

    Attributes:
        format: `FORMAT`.
        title: of the run.
        authors: who made it.
        commands: what they typed, in order.
        claims: what they say that it shows.
        links: https addresses of papers, code or weights.
    """

    format: int
    title: str
    authors: tuple[str, ...]
    commands: tuple[str, ...]
    claims: tuple[SubmittedClaim, ...]
    links: tuple[str, ...] = ()


def read_submission(path: Path) -> Submission:
    """Read OUT/claims.json.

    Raises:
        UsageError: it cannot be read, is larger than `MOST_BYTES`, or does not fit the schema.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES // 1000} kB; claims are a few lines each")
        raw = json.loads(content.decode())
        if not isinstance(raw, dict):
            raise UsageError(f"{path} is a {type(raw).__name__}, not an object with the fields of a submission")
        if raw.get("format") != FORMAT:
            raise UsageError(f"{path}: format {str(raw.get('format'))[:20]}, this version reads {FORMAT}")
        found = schema.read(raw, Submission, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path} is not JSON that can be read ({type(error).__name__}: {str(error)[:80]})") from error
    for problem in _problems(found):
        raise UsageError(f"{path}: {problem}")
    return found


def _problems(found: Submission) -> Iterator[str]:
    """What the types of the schema do not say."""
    yield from _text("title", found.title)
    for name in ("authors", "commands", "claims", "links"):
        values = getattr(found, name)
        most = MOST_CLAIMS if name == "claims" else _MOST_LINES
        if not values and name != "links":
            yield f"'{name}' is empty"
        if len(values) > most:
            yield f"'{name}' has {len(values)} entries, at most {most} are read"
    for author in found.authors:
        yield from _text("authors", author)
    for command in found.commands:
        yield from _text("commands", command, 4 * _LONGEST)
        if not command.startswith("rdp-bench "):
            yield f"'commands' are those of rdp-bench, found {command[:60]!r}"
    for link in found.links:
        if len(link) > _LONGEST or not _LINK.fullmatch(link):
            yield f"'links' are https addresses, found {link[:60]!r}"
    for number, claim in enumerate(found.claims, 1):
        yield from (f"claim {number}: {problem}" for problem in _of_claim(claim))


def _of_claim(claim: SubmittedClaim) -> Iterator[str]:
    yield from _text("says", claim.says)
    if claim.tests and claim.than is None:
        yield f"'{claim.compare}' needs than, the cells to compare with"
    if not claim.tests and claim.than is not None:
        yield f"than is for lower and higher; '{claim.compare}' compares with value"
    if not claim.tests and claim.value is None:
        yield f"'{claim.compare}' needs value, a percentage"
    if claim.value is not None and not (math.isfinite(claim.value) and 0 <= claim.value <= 100):
        yield f"value is a percentage from 0 to 100, found {claim.value}"
    names: list[Any] = [claim.grid]
    for cells in filter(None, (claim.cells, claim.than)):
        for value in (cells.source, cells.attack, cells.eps, cells.target, cells.defense):
            names += value if isinstance(value, tuple) else [value]
            if value == ():
                yield "an axis has an empty list; leave it out, or name its values"
            if isinstance(value, tuple) and len(set(value)) < len(value):
                yield f"a value is named twice in {list(value)}"
        if cells.defense == ALL:
            yield "'defense' is one label: a mean over defenses is not the error of any"
        if isinstance(cells.eps, str) and cells.eps != ALL:
            yield f"'eps' is a number, a list of numbers, or \"*\", found {cells.eps[:20]!r}"
    names += [claim.than.grid] if claim.than else []
    for name in names:
        if isinstance(name, str):
            yield from _text("a label", name)


def _text(what: str, text: str, most: int = _LONGEST) -> Iterator[str]:
    if not text.strip():
        yield f"{what} is empty"
    if len(text) > most:
        yield f"{what} has {len(text)} letters, at most {most} are read"
    if printable(text, lines=False) != text:
        yield f"{what} has a control character: {printable(text[:60], lines=False)}"
