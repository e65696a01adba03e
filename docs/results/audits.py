"""Writes the tables of docs/results/audits.md and the figure of the book from the cards of the published audits.

python docs/results/audits.py
"""

from pathlib import Path

from rdp_bench.reports.figures.drawing import ReportFigure
from rdp_bench.reports.figures.illusion import illusion
from rdp_bench.reports.tables.audits import Setting, by_setting
from rdp_bench.results import cards
from rdp_bench.results.cards import Card, Tier
from rdp_bench.results.rows import display_name, shown_names

HERE = Path(__file__).parent
SETTING: Setting = ("nips2017(subset=every-second)", 50, 4.0, "standard")
"""Audits of other images, or at another eps or budget, are no rows of these tables."""
PAGE, FIGURE = HERE / "audits.md", HERE / "audits"
"""The page; and the figure without its suffixes: transfer error against white-box error."""
BEGIN, END = "<!-- tables: audits.py writes them -->", "<!-- end of the tables -->"
TIERS = ("clean", "transfer", "blind", "grey-box", "black-box", "white-box")
ORDER = ("jpeg", "fd", "bit-red", "tvm", "sr", "r&p", "comdefend", "hgd", "nrp", "rdp")
HEAD = ("Defense", *TIERS, "Checks that fail; warn")


def published() -> list[Card]:
    """The audits of this page, from every published run that has some."""
    folders = sorted((HERE / "runs").glob("*/audit"))
    return by_setting([card for folder in folders for card in cards.load(folder.parent)])[SETTING]


def tables() -> str:
    """A table for each target: what every tier of every defense leaves right."""
    found = published()
    parts = []
    for target in dict.fromkeys(card.target for card in found):
        rows = [card for card in found if card.target == target]
        rows.sort(key=lambda card: ORDER.index(card.defense) if card.defense in ORDER else len(ORDER))
        lines = [_row(HEAD), _row([":--", *["--:"] * len(TIERS), ":--"])]
        lines += [_row(_bare(rows[0])), *(_row(_cells(card)) for card in rows)]
        parts.append("\n".join([f"Target {target}:", "", *lines]))
    return "\n\n".join(parts)


def text() -> str:
    """The page with its tables as they should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def figure() -> ReportFigure:
    """Transfer error against white-box error, a panel per target."""
    found = published()
    names = [card.names for card in found]
    with shown_names(*names):
        drawn = illusion(found)
    assert drawn
    return drawn


def _bare(card: Card) -> list[str]:
    """The accuracy without a defense, where a tier has that row."""
    found = {tier.name: tier.undefended for tier in card.tiers}
    return ["No defense", *("" if found.get(name) is None else f"{found[name]:.0f}" for name in TIERS), ""]


def _cells(card: Card) -> list[str]:
    with shown_names(card.names):
        name = display_name(card.defense).replace("&", "&amp;")
    tiers = [card.tier(each) for each in TIERS]
    failed, warned = (", ".join(each.id for each in card.of(status)) for status in ("FAIL", "WARN"))
    return [name, *map(_number, tiers), f"{failed or 'none'}; {warned or 'none'}"]


def _number(tier: Tier | None) -> str:
    if tier is None:
        return ""
    return f"{tier.accuracy:.0f} ({tier.low:.0f}–{tier.high:.0f})"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
    files = figure().files
    for kind in ("svg", "csv"):
        FIGURE.with_suffix(f".{kind}").write_bytes(files[kind])
