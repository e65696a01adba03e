"""Sources behind a defense: the function that an attacker who knows the defense differentiates.

`exact(rdp, effnet-lite0)` uses the true gradient through the purifier. `bpda(jpeg, effnet-lite0)` runs the purifier
forward and its stand-in (usually the identity) backward (Athalye et al. 2018, Sec. 4.1). `adaptive(...)` uses the one
that the defense declares, and `smooth(...)` its closer stand-in, where it has one. A number at the end,
`exact(r&p, effnet-lite0, 20)`, is the number of samples of the defense over which each gradient is averaged (EOT,
Sec. 4.2). The source may be an ensemble, `bpda(nrp, a+b)`.

`white-box`, or `white-box(20)` with EOT, means the target of each cell behind the defense of that cell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rdp_bench import registry
from rdp_bench.errors import UsageError
from rdp_bench.keys import Record
from rdp_bench.protocols import Classifier, Defense, Purifier
from rdp_bench.registry import Resolved
from rdp_bench.specs import MODES, UNDEFENDED, WHITE_BOX, cut, split
from rdp_bench.user_reads import noting_unkeyed

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng

MOST_SAMPLES = 10_000
"""EOT samples per gradient that a label may ask for."""


BPDA = 2
"""Version of stand-in gradients: since 2, `purify` gets what attacks look at within [0, 1]."""


def _is_exact(defense: Defense) -> bool:
    return isinstance(defense, Purifier) and defense.backward == "exact"


@dataclass(frozen=True)
class AttackedDefense:
    """A defense in front of a source, and the mode of its gradient."""

    mode: str
    defense: Resolved[Defense]
    samples: int = 1

    @property
    def exact(self) -> bool:
        """Whether its gradient is the true one."""
        return self.mode == "exact" or (self.mode == "adaptive" and _is_exact(self.defense.value))

    def record(self) -> Record:
        """Return the identity for cache keys."""
        record = {"mode": self.mode, "samples": self.samples, "defense": registry.identity(self.defense)}
        return record if self.exact else {**record, "version": BPDA}

    def purify(self, x: "Tensor", rng: "ImageRng") -> "Tensor":
        """Return the purified images of `x` `[n, 3, h, w]` in [0, 1]; their gradient follows `mode`."""
        purifier = cast("Purifier", self.defense.value)
        ways: dict[str, Callable[[Tensor, ImageRng], Tensor]] = {
            "exact": purifier.purify,
            "bpda": purifier.straight_through,
            "adaptive": purifier.bpda,
            "smooth": purifier.smooth_through,
        }
        # A copy, because a defense may write into its input, which belongs to the attack.
        return ways[self.mode](x.clone(), rng)


@dataclass(frozen=True)
class DefendedClassifier:
    """A classifier behind a defense, as the attacker differentiates it; see `protocols.Classifier`."""

    inner: Classifier
    attacked_defense: AttackedDefense

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def classes(self) -> int:
        return self.inner.classes

    @property
    def random(self) -> bool:
        """Whether the defense is; see `protocols.SaysRandom`."""
        return bool(self.attacked_defense.defense.value.random)

    def stochastic_logits(self, x: "Tensor", rng: "ImageRng", zoom: float = 1.0) -> "Tensor":
        """Return logits `[n, classes]` of purified `x` `[n, 3, h, w]`, with a new sample of the defense from `rng`."""
        purified = self.purified(x, rng)
        return self.inner(purified, zoom * purified.shape[-1] / x.shape[-1])

    def purified(self, x: "Tensor", rng: "ImageRng") -> "Tensor":
        """Return what the classifier sees of `x` `[n, 3, h, w]`, checked; its gradient is the attacker's."""
        from rdp_bench.models.entry_calls import checked_images, naming_entry

        label = f"defense '{self.attacked_defense.defense.label}'"
        with naming_entry(label), noting_unkeyed(label):
            purified = self.attacked_defense.purify(x, rng)
        # What is fed may leave [0, 1] itself: the look-ahead of NI is not clipped.
        checked_images(purified, x, f"{label} under attack", bounded=False)
        return purified.to(x.dtype)  # as an evaluation casts what a defense gives back

    def __call__(self, x: "Tensor", zoom: float = 1.0) -> "Tensor":
        """Return logits `[n, classes]` without `rng`, which is possible only for a deterministic defense.

        Raises:
            UsageError: the defense is random.
        """
        from rdp_bench.rng import ImageRng

        if self.attacked_defense.defense.value.random:
            raise UsageError(
                f"{self.attacked_defense.defense.label} in front of {self.name} is random: only this package's own "
                "attacks sample it again for every gradient"
            )
        return self.stochastic_logits(x, ImageRng([""] * len(x), x.device), zoom)

    def record(self) -> dict[str, Any]:
        """Return the record of the classifier and the defense."""
        return {**self.inner.record(), "attacked_defense": self.attacked_defense.record()}


def parse(label: str) -> tuple[AttackedDefense, str] | None:
    """Parse a source label: (the attacked defense, the label of the inner source), or None for a plain label.

    Raises:
        UsageError: the form is wrong, the defense is unknown, it has no gradient in this mode, or samples of it are
            asked for and it is not random.
    """
    mode, inside = cut(label)
    if mode not in MODES or inside is None:
        return None
    parts = split(inside, ",")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"source '{label}': expected {mode}(DEFENSE, SOURCE) or {mode}(DEFENSE, SOURCE, SAMPLES)")
    samples = _samples(label, parts[2] if len(parts) > 2 else "1")
    resolved = registry.defense.resolve(parts[0])
    defense = resolved.value
    if not isinstance(defense, Purifier):
        raise UsageError(f"source '{label}': defense {parts[0]} declares no backward pass; subclass Purifier")
    if mode == "exact" and not defense.differentiable:
        raise UsageError(f"source '{label}': {parts[0]} is not differentiable; use bpda({parts[0]}, {parts[1]})")
    if mode == "smooth" and not defense.has_smooth:
        raise UsageError(f"source '{label}': {parts[0]} has no closer stand-in; use adaptive({parts[0]}, {parts[1]})")
    if samples > 1 and not defense.random:
        raise UsageError(
            f"source '{label}': {parts[0]} is not random, so that all {samples} samples would be equal; write "
            f"{mode}({parts[0]}, {parts[1]})"
        )
    return AttackedDefense(mode, resolved, samples), parts[1]


def is_white_box(label: str) -> bool:
    """Return whether a source label is `white-box` or `white-box(N)`."""
    return cut(label)[0] == WHITE_BOX


def white_box(label: str, defense: str, target: str, *, random: bool) -> str:
    """Return the source that `white-box` or `white-box(20)` means for one cell.

    EOT applies to `random` defenses only; for `none` the source is the target itself.

    Args:
        label: `white-box` or `white-box(N)`.
        defense: the label of the cell's defense.
        target: the label of the cell's target.
        random: whether the defense is.

    Raises:
        UsageError: the number of samples is below 1.
    """
    inside = cut(label)[1]
    samples = None if inside is None else _samples(label, inside)
    if defense == UNDEFENDED:
        return target
    if samples and random:
        return f"adaptive({defense}, {target}, {samples})"
    return f"adaptive({defense}, {target})"


def _samples(label: str, text: str) -> int:
    count = int(text) if text.isdecimal() and len(text) < 10 else 0
    if not 1 <= count <= MOST_SAMPLES:
        raise UsageError(
            f"source '{label}': the number of samples is a whole number from 1 to {MOST_SAMPLES}, found '{text}'"
        )
    return count
