"""NRP: ESRGAN's training with adversarial inputs instead of low-resolution images."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.defenses._networks import nrp
from rdp_bench.defenses.nrp import NeuralRepresentationPurifier
from rdp_bench.train.discriminator import AdversarialRecipe
from rdp_bench.train.losses import feature_l1
from rdp_bench.train.recipe import Step


class Nrp(AdversarialRecipe):
    """Feature distance 1, pixels 1e-2, relativistic average GAN 5e-3 (Naseer et al. 2020; the code is unreleased).

    The discriminator and its two losses are RDP's, so that the two differ in the idea alone; ESRGAN's generator
    also wants real images to look fake.
    """

    name = "nrp"
    parts = ("pix", "adv", "feat")
    loss_weights: ClassVar = {"feat": 1.0, "pix": 1e-2, "adv": 5e-3, "low": 0.0}
    defaults: ClassVar = {
        **AdversarialRecipe.defaults,
        "paper": {**AdversarialRecipe.defaults["paper"], "steps": 400_000, "batch": 16},
    }

    def build(self) -> dict[str, nn.Module]:
        """The purifier, and D unless left out."""
        args: dict[str, Any] = dict(nrp.SIZES[self.options.size])
        self.net_args = args
        return {"purifier": nrp.RRDBNet(**args), **self.discriminator()}

    def defense(self) -> NeuralRepresentationPurifier:
        """The purifier alone."""
        return NeuralRepresentationPurifier()

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """The purifier, then D."""
        purified = self.nets["purifier"](inputs)
        terms = self.pixel_terms(purified, clean)
        if self.weights["feat"]:
            with torch.no_grad():
                wanted = self.features(clean)
            terms["feat"] = feature_l1(self.features(purified), wanted)
        yield from self.adversarial_terms(terms, clean, purified)
