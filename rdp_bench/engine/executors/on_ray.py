"""Workers as Ray actors: one a GPU, or one a group of cores, on this machine or on a running cluster."""

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rdp_bench.engine.executors import kept
from rdp_bench.engine.executors.remote import Remote, start_worker
from rdp_bench.engine.executors.spec import WorkerSpec
from rdp_bench.engine.options import Placement
from rdp_bench.engine.schedule import KEPT, Answer, Event, Lost, Ready, Refused
from rdp_bench.engine.tasks import Task
from rdp_bench.errors import RdpBenchError, UsageError

log = logging.getLogger(__name__)

FUTILE = 3
"""An actor that was started so many times in a row without doing anything is not started again."""

LOOK = 5.0
"""Seconds between two looks at the cluster while nothing happens."""

KNOCKS = 3
"""Times that a head is asked, a second apart, before it counts as gone."""

NO_ROOM = 120.0
"""Seconds without any worker after which a cluster that has no room for one is given up."""


@dataclass
class _Idle:
    """Actors that have ended a run and wait for the next."""

    kind: object = None
    """What they were started with: actors of another kind are of no use."""
    actors: list[Any] = field(default_factory=list)
    begun_here: bool = False
    """This process has started Ray for them."""

    def clear(self) -> None:
        """End them."""
        ray: Any = importlib.import_module("ray")
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self.actors.clear()

    def forget(self) -> None:
        """Leave them to end with their cluster, which is gone."""
        self.actors.clear()
        self.begun_here = False

    def release(self) -> None:
        """End them, and Ray where it was started for them."""
        self.clear()
        if self.begun_here:
            self.begun_here = False
            with contextlib.suppress(Exception):
                importlib.import_module("ray").shutdown()


_idle = _Idle()


