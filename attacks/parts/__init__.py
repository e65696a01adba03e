"""The parts of gradient-sign attacks, one file each, and the words that compositions name them by.

A new part is a file here and a row in `WORDS`.
"""

from dataclasses import dataclass, fields

from rdp_bench.attacks.parts.admix import Admix
from rdp_bench.attacks.parts.auxiliary import AuxiliaryHead
from rdp_bench.attacks.parts.ball import Ball
from rdp_bench.attacks.parts.base import Part
from rdp_bench.attacks.parts.block_shuffle import BlockShuffle
from rdp_bench.attacks.parts.copies import ScaleCopies
from rdp_bench.attacks.parts.diversity import Diversity
from rdp_bench.attacks.parts.ensemble import EnsembleRule, VarianceReduction
from rdp_bench.attacks.parts.flat_maximum import FlatMaximum
from rdp_bench.attacks.parts.gradient_relevance import GradientRelevance
from rdp_bench.attacks.parts.intermediate import IntermediateDecay
from rdp_bench.attacks.parts.labels import LabelChoice, Targeted
from rdp_bench.attacks.parts.momentum import Momentum
from rdp_bench.attacks.parts.nesterov import Nesterov
from rdp_bench.attacks.parts.objective import Objective
from rdp_bench.attacks.parts.patch_wise import PatchWise
from rdp_bench.attacks.parts.random_start import RandomStart
from rdp_bench.attacks.parts.restarts import Restarts
from rdp_bench.attacks.parts.skip_gradient import SkipGradient
from rdp_bench.attacks.parts.smoothing import Smoothing
from rdp_bench.attacks.parts.spectrum import Spectrum
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.attacks.parts.structure import Structure
from rdp_bench.attacks.parts.token_gradients import TokenGradients
from rdp_bench.attacks.parts.variance import VarianceTuning


@dataclass(frozen=True)
class Word:
    """What a word of a composition, such as `DI(p=.7)`, brings into an attack."""

    parts: tuple[Part, ...]
    takes: tuple[str, ...]
    """Fields of the parts that its arguments set, in the order of positional ones."""


def word(*parts: Part, takes: tuple[str, ...] | None = None) -> Word:
    """A row of `WORDS`; without `takes`, arguments set every field of the parts."""
    return Word(parts, tuple(f.name for part in parts for f in fields(part)) if takes is None else takes)


WORDS: dict[str, Word] = {
    "FGSM": word(Steps(1), takes=()),
    "I": word(Steps(), takes=("steps", "alpha")),
    "PGD": word(RandomStart(), Steps(step_ratio=2.5), takes=("steps", "step_ratio")),
    "MI": word(Momentum()),
    "NI": word(Momentum(), Nesterov(), takes=("momentum",)),
    "DI": word(Diversity()),
    "TI": word(Smoothing()),
    "SI": word(ScaleCopies()),
    "VT": word(VarianceTuning()),
    "GRA": word(GradientRelevance()),
    "PGN": word(FlatMaximum()),
    "PI": word(PatchWise()),
    "ADMIX": word(Admix(), ScaleCopies()),
    "SSA": word(Spectrum()),
    "BSR": word(BlockShuffle()),
    "SIA": word(Structure()),
    "ILPD": word(IntermediateDecay()),
    "TGR": word(TokenGradients()),
    "SGM": word(SkipGradient()),
    "ENS": word(EnsembleRule()),
    "SVRE": word(VarianceReduction()),
    "OWN": word(LabelChoice(), takes=()),
    "AUX": word(AuxiliaryHead()),
    "TARGETED": word(Targeted(), takes=("target",)),
    "LOSS": word(Objective()),
    "RESTARTS": word(Restarts()),
}

ALWAYS: tuple[Part, ...] = (Steps(), Ball())
"""What every attack has: where a composition names none, these."""
