"""Is a run of the paper profile to be trusted? Its networks against what others measured with the same weights."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rdp_bench.budgets import LINF, norm_of
from rdp_bench.metrics.stats import wilson
from rdp_bench.results.display import built_in_models
from rdp_bench.specs import UNDEFENDED, CellKey, show_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rdp_bench.results.rows import Run

    Predictions = dict[str, NDArray[np.generic]]

PROFILE, DATASET = "paper", "nips2017"
"""What a run must be of for published numbers to be about it."""

_NOT_MEASURED = "not measured"

CLEAN_SLACK = 0.5
"""Points by which a clean accuracy may be off on the very images it was published for."""


@dataclass(frozen=True)
class Rate:
    """A published transfer rate: the percentage of images that `target` gets wrong; see data/crosscheck.toml."""

    source: str
    attack: str
    target: str
    eps: float
    wrong: float
    accuracy: float  # of the target on the same images, unattacked

    @property
    def attack_success_rate(self) -> float:
        """Percentage of right answers that the attack takes away: comparable between sets of images."""
        return 100 * (1 - (100 - self.wrong) / self.accuracy)

    def __str__(self) -> str:
        return f"{self.attack} from {self.source}, eps {show_level(self.eps)}, on {self.target}"


@dataclass(frozen=True)
class Check:
    """One line of the cross-check; `passed` is None where there is nothing to compare."""

    passed: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'pass', False: 'FAIL', None: '-'}[self.passed]:5}{self.text}"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("rdp_bench.data").joinpath("crosscheck.toml").read_text("utf-8"))


@cache
def rates() -> tuple[Rate, ...]:
    """The published rates, in the file's order."""
    table = _table()
    return tuple(
        Rate(table["source"], attack, target, float(table["eps"]), wrong, table["accuracy"][target])
        for attack, row in table["rates"].items()
        for target, wrong in row.items()
    )


def check_clean(label: str, published: float, n: int, found: "Predictions | None") -> Check:
    """A network's accuracy against its card's, which is of `n` images; fewer images have an interval."""
    what = f"accuracy of {label}"
    if found is None:
        return Check(None, f"{what}: {_NOT_MEASURED}, published {published:.1f} %")
    right, count = int((found["predicted"] == found["label"]).sum()), len(found["label"])
    measured = 100 * right / count
    low, high = (measured, measured) if count == n else (100 * end for end in wilson(right, count))
    passed = low - CLEAN_SLACK <= published <= high + CLEAN_SLACK
    return Check(passed, f"{what}: {measured:.1f} % of {count} images, published {published:.1f} %")


def check_rate(rate: Rate, clean: "Predictions | None", attacked: "Predictions | None") -> Check:
    """A transfer rate of the run, from its target's predictions, against the published one."""
    published = f"published {rate.attack_success_rate:.1f} %"
    right = int((clean["predicted"] == clean["label"]).sum()) if clean else 0
    if clean is None or attacked is None:
        return Check(None, f"{rate}: {_NOT_MEASURED}, {published}")
    if not right:
        return Check(None, f"{rate}: no image is right without an attack, {published}")
    # An image that only the attack makes right is rare, and cancels one that it makes wrong: so it does in theirs.
    lost = max(0, right - int((attacked["predicted"] == attacked["label"]).sum()))
    low, high = (100 * end for end in wilson(lost, right))
    slack = _table()["slack"]
    passed = low - slack <= rate.attack_success_rate <= high + slack
    return Check(passed, f"{rate}: takes {100 * lost / right:.1f} % of {right} right answers, {published}")


@dataclass(frozen=True)
class Again:
    """A line of the cross-check of a run, computed again."""

    check: Check
    kept: bool
    """Whether the predictions that it is computed from are kept; if not, `check` has nothing measured."""

    def agrees(self, text: str, passed: bool | None) -> bool:
        """Whether a line of the run record may be this one."""
        if self.kept:
            return (self.check.text, self.check.passed) == (text, passed)
        about, _, published = self.check.text.partition(_NOT_MEASURED)
        return text.startswith(about) and text.endswith(published)


def again(run: "Run") -> list[Again]:
    """Every line that the cross-check of a run has, in order, from the predictions of its cells.

    Those of models that are no target of the run, such as members of sources, are kept in the cache alone.
    """
    record, dataset = run.record, run.record["dataset"]["name"]
    if (record["profile"], dataset) != (PROFILE, DATASET):
        return []

    def found(key: CellKey) -> "Predictions | None":
        file = run.stored.file if run.stored else None
        return {"predicted": run.predicted[key], "label": file.label} if file and key in run.predicted else None

    lines = []
    for label in record["models"]:
        clean = found(CellKey.clean(label, UNDEFENDED))
        for known in built_in_models().get(label, {}).get("accuracy", ()):
            if known["dataset"] == dataset:
                line = check_clean(label, float(known["percent"]), known["n"], clean)
                lines.append(Again(line, clean is not None))
    axes = record["axes"]
    for rate in rates() if norm_of(record) == LINF and UNDEFENDED in axes["defenses"] else ():
        made = rate.source in axes["sources"] and rate.attack in axes["attacks"] and rate.eps in axes["eps"]
        if made and rate.target in record["models"]:
            clean = found(CellKey.clean(rate.target, UNDEFENDED))
            attacked = found(CellKey(rate.source, rate.attack, rate.eps, rate.target, UNDEFENDED))
            lines.append(Again(check_rate(rate, clean, attacked), clean is not None and attacked is not None))
    return lines
