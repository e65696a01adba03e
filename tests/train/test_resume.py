"""A training that was killed or interrupted goes on as if it had not been; bad checkpoints are refused."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from rdp_bench.errors import StorageError, UsageError
from rdp_bench.train.loop import Training
from tests.helpers import toy_train
from tests.helpers.paths import ROOT
from tests.helpers.trainings import rows

pytestmark = pytest.mark.usefixtures("toys")


def assert_same(a: Training, b: Training) -> None:
    """Bit for bit: weights, optimizers, train.csv, the best so far and its file."""
    assert toy_train.same(toy_train.states(a), toy_train.states(b))
    assert rows(a) == rows(b)
    assert a.best == b.best
    assert toy_train.same(a.best_state, b.best_state)
    written = [{path.name: load_file(path) for path in of.out.glob("*.safetensors")} for of in (a, b)]
    assert written[0].keys() == written[1].keys() == {"rdp.safetensors", "rdp-reconstruction.safetensors"}
    assert all(toy_train.same(state, written[1][name]) for name, state in written[0].items())


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.helpers import toy_train
toy_train.install()
training = toy_train.training(Path(sys.argv[1]), features=("toy/one", "toy/two"))
steps = training.recipe.steps
def killed(clean, inputs, rng):
    for at, step in enumerate(steps(clean, inputs, rng)):
        if training.done == 8 and at == 1:  # between the purifier's update and the discriminator's
            os.kill(os.getpid(), signal.SIGKILL)
        yield step
training.recipe.steps = killed
def on_step(done, metrics):
    training.pace.checkpoint_minutes = 0 if done == 4 else 1e9
training.run("", on_step)
"""


def test_killed_and_resumed_is_as_if_never_killed(whole: Training, tmp_path: Path) -> None:
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    assert rows(resumed)[-1]["step"] == "8"
    resumed.resume()
    assert resumed.done == 5
    resumed.run()
    assert_same(resumed, whole)


def test_killed_before_the_first_checkpoint_starts_anew(whole: Training, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,seconds,feat\n2,0.1,9\n12,0.2,9\n")
    again = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    again.run()
    assert_same(again, whole)


def interrupted(training: Training, at: int, times: int = 1, by: signal.Signals = signal.SIGINT) -> None:
    """Let Ctrl-C, or what a batch system sends, strike in the middle of a step."""
    steps = training.recipe.steps

    def struck(clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[tuple[str, Tensor]]:
        for i, step in enumerate(steps(clean, inputs, rng)):
            if training.done == at and i == 1:
                for _ in range(times):
                    signal.raise_signal(by)
            yield step

    training.recipe.steps = struck  # type: ignore[method-assign]


@pytest.mark.parametrize(("at", "by"), [(0, signal.SIGINT), (5, signal.SIGINT), (9, signal.SIGTERM)])
def test_interrupted_and_resumed_is_as_if_never_interrupted(
    whole: Training, tmp_path: Path, at: int, by: signal.Signals
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    training = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    interrupted(training, at, by=by)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert training.done == at + 1
    resumed = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    resumed.resume()
    assert resumed.done == at + 1
    resumed.run()
    assert_same(resumed, whole)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path)
    interrupted(training, 5, times=2)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert training.done == 5
    assert not training.checkpoint.exists()  # half a step is nothing to go on from


def test_resuming_what_is_finished_changes_nothing(whole: Training, tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    training.run()
    again = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    again.resume()
    again.run()
    assert_same(again, whole)


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint\.pt in .*; leave out --resume to start a new training"):
        toy_train.training(tmp_path).resume()


class Evil:
    """Runs when a careless reader unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "code", "other"])
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, whole: Training, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    training = toy_train.training(tmp_path)
    good = whole.checkpoint.read_bytes()
    if damage == "other":
        torch.save({"done": 3}, training.checkpoint)
    elif damage == "code":
        torch.save({"done": Evil()}, training.checkpoint)
    else:
        bad = {"cut": good[: len(good) // 2], "noise": b"\x07" * 1000, "empty": b""}
        training.checkpoint.write_bytes(bad[damage])
    before = toy_train.states(training)
    with pytest.raises(UsageError, match=r"cannot be resumed: it is damaged, .* Remove it to start a new training"):
        training.resume()
    assert not (tmp_path / "ran").exists()
    assert training.done == 0
    assert toy_train.same(before, toy_train.states(training))
    pickle.loads(pickle.dumps(Evil()))  # the trap works
    assert (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path)
    training.save()
    with pytest.raises(UsageError, match=r"belongs to another training \(options\.rate: 0\.004 -> 0\.01\)"):
        toy_train.training(tmp_path, rate=0.01).resume()
    with pytest.raises(UsageError, match=r"options\.without: \[\] -> \['lat'\]"):
        toy_train.training(tmp_path, without=("lat",)).resume()
    other = toy_train.training(tmp_path)
    other.photos = toy_train.photos(((40, 40),))
    object.__setattr__(other.photos, "record", "others")
    with pytest.raises(UsageError, match="photos: formula -> others"):
        other.resume()


def test_a_checkpoint_of_other_weights_of_a_frozen_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"features": ("toy/one", "toy/two")}
    training = toy_train.training(tmp_path, **flags)
    training.save()
    before = training.recipe.frozen_hashes()
    assert training.metadata("")["card"]["networks"] == before
    toy_train.training(tmp_path, **flags).resume()
    monkeypatch.setattr(toy_train.Maps, "weights_hash", "other", raising=False)
    with pytest.raises(UsageError, match=f"toy/one had the hash {before['toy/one']}, found other. Give the --models"):
        toy_train.training(tmp_path, **flags).resume()
    old = torch.load(training.checkpoint, weights_only=True)
    del old["networks"]
    torch.save(old, training.checkpoint)
    toy_train.training(tmp_path, **flags).resume()


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"checkpoint\.pt cannot be written"):
        training.save()


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = toy_train.training(tmp_path)
    training.save()
    before = training.checkpoint.read_bytes()

    def half(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(StorageError, match="No space left"):
        training.save()
    assert training.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_scores_on_other_photographs_are_not_compared(whole: Training, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(whole.checkpoint.read_bytes())
    resumed = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    resumed.validate = lambda purify: toy_train.judge(purify)
    resumed.validate.images = 16  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="chosen on 0 held-out photographs; give --validation-images 0, found 16"):
        resumed.resume()


def test_the_best_weights_of_a_checkpoint_alone_are_written(whole: Training, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(whole.checkpoint.read_bytes())
    resumed = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    resumed.resume()
    resumed.run()
    for name in ("rdp.safetensors", "rdp-reconstruction.safetensors"):
        assert toy_train.same(load_file(tmp_path / name), load_file(whole.out / name))


def test_a_checkpoint_without_the_weights_beside_the_product_goes_on(whole: Training, tmp_path: Path) -> None:
    """Older checkpoints have none."""
    old = torch.load(whole.checkpoint, weights_only=True)
    del old["best_extras"]
    torch.save(old, tmp_path / "checkpoint.pt")
    resumed = toy_train.training(tmp_path, features=("toy/one", "toy/two"))
    resumed.resume()
    assert toy_train.same(load_file(resumed.run()), load_file(whole.product_file))
