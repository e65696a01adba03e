"""Kill workers, nodes and drivers of runs on a Ray cluster at random moments, and count what is lost.

    python benchmarks/kills.py [--kills 100] [--seed 0]

The cluster has three nodes on this machine. A run of toy networks is started on it again and again, each with a new
cache; a process of it is killed at a random moment after a batch was stored since the kill before, until the run has
ended: workers are interrupted at work, not only while they start. Printed are the number of kills of each kind, the
finished batches that were lost, and the stored arrays whose bits differ from those of a run in one process. Both must
be 0.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

GRID = f"""
plugins = ["{ROOT}/tests/plugin/tiny.py"]
[axes]
attacks = ["fgsm", "mi-fgsm", "tiny/sleepy(seconds=0.2)"]
defenses = ["none", "tiny/round", "tiny/dither"]
eps = [8]
dataset = "tiny/noise"
sources = ["tiny/one", "tiny/two"]
targets = ["tiny/one", "tiny/two"]
"""
NODES = 3


def command(folder: Path, *more: str) -> list[str]:
    flags = ("--cache", str(folder / "cache"), "--out", str(folder / "out"), "--batch-size", "1")
    return [sys.executable, "-m", "rdp_bench", "run", str(folder.parent / "toy.toml"), *flags, *more]


def workers(cache: Path) -> Iterator[int]:
    """Process ids in the signs of life."""
    for path in cache.glob("notes/*/workers/*.json"):
        try:
            yield int(json.loads(path.read_bytes())["pid"])
        except (OSError, ValueError, KeyError):
            continue


class Killer:
    """Kills one process a time, of a kind that is drawn."""

    def __init__(self, cluster: Any, seed: int) -> None:
        self.cluster, self.draw, self.count = cluster, random.Random(seed), Counter[str]()

    def kill(self, cache: Path, driver: subprocess.Popen[bytes]) -> bool:
        """Whether something was killed."""
        alive = [pid for pid in workers(cache) if Path(f"/proc/{pid}").exists()]
        if not alive:
            return False  # all are starting: there is nothing to interrupt
        kind = self.draw.choices(["worker", "node", "driver"], [6, 2, 1])[0]
        if kind == "worker":
            os.kill(self.draw.choice(alive), signal.SIGKILL)
        elif kind == "node":
            node = self.draw.choice(list(self.cluster.worker_nodes))
            self.cluster.remove_node(node, allow_graceful=False)
            self.cluster.add_node(num_cpus=1)
        else:
            driver.kill()
        self.count[kind] += 1
        return True


def one_run(folder: Path, killer: Killer, least: int) -> tuple[int, bool]:
    """Batches that were lost in a run under fire, and whether it ended well."""
    from tests.helpers.stores import rows

    address = killer.cluster.address
    more = ("--executor", "ray", "--ray-address", address, "--workers", str(NODES))
    lost, stored = 0, 0
    for _ in range(50):
        with (folder / "log.txt").open("ab") as log:
            driver = subprocess.Popen(command(folder, *more), stdout=log, stderr=log)
            while driver.poll() is None:
                time.sleep(killer.draw.uniform(0.5, 8.0))
                before = rows(folder / "cache") if (folder / "cache").exists() else set()
                if len(before) <= stored or killer.count.total() >= least:
                    continue  # nothing new to lose yet, or enough
                if not killer.kill(folder / "cache", driver):
                    continue
                stored = len(before)
                time.sleep(0.2)
                lost += len(before - rows(folder / "cache"))
        if driver.returncode == 0:
            return lost, True
    return lost, False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    from ray.cluster_utils import Cluster

    from tests.helpers.stores import contents

    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "toy.toml").write_text(GRID)
        (top / "serial").mkdir()
        subprocess.run(command(top / "serial"), check=True, capture_output=True)
        wanted = contents(top / "serial" / "cache")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(NODES):
            cluster.add_node(num_cpus=1)
        killer = Killer(cluster, given.seed)
        began, runs, lost, differing = time.time(), 0, 0, 0
        while killer.count.total() < given.kills:
            folder = top / f"run{runs}"
            folder.mkdir()
            gone, ended = one_run(folder, killer, given.kills)
            if not ended:
                print((folder / "log.txt").read_text()[-3000:])
                sys.exit("a run did not end, whatever often it was started")
            found = contents(folder / "cache")
            lost += gone
            differing += sum(found.get(place) != digest for place, digest in wanted.items()) + len(
                found.keys() - wanted
            )
            runs += 1
            print(f"run {runs}: {killer.count.total()} kills, {time.time() - began:.0f} s", flush=True)
        cluster.shutdown()
        kinds = ", ".join(f"{count} {kind}s" for kind, count in sorted(killer.count.items()))
        print(f"{killer.count.total()} kills ({kinds}) in {runs} runs of {len(wanted)} arrays each")
        print(f"finished batches lost: {lost}")
        print(f"arrays whose bits differ from the run in one process: {differing}")
        sys.exit(1 if lost or differing else 0)


if __name__ == "__main__":
    main()
