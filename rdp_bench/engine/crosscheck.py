"""Is a run of the paper profile to be trusted? Its networks against what others measured with the same weights."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rdp_bench.metrics.stats import wilson
from rdp_bench.specs import show_level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Predictions = dict[str, NDArray[np.generic]]

PROFILE, DATASET = "paper", "nips2017"
"""What a run must be of for published numbers to be about it."""

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
        return Check(None, f"{what}: not measured, published {published:.1f} %")
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
        return Check(None, f"{rate}: not measured, {published}")
    if not right:
        return Check(None, f"{rate}: no image is right without an attack, {published}")
    # An image that only the attack makes right is rare, and cancels one that it makes wrong: so it does in theirs.
    lost = max(0, right - int((attacked["predicted"] == attacked["label"]).sum()))
    low, high = (100 * end for end in wilson(lost, right))
    slack = _table()["slack"]
    passed = low - slack <= rate.attack_success_rate <= high + slack
    return Check(passed, f"{rate}: takes {100 * lost / right:.1f} % of {right} right answers, {published}")
