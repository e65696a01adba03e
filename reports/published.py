"""Published runs: results folders with a claims.json, as the documentation ships them.

What each measured, and whether it follows from its predictions.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.reports.tables.leaderboard import Leaderboard, leaderboards
from rdp_bench.results import cards
from rdp_bench.results.cards import FOLDER as CARDS
from rdp_bench.results.cards import Card
from rdp_bench.results.prediction_file import FOLDER as PREDICTIONS
from rdp_bench.results.record import read_run
from rdp_bench.results.rows import Run, display_name, shown_names
from rdp_bench.results.submission import FILE, Submission, read_submission
from rdp_bench.results.submission_check import CheckedClaim
from rdp_bench.results.verify import Verified, verify, verify_claims
from rdp_bench.specs import UNDEFENDED

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")
"""What a published folder may be called: its name is part of links."""

LARGEST_RUN, LARGEST_ALL = 10_000_000, 30_000_000
"""Bytes of one published folder, and of all that ship."""

_LARGEST_READ = 200_000_000  # bytes of any folder that is read
_MOST_LOOKS = 50_000_000  # images times cells of one run
_FILES = re.compile(
    r"claims\.json|results\.csv|runs/[\w.-]+\.json|predictions/[\w.-]+\.[0-9a-f]{16}\.safetensors|audit/[\w.-]+\.json",
    re.ASCII,
)
_PLUGIN = re.compile(r"[\w.-]+", re.ASCII)
_LONGEST = 40  # letters of a version
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

COLUMNS = (
    "name", "grid", "dataset", "images", "date", "version", "target", "eps", "attackers", "defenses", "best",
    "mean_error", "ci_low", "ci_high", "tied", "none_error", "against_none", "claims_hold", "claims", "verified",
)  # fmt: skip
TRANSFER, WHITE_BOX, THROUGH = "transfer", "white-box", "transfer and through a defense"
WEIGHTS = "weights"
"""What commands call a folder of weight files."""
UNNAMED = "it has no claims.json"

Line = dict[str, Any]

CheckCards = Callable[[Path, Mapping[str, Run]], Iterable[str]]
"""What is wrong with the cards of audits in a folder with these runs by grid: `audits.verify.problems_of_cards`."""


def _unchecked(folder: Path, runs: Mapping[str, Run]) -> Iterator[str]:  # noqa: ARG001
    """That there are cards which nothing here can compute again."""
    for path in sorted((folder / CARDS).glob("*.json")):
        yield f"card {path.name}: it was not computed again; rdp-bench results does that"


@dataclass
class PublishedRun:
    """A results folder and what was found in it.

    Attributes:
        folder: where it is.
        problems: why it is not verified, one line each; empty if every number and every claim follows.
        submission: its claims.json; None without a readable one.
        claims: what the predictions say to each claim.
        verified: what was found about each of its runs.
        lines: the numbers of the runs that are verified, by `COLUMNS`: one for each leaderboard, and one for all audits
            of one kind.
        parts: the names of runs that are parts of audits.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    submission: Submission | None = None
    claims: tuple[CheckedClaim, ...] = ()
    verified: list[Verified] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    parts: frozenset[str] = frozenset()

    @property
    def runs(self) -> list[Run]:
        """The runs that can be read, without the parts of audits."""
        return [each.run for each in self.verified if each.run and each.grid not in self.parts]

    @property
    def name(self) -> str:
        return self.folder.name or str(self.folder)

    @property
    def title(self) -> str:
        return self.submission.title if self.submission else ""


def shipped(folder: Path, check_cards: CheckCards = _unchecked) -> list[PublishedRun]:
    """Every folder in docs/results/runs, with the rules for what ships.

    Beyond `read_folder`: names, sizes and kinds of files, a claims.json, and the size of all folders together.
    """
    found = []
    total = 0
    for path in folders(folder):
        problems = list(_rules(path))
        total += sum(file.lstat().st_size for file in _files(path))
        run = PublishedRun(path, problems) if problems else read_folder(path, check_cards)
        if not run.problems and run.submission is None:
            run.problems.append(UNNAMED)
        if total > LARGEST_ALL:
            run.problems.append(f"all folders have {total / 1e6:.1f} MB, at most {LARGEST_ALL / 1e6:.0f} MB ship")
        found.append(run)
    return found


