"""How a run is to be done: everything about it except the grid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rdp_bench.cache.files import Location
from rdp_bench.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """Where the jobs of a run are done; the schema of `[run]` in a grid file.

    Raises:
        UsageError: no positive number of workers.
    """

    executor: Annotated[str, "a text"] = "serial"
    workers: Annotated[int | str, 'a number or "auto"'] = "auto"
    ray_address: Annotated[str, "a text"] = ""  # of a running cluster; empty: one is started on this machine
    slurm: Annotated[str, "a text"] = ""  # options of sbatch: "partition=gpu,time=4:00:00,gres=gpu:1"
    wait: Annotated[bool, "true or false"] = True  # until submitted workers have ended

    def __post_init__(self) -> None:
        if self.workers != "auto" and not (isinstance(self.workers, int) and self.workers > 0):
            found = ", found a text" if isinstance(self.workers, str) and self.workers.isdecimal() else ""
            raise UsageError(f"--workers {self.workers}: expected auto or a number above 0{found}")

    @property
    def count(self) -> int | None:
        """The number of workers; None: as many as there is room for."""
        return self.workers if isinstance(self.workers, int) else None


MOST_SHARES = 100_000


@dataclass(frozen=True)
class Shard:
    """The share `number` of `count` of a plan, counted from 1.

    Raises:
        UsageError: there is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST_SHARES:
            raise UsageError(f"--shard {self}: expected i/n with i from 1 to n, like 2/8, and n at most {MOST_SHARES}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def read(cls, text: str) -> "Shard":
        """The share that `--shard i/n` names."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and text.isascii()):
            raise UsageError(f"--shard {text}: expected i/n with i from 1 to n, like 2/8")
        return cls(int(number), int(count))


@dataclass(frozen=True)
class RunOptions:
    """The settings that all grids of one command share.

    Raises:
        UsageError: a limit or batch size below 1.
    """

    out: Path
    cache: Location | None = None  # None: the user's
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
    place: Mapping[str, Any] = field(default_factory=dict)
    """What takes the place of a grid's `[run]` table, by field of `Placement`."""
    shard: Shard | None = None  # do this share of the plan only

    def __post_init__(self) -> None:
        require_counts(limit=self.limit, batch_size=self.batch_size)
        if self.measure and not self.dry_run:
            raise UsageError("--measure belongs to --dry-run; a run measures itself")
        if self.dry_run and self.shard:
            raise UsageError(
                f"--shard {self.shard} belongs to a run, and --dry-run shows the whole plan; leave out one of them"
            )


def require_counts(**counts: object) -> None:
    """Refuse a value that is given and no whole number above 0.

    Raises:
        UsageError: the first of them, by its name.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected a whole number above 0")
