"""Notes that workers leave in the store for each other and for `rdp-bench status`: who does what, what failed.

    ROOT/notes/<run>/run.json              what the run is, and its jobs with the keys of their artefacts
    ROOT/notes/<run>/workers/<name>.json   written every few seconds by a worker that lives
    ROOT/notes/<run>/claims/<task>.json    which worker does a task
    ROOT/notes/<run>/failed/<task>.json    why a task failed, and where
    ROOT/notes/<run>/remarks/<task>.json   what a reader of the results must know

`<run>` is a hash of the keys of all jobs: the same command, anywhere, finds the same notes. Notes are hints. No result
depends on them, and nothing needs a lock: where two workers claim one task at the same moment, both do it, and the
second finds the batches of the first.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdp_bench.cache.store import Store, write_atomic
from rdp_bench.engine.jobs import Job
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.tasks import Part, Task, distinct, numbered
from rdp_bench.errors import StorageError
from rdp_bench.keys import Record, hash_many, key_of

log = logging.getLogger(__name__)

BEAT = 10.0
"""Seconds between two signs of life of a worker."""

EXPIRES = 90.0
"""Seconds after its last sign of life when a worker counts as gone. Clocks may differ by less than that."""

_RUN = re.compile(r"[0-9a-f]{32}")
"""The name of a folder of notes."""

KEPT = 30 * 86400.0
"""Seconds after which the notes of a run are deleted."""


def digest(plan: Plan) -> str:
    """The name of a plan: equal where all its keys are."""
    return hash_many(
        f"{number} {key_of(record)}" for number, job in enumerate(numbered(plan)) for record in job.records
    )


def worker_name() -> str:
    """A name for this process that no other has: its host, its number, and a random part."""
    return f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


@dataclass
class Board:
    """The notes of one run."""

    store: Store
    run: str

    @property
    def folder(self) -> Any:
        return self.store.root / "notes" / self.run[:32]

    def begin(self, plan: Plan, facts: Record, *, alone: bool = True) -> None:
        """Say what the run is; unless other processes take part in it, forget what failed before.

        Raises:
            StorageError: the store cannot be written to.
        """
        for path in self._files("failed") if alone else ():
            _remove(path)
        sweep(self.store)
        every = numbered(plan)
        jobs = {
            number: {
                "name": str(every[number]),
                "artefacts": [[record["kind"], key_of(record)] for record in every[number].records],
            }
            for number in distinct(plan)
        }
        self._write("run.json", {**facts, "time": time.time(), "jobs": jobs})

    def about(self) -> Record | None:
        """What `begin` wrote; None where it did not, or not all of it is there."""
        found = _read(self.folder / "run.json")
        good = found and isinstance(found.get("jobs"), dict) and isinstance(found.get("time", 0.0), int | float)
        return found if good else None

    # --- workers ---

    def beat(self, worker: str, facts: Record) -> None:
        """A sign of life."""
        self._write(f"workers/{worker}.json", {**facts, "time": time.time()})

    def leave(self, worker: str) -> None:
        """The worker ends."""
        _remove(self.folder / "workers" / f"{worker}.json")

    def workers(self) -> dict[str, Record]:
        """What each worker that lives wrote last."""
        found = {path.name.removesuffix(".json"): _read(path) for path in self._files("workers")}
        return {name: facts for name, facts in found.items() if facts and _age(facts) < EXPIRES and not _ended(facts)}

    # --- tasks ---

    def claim(self, task: Task, worker: str) -> bool:
        """Take a task, unless a worker that lives has it."""
        path = self.folder / "claims" / f"{task.name}.json"
        content = json.dumps({"worker": worker, "time": time.time()}).encode()
        for _ in range(2):
            if _create(path, content):
                return True
            found = _read(path)
            owner = str(found.get("worker")) if found else ""
            if owner == worker:
                return True
            if found and (owner in self.workers() or _age(found) < BEAT):
                return False
            _remove(path)
        return False

    def owner(self, task: Task) -> str:
        """The worker that claims a task; empty where none does."""
        return str((_read(self.folder / "claims" / f"{task.name}.json") or {}).get("worker", ""))

    def release(self, task: Task) -> None:
        """Give a task back."""
        _remove(self.folder / "claims" / f"{task.name}.json")

    def ended(self, part: Part, worker: str, reason: str, remarks: tuple[str, ...]) -> None:
        """Note how a task ended; that it is done is seen in the store."""
        about = {"job": str(part.job), "number": part.task.number, "worker": worker, "time": time.time()}
        failed = f"failed/{part.task.name}.json"
        if reason:
            self._write(failed, {**about, "reason": reason})
        else:
            _remove(self._path(failed))
        if remarks:
            self._write(f"remarks/{part.task.name}.json", {**about, "remarks": list(remarks)})

    def failed_tasks(self) -> set[str]:
        """Names of the tasks that failed since the run began."""
        return {path.name.removesuffix(".json") for path in self._files("failed")}

    def failures(self) -> dict[int, Record]:
        """The failed jobs by number: `reason`, `worker`."""
        found: dict[int, Record] = {}
        for path in self._files("failed"):
            facts = _read(path)
            if facts and isinstance(facts.get("number"), int):
                found.setdefault(facts["number"], facts)
        return found

    def remarks(self) -> list[str]:
        """What workers remarked, each text once."""
        texts: dict[str, None] = {}
        for path in self._files("remarks"):
            for text in (_read(path) or {}).get("remarks", ()):
                texts[str(text)] = None
        return list(texts)

    def keep(self, name: str, content: Record) -> None:
        """Write another note of the run."""
        self._write(name, content)

    def kept(self, name: str) -> Record | None:
        """What `keep` wrote, if it is there and whole."""
        return _read(self.folder / name)

    def refuse(self, worker: str, why: str) -> None:
        """Note that a worker could not do any task."""
        self._write(f"refused/{worker}.json", {"why": why, "time": time.time()})

    def refusals(self, since: float) -> list[str]:
        """Why workers could do no task, of those that said so after `since`."""
        notes = [_read(path) for path in self._files("refused")]
        return [str(note["why"]) for note in notes if note and note.get("time", 0) >= since]

    def _files(self, kind: str) -> list[Any]:
        return [path for path in _children(self.folder / kind) if path.name.endswith(".json")]

    def _path(self, name: str) -> Any:
        path = self.folder
        for part in name.split("/"):
            path = path / part
        return path

    def _write(self, name: str, content: Record) -> None:
        write_atomic(self._path(name), json.dumps(content).encode())


def boards(store: Store) -> list[Board]:
    """The runs that left notes in a store, the last one first."""
    found = [Board(store, path.name) for path in _children(store.root / "notes")]
    return sorted(found, key=lambda board: -float((board.about() or {}).get("time", 0.0)))


def sweep(store: Store, age: float = KEPT) -> None:
    """Delete the notes of runs that began more than `age` seconds ago and have no worker."""
    for board in boards(store):
        about = board.about()
        if not about or _age(about) < age or board.workers() or not _RUN.fullmatch(board.run):
            continue
        if isinstance(board.folder, Path):
            shutil.rmtree(board.folder, ignore_errors=True)
            continue
        for kind in ("workers", "claims", "failed", "remarks", "refused"):
            for path in board._files(kind):
                _remove(path)
        for path in _children(board.folder):
            _remove(path)


@dataclass
class Heart:
    """Writes signs of life of a worker while it lives, from a thread of its own."""

    board: Board
    worker: str
    facts: Record = field(default_factory=lambda: {"host": socket.gethostname(), "pid": os.getpid()})
    """What the worker does now."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def beating(self) -> Iterator["Heart"]:
        """Until the block ends.

        Raises:
            StorageError: the first sign of life could not be written.
        """
        self.board.beat(self.worker, self.facts)
        thread = threading.Thread(target=self._run, daemon=True, name="signs of life")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
            self.board.leave(self.worker)

    def doing(self, job: Job, task: Task) -> None:
        """Say at once what is done now."""
        self.facts = {
            **self.facts, "job": str(job), "number": task.number, "low": task.low, "high": task.high, "images": 0,
            "since": time.time(),
        }  # fmt: skip
        with contextlib.suppress(StorageError):  # it will say so when it stores its batch
            self.board.beat(self.worker, self.facts)

    def count(self, images: int) -> None:
        """So many images more are stored."""
        self.facts = {**self.facts, "images": self.facts.get("images", 0) + images}

    def _run(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(StorageError):
                self.board.beat(self.worker, self.facts)


def _ended(facts: Record) -> bool:
    """Whether a worker was a process of this machine, and is no more."""
    if facts.get("host") != socket.gethostname() or not isinstance(facts.get("pid"), int):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of another user
        return False
    return False


def _age(facts: Record) -> float:
    try:
        return time.time() - float(facts["time"])
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _children(folder: Any) -> list[Any]:
    """What a folder contains, by name; nothing where there is no folder."""
    with contextlib.suppress(OSError):
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    return []


def _create(path: Any, content: bytes) -> bool:
    """Write a file that does not exist yet; False if it does. In an object store, two processes may both succeed."""
    if not isinstance(path, Path):
        if path.exists():
            return False
        write_atomic(path, content)
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free space, or name another folder"
        ) from error
    return True


def _read(path: Any) -> Record | None:
    """A note; None where there is none, or another process is writing it."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _remove(path: Any) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
