"""How long a dataset takes to name by its pixels, cold and warm: `python benchmarks/data.py DATASET [SIZE]`."""

import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    start = perf_counter()
    from rdp_bench.data.image_hashes import batch, hash_images
    from rdp_bench.data.open import open_dataset

    print(f"import              {perf_counter() - start:7.3f} s")
    start = perf_counter()
    dataset = open_dataset(sys.argv[1], size=int(sys.argv[2]) if sys.argv[2:] else None)
    n = len(dataset.ids)
    print(f"open   {n:6d} images {perf_counter() - start:6.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            start = perf_counter()
            image_hashes = hash_images(dataset, Path(folder))
            print(f"fingerprints, {name}  {perf_counter() - start:7.3f} s")
    start = perf_counter()
    batch(dataset, 0, min(n, 100), image_hashes)
    print(f"batch of {min(n, 100):3d}, checked {perf_counter() - start:5.3f} s")


if __name__ == "__main__":
    main()
