"""Versions, device and processor of this machine. torch is imported only where a CUDA device may be used."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rdp_bench.errors import UsageError
from rdp_bench.keys import Record

PACKAGES = (
    "rdp-bench",
    "torch",
    "timm",
    "torchvision",
    "torchattacks",
    "torchattack",
    "spandrel",
    "numpy",
    "pillow",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on; missing packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def graphics(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The names of the GPUs, as far as the driver tells without torch; "GPU" where it does not."""
    names = set()
    try:
        for file in folder.glob("*/information"):
            lines = file.read_text().splitlines()
            names |= {line.partition(":")[2].strip() for line in lines if line.startswith("Model:")}
    except OSError:
        pass
    return " and ".join(sorted(names)) or "GPU"


def hardware(device: str) -> str:
    """The processor, and of a GPU's device the cards before it: what the speed of work depends on."""
    return processor() if device == "cpu" else f"{graphics()}, {processor()}"


def describe(device: str) -> dict[str, str | int]:
    """Versions, platform and device of this process; with torch loaded, the CPU instructions that it uses too."""
    torch = sys.modules.get("torch")
    name = processor()
    if device.startswith("cuda") and torch is not None:
        name = torch.cuda.get_device_name(device)
    threads = torch.get_num_threads() if torch is not None else os.cpu_count() or 1
    found = {**versions(), "platform": platform.platform(), "device": device, "device_name": name, "threads": threads}
    if torch is not None:
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return found


def merged(environments: Iterable[Record]) -> dict[str, str]:
    """Each fact of several environments as one text; different values, sorted, joined by " and ". Times are left out.

    >>> merged([{"torch": "2.6.0", "threads": 2}, {"torch": "2.7.0", "threads": 2, "time": "now"}])
    {'torch': '2.6.0 and 2.7.0', 'threads': '2'}
    """
    values: dict[str, set[str]] = {}
    for environment in environments:
        for name, value in environment.items():
            if name != "time":
                values.setdefault(name, set()).add(str(value))
    return {name: " and ".join(sorted(found)) for name, found in values.items()}


def differing(environments: Iterable[Record]) -> dict[str, str]:
    """Of `merged`, the facts in which the environments differ, absent ones included."""
    found = list(environments)
    return {
        name: text
        for name, text in merged(found).items()
        if len({str(environment.get(name)) for environment in found}) > 1
    }


def choose_device(asked: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:1` -> the device to use.

    Raises:
        UsageError: CUDA was requested and is not available.
    """
    if asked == "cpu":
        return "cpu"
    if asked != "auto" and not (asked == "cuda" or asked.removeprefix("cuda:").isdigit()):
        raise UsageError(f"--device {asked}: expected auto, cpu, cuda or cuda:<number>")
    if asked == "auto" and not _driver():
        return "cpu"  # without loading torch
    import torch

    if not torch.cuda.is_available():
        if asked == "auto":
            return "cpu"
        raise UsageError(f"--device {asked}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    if asked.startswith("cuda:") and int(asked[5:]) >= torch.cuda.device_count():
        raise UsageError(f"--device {asked}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return "cuda" if asked == "auto" else asked


def _driver() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists() or sys.platform == "win32"
