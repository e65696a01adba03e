"""One iteration behind every attack of the paper: gradient-sign steps with exchangeable parts.

    x_0 = x (+ U(-eps, eps))
    z   = x_t + mu * alpha * g_t                              look-ahead (NI)
    G   = sum_i d/dx J(f(D_i(.5 + (z - .5) / 2^i)), y)        copies (SI), input diversity (DI)
    G   = K * G                                               smoothing (TI)
    g_{t+1} = mu * g_t + G / mean|G|                          momentum (MI)
    x_{t+1} = clip(x_t + alpha * sign(g_{t+1}), ball, [0, 1])

Under an L2 budget the step goes along g / |g|_2 instead of sign(g), and the result is projected to the L2 ball, then to
[0, 1] (Madry et al. 2018).

The constants of the authors' code live on images in [-1, 1]; here pixels are in [0, 1], which halves
eps and alpha and turns their padding value 0 and their scaling towards 0 into mid-grey .5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

from rdp_bench.budgets import LINF, NORMS, Norm
from rdp_bench.errors import UsageError
from rdp_bench.keys import neutral
from rdp_bench.specs import show

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

Label = Literal["true", "predicted"]
Target = Literal["random", "dataset"]

ENGINE_VERSION = 1
"""Of the iteration in `_iterate.py`; bump it when every attack's output changes."""

PART_VERSIONS: dict[str, tuple[Any, int]] = {
    "momentum": (0.0, 1),
    "nesterov": (False, 1),
    "scale_copies": (1, 1),
    "diversity_prob": (0.0, 1),
    "kernel_size": (1, 1),
    "label": ("true", 1),
    "targeted": (False, 1),
    "target": ("random", 1),
    "norm": (LINF, 1),
    "random_start": (False, 1),
    "aux_weight": (0.0, 1),
}
"""Of each part: the value of its field that switches it off, and its version. Bump the version of the part whose output
changes: the attacks that use it, and no others, then get new keys, whether a preset or a composition names them."""


@dataclass(frozen=True)
class GradientSign:
    """Gradient-sign iteration; the fields switch its parts on. `alpha` and `eps_255` are in /255.

    Where `norm` is "l2", eps is an L2 norm everywhere, the argument called `eps_255` included.
    """

    steps: int | None = 10
    """Iterations; None ("auto") is min(eps + 4, 1.25 eps), rounded down (Kurakin et al. 2016, Sec. 3)."""
    alpha: float | None = None
    """Step size; None is `step_ratio * eps / steps`, but at least `alpha_floor`."""
    step_ratio: float = 1.0
    alpha_floor: float = 0.0
    momentum: float = 0.0
    """mu of MI-FGSM (Dong et al. 2018, Eq. 6); above 0 each gradient is divided by its mean |.|."""
    nesterov: bool = False
    """Look-ahead (Lin et al. 2020, Eq. 6); the looked-ahead point is not clipped, as in their code."""
    scale_copies: int = 1
    """m of SI (Lin et al. 2020, Eq. 8): copies at contrast 1, 1/2, ..., around mid-grey; gradients summed."""
    diversity_prob: float = 0.0
    """Probability of input diversity (Xie et al. 2019, Sec. 3.2), drawn anew for each image and gradient."""
    diversity_size: float = 330 / 299
    """Padded size over image size; the resized image is U{size .. padded - 1}, nearest neighbour."""
    resize_back: bool = False
    """Bring the padded image back to its size (nearest), as the SI-NI code does; else the network sees it larger."""
    kernel_size: int = 1
    """Length of the Gaussian kernel of TI (Dong et al. 2019, Sec. 3.3), sigma = (kernel - 1) / 6 pixels."""
    label: Label = "true"
    """Which class to leave: the true label, or the source's own prediction in its first forward pass."""
    targeted: bool = False
    """Approach a class instead of leaving the label: which one, `target` says."""
    target: Target = neutral("random")
    """Class that a targeted attack approaches: a random wrong one, or the data set's own target class."""
    random_start: bool = False
    clip_start: bool = True
    """Clip the random start to [0, 1] before the first gradient."""
    aux_weight: float = 0.0
    """Weight of the loss at a source's auxiliary head (.4 in the TI code); 0 leaves it out."""
    norm: Norm = neutral(LINF)
    """Norm of the budget; a grid or `--norm` sets it."""

    def __post_init__(self) -> None:
        rules = {
            "numbers are finite": all(isfinite(v) for v in vars(self).values() if isinstance(v, float)),
            "steps is above 0 and at most 100000, or auto": self.steps is None or 0 < self.steps <= 100_000,
            "alpha is above 0": self.alpha is None or self.alpha > 0,
            "alpha is at most 255": self.alpha is None or self.alpha <= 255,
            "step_ratio is above 0": self.step_ratio > 0,
            "momentum is not negative": self.momentum >= 0,
            "scale_copies is at least 1": self.scale_copies >= 1,
            "copies is 1 to 100": self.scale_copies <= 100,  # the contrast of copy 100 is below any float32
            "diversity_prob is a probability": 0 <= self.diversity_prob <= 1,
            "diversity_size is above 1 and at most 10": 1 < self.diversity_size <= 10,
            "kernel_size is odd and at least 1": self.kernel_size >= 1 and self.kernel_size % 2 == 1,
            "kernel is at most 4001; images need no longer one": self.kernel_size <= 4001,
            f"label is one of {get_args(Label)}": self.label in get_args(Label),
            "a targeted attack uses label=true": not (self.targeted and self.label == "predicted"),
            "nesterov needs momentum above 0": not self.nesterov or self.momentum > 0,
            f"target is one of {get_args(Target)}": self.target in get_args(Target),
            "target=dataset needs targeted=true": self.targeted or self.target == "random",
            f"norm is one of {NORMS}": self.norm in NORMS,
        }
        if self.norm != LINF:
            rules |= {
                "steps=auto is a rule for eps in /255; give a number, as in steps=10": self.steps is not None,
                "alpha is in /255; write alpha=auto, and step_ratio for steps of step_ratio * eps / steps": (
                    self.alpha is None and not self.alpha_floor
                ),
                "nesterov's look-ahead is defined for sign steps only": not self.nesterov,
            }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images for `x` `[n, 3, h, w]` in [0, 1]; `eps` in [0, 1], or an L2 norm; see `Attack`."""
        from rdp_bench.attacks._iterate import iterate

        return iterate(self, source, x, y, eps, rng)

    @property
    def aims_at_targets(self) -> bool:
        """Whether it approaches the data set's target classes."""
        return self.targeted and self.target == "dataset"

    def with_norm(self, norm: Norm) -> GradientSign:
        """The same attack with its budget in `norm`; see `protocols.ChoosesNorm`.

        Raises:
            UsageError: its label names another norm. ValueError: a part has no meaning in `norm`.
        """
        if self.norm not in (LINF, norm):
            raise UsageError(f"an attack with norm={self.norm} needs --norm {self.norm}, with --eps in that norm")
        return replace(self, norm=norm)

    def identity(self) -> tuple[str, str]:
        """Id and version for cache keys: the engine's, and the version of each used part that has had another."""
        used = {name: number for name, (off, number) in PART_VERSIONS.items() if getattr(self, name) != off}
        return "gradient-sign", " ".join(
            [str(ENGINE_VERSION), *(f"{name}={number}" for name, number in used.items() if number > 1)]
        )

    def count(self, eps_255: float) -> int:
        """Iterations at `eps_255`."""
        return self.steps or max(1, int(min(eps_255 + 4, 1.25 * eps_255)))

    def step(self, eps_255: float) -> float:
        """Step size at `eps_255`, both in /255."""
        if self.alpha is not None:
            return self.alpha
        return max(self.alpha_floor, self.step_ratio * eps_255 / self.count(eps_255))

    def gradients(self, eps_255: float) -> int:
        """Gradient evaluations per image and source member."""
        return self.count(eps_255) * self.scale_copies

    def resolved(self, eps_255: float) -> dict[str, Any]:
        """Every field, with the steps and step size that `eps_255` gives.

        Raises:
            UsageError: all steps together move less than half a level, so that no stored pixel would change.
        """
        steps = self.count(eps_255)
        if self.alpha is not None and self.alpha * steps < 0.5:
            raise UsageError(
                f"alpha is in /255, and {steps} steps of {show(self.alpha)}/255 change no 8-bit pixel; did you mean "
                f"alpha={max(1, round(self.alpha * 255))}?"
            )
        return {**asdict(self), "steps": steps, "alpha": self.step(eps_255)}


