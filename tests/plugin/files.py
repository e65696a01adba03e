"""A plugin with a data set of image files, in the folder that $TINY_IMAGES names when it is opened."""

import os
from pathlib import Path

from rdp_bench import Dataset, dataset
from rdp_bench.data._labelled import Images


@dataset("tiny/files", source="made up")
def files() -> Dataset:
    """Image files of 16 x 16 pixels."""
    folder = Path(os.environ["TINY_IMAGES"])
    paths = sorted(folder.glob("*.png"))
    return Images(
        "tiny/files", 16, [path.name for path in paths], [i % 5 for i in range(len(paths))], paths, folder, classes=5
    )
