"""DIP: Ulyanov et al., "Deep Image Prior", CVPR 2018, as a purifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Purifier
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@defense("dip", source="Ulyanov et al. 2018, Eq. 2 and supplement (denoising); DmitryUlyanov/deep-image-prior")
@dataclass(frozen=True)
class DeepImagePrior(Purifier):
    """Fits an untrained network to each image and stops early: it learns the image before its perturbation.

    The defaults are the authors' for denoising a photograph: 3000 steps of Adam, 128 channels at five scales, input
    noise of .1 moved by 1/30 in every step. That is minutes an image on a GPU and hours on a CPU; `steps` and `width`
    reduce it. The network starts anew for each image, from the image's stream. No gradient passes the fit: BPDA uses
    the identity.
    """

    steps: int = 3000
    width: int = 128
    levels: int = 5
    rate: float = 0.01  # Adam's
    moved: float = 1 / 30  # deviation of the noise that is added to the input in every step
    average: float = 0.99  # of the outputs, exponential

    random: ClassVar[bool] = True
    only_by_name: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject impossible values."""
        if not (1 <= self.steps <= 1_000_000 and 1 <= self.width <= 1024 and 1 <= self.levels <= 8):
            raise ValueError("steps is 1 to 1000000, width 1 to 1024, levels 1 to 8")
        if not (0 < self.rate < 1 and self.moved >= 0 and 0 <= self.average < 1):
            raise ValueError("rate is between 0 and 1, moved at least 0, average at least 0 and below 1")

    def purify(self, x: Tensor, rng: ImageRng) -> Tensor:
        """The fitted images for `x` `[n, 3, h, w]`.

        Raises:
            UsageError: images that `levels` halvings leave a single row or column.
        """
        import torch

        height, width = x.shape[-2:]
        if min(height, width) <= 2**self.levels:
            most = (min(height, width) - 1).bit_length() - 1
            raise UsageError(
                f"dip: levels={self.levels} needs images of more than {2**self.levels} pixels a side, found {height} x "
                f"{width}" + (f"; set levels={most} or less" if most > 0 else "")
            )

        seeds = rng.integers(0, 2**53).tolist()
        fitted = [self.fit(image[None].detach(), int(seed)) for image, seed in zip(x, seeds, strict=True)]
        return torch.cat(fitted)

    def fit(self, image: Tensor, seed: int) -> Tensor:
        """The averaged output of a network fitted to `image` `[1, 3, h, w]`."""
        import torch

        from rdp_bench.defenses._networks.prior import Hourglass

        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            net = Hourglass(width=self.width, levels=self.levels).to(image)
            fixed = torch.rand(1, 32, *image.shape[2:]).to(image) / 10
            adam = torch.optim.Adam(net.parameters(), self.rate)
            mean: Tensor | None = None
            for _ in range(self.steps):
                out = net(fixed + self.moved * torch.randn(fixed.shape).to(image))
                seen = out.detach()
                mean = seen if mean is None else self.average * mean + (1 - self.average) * seen
                adam.zero_grad(set_to_none=True)
                (out - image).square().mean().backward()
                adam.step()
        assert mean is not None
        return mean
