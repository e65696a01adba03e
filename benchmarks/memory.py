"""Memory of each job of the embedded Table 1: `python -m benchmarks.memory [--attack fgsm] [--batch-size 20]`.

The jobs run in one process, in the order of a run. A line shows the most that the process held during a job, and its
processor seconds. The last line shows the largest of them beside the aim.
"""

import argparse
import tempfile
import time
from pathlib import Path

from rdp_bench import plugins
from rdp_bench.cache.store import Store
from rdp_bench.engine.defense_cost import forget_peak, peak
from rdp_bench.engine.grid import load
from rdp_bench.engine.plan import make_plan

AIM = 2.5e9
"""Bytes that a run of 20 photos may hold."""


def main() -> None:
    """Print a line a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for axis in ("attack", "source", "defense"):
        parser.add_argument(f"--{axis}", action="append", default=[])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    plugins.load()
    flags = {f"{axis}s": tuple(vars(asked)[axis]) for axis in ("attack", "source", "defense") if vars(asked)[axis]}
    grid, _ = load("table1", "embedded", flags)
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(grid, Store(Path(folder)), seed=0, device="cpu", limit=asked.limit, models_dir=None)
        from rdp_bench.engine.worker import Worker

        worker = Worker(plan, batch=asked.batch_size)
        print(f"{'MB':>6} {'CPU s':>6}  job")
        for job in plan.jobs:
            forget_peak()
            begin = time.process_time()
            worker(job)
            held = peak()
            most = max(most, held)
            print(f"{held / 1e6:6.0f} {time.process_time() - begin:6.1f}  {job}", flush=True)
    print(f"{most / 1e6:6.0f} MB at most (aim {AIM / 1e6:.0f}){'  MISSED' if most > AIM else ''}")


if __name__ == "__main__":
    main()
