"""Writes docs/results/published.md, the table of published runs, from the folders in docs/results/runs.

python docs/results/published.py
"""

from pathlib import Path

from rdp_bench.audits.verify import problems_of_cards
from rdp_bench.reports import published, published_page

HERE = Path(__file__).parent
PAGE = HERE / "published.md"
SHOWN = Path("docs", "results", "runs")
"""The folder as commands name it."""
INTRO = """# Published runs

`python docs/results/published.py` writes this page from the folders in `docs/results/runs`; do not edit it.
`rdp-bench results` prints the same table, `rdp-bench results NAME` the claims of one run. [Submit
yours](submitting.md) as a pull request.

Each run is a results folder with all predictions: `rdp-bench report --out FOLDER --to PAGE` makes its tables
and figures, and `rdp-bench report --compare FOLDER YOURS` compares it with yours. *Verified*: every number
follows from the predictions, and every claim holds. It does not say that the images were attacked as the
record says: only a repetition shows that.

Error: mean over the attacks and sources of the run, in percent of all images, with its 95 % interval; lower
is better. In parentheses after the error of no defense: whether the lowest error differs from it in a paired
test. A row of audits has the defense of which the worst attacker leaves most, and the error that this attacker
causes. Runs on other images, targets, sources, attacks or eps are other experiments, and their numbers must not
be compared.
"""


def text() -> str:
    """The page as it should be."""
    return published_page.render(published.shipped(HERE / "runs", problems_of_cards), SHOWN, INTRO)


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
