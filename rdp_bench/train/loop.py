"""The training loop: steps, gradient checks, validation, checkpoints, the best weights with their card."""

import hashlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from rdp_bench.data.photographs import PhotographHashes
from rdp_bench.environment import processor, versions
from rdp_bench.errors import RdpBenchError, StorageError, UsageError
from rdp_bench.keys import diff_records
from rdp_bench.train.options import SCHEDULES
from rdp_bench.train.photos import Photos
from rdp_bench.train.recipe import AVERAGE, Recipe
from rdp_bench.train.scalars import board, read_csv, short, write_csv
from rdp_bench.weights import files as weight_files

log = logging.getLogger(__name__)

PATIENCE = 50
"""Updates of one optimizer in a row without a finite gradient after which a training has failed."""

CLIP = 1.0
"""Largest gradient norm of an optimizer's parameters."""

Validate = Callable[[Callable[[Tensor], Tensor]], dict[str, float]]


@dataclass
class LoopIntervals:
    """Intervals of logging, validation and checkpoints."""

    log_every: int = 20  # steps a row of train.csv
    validate_every: int = 250  # steps
    checkpoint_minutes: float = 3.0


class Training:
    """A training of a recipe in a folder, which holds checkpoint.pt, train.csv and the best weights so far."""

    def __init__(
        self,
        recipe: Recipe,
        photos: Photos,
        out: Path,
        validate: Validate | None = None,
        pace: LoopIntervals | None = None,
        start: Path | None = None,
    ) -> None:
        """`start`: the weight file that the recipe began with, where it did."""
        before = weight_files.read_photographs(start) if start else ""
        self._before = PhotographHashes.from_json(before, str(start)) if before else None
        self._started = start is not None
        self.recipe, self.photos, self.out, self.validate = recipe, photos, out, validate
        self.pace = pace or LoopIntervals()
        self.options = recipe.options
        self.done = 0
        self.seconds = 0.0
        self.skipped = 0  # updates without a finite gradient, in all
        self.best: dict[str, Any] = {"score": math.inf, "step": 0, "metrics": {}}
        self.best_state: dict[str, Tensor] = {}
        self.best_extras: dict[str, dict[str, Tensor]] = {}  # of the same step, by the name of the entry
        self._failed_in_a_row = dict.fromkeys(recipe.optimizers, 0)
        self._rows: list[dict[str, str]] = []  # of train.csv
        self._sums: dict[str, float] = {}
        self._lines = 0
        self._show: Callable[[dict[str, Any]], None] = lambda _: None

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.out / "checkpoint.pt"

    def run(self, command: str = "", on_step: Callable[[int, dict[str, float]], None] | None = None) -> Path:
        """Train to the last step; returns the weight file.

        Raises:
            RdpBenchError: the losses stay NaN or infinite. KeyboardInterrupt: on Ctrl-C, after the step under way
                and a checkpoint.
        """
        # Rows of a training that was killed after its last checkpoint, or before its first, are written again.
        self._rows = [row for row in read_csv(self.out / "train.csv") if int(row["step"]) <= self.done]
        saved = time.monotonic()
        with ThreadPoolExecutor(1) as ahead, _held_back() as interrupted, board(self.out, self.done) as self._show:
            following = ahead.submit(self._crops, self.done)
            while self.done < self.options.steps:
                started = time.monotonic()
                crops, following = following.result(), self._following(ahead)
                self.step(crops)
                self.seconds += time.monotonic() - started
                self._count()
                last = self.done == self.options.steps
                if self.validate and (last or self.done % self.pace.validate_every == 0):
                    self._validate(command)
                stopped = interrupted.is_set()
                if last or stopped or time.monotonic() - saved > 60 * self.pace.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
                if on_step:
                    on_step(self.done, self.best["metrics"])
                if stopped:
                    raise KeyboardInterrupt
        if not self.best_state:
            self._keep({}, command)
        elif not all(self._file(name).is_file() for name in (self.recipe.name, *self.best_extras)):
            # Only the checkpoint was brought here.
            self._write_product(command)
        return self.product_file

    def _following(self, ahead: ThreadPoolExecutor) -> "Future[Tensor]":
        return ahead.submit(self._crops, self.done + 1)

    def _crops(self, step: int) -> Tensor:
        # A generator a step: a resumed training draws what an uninterrupted one would have drawn.
        rng = Generator().manual_seed(_seed(self.options.seed, step, "crops"))
        return self.photos.crops(self.options.batch, self.options.crop, rng)

    def step(self, crops: Tensor) -> None:
        """One step on crops uint8 `[n, 3, h, h]`: inputs, losses, updates."""
        device = self.recipe.device
        clean = crops.to(device, non_blocking=True).float().div_(255)
        rng = Generator(device).manual_seed(_seed(self.options.seed, self.done, "step"))
        rate = self.options.rate * SCHEDULES[self.options.schedule](self.done / self.options.steps)
        kind = torch.device(device).type
        fast = self.options.precision == "bfloat16" or (self.options.precision == "auto" and kind == "cuda")
        low: AbstractContextManager[Any] = torch.autocast(kind, torch.bfloat16) if fast else nullcontext()
        if self.recipe.features:
            self.recipe.features.turn = self.done
        trained = [net for name, net in self.recipe.nets.items() if name != AVERAGE]
        statistics = [(buffer, buffer.clone()) for net in trained for buffer in net.buffers()]
        for net in self.recipe.nets.values():
            net.eval()
        inputs = self.recipe.prepare(clean, rng)
        for net in self.recipe.nets.values():
            net.train(not self.recipe.frozen_statistics)
        with low:
            clean, inputs = (x.contiguous(memory_format=torch.channels_last) for x in (clean, inputs))
            for name, loss in self.recipe.steps(clean, inputs, rng):
                if not self._update(name, loss, rate):
                    for buffer, before in statistics:
                        buffer.copy_(before)
        for net in self.recipe.nets.values():
            net.eval()
        self.done += 1

    def _update(self, name: str, loss: Tensor, rate: float) -> bool:
        """One optimizer step; False if the gradient is not finite, and then nothing is changed."""
        optimizer = self.recipe.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(loss.device.type, enabled=False):  # F's own backward passes are in its precision
            loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        if torch.isfinite(norm) and torch.isfinite(loss.detach()):
            optimizer.step()
            self._failed_in_a_row[name] = 0
            return True
        self.skipped += 1
        self._failed_in_a_row[name] += 1
        log.warning("step %d: the gradient of %s is not finite; this update is skipped", self.done, name)
        if self._failed_in_a_row[name] >= PATIENCE:
            raise RdpBenchError(
                f"training {self.recipe.name} has failed: {PATIENCE} updates in a row without a finite gradient. "
                f"Lower --rate (now {self.options.rate:g}) and train again"
            )
        return False

    def _count(self) -> None:
        for term, value in self.recipe.terms.items():
            self._sums[term] = self._sums.get(term, 0.0) + value.item()
        self._lines += 1
        if self._lines == self.pace.log_every or self.done == self.options.steps:
            row = {term: total / self._lines for term, total in self._sums.items()}
            self._write({"step": self.done, "seconds": round(self.seconds, 1), "skipped": self.skipped, **row})
            self._sums, self._lines = {}, 0

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append({key: short(value) for key, value in row.items()})
        write_csv(self.out / "train.csv", self._rows)
        self._show(row)

    def _validate(self, command: str) -> None:
        assert self.validate
        found = self.validate(self.recipe.purify)
        self._write({"step": self.done, "seconds": round(self.seconds, 1), **found})
        if found["score"] < self.best["score"]:
            self._keep(found, command)

    def _keep(self, metrics: dict[str, float], command: str) -> None:
        """Save these weights as the best, with their card."""
        self.best = {"score": metrics.get("score", math.inf), "step": self.done, "metrics": metrics}
        self.best_state = _copied(self.recipe.export())
        self.best_extras = {name: _copied(net.state_dict()) for name, net in self.recipe.extra_exports().items()}
        self._write_product(command)

    def _write_product(self, command: str) -> None:
        about, hashes = self.metadata(command), self._photographs()
        for name, state in {self.recipe.name: self.best_state, **self.best_extras}.items():
            weight_files.save(self._file(name), state, {**about, "defense": name}, photographs=hashes)

    def _photographs(self) -> str:
        """The hashes of the photographs of this training and of what it began with."""
        hashes = self.photos.hashes
        return (hashes.after(self._before) if self._started else hashes).to_json()

    @property
    def product_file(self) -> Path:
        """The best weights so far."""
        return self._file(self.recipe.name)

    def _file(self, name: str) -> Path:
        return self.out / f"{name}.safetensors"

    def metadata(self, command: str) -> dict[str, Any]:
        """The metadata of the weight file: its defense, the arguments of its network, and the card."""
        undefended = getattr(self.validate, "undefended", {})
        card = {
            "command": command,
            "options": self.options.record(),
            "data": {"photographs": len(self.photos.training), "held_out": len(self.photos.held_out),
                     "validated": self._judged, "record": self.photos.record},
            "networks": self.recipe.frozen_hashes(),
            "steps": self.best["step"],
            "seconds": round(self.seconds),
            "machine": f"{processor()}, {torch.get_num_threads()} threads" if self.recipe.device == "cpu"
            else torch.cuda.get_device_name(self.recipe.device),
            "versions": versions(),
            "validation": {key: round(value, 4) for key, value in self.best["metrics"].items()},
            "undefended": {key: round(value, 4) for key, value in undefended.items()},
        }  # fmt: skip
        return {"defense": self.recipe.name, "net": self.recipe.net_args, "card": card}

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "options": self.options.record(),
            "photos": self.photos.record,
            "networks": self.recipe.frozen_hashes(),
            "done": self.done,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "nets": {name: net.state_dict() for name, net in self.recipe.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.recipe.optimizers.items()},
            "best": self.best,
            "best_state": self.best_state,
            "best_extras": self.best_extras,
            "sums": self._sums,
            "lines": self._lines,
            "judged": self._judged,
        }
        temporary = self.checkpoint.with_name(f".checkpoint.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # else the name may reach the disk before the content does
            temporary.replace(self.checkpoint)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            temporary.unlink(missing_ok=True)
            raise StorageError(f"{self.checkpoint} cannot be written: {error}") from error

    @property
    def _judged(self) -> int:
        """Photographs of the validation: scores of fewer or others are not compared."""
        return int(getattr(self.validate, "images", 0))

    def resume(self) -> None:
        """Continue from the checkpoint.

        Raises:
            UsageError: there is none, it belongs to another training or to other weights of its feature extractors, or
                it was validated on other photographs.
        """
        if not self.checkpoint.is_file():
            raise UsageError(f"--resume: no checkpoint.pt in {self.out}; leave out --resume to start a new training")
        weight_files.require_safe_torch(self.checkpoint)
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            differs = diff_records(
                {"options": self.options.record(), "photos": self.photos.record},
                {"options": state["options"], "photos": state["photos"]},
            )
            if differs:
                raise UsageError(
                    f"{self.checkpoint} belongs to another training ({'; '.join(differs)}). Give the same options, or "
                    "another --out"
                )
            frozen = self.recipe.frozen_hashes()
            for name, before in state.get("networks", {}).items():  # older checkpoints have none
                if (found := frozen.get(name)) != before:
                    raise UsageError(
                        f"{self.checkpoint}: the weights of {name} had the hash {before}, found {found}. Give the "
                        "--models-dir with the earlier weights, or another --out"
                    )
            if (judged := state.get("judged", self._judged)) != self._judged:
                raise UsageError(
                    f"{self.checkpoint}: its best weights were chosen on {judged} held-out photographs; give "
                    f"--validation-images {judged}, found {self._judged}"
                )
            for name, net in self.recipe.nets.items():
                net.load_state_dict(state["nets"][name])
            for name, optimizer in self.recipe.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            self.done, self.seconds, self.skipped = state["done"], state["seconds"], state["skipped"]
            self.best = state["best"]
            self.best_state, self.best_extras = state["best_state"], state.get("best_extras", {})  # older: none
            self._sums, self._lines = state["sums"], state["lines"]
        except UsageError:
            raise
        except Exception as error:  # torch has many kinds for a damaged file
            raise UsageError(
                f"{self.checkpoint} cannot be resumed: it is damaged, or no checkpoint of {self.recipe.name} "
                f"({type(error).__name__}). Remove it to start a new training"
            ) from error


@contextmanager
def only_training(out: Path) -> Iterator[None]:
    """Exclusive lock on `out` for one training; the system releases it if the process is killed.

    Raises:
        UsageError: another training writes there. StorageError: the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        import fcntl

        handle = os.open(out, os.O_RDONLY)
    except ImportError:  # Windows
        yield
        return
    except OSError as error:
        raise StorageError(f"--out {out}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"--out {out}: another training is writing there; wait for it, or name another folder"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other training writes there", out, error.strerror)
        yield
    finally:
        os.close(handle)


@contextmanager
def _held_back() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event, so that the step is finished; a second one stops at once."""
    asked = threading.Event()

    def note(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.warning(
            "stopping after this step; a second interrupt stops at once and loses the steps since the last checkpoint"
        )

    # Signals reach only the main thread; keep handlers that others installed.
    ours = threading.current_thread() is threading.main_thread()
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    taken = [number for number, handler in usual.items() if ours and signal.getsignal(number) == handler]
    for number in taken:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number in taken:
            signal.signal(number, usual[number])


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _seed(seed: int, step: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{what}".encode()).digest()[:8], "big") >> 1
