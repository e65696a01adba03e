"""photos20: the ImageNet photos that come with foolbox. Small, real, and there without a network."""

import re
from importlib.util import find_spec
from pathlib import Path

from rdp_bench.data._labelled import SIZE, Images
from rdp_bench.errors import BadImageError
from rdp_bench.registry import dataset

_FILE = re.compile(r"imagenet_(\d\d)_(\d{1,3})\.jpg")  # number, 0-based ImageNet id


@dataset("photos20", source="foolbox 3.3, foolbox/data/imagenet_*.jpg")
def photos20() -> Images:
    """20 labelled ImageNet photos from inside foolbox's wheel: for trying things out, not for results.

    Raises:
        BadImageError: foolbox is not installed, or came without its photos.
    """
    # Found, not imported: foolbox would bring torch or jax along.
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise BadImageError("dataset 'photos20' lies in foolbox's wheel, which is not there: pip install foolbox")
    folder = Path(spec.origin).parent / "data"
    found = sorted((match[1], match[2], path) for path in folder.glob("*.jpg") if (match := _FILE.fullmatch(path.name)))
    if len(found) != 20:
        raise BadImageError(f"{folder}: {len(found)} of 20 photos are there: pip install --force-reinstall foolbox")
    return Images(
        name="photos20",
        size=SIZE,
        ids=tuple(path.stem for _, _, path in found),
        labels=tuple(int(label) for _, label, _ in found),
        paths=tuple(path for _, _, path in found),
        origin=folder,
    )
