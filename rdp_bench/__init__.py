"""rdp-bench: input-purification defenses against transfer attacks, measured.

Importing this package loads neither torch nor numpy. The functions are for scripts and notebooks (docs/python.md); the
other names are what plugins need.
"""

from typing import TYPE_CHECKING, Any

from rdp_bench.defenses._learned import Learned
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.protocols import Attack, Classifier, Dataset, Defense, Purifier
from rdp_bench.registry import attack, dataset, defense, model

if TYPE_CHECKING:
    from rdp_bench.api import (
        Result,
        audit,
        evaluate,
        load_attack,
        load_dataset,
        load_defense,
        load_model,
        load_results,
    )

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Classifier",
    "Dataset",
    "Defense",
    "Learned",
    "Purifier",
    "RdpBenchError",
    "Result",
    "UsageError",
    "__version__",
    "attack",
    "audit",
    "dataset",
    "defense",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_defense",
    "load_model",
    "load_results",
    "model",
]

_LATER = ("Result", "audit", "evaluate", "load_attack", "load_dataset", "load_defense", "load_model", "load_results")
"""Names of `rdp_bench.api`, which is imported when one of them is first used."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from rdp_bench import api

        return getattr(api, name)
    raise AttributeError(f"module 'rdp_bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
