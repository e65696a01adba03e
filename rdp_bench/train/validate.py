"""Validation of a purifier during training: held-out photographs, under attacks, in front of an embedded classifier."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.attacks.ssp import SelfSupervised
from rdp_bench.metrics.psnr import psnr
from rdp_bench.models.zoo import LoadedSource, find
from rdp_bench.protocols import Attack
from rdp_bench.rng import ImageRng
from rdp_bench.train.losses import distillation

SOURCE, JUDGE = "effnet-lite0", "effnet-lite1"
SETS = ("clean", "ssp", "mi-fgsm")

EPS = 16 / 255
"""L-infinity size of the attacks of every validation, whatever --eps trains on."""


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of images `[n, 3, h, w]` in [0, 1], mean over images; equal images count as 100 dB."""
    error = ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-10)
    return float(psnr(error.cpu().numpy()).mean())


def _reduced(images: Tensor, size: int) -> Tensor:
    """Super-resolved `images`, resized to `size`."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def score(divergence: dict[str, float]) -> float:
    """The divergence on the clean set plus the mean of those on the attacked ones; lower is better."""
    attacked = [value for name, value in divergence.items() if name != "clean"]
    return divergence["clean"] + sum(attacked) / len(attacked)


class Validation:
    """Clean photographs, the same under SSP and under MI-FGSM (both on lite0, at `EPS`), judged by lite1.

    What is counted is agreement with the judge's own view of the clean photograph: no labels are needed.
    """

    def __init__(self, clean: Tensor, device: str, models_dir: Path | None = None) -> None:
        source = find(SOURCE, models_dir).load(device)
        self.judge = find(JUDGE, models_dir).load(device)
        attacks: dict[str, Attack] = {
            "ssp": SelfSupervised(steps=10),
            "mi-fgsm": compose("MI|OWN"),
        }
        sets: dict[str, list[Tensor]] = {name: [] for name in SETS}
        self.images = len(clean)
        for low in range(0, len(clean), 16):
            x = clean[low : low + 16].to(device)
            rng = ImageRng([f"validation/{low + i}" for i in range(len(x))], device)
            labels = torch.zeros(len(x), dtype=torch.long, device=device)  # MI-FGSM takes the source's own
            sets["clean"].append(x)
            for name, attack in attacks.items():
                adv = attack(LoadedSource(SOURCE, [source]), x, labels, EPS, rng.fork(name))
                sets[name].append((adv * 255).round() / 255)
        self.sets = {name: torch.cat(parts) for name, parts in sets.items()}
        with torch.no_grad():
            self.wanted = self._logits(self.sets["clean"])
        self.undefended = {f"agree_{name}": self._agreement(self._logits(x)) for name, x in self.sets.items()}
        self.undefended |= {f"psnr_{name}": mean_psnr(x, self.sets["clean"]) for name, x in self.sets.items()}

    def _logits(self, images: Tensor) -> Tensor:
        zoom = images.shape[-1] / self.sets["clean"].shape[-1]
        with torch.no_grad():
            return torch.cat([self.judge(part, zoom) for part in torch.split(images, 16)])

    def _agreement(self, logits: Tensor) -> float:
        return 100 * float((logits.argmax(1) == self.wanted.argmax(1)).float().mean())

    def __call__(self, purify: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """PSNR in dB to the clean photograph and agreement in percent of each set; `score`, lower is better.

        The score is the judge's KL divergence from its clean view, see `score`: smoother than agreement, so that a few
        photographs suffice to choose a checkpoint.
        """
        found: dict[str, float] = {}
        divergence: dict[str, float] = {}
        for name, images in self.sets.items():
            with torch.no_grad():
                purified = torch.cat([purify(part) for part in torch.split(images, 8)])
            logits = self._logits(purified)
            found[f"agree_{name}"] = self._agreement(logits)
            found[f"psnr_{name}"] = mean_psnr(_reduced(purified, images.shape[-1]), self.sets["clean"])
            divergence[name] = float(distillation(self.wanted, logits))
        return found | {"score": score(divergence)}
