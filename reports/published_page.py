"""The page of published runs as Markdown: a table of all, and the claims of each. Texts of submissions are escaped."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rdp_bench.reports.formats.markdown import escape
from rdp_bench.reports.published import (
    WEIGHTS,
    Line,
    PublishedRun,
    best_in_words,
    claims_in_words,
    needs_files,
    none_in_words,
    repeat_commands,
)
from rdp_bench.terminal import counted, listed

_HEAD = ("Run", "Grid", "Images", "Target", "Attackers", "Lowest mean error, %", "No defense, %", "Verified")
_NOBODY = "There are none yet: the runs behind the tables of this book are repeated first."


def render(runs: Sequence[PublishedRun], folder: Path, intro: str) -> str:
    """The page.

    Args:
        runs: what `published.shipped` found.
        folder: what the commands call the folder that they are in.
        intro: Markdown before the table.
    """
    parts = [intro.rstrip(), ""]
    if not runs:
        return "\n".join([*parts, _NOBODY, ""])
    parts += [_row(_HEAD), _row([":--"] * len(_HEAD))]
    parts += [_row(cells) for run in runs for cells in _cells(run)]
    for run in runs:
        parts += _section(run, folder)
    return "\n".join([*parts, ""])


def _cells(run: PublishedRun) -> Iterator[list[str]]:
    """The rows of a run; what a row shares with the one before it is left empty."""
    before: list[str] = []
    for line in run.lines:
        attackers = f"{line['attackers']}, ε = {line['eps']}" if line["attackers"] else "none"
        facts = [_linked(run), *map(escape, (line["grid"], str(line["images"])))]
        verified = (
            f"{line['verified']}, {claims_in_words(line)} {'claim holds' if line['claims'] == 1 else 'claims hold'}"
        )
        words = [line["target"], attackers, best_in_words(line), none_in_words(line), verified]
        yield [*(facts if facts != before else [""] * len(facts)), *map(escape, words)]
        before = facts
    if not run.lines:
        yield [_linked(run), *[""] * (len(_HEAD) - 2), "no" if run.problems else "yes"]


def _linked(run: PublishedRun) -> str:
    """The name with a link to its section; a name that breaks the rules is no link."""
    return escape(run.name) if run.problems else f"[{run.name}](#{run.name})"


def _section(run: PublishedRun, folder: Path) -> Iterator[str]:
    yield from ("", f"## {escape(run.name)}", "")
    if run.problems:
        yield f"Not verified: {escape(run.problems[0])}"
        return
    assert run.submission is not None
    yield f"{escape(run.title)} ({escape(', '.join(run.submission.authors))})."
    yield ""
    for grid in dict.fromkeys(line["grid"] for line in run.lines):
        yield from (escape(_about([line for line in run.lines if line["grid"] == grid])), "")
    for each in run.claims:
        yield f"* {escape(each.claim.says)} Computed: {escape(each.found)}."
    here = f"runs/{run.name}"
    links = [f"[results.csv]({here}/results.csv)", f"[claims.json]({here}/claims.json)"]
    links += [f"<{link}>" for link in run.submission.links]
    how = "Repeat it, and compare every prediction"
    if needed := dict.fromkeys(name for each in run.runs for name in needs_files(each)):
        how += f" (`{WEIGHTS}`: a [folder with the weight files](README.md#images) of {escape(listed(needed))})"
    yield from ("", f"Files: {', '.join(links)}. {how}:", "", "```sh")
    yield from repeat_commands(run, folder / run.name)
    yield "```"


def _about(lines: Sequence[Line]) -> str:
    """What one grid of a run has measured, and when the last of it was done."""
    counts: dict[int, list[str]] = {}
    for target, count in {line["target"]: line["defenses"] for line in lines}.items():
        counts.setdefault(count, []).append(target)
    defenses = [
        counted(count, "defense") + (f" on {listed(targets)}" if len(counts) > 1 else "")
        for count, targets in counts.items()
    ]
    versions = dict.fromkeys(f"rdp-bench {line['version']}" for line in lines if line["version"])
    made = ", ".join(filter(None, (max(line["date"] for line in lines), *versions)))
    first = lines[0]
    images = f"{counted(first['images'], 'image')} of {first['dataset']}"
    return f"{first['grid']}: {images}, {listed(defenses)}, {made}."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
