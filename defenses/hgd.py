"""HGD: Liao et al., "Defense Against Adversarial Attacks Using ... Representation Guided Denoiser", CVPR 2018."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._learned import Learned
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from rdp_bench.weights.files import State


@defense("hgd", source="Liao et al. 2018; lfz/Guided-Denoise, denoise_*.ckpt", version=2)
@dataclass(frozen=True)
class GuidedDenoiser(Learned):
    """A U-Net that removes perturbations, trained to restore the classifier's last feature map.

    The authors' submission sums the logits of four classifiers, each behind a denoiser of its own; here one
    denoiser stands before any target, as in the paper's tables of other defenses. They feed the denoised values to the
    classifier unclamped; here they are clamped to [0, 1], which changes about 1 % of the values.
    """

    kind: ClassVar[str] = "hgd"
    network: ClassVar[str] = "rdp_bench.defenses._networks.hgd:Denoiser"

    def convert_author_weights(self, state: State) -> tuple[dict[str, Any], State]:
        """The denoiser's tensors from a checkpoint with its classifier, which determines the normalisation."""
        import torch

        ours: State = OrderedDict()
        for name, tensor in state.items():
            if inside := re.fullmatch(r"(?:net\.)?denoise\.(?:0\.)?(.+)", name):
                ours[inside[1]] = tensor
        if not ours:  # a denoiser alone
            return {}, state
        for name in [name for name in ours if name.endswith(".running_var")]:
            # PyTorch 0.2 did not count batches; nothing here uses the count.
            ours.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
        classifier = {name.removeprefix("net.").partition(".")[0] for name in state} - {"denoise"}
        inception = not classifier or "conv2d_1a" in classifier
        return {"space": "inception" if inception else "imagenet"}, ours
