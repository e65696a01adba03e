"""rdp-bench: input-purification defenses against transfer attacks, measured.

Importing this package loads neither torch nor numpy. The names below are what plugins need.
"""

from rdp_bench.defenses._learned import Learned
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.protocols import Attack, Classifier, Dataset, Defense, Purifier
from rdp_bench.registry import attack, dataset, defense, model

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Classifier",
    "Dataset",
    "Defense",
    "Learned",
    "Purifier",
    "RdpBenchError",
    "UsageError",
    "__version__",
    "attack",
    "dataset",
    "defense",
    "model",
]
