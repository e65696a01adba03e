"""Attacks of other libraries on our classifiers: budgets, parameters, and one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rdp_bench.budgets import LINF, allowed
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.specs import Param, parse_spec, read, show

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rdp_bench.protocols import Source
    from rdp_bench.rng import ImageRng

COUNTS = frozenset({
    "steps", "n_restarts", "n_queries", "eot_iter", "popsize", "pixels", "m", "n", "s_factor", "n_trans", "n_base",
    "n_interpolate", "region_num", "num_scale", "num_block", "num_spectrum", "num_neighbors", "num_warping", "num_ens",
})  # fmt: skip
MOST = 100_000

SLACK = 1e-5
"""Rounding error of float32 that does not count as leaving the budget."""

BUDGET_NAMES = ("eps", "max_epsilon")
"""Names of the budget parameter in the classes."""


@dataclass(frozen=True)
class LibraryAttack:
    """A class of an attack library run on our classifiers: pixel-space inputs, no normalisation of its own.

    The cell's eps is passed as `eps` where the class takes one. Its step size stays the library's own default unless
    given; write it as a fraction of one (`alpha=.0063`). Images are attacked one at a time, because libraries draw from
    global streams in batch order. Those streams are seeded from the image for the length of a call, then restored.
    """

    name: str
    params: tuple[tuple[str, Param], ...] = ()
    norm: str = LINF
    _strayed: dict[float, float] = field(default_factory=dict, compare=False, repr=False)
    """Largest distance to the clean image before clipping, by eps; both in the library's unit."""

    package: ClassVar[str]
    """Name of the package, of its label scheme, and of the extra that installs it."""
    budgets: ClassVar[Mapping[str, frozenset[str]]]
    """Classes whose results stay within eps, by norm."""
    refused: ClassVar[Mapping[str, str]]
    """Classes that no cell can run, and why."""
    ours: ClassVar[frozenset[str]] = frozenset({"eps", "max_epsilon", "n_classes", "num_classes"})
    """Parameters that are set from the cell and the source."""

    @classmethod
    def library(cls) -> dict[str, Any]:
        """The package's attack classes by name; raises `ImportError` where it is not installed."""
        raise NotImplementedError

    @classmethod
    def make(cls, kind: Any, network: torch.nn.Module, device: torch.device, params: dict[str, Any]) -> Any:
        """An attack of class `kind` that is called with images and labels."""
        raise NotImplementedError

    @classmethod
    def adapt(cls, text: str) -> Self:
        """`PACKAGE:NAME(key=value)` -> the adapter.

        Raises:
            UsageError: an unknown class or parameter, or a class that fits no cell.
        """
        spec = parse_spec(text)
        name = spec.name.removeprefix(f"{cls.package}:")
        known = _parameters(cls.find(name))
        if why := cls.refused.get(name):
            raise UsageError(f"attack '{cls.package}:{name}' {why}")
        if spec.positional:
            raise UsageError(f"attack '{text}': parameters are written name=value")
        params: list[tuple[str, Param]] = []
        for key, word in spec.params:
            if key not in known or key in cls.ours:
                raise unknown_name(f"parameter of {cls.package}:{name}", key, set(known) - cls.ours)
            params.append((key, read(word, _type(known[key]), f"attack '{text}', parameter '{key}'", known[key])))
        if dict(params).get("targeted"):
            raise UsageError(
                f"attack '{text}': labels of a cell are the true ones, which targeted=true would attack towards; use "
                "TARGETED of this package, as in MI|TARGETED"
            )
        for key, value in params:
            if key in COUNTS and isinstance(value, int | float) and value > MOST:
                raise UsageError(f"attack '{text}': {key} is at most {MOST}, found {show(value)}")
            if key in COUNTS and isinstance(value, int | float) and value < 1:
                raise UsageError(f"attack '{text}': {key} is at least 1, found {show(value)}")
        _refuse_no_step(text, known | dict(params))
        return cls(name, tuple(params))

    @classmethod
    def find(cls, name: str) -> Any:
        """The class called `name`.

        Raises:
            UsageError: it does not exist, or the package is not installed.
        """
        try:
            known = cls.library()
        except ImportError as error:
            raise UsageError(
                f"attack '{cls.package}:{name}' needs the {cls.package} package: "
                f"pip install '.[{cls.package}]' in the checkout"
            ) from error
        if name not in known:
            raise unknown_name(f"{cls.package} attack", name, known)
        return known[name]

    def with_norm(self, norm: str) -> Self:
        """The same attack with its budget in `norm`; see `protocols.ChoosesNorm`.

        Raises:
            UsageError: the class has no such budget, or its label names another norm.
        """
        here = [name for name, classes in self.budgets.items() if self.name in classes]
        label = f"attack '{self.package}:{self.name}'"
        if not here:
            raise UsageError(f"{label} is not in the table of budgets (attacks/{self.package}.py)")
        asked = str(dict(self.params).get("norm", norm)).lower()
        if norm not in here or asked != norm:
            other = asked if asked != norm else here[0]
            how = "--eps 3.0, the L2 norm of a change of pixels in [0, 1]" if other == "l2" else "--eps 8, in /255"
            raise UsageError(
                f"{label} has an {other} budget here and the run's is {norm}; run it with --norm {other} {how}"
                if other in here
                else f"{label} has no {other} budget"
            )
        alpha = dict(self.params).get("alpha")
        if norm == LINF and isinstance(alpha, int | float) and alpha >= 1:
            raise UsageError(
                f"{label}: alpha is the library's, for pixels in [0, 1]: {show(alpha)} is a step across the whole "
                f"range; did you mean alpha={alpha / 255:.4f}?"
            )
        return replace(self, norm=norm)

    def notes(self) -> list[str]:
        """Says how far results were outside of the budget; see `protocols.Notes`."""
        units = 255 if self.norm == LINF else 1
        told = [[allowed(round(units * one, 2), self.norm) for one in pair] for pair in self._strayed.items()]
        self._strayed.clear()
        return [
            f"attack {self.package}:{self.name} left its budget and was cut back to it: an image was {far} away from "
            f"the clean one, allowed {eps}"
            for eps, far in told
        ]

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, rng: ImageRng) -> Tensor:
        """Adversarial images by the library, clipped to `eps` and [0, 1]; see `protocols.Attack`."""
        import torch

        from rdp_bench.attacks._kernels.norms import norm_l2, project_l2

        kind = self.find(self.name)
        params: dict[str, Any] = dict(self.params)
        params |= {name: eps for name in BUDGET_NAMES if name in _parameters(kind)}
        params |= self._norm_param(kind)
        # The libraries' defaults are CIFAR-10's or ImageNet's.
        params |= dict.fromkeys(_class_counts(kind), source.members[0].classes)
        method = self.make(kind, as_network(source, x.device), x.device, params)
        seeds = rng.fork(self.package).integers(0, 2**53).tolist()
        outs = []
        for i in range(len(x)):
            with seeded(seeds[i], x.device):
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

        kind = self.find(self.name)
        known = _parameters(kind)
        defaults = {k: v for k, v in known.items() if isinstance(v, bool | int | float | str | None)}
        defaults |= {name: eps_255 for name in BUDGET_NAMES if name in known}
        defaults |= self._norm_param(kind)
        defaults |= dict.fromkeys(_class_counts(kind), "the source's")
        return {self.package: version(self.package), "class": self.name, "params": defaults | dict(self.params)}

    def gradients(self, eps_255: float) -> int:  # noqa: ARG002 - part of the protocol
        """Estimated by the library's `steps`, or 1."""
        steps = dict(self.params).get("steps", _parameters(self.find(self.name)).get("steps", 1))
        return int(steps) if isinstance(steps, int | float) else 1


def as_network(source: Source, device: torch.device) -> torch.nn.Module:
    """The mean logits of a source's members as a module on `device`, with the one parameter that libraries ask for."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros((), device=device))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([member(images) for member in source.members]).mean(0)

    return Network().eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global streams of torch, numpy and Python start at `seed`; they are restored after it."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the stream that libraries draw from
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _class_counts(kind: Any) -> list[str]:
    return [name for name in ("n_classes", "num_classes") if name in _parameters(kind)]


def _parameters(kind: Any) -> dict[str, Any]:
    import inspect

    found = inspect.signature(kind.__init__).parameters.values()
    left_out = ("self", "model", "device", "normalize")
    return {p.name: p.default for p in found if p.name not in left_out and p.default is not p.empty}


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
    """The type of a parameter, from its default: libraries have few annotations."""
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return Any if default is None else int | float if number else type(default)
