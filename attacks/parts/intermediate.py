"""ILPD: a decayed change of one layer's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part, require
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rdp_bench.attacks.parts.base import Gradient, Run

REDUCTION = 8
"""Side of the image over that of the layer's maps; layer2 of a ResNet-50, as in the authors' code."""


@dataclass
class _Mixer:
    """A forward hook that keeps a layer's output, or mixes the kept one into it."""

    share: float
    kept: list[Tensor] = field(default_factory=list)
    """One output, or several of some images each: without a gradient, a network may compute a batch in pieces."""
    keeping: bool = False

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:  # noqa: ARG002
        if self.keeping:
            self.kept.append(output.detach())
            return None
        clean = self.kept[0]
        return self.share * output + (1 - self.share) * clean


@dataclass(frozen=True)
class IntermediateDecay(Part):
    """The gradient is that of f behind a layer h whose output is c h(x_t) + (1 - c) h(x + s z) (Li et al. 2023, Eq. 6).

    z is N(0, 1), drawn for each gradient. The layer is timm's last stage whose maps have an eighth of the image's side
    (the middle stage, where timm does not say), or the one named by `decay_layer`, a module such as `layer2`. It goes
    with no part that changes the size of what the source sees.
    """

    id: ClassVar[str] = "intermediate-decay"
    order: ClassVar[int] = 35
    off: ClassVar[Any] = 1.0
    changes_first: ClassVar[bool] = True
    aliases: ClassVar = {"c": "decay_share", "sigma": "decay_sigma", "layer": "decay_layer"}

    decay_share: float = 0.1
    """c, the share of the adversarial features."""
    decay_sigma: float = 0.05
    """s, in [0, 1]."""
    decay_layer: str = "auto"

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {"decay_share is above 0 and at most 1": 0 < self.decay_share <= 1,
                "decay_sigma is from 0 to 1": 0 <= self.decay_sigma <= 1}  # fmt: skip

    def check(self, parts: Sequence[Part]) -> None:
        """Mixed features need one size."""
        sizes = [part.id for part in parts if type(part).look is not Part.look]
        require({f"ILPD mixes features of one size, and {', '.join(sizes)} changes the size of images": not sizes})

    @property
    def evaluations(self) -> int:
        """One; the forward pass on the clean image is not counted."""
        return 1

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Hooks in every member of the source."""
        from rdp_bench.attacks.parts.networks import network

        with ExitStack() as stack:
            mixers = {}
            for member in run.source.members:
                net = network(member, "ILPD")
                mixer = _Mixer(self.decay_share)
                handle = _layer(net, self.decay_layer, member.name).register_forward_hook(mixer)
                stack.callback(handle.remove)
                mixers[id(member)] = mixer
            run.tools[self.id] = mixers
            yield

    def gradient(self, run: Run, inner: Gradient, at: Tensor) -> Tensor:
        """The gradient with the mixed features."""
        import torch

        from rdp_bench.attacks.parts.base import look

        mixers: dict[int, _Mixer] = run.tools[self.id]
        near = run.x + self.decay_sigma * run.rng.normal(*run.x.shape[1:])
        for member in run.source.members:  # SVRE asks for one of them
            mixer = mixers[id(member)]
            mixer.kept, mixer.keeping = [], True
            with torch.no_grad():
                look(run, member, near)
            mixer.keeping = False
            if (ran := sum(map(len, mixer.kept))) != len(near):
                each = f"{ran / len(near):g} times for each image"
                raise UsageError(f"layer {self.decay_layer} of {member.name} ran {each}; name another")
            mixer.kept = [torch.cat(mixer.kept)]
        return inner(at)


def _layer(net: nn.Module, name: str, member: str) -> nn.Module:
    """The module called `name`, or for "auto" the one that `IntermediateDecay` describes."""
    modules: dict[str, nn.Module] = dict(net.named_modules())
    if name != "auto":
        if not name or name not in modules:
            raise UsageError(f"{member} has no layer '{name}'; its first are {', '.join(list(modules)[1:9])}")
        return modules[name]
    info: Any = getattr(net, "feature_info", None)
    stages: Callable[[], list[dict[str, Any]]] | None = getattr(info, "get_dicts", None)
    listed = stages() if callable(stages) else info or []
    named = [each for each in listed if each.get("module") in modules]
    fitting = [each for each in named if each.get("reduction") == REDUCTION] or named[len(named) // 2 :][:1]
    if not fitting:
        raise UsageError(f"timm names no stages of {member}: choose a layer, as in ILPD(layer=NAME)")
    return modules[fitting[-1]["module"]]
