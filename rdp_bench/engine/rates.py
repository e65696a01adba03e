"""How long jobs take: rates that earlier runs measured on this machine, kept in the cache. No torch.

A rate is seconds per image. For jobs that this machine has not measured, the rates below stand in, scaled by what it
needed for others.
"""

import json
import logging
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from rdp_bench.cache.store import write_atomic
from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.plan import Plan
from rdp_bench.environment import hardware
from rdp_bench.errors import StorageError
from rdp_bench.specs import cut

log = logging.getLogger(__name__)

FILE = "rates.json"
NEWEST = 0.5
"""Weight of a new measurement beside the remembered one."""

GRADIENT = {"effnet-lite0": 0.031, "effnet-lite1": 0.043}
"""Seconds per gradient on one core at 3 GHz with AVX-512."""
FORWARD = {"effnet-lite0": 0.013, "effnet-lite1": 0.018, "effnet-lite2": 0.026, "effnet-lite2-ens": 0.026}
PURIFY = {
    "none": 0.001, "jpeg": 0.008, "fd": 0.005, "bit-red": 0.001, "tvm": 0.025, "wavelet": 0.01, "r&p": 0.01,
    "comdefend": 0.1, "hgd": 0.12, "nrp": 0.21, "rdp": 0.08, "sr": 0.12, "pixel-deflection": 0.05,
}  # fmt: skip
ZOOM = {"sr": 4.0, "r&p": 1.2, "r&p-30": 1.2}
"""Pixels that the target sees behind a defense, over those that it usually sees."""
OTHER = {"gradient": 0.04, "forward": 0.02, "purify": 0.05}


def threads() -> int:
    """The threads that torch will use, as far as this can be known without it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def machine(device: str) -> str:
    """The machine that rates belong to."""
    return f"{device.partition(':')[0]}, {hardware(device)}, {threads()} threads"


class Rates:
    """Seconds per image of named pieces of work on this machine."""

    def __init__(self, path: Path | None, device: str, *, write: bool = True) -> None:
        """Read what `path` remembers of this machine; a file that cannot be read is as good as none."""
        self.path, self.machine, self.write = path, machine(device), write
        self.seconds: dict[str, float] = _read(path).get(self.machine, {}) if path else {}

    def note(self, name: str, seconds: float) -> None:
        """Remember a measurement."""
        before = self.seconds.get(name)
        self.seconds[name] = seconds if before is None else NEWEST * seconds + (1 - NEWEST) * before

    def save(self) -> None:
        """Write the rates of this machine, beside those of others, unless the cache cannot be written to."""
        if self.path is None or not self.write:
            return
        text = json.dumps({**_read(self.path), self.machine: self.seconds}, indent=1, sort_keys=True)
        try:
            write_atomic(self.path, text.encode())
        except StorageError as error:
            log.info("%s; the times of this run are not remembered", error)


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    valid: dict[str, dict[str, float]] = {}
    for name, rates in found.items() if isinstance(found, dict) else ():
        if isinstance(rates, dict):
            valid[name] = {
                key: float(value) for key, value in rates.items() if isinstance(value, int | float) and 0 <= value < 1e6
            }
    return valid


def of_plan(plan: Plan) -> Rates:
    """The rates for the device of a plan, from its cache."""
    root = plan.store.root
    path = root / FILE if isinstance(root, Path) else None
    return Rates(path, plan.device, write=not plan.store.read_only)


class Estimates:
    """Seconds that jobs of a plan take per image, from `rates`, or else from the rates of another machine."""

    def __init__(self, plan: Plan, rates: Rates) -> None:
        self.plan, self.rates = plan, rates
        self.size = f"{plan.dataset.size} px"

    def each(self, job: Job) -> float:
        """Estimated seconds per image of `job`."""
        exact, part, count = self._names(job)
        if exact in self.rates.seconds:
            return self.rates.seconds[exact]
        if part in self.rates.seconds:
            return count * self.rates.seconds[part]
        return self._elsewhere(job) * self._scale()

    def known(self, job: Job) -> bool:
        """Whether this machine has measured such a job."""
        return bool({*self._names(job)[:2]} & self.rates.seconds.keys())

    def note(self, job: Job, seconds: float) -> None:
        """Remember that `job` took so many seconds per image."""
        exact, part, count = self._names(job)
        elsewhere = self._elsewhere(job)
        self.rates.note(exact, seconds)
        self.rates.note(part, seconds / count)
        if elsewhere:
            self.rates.note(f"relative {'craft' if isinstance(job, CraftJob) else 'evaluate'}", seconds / elsewhere)

    def _scale(self) -> float:
        found = [value for name, value in self.rates.seconds.items() if name.startswith("relative ")]
        return statistics.median(found) if found else 1.0

    def _names(self, job: Job) -> tuple[str, str, int]:
        """The name of exactly this work, that of a part which other jobs share, and how often it holds the part."""
        if isinstance(job, CraftJob):
            count = self.plan.attacks[job.attack].value.gradients(job.eps) * self._samples(job)
            work = f"{job.attack} on {job.source}, {count} gradients, {self.size}"
            return f"craft {work}", f"gradient of {job.source}, {self.size}", max(1, count)
        looks = self.plan.defenses[job.defense].value.passes * job.defense_samples
        targets = "+".join(label for label, _ in job.evals) or "no target"
        return (
            f"evaluate {job.defense}, {looks} passes, for {targets}, {self.size}",
            f"pass of {job.defense} for {targets}, {self.size}",
            max(1, looks),
        )

    def _samples(self, job: CraftJob) -> int:
        behind = self.plan.sources[job.source].attacked_defense
        return behind.samples if behind else 1

    def _elsewhere(self, job: Job) -> float:
        """Seconds per image on the machine of the rates above, shared by the threads of this one."""
        if isinstance(job, CraftJob):
            members = self.plan.sources[job.source].members
            each = sum(_rate(GRADIENT, member.name, "gradient") for member in members)
            count = self.plan.attacks[job.attack].value.gradients(job.eps) * self._samples(job)
            return count * each / min(threads(), 8)
        looks = self.plan.defenses[job.defense].value.passes * job.defense_samples
        zoom = ZOOM.get(cut(job.defense)[0], 1.0)
        judging = zoom * sum(_rate(FORWARD, label, "forward") for label, _ in job.evals)
        return looks * (_rate(PURIFY, cut(job.defense)[0], "purify") + judging) / min(threads(), 8)


def _rate(rates: Mapping[str, float], name: str, kind: str) -> float:
    return rates.get(name, OTHER[kind])