class RayExecutor:
    """Actors of a Ray cluster.

    Raises:
        UsageError: Ray is missing, the cluster cannot be reached, or has no room for a worker.
    """

    def __init__(self, spec: WorkerSpec, placement: Placement) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise UsageError(f"--executor ray needs Ray: pip install '.[ray]' in the checkout ({error})") from error
        self._ray = ray
        self._spec = spec
        self._need = {"GPU": 1.0} if spec.device == "cuda" else {"CPU": float(spec.threads)}
        self._begun_here = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._is_gone = False
        address = placement.ray_address or os.environ.get("RAY_ADDRESS", "")
        self._connect(address, placement.count)
        self._where = f"the Ray cluster {address}" if address else "Ray on this machine"
        self._head = str(ray.get_runtime_context().gcs_address)
        self._refuse_gone()  # where an earlier run of this process is still connected
        room = self._room()
        if not room:
            have = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            self.close()
            raise UsageError(
                f"{self._where} has no room for a worker: one takes {_amounts(self._need)}, a node has at most "
                f"{_amounts(have)} free or not; use another --device, or set OMP_NUM_THREADS"
            )
        if spec.device == "cpu" and ray.cluster_resources().get("GPU"):
            log.warning("%s has GPUs, and this run uses CPUs only; --device cuda uses them", self._where)
        self.workers = placement.count or room
        if self.workers > room:
            log.warning("%s has room for %d of %d workers; the others wait", self._where, room, self.workers)
        self._actor = ray.remote(_Actor)
        self._actors: dict[str, Any] = {}
        self._hosts: dict[str, str] = {}
        self._hellos: dict[Any, str] = {}
        self._streams: dict[Any, str] = {}  # generator of a task's events -> worker
        self._working: set[str] = set()
        self._futile = 0
        self._count = 0
        self._events: deque[Event] = deque()
        self._waited = 0.0
        self._kind = (self._need, address, spec.environment, spec.threads)
        if _idle.kind != self._kind:
            _idle.clear()
            _idle.kind = self._kind
        for _ in range(self.workers):
            self._begin_worker()

    # --- what the schedule calls ---

    def send(self, worker: str, task: Task) -> None:
        stream = self._actors[worker].do.options(num_returns="streaming").remote(task)
        self._streams[stream] = worker
        self._working.add(worker)

    def wait(self) -> Event | None:
        while not self._events:
            waiting = [*self._hellos, *self._streams]
            if not waiting:
                return None
            try:
                ready, _ = self._ray.wait(waiting, num_returns=1, timeout=LOOK, fetch_local=False)
            except Exception as error:  # Ray's own kinds, gRPC's
                raise self._gone(error) from error
            if not ready:
                self._look()
                continue
            self._waited = 0.0
            for one in ready:
                self._take(one)
        return self._events.popleft()

    def close(self) -> None:
        try:
            self._end_workers()
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in self._handlers.items():
                    signal.signal(number, handler)

    def _end_workers(self) -> None:
        ray = self._ray
        if self._is_gone:  # any call would wait for it, and then end this process
            _idle.forget()
            return
        actors: dict[str, Any] = getattr(self, "_actors", {})
        if actors and kept.wanted(_idle.release):
            # One that is still starting does so, and then what the next run asks.
            _idle.actors += [actors.pop(name) for name in list(actors) if name not in self._working]
            _idle.begun_here |= self._begun_here
        with contextlib.suppress(Exception):
            for actor in actors.values():
                ray.kill(actor)
        if self._begun_here and not _idle.begun_here:
            with contextlib.suppress(Exception):
                ray.shutdown()

    # --- inside ---

    def _connect(self, address: str, count: int | None) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        if address:
            del quiet["include_dashboard"]
        elif count and self._need.get("CPU"):
            # As many workers as were asked for, whatever the cores: the user knows.
            quiet["num_cpus"] = max(int(self._need["CPU"]) * count, os.cpu_count() or 1)
        _refuse_bad(address)
        # Ray leaves handlers of its own, which end the process and not just the run.
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._handlers = {number: handler for number, handler in before.items() if handler is not None}
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # else it replaces builtins.print for good
        try:
            ray.init(address=address or "local", **quiet)
        except Exception as error:
            what = f"--ray-address {address}" if address else "Ray"
            raise UsageError(f"{what} cannot be reached: {_first_line(error)}") from error
        self._begun_here = True

    def _room(self) -> int:
        """How many workers fit on the nodes that are there."""
        (name, amount), *_ = self._need.items()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        return sum(int(node["Resources"].get(name, 0.0) // amount) for node in nodes)

    def _begin_worker(self) -> None:
        self._count += 1
        name = f"ray-{os.getpid()}-{self._count}"
        actor: Any = _idle.actors.pop() if _idle.actors else self._start_actor()
        self._actors[name] = actor
        self._hellos[actor.begin.remote(self._spec, name)] = name

    def _start_actor(self) -> Any:
        options = {"num_cpus": self._need.get("CPU", 0), "num_gpus": self._need.get("GPU", 0)}
        env = {**self._spec.environment, "OMP_NUM_THREADS": str(self._spec.threads)}
        return self._actor.options(**options, max_restarts=0, runtime_env={"env_vars": env}).remote()

    def _take(self, ready: Any) -> None:
        """Turn what Ray has ready into events."""
        if ready in self._hellos:
            name = self._hellos.pop(ready)
            try:
                found = self._ray.get(ready)
            except Exception as error:
                self._lose(name, error)
                return
            if isinstance(found, Refused):
                self._actors.pop(name, None)
            else:
                self._hosts[name] = found.host
            self._events.append(found)
            return
        name = self._streams[ready]
        try:
            event = self._ray.get(next(ready))
        except StopIteration:
            del self._streams[ready]
            return
        except Exception as error:
            del self._streams[ready]
            self._lose(name, error)
            return
        self._futile = 0
        if isinstance(event, Answer | Refused):
            self._working.discard(name)
        self._events.append(event)

    def _lose(self, name: str, error: Exception) -> None:
        """A worker has died: its task goes back, and another worker takes its place."""
        self._refuse_gone()
        if actor := self._actors.pop(name, None):
            with contextlib.suppress(Exception):
                self._ray.kill(actor)  # it may be out of reach only, and would go on
        self._futile += 1
        where = f"on host {self._hosts[name]}" if name in self._hosts else f"of {self._where}"
        self._events.append(Lost(name, f"worker {name} {where} is lost ({_first_line(error)})"))
        if self._futile <= FUTILE * self.workers:
            self._begin_worker()

    def _look(self) -> None:
        """After a while without events, see whether there is a cluster, and whether it has room."""
        self._refuse_gone()
        try:
            room = self._room()
        except Exception as error:
            raise self._gone(error) from error
        self._waited = 0.0 if self._streams or room else self._waited + LOOK
        if self._waited >= NO_ROOM:
            raise self._gone(f"no node has had room for a worker for {NO_ROOM:.0f} s")

    def _refuse_gone(self) -> None:
        """Raise an error if the cluster's head cannot be reached.

        A call of Ray would wait for it for a minute, and then end this process without a word of ours.
        """
        host, _, port = self._head.rpartition(":")
        for _ in range(KNOCKS):
            with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), LOOK):
                return
            time.sleep(1.0)
        self._is_gone = True
        raise self._gone("its head does not answer")

    def _gone(self, why: object) -> RdpBenchError:
        said = _first_line(why) if isinstance(why, Exception) else why
        return RdpBenchError(f"{self._where} is gone ({said}). {KEPT}")


class _Actor:
    """A process of the cluster; named by the driver, for one run after another."""

    def __init__(self) -> None:
        self._remote: Remote | None = None

    def begin(self, spec: WorkerSpec, name: str) -> Event:
        """Make the worker of a run."""
        if self._remote is not None:
            self._remote.close()
        found = start_worker(spec, name)
        if isinstance(found, Refused):
            return found
        self._remote = found
        return Ready(name, socket.gethostname())

    def do(self, task: Task) -> Any:
        """Do a task; a stream of events that ends with its answer."""
        assert self._remote is not None
        yield from self._remote.do(task)


def _refuse_bad(address: str) -> None:
    """Raises `UsageError` where a cluster's head cannot be: Ray itself would try for minutes."""
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UsageError(
            f"--ray-address {address}: expected HOST:PORT of the cluster's head, mostly port 6379, or auto; submit the "
            "command to a cluster behind ray:// with `ray job submit`"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), LOOK) as head:
            speaks = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_grpc(head)
    except OSError as error:
        raise UsageError(
            f"--ray-address {address}: nothing answers there, asked from host {socket.gethostname()} "
            f"({error.strerror or error})"
        ) from error
    if not speaks:
        raise UsageError(
            f"--ray-address {address}: what answers there is no head of a Ray cluster; its port is mostly 6379, and "
            "8265 is its dashboard"
        )


def _speaks_grpc(head: socket.socket) -> bool:
    """Whether a server answers the beginning of HTTP/2 with its settings, as every gRPC server does."""
    head.settimeout(LOOK)
    empty_settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    try:
        head.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
        frame = head.recv(9)
    except OSError:
        return False
    return len(frame) > 3 and frame[3] == 4


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
