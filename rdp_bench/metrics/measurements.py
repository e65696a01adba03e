"""The per-image measurements of purified images, in the order of tables. A new one is a class and a line here.

The records of runs, the store, results.csv, tables, `rdp-bench doctor` and the docs take their measurements from here.
Loads neither torch nor numpy.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rdp_bench.keys import Record
from rdp_bench.metrics.lpips import Lpips
from rdp_bench.metrics.measurement import Measurement
from rdp_bench.metrics.psnr import Psnr
from rdp_bench.metrics.ssim import Ssim

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rdp_bench.metrics.measurement import Values

MEASUREMENTS: dict[str, Measurement] = {each.name: each for each in (Psnr(), Ssim(), Lpips())}


def record() -> Record:
    """The measurements that can be made here, each with what its values depend on; part of cache keys."""
    facts = {name: each.facts() for name, each in MEASUREMENTS.items()}
    return {name: found for name, found in facts.items() if found is not None}


def measure(purified: "Tensor", clean: "Tensor", wanted: Record) -> "dict[str, Tensor]":
    """The arrays to store, `[n]` each, of the measurements in `wanted`, as `record` returned it.

    Args:
        purified: images `[n, 3, t, t]` in [0, 1]. Those of another size than the clean ones are resized to it first
            (bicubic, antialiased).
        clean: the clean images `[n, 3, s, s]` in [0, 1].
        wanted: measurements and their facts.
    """
    from torch.nn.functional import interpolate

    if purified.shape[-1] != clean.shape[-1]:
        purified = interpolate(purified, clean.shape[-1], mode="bicubic", antialias=True).clamp(0, 1)
    made = {name: MEASUREMENTS[name] for name in wanted}
    return {each.stored: each.measure(purified, clean, wanted[name]) for name, each in made.items()}


def values(arrays: "Mapping[str, NDArray[np.generic]]", wanted: Record) -> "dict[str, Values]":
    """What tables show, `[n]` each, of the stored arrays of the measurements in `wanted`.

    A measurement that this version does not know is left out: a plugin or a later version made it.

    Raises:
        DamagedError: an array is missing.
    """
    return {name: each.read(arrays) for name, each in MEASUREMENTS.items() if name in wanted}
