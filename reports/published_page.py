"""The page of published runs as Markdown: a table of all, and the claims of each. Texts of submissions are escaped."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rdp_bench.reports.formats.markdown import escape
from rdp_bench.reports.published import PublishedRun, best_in_words, claims_in_words, none_in_words, repeat_commands

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
        verified = f"{line['verified']}, {claims_in_words(line)} claims hold"
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
    for grid, line in {line["grid"]: line for line in run.lines}.items():
        version = f"rdp-bench {line['version']}" if line["version"] else ""
        made = ", ".join(filter(None, (line["date"], version)))
        words = f"{grid}: {line['images']} images of {line['dataset']}, {line['defenses']} defenses, {made}."
        yield from (escape(words), "")
    for each in run.claims:
        yield f"* {escape(each.claim.says)} Computed: {escape(each.found)}."
    here = f"runs/{run.name}"
    links = [f"[results.csv]({here}/results.csv)", f"[claims.json]({here}/claims.json)"]
    links += [f"<{link}>" for link in run.submission.links]
    yield from ("", f"Files: {', '.join(links)}. Repeat it, and compare every prediction:", "", "```sh")
    yield from repeat_commands(run, folder / run.name)
    yield "```"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
