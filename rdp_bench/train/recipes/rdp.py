"""RDP (Algorithm 1): a purifier trained jointly with a reconstructor of the perturbation."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.defenses._networks import rdp
from rdp_bench.defenses.rdp import RepresentationDisentanglement
from rdp_bench.defenses.rdp_reconstruction import Reconstruction
from rdp_bench.train.discriminator import AdversarialRecipe
from rdp_bench.train.losses import feature_l1, l1
from rdp_bench.train.recipe import Step


class Rdp(AdversarialRecipe):
    """P and R are trained together, D against P.

    Loss terms: of P, `feat` (Eq. 2), `pix` (Eq. 3), `lat` (Eq. 4) and `adv` (Eq. 5), weighted as in Eq. 6; of R,
    `recon` (Eq. 9: features, and pixels at weight `recon-pix`). Where the paper is silent:

    * R's loss reaches P's encoder through the latent V. Read to the letter, Algorithm 1 updates each network on
      its own loss alone; then R could not matter to P, and the paper's ablation shows that it does.
    * `lat`: the gradient goes into both of its sides.
    * `adv`: relativistic average, as the text says, though Eq. 5 has no average.

    `low` is not the paper's, and has no weight unless one is given.
    """

    name = "rdp"
    parts = ("recon", "lat", "pix", "adv", "feat")
    loss_weights: ClassVar = {"feat": 1.0, "pix": 1e-2, "lat": 1e-1, "adv": 1e-4, "recon": 1.0, "recon-pix": 1e-4,
                              "low": 0.0}  # fmt: skip
    defaults: ClassVar = {
        **AdversarialRecipe.defaults,
        "paper": {**AdversarialRecipe.defaults["paper"], "steps": 130_000, "batch": 48},
    }

    def build(self) -> dict[str, nn.Module]:
        """P, R (unless left out) and D (unless left out)."""
        args: dict[str, Any] = dict(rdp.SIZES[self.options.size])
        self.net_args = args
        nets: dict[str, nn.Module] = {"purifier": rdp.Purifier(**args)}
        if "recon" not in self.options.without:
            nets["reconstructor"] = rdp.Reconstructor(**args)
        return nets | self.discriminator()

    def extra_exports(self) -> dict[str, nn.Module]:
        """P's encoder with R (unless left out), for a look at what each branch keeps."""
        if "reconstructor" not in self.nets:
            return {}
        with torch.device("meta"):  # no weights of its own, and no random numbers for them
            whole: Any = rdp.Reconstruction(**self.net_args)
        purifier: Any = self.product
        whole.encoder, whole.reconstructor = purifier.encoder, self.averaged("reconstructor")
        return {Reconstruction.kind: whole}

    def defense(self) -> RepresentationDisentanglement:
        """The purifier alone."""
        return RepresentationDisentanglement()

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """P and R on L_P + L_R, then D."""
        purifier: Any = self.nets["purifier"]
        natural = purifier.encoder(inputs)
        purified = purifier.decoder(natural)
        terms = self.pixel_terms(purified, clean)
        with torch.no_grad():
            wanted = self.features(clean)
        if self.weights["feat"]:
            terms["feat"] = feature_l1(self.features(purified), wanted)
        if self.weights["lat"]:
            terms["lat"] = l1(natural, purifier.encoder(clean))
        if "reconstructor" in self.nets:
            rebuilt = self.nets["reconstructor"](inputs, natural)
            with torch.no_grad():
                seen = self.features(inputs)
            terms["recon"] = feature_l1(self.features(rebuilt), seen)
            terms["recon-pix"] = l1(rebuilt, inputs)
        yield from self.adversarial_terms(terms, clean, purified)
