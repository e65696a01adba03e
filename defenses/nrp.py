"""NRP: Naseer et al., "A Self-supervised Approach for Adversarial Robustness", CVPR 2020."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._learned import Dynamic
from rdp_bench.registry import defense

if TYPE_CHECKING:
    from rdp_bench.weights.files import State


@defense("nrp", source="Naseer et al. 2020; Muzammal-Naseer/NRP, NRP.pth")
@dataclass(frozen=True)
class NeuralRepresentationPurifier(Dynamic):
    """A network trained to undo self-supervised perturbations: dense residual blocks (RRDB)."""

    kind: ClassVar[str] = "nrp"
    network: ClassVar[str] = "rdp_bench.defenses._networks.nrp:RRDBNet"
    trunk: ClassVar[str] = "RRDB_trunk"
    renamed: ClassVar[dict[str, str]] = {"conv_first": "conv_first.1", "trunk_conv": "conv_last.0"}

    def convert_author_weights(self, state: State) -> tuple[dict[str, Any], State]:
        """64 channels; as many blocks as the file has: the code builds 23, the README's 14 M parameters are 20."""
        blocks = {name.split(".")[1] for name in state if name.startswith(f"{self.trunk}.")}

        def ours(name: str) -> str:
            module, _, rest = name.partition(".")
            return f"{self.renamed.get(module, module)}.{rest}"

        return {"blocks": len(blocks)}, OrderedDict((ours(name), tensor) for name, tensor in state.items())


@defense("nrp-resg", source="Naseer et al. 2020; Muzammal-Naseer/NRP, NRP_resG.pth")
@dataclass(frozen=True)
class NeuralRepresentationPurifierResG(NeuralRepresentationPurifier):
    """The lighter NRP: plain residual blocks in place of the dense ones."""

    kind: ClassVar[str] = "nrp-resg"
    network: ClassVar[str] = "rdp_bench.defenses._networks.nrp:ResNetG"
    trunk: ClassVar[str] = "recon_trunk"
    renamed: ClassVar[dict[str, str]] = {
        "conv_first": "conv_first.1",
        "recon_trunk": "trunk",
        "conv_last": "conv_last.0",
    }
