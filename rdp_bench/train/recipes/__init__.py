"""The recipes by name."""

from rdp_bench.errors import unknown_name
from rdp_bench.train.recipe import Recipe
from rdp_bench.train.recipes.comdefend import ComDefend
from rdp_bench.train.recipes.ens_adv import EnsAdv
from rdp_bench.train.recipes.hgd import Hgd
from rdp_bench.train.recipes.nrp import Nrp
from rdp_bench.train.recipes.rdp import Rdp
from rdp_bench.train.recipes.sr import Sr

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (Rdp, Nrp, Hgd, ComDefend, Sr, EnsAdv)}


def get(name: str) -> type[Recipe]:
    """The recipe called `name`; an unknown one raises `UsageError`."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
