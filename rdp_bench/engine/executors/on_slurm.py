"""Workers as an array of Slurm jobs, submitted by submitit; they share the plan through the store (`array`)."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rdp_bench.cache.store import Store
from rdp_bench.engine.executors import array
from rdp_bench.engine.executors.board import Board
from rdp_bench.engine.executors.remote import Remote
from rdp_bench.engine.executors.spec import WorkerSpec
from rdp_bench.engine.options import Placement
from rdp_bench.errors import RdpBenchError, UsageError

log = logging.getLogger(__name__)

OWN = ("account", "comment", "constraint", "cpus_per_gpu", "cpus_per_task", "dependency", "exclude", "exclusive",
    "gpus_per_node", "gpus_per_task", "gres", "mem", "mem_per_cpu", "mem_per_gpu", "nodelist", "partition", "qos",
    "signal_delay_s", "time")  # fmt: skip
"""Options that submitit knows; others are passed on to sbatch."""

REQUEUES = 1000
"""Times that a worker may reach its time limit: each time it goes on from the last finished batch."""

PATIENCE = 60
"""Seconds that squeue may take."""

DAY = "1-0"
"""Time limit where --slurm names none, as sbatch writes days and hours."""


class SlurmArray:
    """An array of `workers` jobs.

    Raises:
        UsageError: submitit or sbatch is missing, or the options cannot be read.
    """

    def __init__(self, spec: WorkerSpec, placement: Placement) -> None:
        try:
            import submitit  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise UsageError(
                f"--executor slurm needs submitit: pip install '.[slurm]' in the checkout ({error})"
            ) from error
        if shutil.which("sbatch") is None:
            raise UsageError(
                f"--executor slurm: host {socket.gethostname()} has no sbatch; run on a login node of the cluster"
            )
        if "://" in spec.cache:
            raise UsageError(
                f"--executor slurm: --cache {spec.cache} is not a folder; name one that all nodes see, for the array's "
                "files lie beside its notes"
            )
        self.workers = placement.count or 1
        self._options = parse(placement.slurm)
        self._spec = spec
        self._board = Board(Store(Path(spec.cache)), spec.plan)
        self._id = ""

    @property
    def _folder(self) -> Path:
        return Path(self._board.folder) / "slurm"

    def submit(self) -> str:
        """Submit the array; one of an earlier command that still lives is followed instead."""
        before = self._board.kept("array.json")
        lives = before and self._in_queue(str(before.get("id")))
        if before and lives is None:
            raise UsageError(
                f"--executor slurm: whether Slurm array {before['id']} of an earlier command still works is not known, "
                "because squeue fails; try again when Slurm answers"
            )
        if before and lives:
            self._id = str(before["id"])
            log.warning("Slurm array %s of an earlier command is still there; following it", self._id)
            return f"Slurm array {self._id}"
        import submitit

        self._folder.mkdir(parents=True, exist_ok=True)
        self._board.keep("spec.json", self._spec.json())
        executor = submitit.AutoExecutor(self._folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
        given: dict[str, Any] = {"cpus_per_task": self._spec.threads, "time": DAY, **self._options}
        given |= {"time": minutes(given["time"]), "signal_delay_s": seconds(given.get("signal_delay_s", "90"))}
        known = {f"slurm_{name}": value for name, value in given.items() if name in OWN}
        more = {name: value for name, value in given.items() if name not in OWN}
        # Every worker requeues by itself when its time is up; one whose node dies is requeued by Slurm.
        executor.update_parameters(
            name=f"rdp-bench-{self._spec.grid['name']}",
            **known,
            slurm_srun_args=[f"--cpus-per-task={given['cpus_per_task']}"],  # srun does not take it from sbatch
            slurm_additional_parameters={"requeue": True, **more},
        )
        calls = [
            ArrayWorker(str(self._board.folder / "spec.json"), index, self.workers) for index in range(self.workers)
        ]
        try:
            with executor.batch():
                jobs = [executor.submit(call) for call in calls]
        except Exception as error:  # submitit's own kinds; sbatch has said why on stderr
            raise UsageError(f"--slurm: sbatch refused the array: {_first_line(error)}") from error
        self._id = str(jobs[0].job_id).partition("_")[0]
        self._board.keep("array.json", {"id": self._id, "workers": self.workers})
        return f"Slurm array {self._id} of {self.workers} workers"

    def alive(self) -> bool:
        return self._in_queue(self._id) is not False  # else the workers need no controller of Slurm

    def log(self) -> str:
        return str(self._folder)

    def _in_queue(self, number: str) -> bool | None:
        """Whether a job of an array runs or waits; None if Slurm does not say."""
        if not number.isdecimal():
            return False
        asked = ["squeue", "--noheader", "--jobs", number, "--format", "%T"]
        try:
            found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("squeue: no answer within %d s", PATIENCE)
            return None
        if found.returncode and "Invalid job id" not in found.stderr:
            log.warning("squeue: %s", found.stderr.strip() or f"exit status {found.returncode}")
            return None
        return bool(found.stdout.strip())  # "COMPLETING" too: that is how a worker looks that is being requeued


class ArrayWorker:
    """What a job of the array calls. submitit pickles it: two numbers and the path of a specification."""

    def __init__(self, spec: str, index: int, count: int) -> None:
        self.spec, self.index, self.count = spec, index, count

    def __call__(self) -> int:
        """Work until nothing is left to begin."""
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
        spec = WorkerSpec.read(json.loads(Path(self.spec).read_bytes()))
        # The same after a requeue, so that it finds its own claims.
        number = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or str(os.getpid())
        name = f"slurm-{number}-{self.index}"
        try:
            remote = Remote(spec, name)
        except RdpBenchError as error:
            board = Board(Store(Path(spec.cache)), spec.plan)
            with contextlib.suppress(RdpBenchError):
                board.refuse(name, str(error))
            raise
        done: list[int] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                done.append(array.work(remote, self.index, self.count))
            except BaseException as error:
                errors.append(error)
            finally:
                remote.close()

        # submitit's handler of signals runs in this thread. What it raises must not look like an error of an entry, so
        # the entries work in another thread, which ends with the process.
        thread = threading.Thread(target=work, daemon=True, name="work")
        thread.start()
        while thread.is_alive():
            thread.join(1.0)
        if errors:
            raise errors[0]
        return done[0]

    def checkpoint(self) -> Any:
        """The time is up: begin again, where the finished batches are found."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def parse(text: str) -> dict[str, str]:
    """`partition=gpu,time=4:00:00,gres=gpu:1` by name. A part without "=" belongs to the one before: `nodelist=a,b`.

    >>> parse("partition=gpu,nodelist=a,b")
    {'partition': 'gpu', 'nodelist': 'a,b'}

    Raises:
        UsageError: something else.
    """
    found: dict[str, str] = {}
    name = ""
    for part in filter(None, (each.strip() for each in text.split(","))):
        first, equals, value = part.partition("=")
        if equals and first.strip():
            name = first.strip().lstrip("-").replace("-", "_")
            found[name] = value.strip()
        elif name and not equals:
            found[name] += f",{part}"
        else:
            raise UsageError(
                f'--slurm {text}: expected options of sbatch, like "partition=gpu,time=4:00:00,gres=gpu:1"'
            )
    if "array" in found:
        raise UsageError("--slurm array=...: the array is made from --workers N")
    return found


