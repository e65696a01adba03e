"""Progress without a terminal: a line per finished job, or per minute of a long one."""

import time
from collections.abc import Callable, Sequence

from rdp_bench.engine.jobs import Job
from rdp_bench.engine.progress import duration

MINUTE = 60.0


class JobLines:
    """Called after each batch, as a progress bar is; writes lines that a log file can hold."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._count = 0
        self._number = 0
        self._job: Job | None = None
        self._images = 0
        self._began = self._told = time.monotonic()
        self.remaining: Callable[[], float] | None = None

    def start(self, jobs: Sequence[Job]) -> None:
        """Count these jobs."""
        self._count = len(jobs)

    def __call__(self, job: Job, images: int) -> None:
        """Note `images` more of `job`."""
        now = time.monotonic()
        if self._job is None or job.key != self._job.key:
            self.close()
            self._job, self._images = job, 0
            self._number += 1
        self._images += images
        if now - self._told >= MINUTE:
            self._tell(f"{self._images} images so far, {duration(now - self._began)} since the start", now)

    def close(self) -> None:
        """Write the line of the last job, if it is not written yet."""
        if self._job is not None:
            now = time.monotonic()
            self._tell(f"{self._images} images done, {duration(now - self._began)} since the start", now)
            self._job = None

    def _tell(self, what: str, now: float) -> None:
        total = f"/{self._count}" if self._count else ""
        left = f", about {duration(self.remaining())} left" if self.remaining else ""
        self._write(f"[{self._number}{total}] {self._job}: {what}{left}")
        self._told = now
