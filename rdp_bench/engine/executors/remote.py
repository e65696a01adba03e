"""The worker's end of an executor: made from a `WorkerSpec` in any process, it does tasks and says what happens."""

import contextlib
import logging
import os
import queue
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from rdp_bench.engine.executors.board import Heart, worker_name
from rdp_bench.engine.executors.spec import WorkerSpec, make_worker
from rdp_bench.engine.jobs import Job
from rdp_bench.engine.schedule import Answer, Event, Progress, Refused, Said, answer, gpu_failed
from rdp_bench.engine.tasks import Part, Task, numbered
from rdp_bench.errors import RdpBenchError, StorageError

GPU_FAILED = 70
"""Exit status of a worker whose GPU failed."""


class Remote:
    """A worker for one run. Results are in the store; what it yields is plain data.

    Raises:
        RdpBenchError: this machine cannot take part; one line that names its host.
    """

    def __init__(self, spec: WorkerSpec, name: str = "") -> None:
        self.name = name or worker_name()
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self.worker, self.board = make_worker(spec)
        # From here on: the driver has logged what there is to say of the plan.
        self._handler = _Forward(self)
        logging.getLogger("rdp_bench").addHandler(self._handler)
        self.threads = spec.threads
        self.jobs = numbered(self.worker.plan)
        self.heart = Heart(self.board, self.name)
        # One lasting thread, because the caller passes events on while a task is done; torch's plans for a GPU belong
        # to the thread that made them.
        self._thread = ThreadPoolExecutor(1, "task")
        self._until_closed = ExitStack()
        self._until_closed.enter_context(self.heart.beating())

    def close(self) -> None:
        """Take back the signs of life."""
        logging.getLogger("rdp_bench").removeHandler(self._handler)
        self._until_closed.close()
        self._thread.shutdown(wait=False)

    def do(self, task: Task) -> Iterator[Event]:
        """Do a task; yields what happens, and at last the answer (or a refusal: nothing can be stored here)."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        done = self._thread.submit(self._work, task, events)
        while True:
            event = events.get()
            while not self.said.empty():
                yield self.said.get()
            yield event
            if isinstance(event, Answer | Refused):
                break
        done.result()

    def _work(self, task: Task, events: "queue.SimpleQueue[Event]") -> None:
        try:
            events.put(self.work(task, lambda images: events.put(Progress(self.name, task, images))))
        except BaseException as error:  # without an answer, all would wait
            if gpu_failed(error):
                print(f"worker {self.name} ends, because its GPU failed: {error}", file=sys.stderr, flush=True)
                os._exit(GPU_FAILED)  # a new process can use the GPU again; a task that breaks it is tried few times
            events.put(Answer(self.name, task, f"{type(error).__name__}: {error}"))

    def work(self, task: Task, count: Any) -> Answer | Refused:
        """Do a task in this thread; calls `count` with the number of images of each stored batch."""
        worker = self.worker
        job = self.jobs[task.number]
        if job.key != task.key:  # another plan: the digest was compared, so this is a mistake of an executor
            return Refused(self.name, f"task {task.name} is none of the plan of worker {self.name}")
        if worker.plan.device == "cpu":
            import torch

            torch.set_num_threads(self.threads)  # OpenMP counts them for each thread that calls it

        def report(_: Job, images: int) -> None:
            self.heart.count(images)
            count(images)

        worker.report = report
        self.heart.doing(job, task)
        try:
            found = answer(self.name, task, lambda each: worker(job, (each.low, each.high)))
        except StorageError as error:
            return Refused(self.name, f"host {socket.gethostname()}: {error}")
        with contextlib.suppress(StorageError):
            self.board.ended(Part(task, job), self.name, found.reason, found.remarks)
        return found


class _Forward(logging.Handler):
    """Passes warnings on to the driver."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(logging.WARNING)
        self._remote = remote

    def emit(self, record: logging.LogRecord) -> None:
        self._remote.said.put(Said(self._remote.name, record.getMessage(), record.levelno))


def start_worker(spec: WorkerSpec, name: str) -> "Remote | Refused":
    """The worker, or why there is none."""
    try:
        return Remote(spec, name)
    except RdpBenchError as error:
        return Refused(name, str(error))
