"""What an audit runs: one grid per part, for each of three budgets. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rdp_bench import registry
from rdp_bench.budgets import LINF
from rdp_bench.engine.grid import Grid, from_axes
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.models.defended import is_white_box
from rdp_bench.protocols import Defense, Purifier
from rdp_bench.specs import UNDEFENDED, FileSearch, cut, plain, split

TRANSFER, WHITE_BOX, FIXED, BLACK_BOX = "transfer", "white-box", "fixed", "black-box"
DOUBLED, EPS, NOISE, ONE_DRAW = "doubled", "eps", "noise", "one-draw"
BLIND, GREY_BOX, STAND_IN = "blind", "grey-box", "stand-in"
EVERY_PART = (TRANSFER, WHITE_BOX, FIXED, BLACK_BOX, DOUBLED, EPS, NOISE, ONE_DRAW, BLIND, GREY_BOX, STAND_IN)

SURROGATES = ("effnet-lite0", "effnet-lite1")
"""Sources of the transfer part where the user names none; the target itself is left out."""

STANDARD = ("autoattack", "autoattack-rand")
"""The attack that claims of robustness need, and its version for random defenses."""

OWN_PURIFIERS = ("nrp", "rdp", "hgd")
"""What an attacker who does not know the defense puts in its place: the first that the defense does not contain."""

LARGE = 32.0
"""The least eps at which an attacker may show anything."""


@dataclass(frozen=True)
class Budget:
    """How much an audit computes. Attacks are labels."""

    limit: int | None
    """Images, where the user names no number; None: all."""
    surrogates: int
    transfer: tuple[str, ...]
    eot: int
    """Draws of a random defense per gradient."""
    draws: int
    """Draws of a random defense on which its predictions are judged."""
    gradient: tuple[str, ...]
    """Attacks that use the gradient through the defense; the last is the one that `doubled` is compared with."""
    doubled: tuple[str, ...]
    black_box: tuple[str, ...]
    random_black_box: tuple[str, ...]
    """The same of a random defense, whose queries are means over draws: fewer of them."""
    sweep: tuple[float, ...]
    """Further eps, in multiples of the audit's own."""
    traced: int = 100
    """Steps of the attack whose progress is traced."""
    grey_box: tuple[str, ...] = ("mi-fgsm",)
    """Attacks through the attacker's own purifier."""
    planted: tuple[int, int] = (5, 50)
    """Of the binarisation test: images, and points inside the budget for each."""


