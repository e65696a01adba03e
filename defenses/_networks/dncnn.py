"""DnCNN (Zhang et al. 2017) as denoised smoothing uses it: 17 convolutions of 64 channels predict the noise."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rdp_bench.defenses._networks.score import Denoising


class DnCNN(Denoising):
    """558,400 parameters at 17 x 64. It is trained for one noise level, and not told it."""

    levels = False

    def __init__(self, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=1e-4), nn.ReLU()]
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1, bias=False))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002 - it is not told its level
        """See `ScoreNetwork`; `sigma` has no effect."""
        noise: Tensor = self.dncnn(x)
        return x - noise

    forward = denoise

    def fold(self) -> None:
        """Put the batch norms into the convolutions, for inference."""
        layers = list(self.dncnn)
        for i, layer in enumerate(layers):
            before = layers[i - 1]
            if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                self.dncnn[i - 1], self.dncnn[i] = fuse_conv_bn_eval(before, layer), nn.Identity()
