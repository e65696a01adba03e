"""What a defense takes: time and memory an image, parameters, and how much longer a prediction takes behind it.

Measured in the run, on its device. Times differ from run to run, so they are kept in the run's record and never in the
store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.environment import describe, hardware
from rdp_bench.keys import Record, key_of
from rdp_bench.protocols import Chained, HasNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.worker import Worker
    from rdp_bench.protocols import Classifier, Defense

BATCH = {"cpu": 8, "cuda": 64}
REPEATS = 5
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SLACK = 1 << 20
"""Bytes by which the kernel's count of resident pages may be off."""


def asked(plan: Plan) -> Record:
    """What is measured, and on what: two runs that agree in it need one measurement. No torch."""
    return {
        "device": plan.device,
        "processor": hardware(plan.device),
        "batch": min(BATCH[plan.device.partition(":")[0]], plan.n),
        "size": plan.dataset.size,
        "target": plan.grid.axes.targets[0],
        "defenses": {label: plan.defense_record(label) for label in plan.grid.axes.defenses},
        **({} if plan.precision == "float32" else {"precision": plan.precision}),
    }


def measure(worker: Worker) -> Record:
    """Costs of every defense of the run's grid, as its record keeps them; of one that fails, the reason.

    `ms`: purifying an image, all passes. `ratio`: a prediction behind the defense over an undefended one, in time.
    `parameters` of its network, 0 without one. `memory`: bytes beyond what is held before and after a batch.
    The last two are None where they cannot be measured.
    """
    import torch

    from rdp_bench.engine.levels import to_float
    from rdp_bench.numerics import precision

    plan, what = worker.plan, asked(worker.plan)
    x = to_float(worker.clean(0, what["batch"]), plan.device)
    model = worker.model(what["target"])
    found: Record = {}
    with torch.no_grad(), precision.using(plan.precision):
        bare = _seconds(lambda: model(x), plan.device)
        for label in what["defenses"]:
            try:
                found[label] = _of(plan.defenses[label].value, model, x, bare, plan.device)
            except Exception as error:  # an entry may raise anything; its cells say so too
                found[label] = {"reason": f"{type(error).__name__}: {error}"}
    threads = describe(plan.device)["threads"]
    return {**what, "key": key_of(what), "threads": threads, "forward_ms": 1000 * bare / len(x), "defenses": found}


def _of(defense: Defense, model: Classifier, x: Tensor, bare: float, device: str) -> Record:
    from rdp_bench.rng import ImageRng

    rng = ImageRng([str(i) for i in range(len(x))], device)
    x = x.clone()  # a defense may write into its input
    purified = defense.purify(x, rng)
    zoom = purified.shape[-1] / x.shape[-1]
    # Images of the same size cost the target what they always cost.
    seen = bare if purified.shape == x.shape else _seconds(lambda: model(purified, zoom), device)
    spent = _seconds(lambda: defense.purify(x, rng), device)
    return {
        "ms": 1000 * defense.passes * spent / len(x),
        "ratio": defense.passes * (spent + seen) / bare,
        "parameters": parameters(defense),
        "memory": extra_memory(lambda: defense.purify(x, rng), device),
    }


def parameters(defense: Defense) -> int | None:
    """Numbers that training found; 0 for a defense of ours that has no network, None where nobody tells."""
    if isinstance(defense, Chained):
        counts = [parameters(part) for part in defense.parts]
        return None if None in counts else sum(count or 0 for count in counts)
    if isinstance(defense, HasNetwork):
        return int(sum(weight.numel() for weight in defense.load().parameters()))
    return 0 if type(defense).__module__.startswith("rdp_bench.defenses.") else None


def extra_memory(work: Callable[[], Any], device: str) -> int | None:
    """Most bytes that `work` held at once beyond what was held before it; None where the system does not tell."""
    import torch

    from rdp_bench.numerics import memory

    if device != "cpu":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    # What was freed goes back first; else `work` would fill it again and nothing would be seen.
    memory.release()
    try:
        before = forget_peak()
        work()
        return max(0, peak() - before)
    except (OSError, KeyError):
        return None


def forget_peak() -> int:
    """Bytes that this process holds, from which on `peak` counts.

    Raises:
        OSError: the system does not tell, or does not forget.
    """
    _RESET.write_text("5")
    before, now = _resident("VmHWM"), _resident("VmRSS")
    if before > now + _SLACK:
        raise OSError(f"{_RESET} had no effect")
    return before


def peak() -> int:
    """The most bytes that this process held since `forget_peak`."""
    return _resident("VmHWM")


def _resident(name: str) -> int:
    """Bytes, from a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Of a few calls after a first one the fastest: what else the machine does only adds."""
    times = []
    for number in range(1 + REPEATS):
        begin = time.perf_counter()
        work()
        if device != "cpu":
            import torch

            torch.cuda.synchronize(device)
        if number:
            times.append(time.perf_counter() - begin)
    return min(times)
