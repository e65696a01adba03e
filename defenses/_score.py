"""Base of the score-based purifiers: the network behind them, the frame of an image, noise, and steps they share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rdp_bench.defenses._learned import Learned
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.protocols import Backward, Purifier
from rdp_bench.specs import WeightFile
from rdp_bench.weights import files

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from rdp_bench.defenses._networks.schedule import Spaced
    from rdp_bench.defenses._networks.score import ScoreNetwork
    from rdp_bench.rng import ImageRng
    from rdp_bench.weights.files import State

    Guide = Callable[[Tensor, float], Tensor]

HIGHEST = 0.5
"""Noise level in [0, 1] units up to which our own denoiser is trained (`_networks.edm.HIGHEST`)."""

INSTALL = "pip install '.[diffusers]' in the checkout"

FAMILIES = (
    "files of rdp-bench train denoiser, OpenAI's 256x256_diffusion_uncond.pt, a DnCNN of denoised smoothing, and the "
    "weights of a diffusers U-Net beside their config.json"
)


@dataclass(frozen=True)
class ScoreFile(Learned):
    """A weight file that holds a score network; by default the denoiser that ships. Its content says which network."""

    kind: ClassVar[str] = "denoiser"
    network: ClassVar[str] = "rdp_bench.defenses._networks.edm:Denoiser"

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The weight file, and for a diffusers U-Net the two files of settings."""
        weights = files.find(self.kind, self.weights)
        config = weights.with_name("config.json")
        if weights.suffix == ".safetensors" and files.read_metadata(weights):
            return (weights,)
        if not config.is_file():
            return (weights,)
        scheduler = weights.parent.parent / "scheduler" / "scheduler_config.json"
        if not scheduler.is_file():
            raise BadModelError(
                f"{weights}: a diffusers U-Net needs {scheduler}, which says what it was trained for; name the file "
                "inside the folder of a whole pipeline"
            )
        return weights, config, scheduler

    @property
    def variance(self) -> str | None:
        """`fixed_large` where the scheduler of a diffusers U-Net says so: it is part of the cache key."""
        found = _settings(self.paths[2]).get("variance_type") if len(self.paths) > 1 else None
        return found if found == "fixed_large" else None

    def read(self) -> tuple[dict[str, Any], State]:
        """See `Learned.read`."""
        if len(self.paths) == 1:
            return super().read()
        _check_schedule(self.paths[2])
        config = _settings(self.paths[1])
        largest = _largest_variance(self.paths[2], 3 if (found := config.get("out_channels")) is None else found)
        state = files.read_tensors(self.paths[0])
        return {"config": config, "largest_variance": largest}, type(state)((f"inner.{k}", v) for k, v in state.items())

    def convert_author_weights(self, state: State) -> tuple[dict[str, Any], State]:
        """Nothing is renamed: every network here has its authors' names."""
        if "input_blocks.0.0.weight" in state:
            from rdp_bench.defenses._networks import adm

            try:
                return adm.arguments(state), state
            except (KeyError, ValueError) as error:
                raise BadModelError(f"{self.paths[0]}: not an ADM that these purifiers can use ({error})") from error
        if "dncnn.0.weight" in state:
            convolutions = [name for name, tensor in state.items() if tensor.ndim == 4]
            return {"depth": len(convolutions), "width": len(state["dncnn.0.weight"])}, state
        raise BadModelError(f"{self.paths[0]}: not a score network. Known are {FAMILIES}")

    def build(self, **net: Any) -> nn.Module:
        """See `Learned.build`; the arguments tell the networks apart."""
        if "config" in net:
            from rdp_bench.defenses._networks.diffusers import Pipeline

            try:
                return Pipeline(**net)
            except ImportError as error:
                raise UsageError(f"{self.paths[0]} needs the diffusers package: {INSTALL}") from error
        if "multipliers" in net:
            from rdp_bench.defenses._networks.adm import ADM

            return ADM(**net)
        if "depth" in net:
            from rdp_bench.defenses._networks.dncnn import DnCNN

            return DnCNN(**net)
        from rdp_bench.defenses._networks import edm

        return super().build(**(net or edm.SIZES["compact"]))

    def told_its_level(self, device: torch.device | str) -> ScoreNetwork:
        """The network on `device`, ready for inference.

        Raises:
            BadModelError: the file, or a network that does not know its noise level.
        """
        net = cast("ScoreNetwork", self.net(device))
        if not net.levels:
            raise BadModelError(
                f"{self.paths[0]}: holds a denoiser of one noise level, and this purifier needs several; "
                "denoised-smoothing(weights=...) uses it"
            )
        return net


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise BadModelError(f"{path}: expected the settings of a diffusers model as JSON") from error
    return found


def _check_schedule(path: Path) -> None:
    from rdp_bench.defenses._networks.diffusers import DEFAULTS, SCHEDULE

    found = _settings(path)
    said = DEFAULTS | found
    differs = [
        f"{key} is {said.get(key)}, expected {value}" for key, value in SCHEDULE.items() if said.get(key) != value
    ]
    if differs:
        raise BadModelError(f"{path}: these purifiers' constants do not hold for this pipeline ({'; '.join(differs)})")


def _largest_variance(path: Path, channels: int) -> bool:
    """Whether DDPM steps take the largest variance, beta, as the scheduler says; `channels` are the network's."""
    found = _settings(path).get("variance_type") or "fixed_small"
    if (found, channels) not in {("fixed_small", 3), ("fixed_large", 3), ("learned_range", 6)}:
        raise BadModelError(
            f"{path}: variance_type {found} of a network of {channels} output channels is not supported; expected "
            "fixed_small or fixed_large with 3 channels, or learned_range with 6"
        )
    return bool(found == "fixed_large")


