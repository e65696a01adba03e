"""Options of a training; part of its checkpoint and of the card of its weights."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rdp_bench.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Options:
    """Everything that a training's result depends on besides the photographs."""

    recipe: str
    size: str = "compact"
    steps: int = 2000
    batch: int = 16
    crop: int = 128
    rate: float = 1e-4  # Adam's learning rate before the schedule
    schedule: str = "halving"
    seed: int = 0
    eps: float = 16.0  # in /255
    features: tuple[str, ...] = ("effnet-lite2",)  # the feature extractors F, by turns; the judge is another network
    levels: tuple[int, ...] = (2,)  # their feature maps, counted as timm does
    attack: str = "paper"  # how training inputs are made; see `inputs`
    attack_steps: int = 10
    clean: float | None = None  # share of the inputs that are left clean; None: the attack's own, see `CLEAN`
    scale: str = "image"  # at which F sees a crop: as a part of a whole image of its input size, or pixel by pixel
    without: tuple[str, ...] = ()  # parts left out
    weights: tuple[tuple[str, float], ...] = ()  # loss weights that differ from the recipe's
    blend: float = 1.0  # ens-adv: how far the product lies from the teacher (0) towards the student (1)
    precision: str = "auto"  # of the trained networks' arithmetic: bfloat16 on a GPU, else float32
    average: float = 0.0  # decay a step of the average of the weights that is validated and saved; 0: the weights
    start: str = ""  # sha256 of the weights the product started from

    def __post_init__(self) -> None:
        """Reject options that cannot train."""
        for name in ("steps", "batch", "crop", "attack_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is at least 1, found {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"--seed is from -2^63 to 2^64 - 1, found {self.seed}")
        if not 0 < self.rate < 1:
            raise UsageError(f"--rate is between 0 and 1, found {self.rate}")
        if not 0 <= self.eps <= 255:
            raise UsageError(f"--eps is between 0 and 255, found {self.eps}")
        if not 0 <= self.blend <= 1:
            raise UsageError(f"--blend is between 0 and 1, found {self.blend}")
        if self.clean is not None and not 0 <= self.clean < 1:
            raise UsageError(f"--clean is at least 0 and below 1, found {self.clean}")
        if not 0 <= self.average < 1:
            raise UsageError(f"--average is at least 0 and below 1, found {self.average}")
        if self.crop % 32:
            raise UsageError(f"--crop is a multiple of 32, found {self.crop}")
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.attack not in ATTACKS:
            raise unknown_name("training attack", self.attack, ATTACKS)
        if self.scale not in SCALES:
            raise unknown_name("scale", self.scale, SCALES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for term, weight in self.weights:
            if not 0 <= weight < math.inf:
                raise UsageError(f"--weight {term} is a number from 0 up, found {weight}")

    def record(self) -> dict[str, Any]:
        """As JSON, without `clean` where it is the attack's own: trainings that are older go on."""
        found = {**asdict(self), "weights": dict(self.weights)} | {
            name: list(getattr(self, name)) for name in ("features", "levels", "without")
        }
        return {name: value for name, value in found.items() if name != "clean" or value is not None}

    @property
    def clean_share(self) -> float:
        """The share of the inputs that are left clean."""
        return CLEAN[self.attack] if self.clean is None else self.clean

    def with_given(self, given: dict[str, Any]) -> "Options":
        """A copy with the values that the user gave (None: not given)."""
        known = {f.name for f in fields(self)}
        return replace(self, **{name: value for name, value in given.items() if name in known and value is not None})


def _halving(done: float) -> float:
    # ESRGAN's milestones, at 50, 100, 200 and 300 of 400 thousand steps, as fractions.
    return float(0.5 ** sum(done >= at for at in (1 / 8, 1 / 4, 1 / 2, 3 / 4)))


def _drops(done: float) -> float:
    # HGD: a tenth after 60 %, a hundredth after 90 % of the epochs.
    return 1.0 if done < 0.6 else 0.1 if done < 0.9 else 0.01


def _cosine(done: float) -> float:
    return min(1.0, done / 0.02 + 0.05) * 0.5 * (1 + math.cos(math.pi * done))


def _constant(done: float) -> float:  # noqa: ARG001 - one signature for all
    return 1.0


ATTACKS = ("paper", "wide")
"""How training inputs are made; `inputs` does it."""

CLEAN = {"paper": 0.0, "wide": 0.125}
"""The share of the inputs that an attack leaves clean, unless --clean says another."""

SCALES = ("image", "native")
"""How large the extractor F sees a crop; `extractor` does it."""

PRECISIONS = ("auto", "float32", "bfloat16")

SCHEDULES = {"constant": _constant, "halving": _halving, "drops": _drops, "cosine": _cosine}
"""Learning rate factor by the fraction of the steps that is done, 0 to 1."""
