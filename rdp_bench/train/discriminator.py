"""Base of RDP and NRP: a purifier of adversarial inputs that is trained against a discriminator D."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.defenses._networks.rdp import Discriminator
from rdp_bench.errors import UsageError
from rdp_bench.train.inputs import adversarial
from rdp_bench.train.losses import discriminator_loss, generator_loss, l1, low_l1
from rdp_bench.train.recipe import Recipe, Step

DISCRIMINATOR = "discriminator"


class AdversarialRecipe(Recipe):
    """Base of recipes with the part `adv`: D has its own Adam and is updated after the other networks in every step."""

    without_effect = ("blend",)
    betas = (0.9, 0.99)  # ESRGAN's
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        # Attack and scale are those of NRP's ssp.py, which shows VGG-16 crops pixel by pixel.
        "paper": {"crop": 128, "rate": 1e-4, "schedule": "halving", "features": ("timm:vgg16.tv_in1k",),
                  "attack_steps": 100, "scale": "native"},
        "compact": {"steps": 2000, "batch": 16, "crop": 96, "rate": 5e-4, "schedule": "cosine", "attack": "wide"},
    }  # fmt: skip

    def discriminator(self) -> dict[str, nn.Module]:
        """D, unless left out. Call it last, because it draws initial weights.

        Raises:
            UsageError: D's batch norms would see a single value a channel, of which there is no variance.
        """
        if "adv" in self.options.without:
            return {}
        batch, crop = self.options.batch, self.options.crop
        if batch * (crop // 32) ** 2 < 2:
            raise UsageError(
                f"--batch {batch} --crop {crop} leave the discriminator of {self.name} one value a channel, and its "
                "norms need two. The smallest that work: --batch 2, or --crop 64, or any with --without adv"
            )
        return {DISCRIMINATOR: Discriminator(64 if self.options.size == "paper" else 24, crop)}

    def groups(self) -> dict[str, list[str]]:
        """One Adam for D, one for all others."""
        others = [name for name in self.nets if name != DISCRIMINATOR]
        return {"main": others} | ({"discriminator": [DISCRIMINATOR]} if DISCRIMINATOR in self.nets else {})

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """Adversarial inputs x' of `clean`, by SSP (RDP's Eq. 1)."""
        return adversarial(self.options, self.features, clean, rng)

    def pixel_terms(self, purified: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """`pix`, and `low` where it has a weight: an L1 of pixels (RDP Eq. 3), and of means over 8 x 8 of them."""
        terms = {"pix": l1(purified, clean)}
        return terms | ({"low": low_l1(purified, clean)} if self.weights["low"] else {})

    def adversarial_terms(self, terms: dict[str, Tensor], clean: Tensor, purified: Tensor) -> Iterator[Step]:
        """The step of the other networks, on `terms` and the adversarial loss of `purified`; then D's step."""
        discriminator = self.nets.get(DISCRIMINATOR)
        if discriminator is None:
            yield "main", self.total(terms)
            return
        discriminator.requires_grad_(False)
        with torch.no_grad():
            real = discriminator(clean)
        yield "main", self.total(terms | {"adv": generator_loss(real, discriminator(purified))})
        discriminator.requires_grad_(True)
        loss = discriminator_loss(discriminator(clean), discriminator(purified.detach()))
        self.terms["discriminator"] = loss.detach()
        yield "discriminator", loss
