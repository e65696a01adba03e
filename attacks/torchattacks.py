"""Any attack of the torchattacks package by its class name: `torchattacks:PGD(steps=20)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdp_bench.errors import UsageError, unknown
from rdp_bench.registry import attack
from rdp_bench.specs import Param, parse_spec, read, show

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.draws import Draws
    from rdp_bench.protocols import Source

OURS = frozenset({"eps", "n_classes"})
"""Parameters that the cell and the source decide."""

COUNTS = frozenset({"steps", "n_restarts", "n_queries", "eot_iter", "popsize", "pixels"})
MOST = 100_000

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
        if "n_classes" in _parameters(kind):  # the library's default is CIFAR-10's
            params["n_classes"] = source.members[0].classes
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
        if "n_classes" in known:
            defaults["n_classes"] = "the source's"
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
    spec = parse_spec(text)
    name = spec.name.removeprefix("torchattacks:")
    known = _parameters(_class(name))
    if spec.positional:
        raise UsageError(f"attack '{text}': parameters are written name=value")
    params: list[tuple[str, Param]] = []
    for key, word in spec.params:
        if key not in known or key in OURS:
            raise unknown(f"parameter of torchattacks:{name}", key, set(known) - OURS)
        params.append((key, read(word, _type(known[key]), f"attack '{text}', parameter '{key}'", known[key])))
    for key, value in params:
        if key in COUNTS and isinstance(value, int | float) and value > MOST:
            raise UsageError(f"attack '{text}': {key} is at most {MOST}, found {show(value)}")
    return TorchAttack(name, tuple(params))


def _type(default: object) -> Any:
    """What a parameter may be: the library annotates nothing, so its default says it."""
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return Any if default is None else int | float if number else type(default)


attack.dialect("torchattacks", r"torchattacks:.+", "torchattacks:PGD(steps=20)", adapt)