def folders(folder: Path) -> list[Path]:
    """The published folders in docs/results/runs, which need not exist."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))


def read_folder(folder: Path, check_cards: CheckCards = _unchecked) -> PublishedRun:
    """A results folder, verified; what is wrong with it is one of its `problems`, never an exception."""
    found = PublishedRun(folder)
    try:
        _require_readable(folder)
        found.verified = list(verify(folder))
        found.problems += [f"{each.grid}: {problem}" for each in found.verified for problem in each.problems]
        found.problems += check_cards(folder, {each.grid: each.run for each in found.verified if each.run})
        claims = verify_claims(folder, found.verified)
        if claims:
            found.problems += claims.problems
            found.claims = claims.claims
            found.submission = None if claims.unread else read_submission(folder / FILE)
        audits = cards.load(folder)
        found.parts = frozenset(name for card in audits for name in card.runs)
        whole = {each.grid: each.run for each in found.verified if each.run and not each.problems}
        for run in found.runs:
            if run.grid in whole:
                found.lines += _lines(run)
        found.lines += _of_audits(audits, whole)
    except RdpBenchError as error:
        found.problems.append(str(error))
    except Exception as error:  # a record with a right checksum may still hold anything; the other folders are listed
        found.problems.append(f"it cannot be read ({type(error).__name__}: {error})")
        found.lines.clear()
    held = sum(not claim.problem for claim in found.claims)
    for line in found.lines:
        line |= {
            "name": found.name, "claims_hold": held, "claims": len(found.claims),
            "verified": "no" if found.problems else "yes",
        }  # fmt: skip
    return found


def _require_readable(folder: Path) -> None:
    """Refuse what is no results folder, and what is too large to be read without care.

    Raises:
        UsageError: it is one of these.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one that rdp-bench run wrote")
    read = [
        path for path in _files(folder) if path.relative_to(folder).parts[0] in ("runs", PREDICTIONS, "results.csv")
    ]
    size = sum(path.lstat().st_size for path in read)
    if size > _LARGEST_READ:
        raise UsageError(f"{folder} has {size / 1e6:.0f} MB of results, at most {_LARGEST_READ / 1e6:.0f} MB are read")
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            stored = read_run(path)
        except UsageError:
            continue  # `verify` says what is wrong with it
        looks = int(stored.header["dataset"]["n"]) * len(stored.cells)
        if looks > _MOST_LOOKS:
            raise UsageError(f"{path} has {looks} predictions, at most {_MOST_LOOKS} are read")


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder; links are not followed."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path


def _rules(folder: Path) -> Iterator[str]:
    """What a folder that ships does against the rules."""
    if not NAME.fullmatch(folder.name):
        yield "its name is not made of lower-case letters, digits and hyphens (at most 60)"
    files = list(_files(folder))
    for path in files:
        inside = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{inside} is a link; a published folder contains its files"
        elif not _FILES.fullmatch(inside):
            yield f"{inside} does not belong to a published folder; remove it"
    size = sum(path.lstat().st_size for path in files)
    if size > LARGEST_RUN:
        yield f"it has {size / 1e6:.1f} MB, at most {LARGEST_RUN / 1e6:.0f} MB ship"


def _lines(run: Run) -> list[Line]:
    """A line for each leaderboard that compares something; of a run without attacks, one without a best defense."""
    with shown_names(run.names):
        boards = leaderboards(run)
        return [_of_board(run, board) for board in boards if len(board.standings) > 1] if boards else [_common(run)]


def _common(run: Run) -> Line:
    about = run.record["dataset"]
    targets = run.axis("targets")
    return {
        **dict.fromkeys(COLUMNS),
        "grid": run.grid,
        "dataset": str(about["name"]),
        "images": int(about["n"]),
        "date": _day(run),
        "version": str(run.record["environment"].get("rdp-bench", ""))[:_LONGEST],
        "target": targets[0] if len(targets) == 1 else f"{len(targets)} targets",
        "defenses": sum(name != UNDEFENDED for name in run.axis("defenses")),
    }


def _day(run: Run) -> str:
    """When it ended."""
    day = str(run.record.get("finished") or run.record["started"])[:10]
    return day if _DATE.fullmatch(day) else ""


def _of_board(run: Run, board: Leaderboard) -> Line:
    complete = [each for each in board.standings if each.mean.value is not None]
    rivals = [each for each in complete if each.defense != UNDEFENDED]
    bare = next((each.mean.value for each in complete if each.defense == UNDEFENDED), None)
    line = _common(run) | {
        "target": board.target,
        "eps": run.eps(board.eps),
        "attackers": WHITE_BOX if board.white_box else THROUGH if board.through else TRANSFER,
        "defenses": sum(each.defense != UNDEFENDED for each in board.standings),
        "none_error": _rounded(bare),
    }
    if rivals:  # the lowest error comes first
        best = rivals[0]
        line |= {
            "best": _best([each.label for each in rivals if each.mean.value == best.mean.value], len(rivals)),
            "mean_error": _rounded(best.mean.value),
            "ci_low": _rounded(best.mean.low),
            "ci_high": _rounded(best.mean.high),
            "tied": sum(each.mean.verdict.tied or each.mean.verdict.best for each in rivals if each is not best),
            "against_none": best.test or None,
        }
    return line


_AND = "; "
"""Between defenses that share the lowest error."""


def _best(lowest: Sequence[str], rivals: int) -> str:
    """The defenses that share the lowest error; empty where all of several do."""
    return "" if len(lowest) == rivals > 1 else _AND.join(lowest)


