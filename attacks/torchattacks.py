"""Any attack of the torchattacks package by its class name: `torchattacks:PGD(steps=20)`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import UsageError, unknown
from rdp_bench.registry import attack
from rdp_bench.specs import Param, parse_spec

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.draws import Draws
    from rdp_bench.protocols import Source

INSTALL = "pip install 'rdp-bench[torchattacks]'"


@dataclass(frozen=True)
class TorchAttack:
    """A torchattacks class run on our classifiers: pixel-space inputs, no normalisation of its own.

    The cell's eps is passed as `eps` where the class takes one. Its step size stays the library's own
    default (2/255 in most) unless given; write it as a fraction of one (`alpha=.0063`).
    The global torch seed is set from the images for the length of a call and restored after it.
    """

    name: str
    params: tuple[tuple[str, Param], ...] = ()

    def __call__(self, source: Source, x: Tensor, y: Tensor, eps: float, draws: Draws) -> Tensor:
        """Adversarial images by the library; clipped to `eps` and [0, 1] if it strayed."""
        import torch

        class Network(torch.nn.Module):
            """The mean of the members' logits; torchattacks asks for a Module with a device."""

            def __init__(self) -> None:
                super().__init__()
                self.anchor = torch.nn.Parameter(torch.zeros((), device=x.device))

            def forward(self, images: Tensor) -> Tensor:
                return torch.stack([member(images) for member in source.members]).mean(0)

        kind = _class(self.name)
        params: dict[str, Any] = dict(self.params)
        if "eps" in _parameters(kind):
            params["eps"] = eps
        method = kind(Network().eval(), **params)
        seeds = draws.fork("torchattacks").integers(0, 2**53).tolist()
        outs = []
        for i in range(len(x)):
            # One image at a time: the library draws from the global stream, in batch order.
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
                torch.manual_seed(seeds[i])
                outs.append(method(x[i : i + 1], y[i : i + 1]).detach())
        adv = torch.cat(outs)
        return adv.clamp(x - eps, x + eps).clamp(0, 1)

    def resolved(self, eps: float) -> dict[str, Any]:
        """The class, its given and default parameters, and the library's version."""
        from importlib.metadata import version

        known = _parameters(_class(self.name))
        defaults = {k: v for k, v in known.items() if isinstance(v, bool | int | float | str | None)}
        if "eps" in known:
            defaults["eps"] = eps
        return {"torchattacks": version("torchattacks"), "class": self.name, "params": defaults | dict(self.params)}

    def gradients(self, eps: float) -> int:  # noqa: ARG002 - part of the protocol
        """An estimate: the library's `steps`, or 1."""
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
        raise unknown("torchattacks attack", name, known)
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
    spec = parse_spec(re.sub(r"^torchattacks:", "", text))
    known = _parameters(_class(spec.name))
    if spec.positional:
        raise UsageError(f"attack '{text}': parameters are written name=value")
    for key, value in spec.params:
        if key not in known or key == "eps":
            raise unknown(f"parameter of torchattacks:{spec.name}", key, set(known) - {"eps"})
        if known[key] is not None and value is not None and _sort(known[key]) != _sort(value):
            raise UsageError(
                f"attack '{text}', parameter '{key}': expected a value like {known[key]!r}, found {value!r}"
            )
    return TorchAttack(spec.name, spec.params)


def _sort(value: object) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


attack.dialect("torchattacks", r"torchattacks:.+", "torchattacks:PGD(steps=20)", adapt)