Parts = dict[str, tuple[tuple[str, ...], dict[str, Any]]]

PARTS: Parts = {
    # part: (fields its arguments name, in order; values it sets before them)
    "FGSM": ((), {"steps": 1}),
    "I": (("steps", "alpha"), {}),
    "PGD": (("steps", "step_ratio"), {"random_start": True, "step_ratio": 2.5}),
    "MI": (("momentum",), {"momentum": 1.0}),
    "NI": (("momentum",), {"momentum": 1.0, "nesterov": True}),
    "DI": (("diversity_prob", "diversity_size", "resize_back"), {"diversity_prob": 0.7}),
    "TI": (("kernel_size",), {"kernel_size": 15}),
    "SI": (("scale_copies",), {"scale_copies": 5}),
    "OWN": ((), {"label": "predicted"}),
    "AUX": (("aux_weight",), {"aux_weight": 0.4}),
    "TARGETED": (("target",), {"targeted": True}),
}

ALIASES = {
    "p": "diversity_prob",
    "size": "diversity_size",
    "back": "resize_back",
    "mu": "momentum",
    "m": "scale_copies",
}


def compose(text: str) -> GradientSign:
    """The attack that a composition such as `MI|DI(p=.7)|TI(15)|SI(5)` spells.

    >>> compose("MI|TI(7)").kernel_size
    7

    Raises:
        UsageError: an unknown part, an unknown argument, or the same part twice.
    """
    from rdp_bench.errors import unknown_name
    from rdp_bench.specs import Spec, parse_spec, split, values

    presets: dict[str, Any] = {}
    words: dict[str, str] = {}
    seen: set[str] = set()
    for piece in split(text, "|"):
        spec = parse_spec(piece)
        if spec.name not in PARTS:
            raise unknown_name("part of an attack", spec.name, PARTS)
        if spec.name in seen:
            raise UsageError(f"attack '{text}': part {spec.name} stands there twice")
        seen.add(spec.name)
        names, preset = PARTS[spec.name]
        if len(spec.positional) > len(names):
            raise UsageError(f"attack '{text}': {spec.name} takes {len(names)} values: {', '.join(names) or 'none'}")
        given = [*zip(names, spec.positional, strict=False), *((ALIASES.get(k, k), v) for k, v in spec.params)]
        for name, _ in given:
            if name not in names:
                raise unknown_name(f"argument of {spec.name}", name, names)
        if len(dict(given)) < len(given):
            raise UsageError(f"attack '{text}': an argument of {spec.name} stands there twice")
        for name, word in given:
            if words.setdefault(name, word) != word:
                raise UsageError(f"attack '{text}': {name} is given twice, as {words[name]} and as {word}")
        presets |= preset
    return GradientSign(**presets | values(GradientSign(), Spec(text, tuple(words.items())), "attack"))