def _of_audits(audits: Sequence[Card], runs: Mapping[str, Run]) -> Iterator[Line]:
    """A line for all audits that differ in the defense alone: the one of which the worst attacker leaves most."""
    kinds: dict[tuple[object, ...], list[Card]] = {}
    for card in audits:
        if card.headline and all(name in runs for name in card.runs):
            kinds.setdefault((card.dataset, card.target, card.eps, card.budget, card.n), []).append(card)
    for alike in kinds.values():
        run = runs[alike[0].runs[0]]
        rivals = [card for card in alike if card.defense != UNDEFENDED]
        line = _common(run) | {
            "grid": CARDS, "date": max(_day(runs[name]) for card in alike for name in card.runs),
            "target": alike[0].target, "eps": run.eps(alike[0].eps),
            "attackers": f"worst of the audit ({alike[0].budget})", "defenses": len(rivals),
        }  # fmt: skip
        bare = [tier.undefended for card in alike if (tier := card.headline) and tier.undefended is not None]
        line["none_error"] = _rounded(100 - min(bare)) if bare else None
        if rivals:
            rivals = _comparable(rivals)
        if rivals:
            best = max(rivals, key=lambda card: card.headline.accuracy if card.headline else 0.0)
            assert best.headline is not None
            most, low, high = best.headline.accuracy, 100 - best.headline.high, 100 - best.headline.low
            lowest = [each.defense for each in rivals if each.headline and each.headline.accuracy == most]
            line |= {
                "best": _best(lowest, len(rivals)), "mean_error": _rounded(100 - most),
                "ci_low": _rounded(low), "ci_high": _rounded(high),
            }  # fmt: skip
        yield line


def _comparable(audits: Sequence[Card]) -> list[Card]:
    """The audits that lack no attack and no tier that another one has: the worst of fewer attackers is no match."""
    most = max(len(card.tiers) - (card.tier("fixed") is not None) for card in audits)  # of random defenses alone
    return [
        card
        for card in audits
        if len(card.tiers) - (card.tier("fixed") is not None) == most and not any(tier.failed for tier in card.tiers)
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def best_in_words(line: Line) -> str:
    """The best defense of a line with its mean error and interval; "all" where none is better than another."""
    if line["mean_error"] is None:
        return ""
    name = ", ".join(map(display_name, line["best"].split(_AND))) if line["best"] else "all"
    return f"{name} {line['mean_error']:.1f} ({line['ci_low']:.1f} to {line['ci_high']:.1f})"


def none_in_words(line: Line) -> str:
    """The error without a defense, and how the best defense compares with it by the paired test."""
    if line["none_error"] is None:
        return ""
    how = {"lower": "the best is lower", "higher": "the best is higher"}.get(line["against_none"], line["against_none"])
    return f"{line['none_error']:.1f}" + (f" ({how})" if how else "")


def needs_files(run: Run) -> list[str]:
    """The models of a run whose weights no package has: a repetition needs their files."""
    return [label for label, about in run.record["models"].items() if about.get("weights") == "file"]


def claims_in_words(line: Line) -> str:
    """How many claims hold."""
    return f"{line['claims_hold']} of {line['claims']}" if line["claims"] else "none"


def as_json(runs: Iterable[PublishedRun]) -> list[dict[str, Any]]:
    """Everything about the folders as lists and scalars."""
    return [
        {
            "name": run.name,
            "folder": str(run.folder),
            "title": run.title,
            "authors": list(run.submission.authors) if run.submission else [],
            "links": list(run.submission.links) if run.submission else [],
            "commands": list(run.submission.commands) if run.submission else [],
            "verified": not run.problems,
            "problems": run.problems,
            "claims": [
                {"says": each.claim.says, "holds": not each.problem, "found": each.found, "problem": each.problem}
                for each in run.claims
            ],
            "runs": run.lines,
        }
        for run in runs
    ]


def repeat_commands(found: PublishedRun, folder: Path) -> Iterator[str]:
    """The commands that repeat a published folder and compare every prediction; `folder` is what they call it."""
    yield from (shlex.join(_repeat(folder, run)) for run in found.runs)
    if found.parts:  # an audit is repeated as a whole
        yield from (f"{command} --out again" for command in (found.submission.commands if found.submission else ()))
        yield shlex.join(["rdp-bench", "report", "--compare", str(folder), "again"])


def _repeat(folder: Path, run: Run) -> list[str]:
    """Plugins, and the folder of weight files, are named by hand."""
    plugins = (run.record.get("request") or {}).get("plugins", ())
    names = [str(each["name"]) for each in plugins]
    names = [name if _PLUGIN.fullmatch(name) else "PLUGIN.py" for name in names]
    flags = [part for name in names for part in ("--plugin", f"PATH/{name}")]
    if needs_files(run):
        flags += ["--models-dir", WEIGHTS]
    return ["rdp-bench", "run", "--from", str(folder / "runs" / f"{run.grid}.json"), *flags, "--out", "again"]
