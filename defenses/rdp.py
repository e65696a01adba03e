"""RDP: Bai et al., "Adversarial Purification through Representation Disentanglement", 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rdp_bench.defenses._learned import Dynamic
from rdp_bench.registry import defense


@defense("rdp", source="Bai et al. 2021, arXiv:2110.07801; no code was published", version=2)
@dataclass(frozen=True)
class RepresentationDisentanglement(Dynamic):
    """Keeps the part of an image's representation that looks natural: the purifier P alone.

    `dynamic` is the paper's Gaussian layer "on top of" RDP against white-box attacks. Here it comes before P, as
    in NRP, which it is compared with; noise after P would meet the classifier as it is.
    """

    kind: ClassVar[str] = "rdp"
    network: ClassVar[str] = "rdp_bench.defenses._networks.rdp:Purifier"
