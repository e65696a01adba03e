"""What is done while the next batch is computed: writing the last one, and reading the images of the one after.

Both are done in order by one thread each, which ends with its `with` block. Neither calls torch, whose threads would
compete with those that compute, nor code of users.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

WAITING = 2
"""Batches that may wait to be written; who computes faster than that waits."""


class Writer:
    """Writes finished batches. A block that ends without an exception has written them all.

    Where it ends by one, Ctrl-C included, those that were handed over are written nevertheless, and are not reported.

    Args:
        stored: called with the number of images of each batch when it is stored, in the thread that calls the methods.
    """

    def __init__(self, stored: Callable[[int], None]) -> None:
        self._stored = stored
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[tuple[Future[None], int]] = deque()

    def put(self, write: Callable[[], None], images: int) -> None:
        """Have `write` called soon.

        Raises:
            Exception: what the writing of an earlier batch raised; this one is not written.
        """
        while self._waiting and (len(self._waiting) >= WAITING or self._waiting[0][0].done()):
            self._take()
        self._waiting.append((self._pool.submit(write), images))

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: what the writing of a batch raised.
        """
        while self._waiting:
            self._take()

    def _take(self) -> None:
        future, images = self._waiting[0]
        try:
            future.result()
        finally:
            if future.done():  # else Ctrl-C ended the waiting
                self._waiting.popleft()
        self._stored(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._pool.shutdown()
        for future, _ in self._waiting:
            if problem := future.exception():
                log.warning("a finished batch is not stored: %s", problem)


class Reader(Generic[T]):
    """Reads the rows that will be asked for next.

    Args:
        read: gives rows `low..high`; called in the calling thread, where it may repair or report.
        ahead: the same, called in a thread; None: nothing is read ahead. What it raises is ignored, and `read` is
            called when the rows are needed.
    """

    def __init__(self, read: Callable[[int, int], T], ahead: Callable[[int, int], T] | None) -> None:
        self._read, self._ahead = read, ahead
        self._pool = ThreadPoolExecutor(1, "reader")
        self._next: tuple[tuple[int, int], Future[T]] | None = None

    def get(self, low: int, high: int, then: tuple[int, int] | None = None) -> T:
        """Rows `low..high`; `then` are those that will probably be asked for next."""
        next_, self._next = self._next, None
        found: T | None = None
        if next_ is not None and next_[0] == (low, high) and next_[1].exception() is None:
            found = next_[1].result()
        if found is None:
            found = self._read(low, high)
        if self._ahead is not None and then is not None and then[0] < then[1]:
            self._next = then, self._pool.submit(self._ahead, *then)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
