"""The architectures that this package implements itself; timm provides all others."""

from rdp_bench.models import resnet_denoise, resnet_v2
from rdp_bench.models.family import Family

FAMILIES = (resnet_v2.FAMILY, resnet_denoise.FAMILY)


def find(arch: str) -> Family | None:
    """Return the family of an architecture on a model card; None for one of timm's."""
    return next((family for family in FAMILIES if arch in family.units), None)