@dataclass(frozen=True)
class ScoreBased(Purifier):
    """Base of the purifiers that ask a score network.

    A network of one size gets the image resized to it (bilinear), and the result is resized back; other images are
    padded by reflection. The result is clamped to [0, 1]. With `fixed`, the noise is the same for every image and in
    every call, so that an attacker knows it (the paper's DW-box, and "lock" in later work); else it is new in every
    call.
    """

    weights: WeightFile | None = None  # of a score network; auto: our denoiser
    fixed: bool = False  # noise

    differentiable: ClassVar[bool] = True
    backward: ClassVar[Backward] = "exact"
    only_by_name: ClassVar[bool] = True
    always_float32: ClassVar[bool] = True

    @property
    def random(self) -> bool:
        """Whether noise is drawn anew in every call."""
        return not self.fixed

    @cached_property
    def file(self) -> ScoreFile:
        """The network's file."""
        return ScoreFile(weights=self.weights)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The network's files."""
        return self.file.paths

    def strongest(self) -> float:
        """The highest noise level that the network is asked about: deviation over that of an image in [0, 1]."""
        raise NotImplementedError

    def constants(self) -> dict[str, Any]:
        """What follows from the parameters and is worth seeing."""
        return {}

    def resolved(self) -> dict[str, Any]:
        """Every parameter, what follows from them, and the hash of the weights. Loads no torch.

        Raises:
            UsageError: more noise than our denoiser was trained for.
        """
        about = self.file.metadata
        if about and self.strongest() > HIGHEST * (1 + 1e-6):
            raise UsageError(
                f"{type(self).__name__}: its strongest noise is {self.strongest():.3g} of the pixel range, and our "
                f"denoiser is trained up to {HIGHEST}. Choose less noise, or a diffusion model: "
                "weights=256x256_diffusion_uncond.pt"
            )
        return {
            **super().resolved(),
            **self.constants(),
            "noise_to_signal": round(self.strongest(), 4),
            "weights": self.file.digest,
            "net": about.get("net") or self.file.variance,
        }

    def load(self) -> nn.Module:
        """The network, on the CPU."""
        return self.file.load()

    def net(self, device: torch.device | str) -> ScoreNetwork:
        """The network on `device`, ready for inference.

        Raises:
            BadModelError: the file, or a network that does not know its noise level.
        """
        return self.file.told_its_level(device)

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """Purified `x` `[n, 3, h, w]`, clamped to [0, 1]."""
        net = self.net(x.device)
        size = x.shape[-2:]
        return restored(self.run(net, framed(x, net), streams(rng, fixed=self.fixed)), size, net).clamp(0, 1)

    def run(self, net: ScoreNetwork, x: Tensor, rng: ImageRng) -> Tensor:
        """The method on images `[n, 3, h, w]` in [0, 1] of a size that the network takes; not clamped."""
        raise NotImplementedError


def streams(rng: ImageRng, *, fixed: bool) -> ImageRng:
    """`rng`, or where noise is fixed, streams that are the same for every image and call."""
    from rdp_bench.rng import ImageRng

    return ImageRng(["fixed noise"] * len(rng), rng.device) if fixed else rng


def framed(x: Tensor, net: ScoreNetwork) -> Tensor:
    """`x` `[n, 3, h, w]` as the network takes it: resized to its size, or padded to its multiple."""
    from torch.nn.functional import interpolate, pad

    if net.size is not None and x.shape[-2:] != (net.size, net.size):
        return interpolate(x, (net.size, net.size), mode="bilinear", align_corners=False)
    below, right = (-side % net.multiple for side in x.shape[-2:])
    if not (below or right):
        return x
    # An image smaller than its padding cannot be reflected.
    mode = "reflect" if below < x.shape[-2] and right < x.shape[-1] else "replicate"
    return pad(x, (0, right, 0, below), mode=mode)


def restored(x: Tensor, size: torch.Size, net: ScoreNetwork) -> Tensor:
    """What `framed` made, back at `size`."""
    from torch.nn.functional import interpolate

    if net.size is not None and x.shape[-2:] != size:
        return interpolate(x, size, mode="bilinear", align_corners=False)
    return x[..., : size[0], : size[1]]


def noised(x: Tensor, abar: float, noise: Tensor) -> Tensor:
    """The VP state of images in [-1, 1] (Ho et al. 2020, Eq. 4)."""
    return math.sqrt(abar) * x + math.sqrt(1 - abar) * noise


def ddpm_step(
    net: ScoreNetwork, x: Tensor, i: int, steps: Spaced, noise: Callable[[], Tensor], guide: Guide | None = None
) -> Tensor:
    """x_(i-1) for x_i, with the predicted x0 clipped to [-1, 1] (guided-diffusion's `p_sample`).

    The variance is the learned one, or the posterior's for networks that learned none. `guide` gives a gradient that,
    times the variance, is added to the mean (Dhariwal & Nichol 2021, Alg. 1).

    Args:
        net: the score network.
        x: states `[n, 3, h, w]`.
        i: the step in `steps`.
        steps: the noise steps that are used.
        noise: draws that of this step.
        guide: from the state and abar to a gradient.
    """
    abar = steps.abar[i]
    eps, place = net.predict(x, steps.steps[i], abar)
    x0 = ((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
    of_x0, of_x, _ = steps.posterior(i)
    low, high = steps.log_variances(i)
    log_variance: Tensor | float = low
    if place is not None:
        share = (place + 1) / 2
        log_variance = share * high + (1 - share) * low
    variance = log_variance.exp() if not isinstance(log_variance, float) else math.exp(log_variance)
    mean = of_x0 * x0 + of_x * x
    if guide is not None:
        mean = mean + variance * guide(x, abar)
    return mean + variance**0.5 * noise() if i else mean