def wants_gpu(text: str) -> bool:
    """Whether these options ask for a GPU."""
    return any("gpu" in f"{name}={value}" for name, value in parse(text).items() if name.startswith(("gres", "gpus")))


def minutes(text: str) -> int:
    """A time limit of sbatch in minutes, rounded up.

    >>> minutes("30"), minutes("4:00:00"), minutes("1:30"), minutes("1-0"), minutes("2-12:00")
    (30, 240, 2, 1440, 3600)

    Raises:
        UsageError: something else.
    """
    days, dash, rest = text.rpartition("-")
    fields = rest.split(":")
    if len(fields) > 3 or not all(each.isdecimal() for each in [*fields, *([days] if dash else [])]):
        raise UsageError(f"--slurm time={text}: expected minutes, hours:minutes:seconds or days-hours")
    numbers = [int(each) for each in fields]
    if dash:
        hours, some, seconds = (*numbers, 0, 0)[:3]
        return int(days) * 1440 + hours * 60 + some + (seconds > 0)
    if len(numbers) == 3:
        return numbers[0] * 60 + numbers[1] + (numbers[2] > 0)
    return numbers[0] + (len(numbers) == 2 and numbers[1] > 0)


def seconds(text: str) -> int:
    """Seconds before the time limit at which a worker is told.

    Raises:
        UsageError: no whole number.
    """
    if not (text.isdecimal() and text.isascii()):
        raise UsageError(f"--slurm signal_delay_s={text}: expected seconds, like 300")
    return int(text)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "error" in line.lower()] or lines or [type(error).__name__]
    return said[0]
