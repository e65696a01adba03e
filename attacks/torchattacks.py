"""Attacks of the torchattacks package by class name: `torchattacks:PGD(steps=20)`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rdp_bench.budgets import LINF, allowed
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.registry import attack
from rdp_bench.specs import Param, parse_spec, read, show

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

OURS = frozenset({"eps", "max_epsilon", "n_classes"})
"""Parameters that are set from the cell and the source."""

COUNTS = frozenset({"steps", "n_restarts", "n_queries", "eot_iter", "popsize", "pixels"})
MOST = 100_000

INSTALL = "pip install 'rdp-bench[torchattacks]'"

BUDGETS = {
    "linf": frozenset({
        "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM", "TIFGSM", "Jitter",
        "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP", "APGD", "APGDT", "FAB",
        "AutoAttack", "Square", "GN",
    }),
    "l2": frozenset({"PGDL2", "PGDRSL2", "APGD", "APGDT", "FAB", "AutoAttack", "Square"}),
}  # fmt: skip
"""Classes whose results stay within eps, by norm. GN adds noise of its own size, which is cut to the budget."""

WITHOUT_BUDGET = {
    "CW": "it minimises the L2 norm and keeps no budget",
    "DeepFool": "it minimises the L2 norm and keeps no budget",
    "EADL1": "it minimises the L1 norm and keeps no budget",
    "EADEN": "it minimises an elastic-net norm and keeps no budget",
    "SparseFool": "it changes few pixels by any amount (L0)",
    "OnePixel": "it changes few pixels by any amount (L0)",
    "Pixle": "it moves pixels about, each by any amount (L0)",
    "JSMA": "it changes few pixels by any amount (L0)",
    "VANILA": "it returns the images as they are",
}
"""Classes without an L-infinity or L2 budget, and why: cut to eps they would look weaker than they are."""

SLACK = 1e-5
"""Rounding error of float32 that does not count as leaving the budget."""

BUDGET_NAMES = ("eps", "max_epsilon")
"""Names of the budget parameter in the classes."""


@dataclass(frozen=True)
class TorchAttack:
    """A torchattacks class run on our classifiers: pixel-space inputs, no normalisation of its own.

    The cell's eps is passed as `eps` where the class takes one. Its step size stays the library's own
    default (2/255 in most) unless given; write it as a fraction of one (`alpha=.0063`).
    The global torch seed is set from the images for the length of a call and restored after it.
    """

    name: str
    params: tuple[tuple[str, Param], ...] = ()
    norm: str = LINF
    _strayed: dict[float, float] = field(default_factory=dict, compare=False, repr=False)
    """Largest distance to the clean image before clipping, by eps; both in the library's unit."""

    def with_norm(self, norm: str) -> TorchAttack:
        """The same attack with its budget in `norm`; see `protocols.ChoosesNorm`.

        Raises:
            UsageError: the class has no such budget, or its label names another norm.
        """
        here = [name for name, classes in BUDGETS.items() if self.name in classes]
        if not here:
            raise UsageError(
                f"attack 'torchattacks:{self.name}' is not in the table of budgets (attacks/torchattacks.py)"
            )
        asked = str(dict(self.params).get("norm", norm)).lower()
        if norm not in here or asked != norm:
            other = asked if asked != norm else here[0]
            how = "--eps 3.0, the L2 norm of a change of pixels in [0, 1]" if other == "l2" else "--eps 8, in /255"
            raise UsageError(
                f"attack 'torchattacks:{self.name}' has an {other} budget here and the run's is {norm}; run it with "
                f"--norm {other} {how}"
                if other in here
                else f"attack 'torchattacks:{self.name}' has no {other} budget"
            )
        alpha = dict(self.params).get("alpha")
        if norm == LINF and isinstance(alpha, int | float) and alpha >= 1:
            raise UsageError(
                f"attack 'torchattacks:{self.name}': alpha is the library's, for pixels in [0, 1]: {show(alpha)} is a "
                f"step across the whole range; did you mean alpha={alpha / 255:.4f}?"
            )
        return replace(self, norm=norm)

    def notes(self) -> list[str]:
        """Says how far results were outside of the budget; see `protocols.Notes`."""
        units = 255 if self.norm == LINF else 1
        told = [[allowed(round(units * one, 2), self.norm) for one in pair] for pair in self._strayed.items()]
        return [
            f"attack torchattacks:{self.name} left its budget and was cut back to it: an image was {far} away from the "
            f"clean one, allowed {eps}"
            for eps, far in told
        ]

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images by the library, clipped to `eps` and [0, 1]; see `protocols.Attack`."""
        import torch

        from rdp_bench.attacks._kernels.norms import norm_l2, project_l2

        class Network(torch.nn.Module):
            """The mean of the members' logits; torchattacks asks for a Module with a device."""

            def __init__(self) -> None:
                super().__init__()
                self.anchor = torch.nn.Parameter(torch.zeros((), device=x.device))

            def forward(self, images: Tensor) -> Tensor:
                return torch.stack([member(images) for member in source.members]).mean(0)

        kind = _class(self.name)
        params: dict[str, Any] = dict(self.params)
        params |= {name: eps for name in BUDGET_NAMES if name in _parameters(kind)}
        params |= self._norm_param(kind)
        if "n_classes" in _parameters(kind):  # the library's default is CIFAR-10's
            params["n_classes"] = source.members[0].classes
        method = kind(Network().eval(), **params)
        seeds = rng.fork("torchattacks").integers(0, 2**53).tolist()
        outs = []
        for i in range(len(x)):
            # One image at a time: the library draws from the global stream, in batch order.
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
                torch.manual_seed(seeds[i])
                outs.append(method(x[i : i + 1], y[i : i + 1]).detach())
        adv = torch.cat(outs)
        far = float((adv - x).abs().max() if self.norm == LINF else norm_l2(adv - x).max())
        if far > eps + SLACK:
            self._strayed[eps] = max(far, self._strayed.get(eps, 0.0))
        inside = adv.clamp(x - eps, x + eps) if self.norm == LINF else project_l2(adv, x, eps)
        return inside.clamp(0, 1)

    def _norm_param(self, kind: Any) -> dict[str, str]:
        """Its own parameter `norm`, where the class has one and the norm is not its default."""
        return {"norm": "L2"} if "norm" in _parameters(kind) and self.norm == "l2" else {}

    def resolved(self, eps_255: float) -> dict[str, Any]:
        """The class, its given and default parameters, and the library's version."""
        from importlib.metadata import version

        known = _parameters(_class(self.name))
        defaults = {k: v for k, v in known.items() if isinstance(v, bool | int | float | str | None)}
        defaults |= {name: eps_255 for name in BUDGET_NAMES if name in known}
        defaults |= self._norm_param(_class(self.name))
        if "n_classes" in known:
            defaults["n_classes"] = "the source's"
        return {"torchattacks": version("torchattacks"), "class": self.name, "params": defaults | dict(self.params)}

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002 - part of the protocol
        """Estimated by the library's `steps`, or 1."""
        steps = dict(self.params).get("steps", _parameters(_class(self.name)).get("steps", 1))
        return int(steps) if isinstance(steps, int | float) else 1


