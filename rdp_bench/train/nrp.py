"""NRP: ESRGAN's training with adversarial inputs in the place of small images."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.defenses import _nrp
from rdp_bench.defenses._rdp import Discriminator
from rdp_bench.defenses.nrp import NeuralRepresentationPurifier
from rdp_bench.train.inputs import adversarial
from rdp_bench.train.losses import critic_loss, feature_l1, generator_loss, l1
from rdp_bench.train.recipe import Recipe, Step


class Nrp(Recipe):
    """Feature distance 1, pixels 1e-2, relativistic average GAN 5e-3 (Naseer et al. 2020; the code is unreleased).

    The discriminator is RDP's, so that the two differ in the idea alone.
    """

    name = "nrp"
    parts = ("pix", "adv", "feat")
    loss_weights: ClassVar = {"feat": 1.0, "pix": 1e-2, "adv": 5e-3}
    defaults: ClassVar = {
        "paper": {"steps": 400_000, "batch": 16, "crop": 128, "rate": 1e-4, "schedule": "halving",
                  "features": ("timm:vgg16.tv_in1k",)},
        "compact": {"steps": 2000, "batch": 16, "crop": 96, "rate": 5e-4, "schedule": "cosine", "attack": "wide"},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """The purifier, and D unless left out."""
        args: dict[str, Any] = dict(_nrp.SIZES[self.options.size])
        self.net_args = args
        nets: dict[str, nn.Module] = {"purifier": _nrp.RRDBNet(**args)}
        if "adv" not in self.options.without:
            nets["discriminator"] = Discriminator(64 if self.options.size == "paper" else 24, self.options.crop)
        return nets

    def groups(self) -> dict[str, list[str]]:
        """One Adam for each network."""
        return {"main": ["purifier"]} | ({"critic": ["discriminator"]} if "discriminator" in self.nets else {})

    def entry(self) -> NeuralRepresentationPurifier:
        """The purifier alone."""
        return NeuralRepresentationPurifier()

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """Inputs by SSP, as for RDP."""
        return adversarial(self.options, self.features, clean, rng)

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """The purifier, then D."""
        purified, critic = self.nets["purifier"](inputs), self.nets.get("discriminator")
        terms = {"pix": l1(purified, clean)}
        if self.weights["feat"]:
            with torch.no_grad():
                wanted = self.features(clean)
            terms["feat"] = feature_l1(self.features(purified), wanted)
        if critic is not None:
            critic.requires_grad_(False)
            with torch.no_grad():
                real = critic(clean)
            terms["adv"] = generator_loss(real, critic(purified))
        yield "main", self.total(terms)
        if critic is not None:
            critic.requires_grad_(True)
            loss = critic_loss(critic(clean), critic(purified.detach()))
            self.terms["critic"] = loss.detach()
            yield "critic", loss
