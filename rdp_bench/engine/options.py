"""How a run is to be done: everything about it except the grid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdp_bench.errors import UsageError


@dataclass(frozen=True)
class RunOptions:
    """The settings that all grids of one command share.

    Raises:
        UsageError: a limit or batch size below 1.
    """

    out: Path
    cache: Path | None = None  # None: the user's
    models_dir: Path | None = None  # where weight files are looked for first
    plugins: tuple[Path, ...] = ()
    profile: str = "embedded"
    limit: int | None = None  # at most this many images
    seed: int = 0
    precision: str = "float32"  # of networks: float32, tf32 or bfloat16
    device: str = "auto"  # auto, cpu, cuda or cuda:<number>
    batch_size: int | None = None  # images at once; None: what suits the device
    fresh: bool = False  # compute everything again
    dry_run: bool = False
    measure: bool = False  # a dry run times each part instead of remembering
    progress: bool | None = None  # None: a bar where stderr is a terminal
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What takes the place of a grid's axes, by field of `grid.Axes`."""
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What comes after the labels of a grid's axes."""
    names: Mapping[str, str] = field(default_factory=dict)
    """How reports write labels."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: at least one image is needed")
        if self.measure and not self.dry_run:
            raise UsageError("--measure belongs to --dry-run; a run measures itself")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: expected auto or a number above 0")
