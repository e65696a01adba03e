"""A CSV of path,label: images that lie anywhere, labelled by hand."""

import os
from pathlib import Path

from rdp_bench.data._labelled import SIZE, Images, read_rows
from rdp_bench.errors import BadImageError


def csvlist(table: Path, *, size: int = SIZE) -> Images:
    """The images that `table` lists under `path` (from the CSV's own folder, or absolute) and `label`.

    Labels are ImageNet ids, 0..999, as timm counts. `ids` are the paths, normalised; other columns
    are left alone. The order is the file's. Named after the file.

    Raises:
        BadImageError: a missing column, a path that is there twice, or a label outside 0..999.
    """
    rows = read_rows(table, "path", "label")
    labels = tuple(row.label("label") for row in rows)
    # "a.png" and "./b/../a.png" are one image.
    ids: dict[str, str] = {}
    for row in rows:
        id_ = Path(os.path.normpath(row.text("path"))).as_posix()
        if id_ in ids:
            raise BadImageError(f"{row.where}: path '{row.text('path')}' is there already as '{ids[id_]}'; keep one")
        ids[id_] = row.text("path")
    folder = table.resolve().parent
    return Images(
        name=table.stem,
        size=size,
        ids=tuple(ids),
        labels=labels,
        paths=tuple(folder / id_ for id_ in ids),
        origin=table,
    )
