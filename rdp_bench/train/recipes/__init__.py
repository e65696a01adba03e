"""The trainers, by the names that `rdp-bench train` takes. A new one is a file in this folder and a line here.

The command line, the docs' test and the benchmarks take the names from `TRAINERS`. Loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rdp_bench.errors import unknown_name

if TYPE_CHECKING:
    from rdp_bench.train.recipe import Recipe

TRAINERS = {
    "rdp": "rdp:Rdp",
    "nrp": "nrp:Nrp",
    "hgd": "hgd:Hgd",
    "comdefend": "comdefend:ComDefend",
    "sr": "sr:Sr",
    "denoiser": "denoiser:Denoiser",
    "ens-adv": "ens_adv:EnsAdv",
}
"""Module in this folder and class of each recipe, imported when asked for."""


def get(name: str) -> "type[Recipe]":
    """The recipe called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in TRAINERS:
        raise unknown_name("trainer", name, TRAINERS)
    module, _, kind = TRAINERS[name].partition(":")
    found: type[Recipe] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
