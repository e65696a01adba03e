"""An executor whose workers take turns in this process, each made from the specification as one elsewhere would be."""

import json
import pickle
from collections import deque

from rdp_bench.engine.executors.remote import Remote, start_worker
from rdp_bench.engine.executors.spec import WorkerSpec
from rdp_bench.engine.options import Placement
from rdp_bench.engine.schedule import Event, Ready, Refused
from rdp_bench.engine.tasks import Task


class TakingTurns:
    """`Placement.workers` workers."""

    def __init__(self, spec: WorkerSpec, placement: Placement) -> None:
        self.workers = placement.count or 2
        self.events: deque[Event] = deque()
        self.remotes: dict[str, Remote] = {}
        self.did: dict[str, list[Task]] = {}
        for number in range(self.workers):
            crossed = WorkerSpec.read(json.loads(json.dumps(pickle.loads(pickle.dumps(spec)).json())))
            found = start_worker(crossed, f"turn-{number}")
            if isinstance(found, Refused):
                self.events.append(found)
            else:
                self.remotes[found.name] = found
                self.events.append(Ready(found.name, "here"))

    def send(self, worker: str, task: Task) -> None:
        self.did.setdefault(worker, []).append(task)
        self.events.extend(self.remotes[worker].do(task))

    def wait(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        for remote in self.remotes.values():
            remote.close()


def Nothing(spec: WorkerSpec, placement: Placement) -> None:  # noqa: N802 - as a class of a package
    """A maker that forgot to return."""


class Exploding(TakingTurns):
    """A cluster whose errors are of its own kind."""

    def wait(self) -> Event | None:
        raise RuntimeError("cluster exploded")


class Mumbling(TakingTurns):
    """Says what is no event."""

    def wait(self) -> Event | None:
        return "well"  # type: ignore[return-value]
