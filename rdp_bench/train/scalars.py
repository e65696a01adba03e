"""Logged values of a training: train.csv, and TensorBoard if it is installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rdp_bench import csvtext
from rdp_bench.cache.store import write_atomic


def short(value: Any) -> str:
    """A value as text for train.csv."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a train.csv; none if there is no file."""
    if not path.is_file():
        return []
    _, rows = csvtext.read(path.read_text("utf-8"))
    return [{key: value for key, value in row.items() if value} for row in rows]


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write all rows under the union of their columns; missing cells are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_atomic(path, csvtext.records(columns, rows).encode())


@contextmanager
def board(out: Path, done: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Also writes rows of train.csv to TensorBoard, in OUT/tensorboard, if it is installed."""
    if find_spec("tensorboard") is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter

    # What a killed training wrote after its last checkpoint is done again, and would stand there twice.
    writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)

    def show(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, row["step"])

    try:
        yield show
    finally:
        writer.close()