BUDGETS = {
    "quick": Budget(
        20, 1, ("mi-fgsm", "ti-dim"), 4, 5, ("pgd", "apgd-ce(steps=20, stop=true)"),
        ("apgd-ce(steps=40, stop=true)",), ("square(queries=100)",), ("square(queries=25)",),
        (16.0,), 20,
    ),
    "standard": Budget(
        None, 2, ("fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"), 20, 10,
        ("pgd(steps=20)", "apgd-dlr(stop=true)", "apgd-ce(stop=true)"),
        ("apgd-ce(steps=200, stop=true)", "apgd-ce(restarts=5, stop=true)"), ("square(queries=1000)",),
        ("square(queries=100)",), (0.25, 0.5, 2.0, 4.0, 16.0), grey_box=("mi-fgsm", "ti-dim"), planted=(16, 200),
    ),
    "full": Budget(
        None, 2, ("fgsm", "mi-fgsm", "dim", "ti-dim", "sini-tidim"), 20, 10,
        ("pgd(steps=50, restarts=5)", "apgd-dlr(stop=true)", "autoattack", "apgd-ce(stop=true)"),
        ("apgd-ce(steps=200, stop=true)", "apgd-ce(restarts=10, stop=true)"),
        ("square", "spsa"), ("square(queries=500)", "spsa"), (0.25, 0.5, 1.5, 2.0, 4.0, 16.0),
        grey_box=("mi-fgsm", "ti-dim", "apgd-ce"), planted=(16, 999),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is audited, and how."""

    defense: str
    target: str
    dataset: str = "photos20"
    eps: float = 4.0
    budget: str = "quick"
    sources: tuple[str, ...] = ()
    models_dir: Any = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse a budget that does not exist, and eps that no audit can have.

        Raises:
            UsageError: either.
        """
        if self.budget not in BUDGETS:
            raise unknown_name("budget", self.budget, BUDGETS)
        if self.eps <= 0:
            raise UsageError("an audit needs an eps above 0; --eps 4 is 4/255")

    @property
    def images(self) -> str:
        """The data set as cards name it, with the size where it is not the data set's own."""
        return self.dataset if self.image_size is None else f"{self.dataset}-{self.image_size}px"

    @property
    def settings(self) -> Budget:
        """What its budget computes."""
        return BUDGETS[self.budget]

    @property
    def made(self) -> Defense:
        """The defense itself."""
        return registry.defense.resolve(self.defense, files=FileSearch(models_dir=self.models_dir)).value

    @property
    def random(self) -> bool:
        """Whether the defense is random."""
        return bool(self.made.random)

    @property
    def near(self) -> tuple[str, ...]:
        """The source with the closer stand-in of the defense, where it has one."""
        made = self.made
        if not (isinstance(made, Purifier) and made.has_smooth):
            return ()
        samples = f", {self.settings.eot}" if self.random else ""
        return (f"smooth({self.defense}, {self.target}{samples})",)

    @property
    def fixed(self) -> str:
        """The defense with fixed noise."""
        return f"fixed({self.defense})"

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The sources of the transfer part: never the target, which its attacker does not know.

        Raises:
            UsageError: the user named the target alone.
        """
        if not self.sources:
            return tuple(each for each in SURROGATES if each != self.target)[: self.settings.surrogates]
        if others := tuple(each for each in self.sources if each != self.target):
            for each in others:
                if is_white_box(each) or cut(each)[0] != each or self.target in split(each, "+"):
                    raise UsageError(
                        f"--source {each}: transfer attacks know neither the defense nor the target {self.target}; "
                        "name other models"
                    )
            return others
        raise UsageError(
            f"the transfer attacks on {self.target} need a source that is another model, found --source "
            f"{', '.join(self.sources)}; leave --source out, or name another"
        )

    @property
    def gradient(self) -> tuple[str, ...]:
        """Attacks that use the gradient through the defense; AutoAttack in the version for it."""
        standard, for_random = STANDARD
        return tuple(for_random if self.random and each == standard else each for each in self.settings.gradient)

    @property
    def black_box(self) -> tuple[str, tuple[str, ...]]:
        """What attacks without gradients ask, and these attacks."""
        if not self.random:
            return "white-box", self.settings.black_box
        return f"white-box({min(self.settings.eot, self.settings.draws)})", self.settings.random_black_box

    @property
    def sweep(self) -> tuple[float, ...]:
        """The further eps; whole levels of 8 bits, below 256, and one of at least `LARGE`."""
        found = [float(min(255, max(1, round(self.eps * factor)))) for factor in self.settings.sweep]
        reach = [] if max((*found, self.eps)) >= LARGE else [2 * LARGE]
        return tuple(each for each in dict.fromkeys((*found, *reach)) if each != self.eps)

    @property
    def own_purifier(self) -> str:
        """The purifier of an attacker who does not know the defense."""
        known = {cut(part)[0] for part in split(self.defense, ">>")}  # refused elsewhere if it is no label
        return next((each for each in OWN_PURIFIERS if each not in known), OWN_PURIFIERS[-1])

    @property
    def grey_sources(self) -> tuple[str, ...]:
        """The sources of the grey-box part: the target, and the first surrogate, behind the attacker's own purifier."""
        models = (self.target, *(self.surrogates[:1] if self.settings.surrogates > 1 else ()))
        return tuple(f"adaptive({self.own_purifier}, {each})" for each in models)


def grids(subject: Subject) -> Iterator[tuple[str, Grid]]:
    """The parts of an audit in the order in which they are run, cheapest first: name and grid.

    Raises:
        UsageError: an unknown name.
    """
    budget, defense, rows = subject.settings, subject.defense, _rows(subject)
    through, near = f"white-box({budget.eot})", subject.near
    yield TRANSFER, _grid(subject, TRANSFER, subject.surrogates, budget.transfer, rows, clean=True)
    yield NOISE, _grid(subject, NOISE, ("white-box",), ("noise",), rows)
    if defended := rows[1:]:
        # The images of the white-box part's row without the defense: nothing more is crafted.
        yield BLIND, _grid(subject, BLIND, (subject.target,), subject.gradient, defended)
    yield GREY_BOX, _grid(subject, GREY_BOX, subject.grey_sources, budget.grey_box, rows)
    yield WHITE_BOX, _grid(subject, WHITE_BOX, (through,), subject.gradient, rows)
    if near:
        yield STAND_IN, _grid(subject, STAND_IN, near, budget.gradient[-1:], (defense,))
    if subject.random:
        yield ONE_DRAW, _grid(subject, ONE_DRAW, ("white-box(1)",), budget.gradient[-1:], (defense,))
        yield FIXED, _grid(subject, FIXED, ("white-box",), budget.gradient[-1:], (subject.fixed,), clean=True)
    asked, black_box = subject.black_box
    yield BLACK_BOX, _grid(subject, BLACK_BOX, (asked,), black_box, (defense,))
    yield EPS, _grid(subject, EPS, (through, *near), budget.gradient[-1:], (defense,), eps=subject.sweep)
    yield DOUBLED, _grid(subject, DOUBLED, (f"white-box({2 * budget.eot})",), budget.doubled, (defense,))


def least_parts(defense: str, *, random: bool) -> set[str]:
    """The parts that every audit of a defense has, whatever stand-ins there are."""
    parts = {TRANSFER, NOISE, BLIND, GREY_BOX, WHITE_BOX, BLACK_BOX, EPS, DOUBLED}
    if random:
        parts |= {ONE_DRAW, FIXED}
    return parts - {BLIND} if plain(defense) == UNDEFENDED else parts


def _rows(subject: Subject) -> tuple[str, ...]:
    return (UNDEFENDED,) if plain(subject.defense) == UNDEFENDED else (UNDEFENDED, subject.defense)


def _grid(
    subject: Subject,
    part: str,
    sources: Sequence[str],
    attacks: Sequence[str],
    defenses: Sequence[str],
    *,
    eps: Sequence[float] = (),
    clean: bool = False,
) -> Grid:
    axes = {
        "dataset": subject.dataset, "sources": list(sources), "targets": [subject.target], "attacks": list(attacks),
        "defenses": list(defenses), "eps": list(eps or (subject.eps,)), "norm": LINF, "clean": clean,
        "defense_samples": subject.settings.draws, "samples": 1, "image_size": subject.image_size,
    }  # fmt: skip
    axes = {axis: value for axis, value in axes.items() if value is not None}
    return from_axes(f"audit-{part}", f"Audit of {subject.defense}: {part}", axes, alone=False)
