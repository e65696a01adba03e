"""photos20: the ImageNet photos in the foolbox package, available without a network."""

import re
from importlib.util import find_spec
from pathlib import Path

from rdp_bench.data._labelled import SIZE, Images
from rdp_bench.errors import BadImageError
from rdp_bench.registry import dataset

_FILE = re.compile(r"imagenet_(\d\d)_(\d{1,3})\.jpg")  # number, 0-based ImageNet id


@dataset("photos20", source="foolbox 3.3, foolbox/data/imagenet_*.jpg")
def photos20() -> Images:
    """20 labelled ImageNet photos from the foolbox package, for demonstrations, not for results.

    Raises:
        BadImageError: foolbox is not installed, or its photos are missing.
    """
    # Located, not imported: foolbox imports torch or jax.
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise BadImageError("dataset 'photos20' is part of foolbox, which is not installed: pip install foolbox")
    folder = Path(spec.origin).parent / "data"
    found = sorted((match[1], match[2], path) for path in folder.glob("*.jpg") if (match := _FILE.fullmatch(path.name)))
    if len(found) != 20:
        raise BadImageError(f"{folder}: {len(found)} of 20 photos exist: pip install --force-reinstall foolbox")
    return Images(
        name="photos20",
        size=SIZE,
        ids=tuple(path.stem for _, _, path in found),
        labels=tuple(int(label) for _, label, _ in found),
        paths=tuple(path for _, _, path in found),
        origin=folder,
    )
