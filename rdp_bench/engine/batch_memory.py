"""How many images a GPU takes at once: found by the memory that a few of them need.

A few images are computed and their results thrown away, so that batches begin at multiples of the size that is found,
as they do with `--batch-size`. Sizes are powers of two, so that a little more or less free memory finds the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.tasks import BATCH, family
from rdp_bench.models.entry_calls import is_out_of_memory

log = logging.getLogger(__name__)

PROBED = 8
"""Images that are computed to find the size."""

FROM = 64
"""Runs of at most so many images are one batch, and nothing is measured: it would cost more than it gains."""

SHARE = 0.8
"""Of the free memory, what a batch may need; the rest is for what the allocator cannot reuse."""


def kind_of_work(job: Job) -> str:
    """Jobs of one kind need the same memory per image."""
    return f"{job.attack} on {job.source}" if isinstance(job, CraftJob) else family(job)


class Memory(Protocol):
    """The memory of a device."""

    def used_by(self, work: Callable[[], object]) -> int:
        """Bytes that `work` needed at most, beyond those in use before it."""

    def free(self) -> int:
        """Bytes that this process could still have."""


class CudaMemory:
    """The memory of a CUDA device, as torch's allocator and the driver count it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def used_by(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def free(self) -> int:
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + kept


def largest(free: int, used: int, images: int, most: int) -> int:
    """The largest power of two up to `most`, at least 1, so that `SHARE` of `free` bytes suffice; `images` need `used`.

    >>> largest(10_000, 800, 8, 128), largest(1_000, 800, 8, 128), largest(10**9, 800, 8, 128), largest(10, 800, 8, 128)
    (64, 8, 128, 1)
    """
    size = 1
    while 2 * size <= most and 2 * size * used <= SHARE * free * images:
        size *= 2
    return size


class FoundBatches:
    """Batch sizes by kind of work, each measured once."""

    def __init__(self, memory: Memory, most: int | None = None) -> None:
        self._memory = memory
        self._most = BATCH["cuda"] if most is None else most
        self._found: dict[str, int] = {}

    def size(self, work: str, compute: Callable[[int], object]) -> int:
        """Images at once for a kind of `work`; `compute` does it for a number of images.

        Raises:
            Exception: what `compute` raises, except that memory ran out.
        """
        if work not in self._found:
            self._found[work] = self._measured(compute)
            log.info("%s: %d images at once", work, self._found[work])
        return self._found[work]

    def keep(self, work: str, size: int) -> int:
        """Use at most `size` for this work from now on, because memory ran out; returns the size that is used."""
        self._found[work] = 1 << (size.bit_length() - 1)
        return self._found[work]

    def _measured(self, compute: Callable[[int], object]) -> int:
        images = PROBED
        while True:
            try:
                compute(1)  # what is loaded at the first call is needed once, not by each image
                used = self._memory.used_by(partial(compute, images))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if images == 1:
                    return 1  # whoever computes the first batch reports it
                images //= 2
                torch.cuda.empty_cache()
                continue
            most = self._most if images == PROBED else images
            return largest(self._memory.free(), max(1, used), images, most)