def _class(name: str) -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise UsageError(f"attack 'torchattacks:{name}' needs the torchattacks package: {INSTALL}") from error
    classes = {n: k for n, k in vars(torchattacks).items() if isinstance(k, type) and hasattr(k, "forward")}
    known = {n: k for n, k in classes.items() if _needs(k) == ["model"]}  # MultiAttack and LGV want more
    if name not in known:
        raise unknown_name("torchattacks attack", name, known)
    return known[name]


def _needs(kind: Any) -> list[str]:
    import inspect

    found = inspect.signature(kind).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def _parameters(kind: Any) -> dict[str, Any]:
    import inspect

    found = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in found if p.name not in ("self", "model") and p.default is not p.empty}


def adapt(text: str) -> TorchAttack:
    """`torchattacks:NAME(key=value)` -> the adapter; unknown names and parameters are refused."""
    spec = parse_spec(text)
    name = spec.name.removeprefix("torchattacks:")
    known = _parameters(_class(name))
    if why := WITHOUT_BUDGET.get(name):
        raise UsageError(f"attack 'torchattacks:{name}' fits no budget: {why}")
    if spec.positional:
        raise UsageError(f"attack '{text}': parameters are written name=value")
    params: list[tuple[str, Param]] = []
    for key, word in spec.params:
        if key not in known or key in OURS:
            raise unknown_name(f"parameter of torchattacks:{name}", key, set(known) - OURS)
        params.append((key, read(word, _type(known[key]), f"attack '{text}', parameter '{key}'", known[key])))
    for key, value in params:
        if key in COUNTS and isinstance(value, int | float) and value > MOST:
            raise UsageError(f"attack '{text}': {key} is at most {MOST}, found {show(value)}")
        if key in COUNTS and isinstance(value, int | float) and value < 1:
            raise UsageError(f"attack '{text}': {key} is at least 1, found {show(value)}")
    _refuse_no_step(text, known | dict(params))
    return TorchAttack(name, tuple(params))


def _refuse_no_step(text: str, settings: dict[str, Any]) -> None:
    if settings.get("random_start") is True:
        return
    alpha, steps = settings.get("alpha"), settings.get("steps", 1)
    if isinstance(alpha, int | float) and isinstance(steps, int | float) and alpha * steps * 255 < 0.5:
        raise UsageError(
            f"attack '{text}': {show(steps)} steps of alpha={show(alpha)} (pixels in [0, 1]) change no 8-bit pixel; "
            "alpha=0.0078 is 2/255"
        )


def _type(default: object) -> Any:
    """The type of a parameter, from its default: the library has no annotations."""
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return Any if default is None else int | float if number else type(default)


attack.label_scheme("torchattacks", r"torchattacks:.+", "torchattacks:PGD(steps=20)", adapt)
