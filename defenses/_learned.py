"""Base classes of the learned defenses: find the weight file, build the network, run it on images of any size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._idle import refuse_idle
from rdp_bench.errors import BadModelError, RdpBenchError
from rdp_bench.keys import hash_many, known_hash
from rdp_bench.protocols import Backward, Purifier
from rdp_bench.specs import WeightFile
from rdp_bench.weights import files

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rdp_bench.rng import ImageRng
    from rdp_bench.weights.files import State
    from rdp_bench.weights.kept import Kept


@dataclass(frozen=True)
class Learned(Purifier):
    """Base of a defense that is one network. A subclass names its `kind` and its `network`.

    `convert_author_weights` reads files that the authors released.
    """

    weights: WeightFile | None = None  # a file, here or in --models-dir; auto: the one that ships

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"
    kind: ClassVar[str]  # the name of the entry
    network: ClassVar[str] = ""  # "module:class", imported when built

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Paths of the weight files."""
        return (files.find(self.kind, self.weights),)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The hash of each weight file, taken at the first access (while planning); `load` accepts no other content."""
        return tuple(known_hash(path) for path in self.paths)

    @property
    def digest(self) -> str:
        """One hash over all weight files."""
        return self.hashes[0] if len(self.hashes) == 1 else hash_many(self.hashes)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata of a weight file of this package; empty for other files.

        Raises:
            BadModelError: the file is missing, or belongs to another defense.
        """
        said = files.read_metadata(self.paths[0])
        found = said.get("defense", self.kind)
        if found != self.kind:
            raise BadModelError(
                f"{self.paths[0]}: holds '{found}', expected '{self.kind}'; use {found}(weights={self.weights})"
            )
        return said

    def resolved(self) -> dict[str, Any]:
        """Every parameter, the hash of the weights, the network's arguments if known. Loads no torch."""
        return {**super().resolved(), "weights": self.digest, "net": self.metadata.get("net")}

    def read(self) -> tuple[dict[str, Any], State]:
        """The arguments of the network, and its tensors."""
        state = files.read_tensors(self.paths[0])
        if self.metadata:
            return self.metadata.get("net", {}), state
        return self.convert_author_weights(OrderedDict((name.removeprefix("module."), t) for name, t in state.items()))

    def convert_author_weights(self, state: State) -> tuple[dict[str, Any], State]:
        """`net` arguments and tensors under this package's names, from those of an authors' file."""
        return {}, state

    def build(self, **net: Any) -> nn.Module:
        """The untrained network: images `[n, 3, h, w]` in [0, 1] to images, for h and w in steps of its `multiple`.

        Args:
            **net: arguments of the class that `network` names. A plugin may override this method instead.

        Raises:
            RdpBenchError: the class has neither.
        """
        module, _, name = self.network.partition(":")
        if not name:
            raise RdpBenchError(
                f"{type(self).__name__} has no network: set `network` to 'module:class', or override build()"
            )
        made: nn.Module = getattr(import_module(module), name)(**net)
        return made

    def load(self) -> nn.Module:
        """The network with its weights.

        Raises:
            BadModelError: weights that are missing, refused, do not fit, or changed since `hashes` were taken.
        """
        arguments, state = self.read()
        try:
            net = self.build(**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadModelError(f"{self.paths[0]}: no {self.kind} network is built with {arguments}") from error
        files.load_strict(net, state, f"{self.kind} {arguments or ''}".strip(), self.paths[0])
        return net

    def net(self, device: torch.device | str) -> nn.Module:
        """The network on `device`, ready for inference; loaded once per process for each content of the files.

        Raises:
            BadModelError: as `load`.
        """
        key = (type(self), self.digest, str(self.metadata.get("net")), str(device))
        return _networks().get(key, self.kind, lambda: self._made_ready(device))

    def _made_ready(self, device: torch.device | str) -> nn.Module:
        with ExitStack() as files_unchanged:
            for path, expected in zip(self.paths, self.hashes, strict=True):
                files_unchanged.enter_context(files.unchanged(path, expected))
            net = self.load()
            if files.read_metadata(self.paths[0]) != self.metadata:  # the header may have been read at another time
                raise BadModelError(f"{self.paths[0]}: {files.CHANGED}")
        return ready(net).to(device)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The network's output for `x` `[n, 3, h, w]`, reflect-padded to its `multiple`, then cropped."""
        import torch
        from torch.nn.functional import pad

        from rdp_bench.numerics import pieces
        from rdp_bench.numerics.precision import lowered

        net = self.net(x.device)
        height, width = x.shape[2:]
        below, right = (-size % int(getattr(net, "multiple", 1)) for size in (height, width))
        if below or right:
            x = pad(x, (0, right, 0, below), mode="reflect")
        # Networks that draw noise draw it for the whole batch.
        whole = bool(more) or (x.requires_grad and torch.is_grad_enabled()) or not pieces.independent(net)
        with lowered(x.device):
            out = pieces.computed(lambda part: net(part, *more).to(x.dtype), x, None if whole else pieces.size(x))
        times = out.shape[-1] // x.shape[-1]  # super-resolution
        return out[..., : times * height, : times * width]

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The network's output for `x` `[n, 3, h, w]`, of the same size, clamped to [0, 1]."""
        return self.forward(x).clamp(0, 1)


@dataclass(frozen=True)
class Dynamic(Learned):
    """A network whose input may get Gaussian noise: NRP's dynamic inference, RDP's Gaussian layer.

    With `dynamic`, N(0, sigma^2) is added, clipped to [-16/255, 16/255], and the sum is clipped to [0, 1] (NRP's
    bypass_nrp.py); `clip=false` adds the noise without clipping.
    """

    dynamic: bool = False
    sigma: float = 0.05
    clip: bool = True

    def __post_init__(self) -> None:
        """Reject a negative sigma."""
        if self.sigma < 0:
            raise ValueError(f"sigma is at least 0, found {self.sigma}")
        if not self.dynamic:
            refuse_idle(self, "dynamic=false", "sigma", "clip")

    @property
    def random(self) -> bool:
        """Whether noise is added."""
        return self.dynamic and self.sigma > 0

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The network's output for `x` `[n, 3, h, w]` or noisy `x`, clamped to [0, 1]."""
        if self.dynamic:
            noise = self.sigma * rng.normal(*x.shape[1:])
            x = (x + noise.clamp(-16 / 255, 16 / 255)).clamp(0, 1) if self.clip else x + noise
        return super().purify(x, rng)


def upsample_nearest(x: Tensor, times: int) -> Tensor:
    """Repeats each pixel `times` times in both directions; its gradient is the sum over its copies."""
    from torch.nn.functional import interpolate

    return x if times == 1 else interpolate(x, scale_factor=times, mode="nearest")


def ready(net: nn.Module) -> nn.Module:
    """`net` for inference: eval mode, batch norms folded where possible, no weight gradients, layers fixed."""
    from rdp_bench.numerics.fixed_layers import fix_layers

    net.eval()
    for module in net.modules():
        fold: Callable[[], None] | None = getattr(module, "fold", None)
        if fold:
            fold()
    return fix_layers(files.channels_last(net.requires_grad_(False).float()))


@cache
def _networks() -> Kept[nn.Module]:
    from rdp_bench.weights.kept import Kept

    return Kept(weighed=False)  # asked for in every call
