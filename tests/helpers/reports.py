"""Reports of small runs that nobody ran."""

from pathlib import Path
from typing import Any

from rdp_bench.cache.store import Store
from rdp_bench.results.rows import CellKey, Run, load
from tests.helpers.report_fixture import make_run

NASTY = '<script>alert("x")</script>'


WRONG = {
    ("fgsm", "none"): range(10),
    ("fgsm", "jpeg"): range(19),
    ("fgsm", "rdp"): range(1),
    ("mi-fgsm", "none"): range(14),
    ("mi-fgsm", "jpeg"): range(13),
    ("mi-fgsm", "rdp"): range(2),
    ("clean", "jpeg"): range(3),
}


def by_hand(cell_key: CellKey) -> range:
    """Of 20 images: FGSM 10, 19, 1 wrong; MI-FGSM 14, 13, 2; clean 0, 3, 0."""
    return WRONG.get((cell_key.attack, cell_key.defense), range(0))


def small(out: Path, **more: Any) -> tuple[Run, Store]:
    store = Store(out / "store")
    make_run(out, store, by_hand, **more)
    return load(out, store)[-1], store
