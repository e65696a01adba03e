"""Which test images are among the photographs that the defense, or its target, was trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.data.photographs import PhotographHashes, shipped
from rdp_bench.errors import RdpBenchError
from rdp_bench.protocols import Chained, Defense, HasWeightFiles
from rdp_bench.weights import files

if TYPE_CHECKING:
    from rdp_bench.engine.plan import Plan


log = logging.getLogger(__name__)


def overlap(defense: Defense, plan: Plan) -> dict[str, Any]:
    """For each weight file of a defense, and of models that this package trained: which images were trained on.

    Returns:
        `files`: one entry per file with `name`, and either `n` (photographs), `ids` (the images found) and `but` (why
        the list is not certain); or `reason`. `images`: how many were looked up.
    """
    found = [_of_file(path, plan, ours=False) for path in dict.fromkeys(weight_files(defense))]
    models = [getattr(ref, "file", None) for ref in plan.models.values()]
    found += [_of_file(path, plan, ours=True) for path in dict.fromkeys(models) if path is not None]
    kept = [each for each in found if each is not None]
    return {"files": kept, "images": plan.n} if kept else {}


def weight_files(defense: Defense) -> Iterator[Path]:
    """The files that a defense, or any part of it, reads weights from."""
    if isinstance(defense, Chained):
        for part in defense.parts:
            yield from weight_files(part)
        return
    try:
        paths = list(defense.paths) if isinstance(defense, HasWeightFiles) else []
    except Exception as error:  # a plugin's `paths` may be anything
        log.info("the weight files of %s are not known: %s", type(defense).__name__, error)
        return
    yield from (path for path in paths if isinstance(path, Path))


def _of_file(path: Path, plan: Plan, *, ours: bool) -> dict[str, Any] | None:
    """What is known of one file; None for a file that is not of this package, where only such are asked (`ours`)."""
    try:
        listed, why = photographs_of(path)
        if listed is None and ours:
            return None
        if listed is None:
            return {"name": path.name, "reason": "it holds no hashes of its photographs"}
        ids = listed.among(plan.dataset, plan.image_hashes[: plan.n])
    except (RdpBenchError, OSError) as error:
        return None if ours else {"name": path.name, "reason": str(error)}
    return {"name": path.name, "n": listed.count, "ids": ids, "but": why}


STARTED = "it began with weights whose photographs are not known"
DATED = (
    "its card is from a version that hashed the dates of files, and the list is of a folder with as many photographs"
)


def photographs_of(path: Path) -> tuple[PhotographHashes | None, str]:
    """The photographs of a weight file, and why the list is not certain; empty where it is.

    A file of `rdp-bench train` holds its list. For files whose card names the record of a list that ships, it is that
    list. Records of the first version contain the dates of files, and nobody can compute them again.

    Raises:
        DamagedError, BadModelError: the file's header is damaged.
    """
    if text := files.read_photographs(path):
        listed = PhotographHashes.from_json(text, str(path))
        return listed, "" if listed.complete else STARTED
    card: Any = files.read_metadata(path).get("card")
    try:
        record, started = card["data"]["record"], card["options"]["start"]
        lists, declared = shipped()["lists"], shipped()["declared"]
        found = lists.get(record) or lists.get(declared.get(record))
    except (TypeError, KeyError):  # the header is anybody's
        return None, ""
    return found, DATED if record in declared else STARTED if started else ""
