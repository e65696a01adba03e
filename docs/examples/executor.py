"""An executor: worker processes on this machine."""

import socket
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

from rdp_bench.engine.executors.remote import start_worker
from rdp_bench.engine.executors.spec import WorkerSpec
from rdp_bench.engine.options import Placement
from rdp_bench.engine.schedule import Event, Lost, Ready, Refused
from rdp_bench.engine.tasks import Task


class Processes:
    """`--executor processes --workers N`."""

    def __init__(self, spec: WorkerSpec, placement: Placement) -> None:
        self.workers = placement.count or 2
        context = get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        for number in range(self.workers):
            here, there = context.Pipe()
            name = f"process-{number}"
            process = context.Process(target=serve, args=(spec, name, there), daemon=True)
            process.start()
            there.close()
            self._pipes[name] = here
            self._processes.append(process)

    def send(self, worker: str, task: Task) -> None:
        """Called for a worker that is ready, or has answered."""
        self._pipes[worker].send(task)

    def wait(self) -> Event | None:
        """The next event of any worker; None if there are no workers any more."""
        while self._pipes:
            for pipe in wait(self._pipes.values()):
                name = next(name for name, other in self._pipes.items() if other is pipe)
                try:
                    event: Event = pipe.recv()
                except EOFError:
                    del self._pipes[name]
                    return Lost(name, f"{name} on host {socket.gethostname()} ended")
                if isinstance(event, Refused):
                    del self._pipes[name]
                return event
        return None

    def close(self) -> None:
        """Called at the end, also after an error."""
        for process in self._processes:
            process.kill()


def serve(spec: WorkerSpec, name: str, pipe: Connection) -> None:
    """Runs in the worker process: make the worker, then do the tasks that arrive."""
    worker = start_worker(spec, name)
    if isinstance(worker, Refused):
        pipe.send(worker)
        return
    pipe.send(Ready(name, socket.gethostname()))
    while True:
        for event in worker.do(pipe.recv()):
            pipe.send(event)
