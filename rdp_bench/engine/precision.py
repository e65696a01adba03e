"""Which precisions a run can have: one without effect is refused. No torch on a CPU."""

from collections.abc import Iterable
from pathlib import Path

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Chained, Defense, HasNetwork

PRECISIONS = ("float32", "tf32", "bfloat16")
AMPERE = (8, 0)
"""The compute capability of the first GPUs with TF32 and bfloat16."""

_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of bfloat16 instructions in /proc/cpuinfo, of x86 and of ARM."""


def check(precision: str, device: str, defenses: Iterable[Defense], *, crafts: bool) -> None:
    """Refuse a precision that changes nothing or makes nothing faster.

    Args:
        precision: one of `PRECISIONS`.
        device: the device of the run.
        defenses: the defenses of the run.
        crafts: whether the run crafts adversarial images through networks that are lowered.

    Raises:
        UsageError: the precision would have no effect here.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return
    on_cpu = device == "cpu"
    if precision == "tf32" and on_cpu:
        raise UsageError(
            "--precision tf32 is arithmetic of NVIDIA GPUs, and this run is on the CPU; leave out --precision"
        )
    if not on_cpu and (capability := _capability(device)) and capability < AMPERE:
        raise UsageError(
            f"--precision {precision}: the GPU has compute capability {capability[0]}.{capability[1]}, and arithmetic "
            f"of {precision} begins with {AMPERE[0]}.{AMPERE[1]} (Ampere); leave out --precision"
        )
    if precision == "bfloat16" and on_cpu and not _has_bfloat16():
        raise UsageError(
            "--precision bfloat16: this processor has no instructions for it (AVX512-BF16 or AMX), so that it would "
            "be slower than float32; leave out --precision"
        )
    if precision == "bfloat16" and not crafts and not any(map(_has_network, defenses)):
        raise UsageError(
            "--precision bfloat16 changes the gradients of our networks and the networks of learned defenses (not "
            "those of noise levels, as in diffpure, or of plugins), and this run has neither; leave out --precision"
        )


def _has_network(defense: Defense) -> bool:
    if isinstance(defense, Chained):
        return any(map(_has_network, defense.parts))
    return isinstance(defense, HasNetwork) and not getattr(defense, "always_float32", False)


def _capability(device: str) -> tuple[int, int] | None:
    """Compute capability of a GPU; None where there is none to ask."""
    import torch

    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def _has_bfloat16(file: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has the instructions; yes where nothing can be known."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return True
    flags = [set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))]
    return not flags or bool(flags[0] & _FLAGS)
