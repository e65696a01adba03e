"""The training loop: it learns, survives what may happen to it, and goes on as if nothing had."""

import csv
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from rdp_bench import plugins
from rdp_bench.errors import RdpBenchError, StorageError, UsageError
from rdp_bench.registry import defense
from rdp_bench.train import loop, recipes, validate
from rdp_bench.train.loop import Training
from rdp_bench.train.options import SCHEDULES
from rdp_bench.train.validate import Validation
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_train.install(monkeypatch.setitem)


def rows(training: Training) -> list[dict[str, str]]:
    """train.csv but for the time that it took."""
    with (training.out / "train.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same(a: Training, b: Training) -> None:
    """Bit for bit: weights, optimizers, train.csv, the best so far and its file."""
    assert toy_train.same(toy_train.states(a), toy_train.states(b))
    assert rows(a) == rows(b)
    assert a.best == b.best
    assert toy_train.same(a.best_state, b.best_state)
    written = [{path.name: load_file(path) for path in of.out.glob("*.safetensors")} for of in (a, b)]
    assert written[0].keys() == written[1].keys() == {"rdp.safetensors", "rdp-reconstruction.safetensors"}
    assert all(toy_train.same(state, written[1][name]) for name, state in written[0].items())


# It learns


@pytest.mark.parametrize("name", toy_train.NAMES)
def test_ten_steps_lower_the_loss(name: str, tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, name)
    losses: list[float] = []
    total = training.recipe.total

    def noted(terms: dict[str, Tensor]) -> Tensor:
        loss = total(terms)
        losses.append(loss.item())
        return loss

    training.recipe.total = noted  # type: ignore[method-assign]
    crops = training._crops(0)
    for _ in range(10):
        training.done = 0  # the same draws
        training.step(crops)
    assert len(losses) == 10
    assert min(losses[-3:]) < 0.95 * losses[0], losses


@pytest.mark.parametrize("name", [*toy_train.NAMES, "ens-adv"])
def test_low_precision_is_that_of_the_trained_networks_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does by default: networks in bfloat16; inputs, F and the weights in float32."""
    given: dict[str, Any] = {"attack": "wide"} if name in ("rdp", "nrp") else {}
    if name == "ens-adv":
        monkeypatch.setattr("rdp_bench.train.recipes.ens_adv.SHOWN", 32)
        options = recipes.get(name).settings("compact", {"batch": 2, "crop": 32, "precision": "bfloat16"})
        training = Training(recipes.get(name)(options, "cpu"), toy_train.photos(), tmp_path)
    else:
        training = toy_train.training(tmp_path, name, precision="bfloat16", **given)
    inner: set[torch.dtype] = set()
    for net in training.recipe.nets.values():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(
                    lambda _, args, out: None if out.is_meta else inner.add(out.dtype)  # meta: shapes are computed only
                )
    seen: set[torch.dtype] = set()
    features = training.recipe.features
    for member in features.members if features else ():
        look = member.features
        monkeypatch.setattr(member, "features", lambda x, *rest, f=look: (seen.add(x.dtype), f(x, *rest))[1])
    for step in range(4):  # all kinds of `wide` inputs
        training.done = step
        training.step(training._crops(step))
    assert inner == {torch.bfloat16}
    assert seen == ({torch.float32} if features else set())
    assert {p.dtype for net in training.recipe.nets.values() for p in net.parameters()} == {torch.float32}
    assert training.skipped == 0


def test_the_rate_follows_the_schedule(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "rdp", schedule="cosine", rate=0.01)
    rates = []
    for _ in range(10):
        training.step(training._crops(training.done))
        groups = [g for optimizer in training.recipe.optimizers.values() for g in optimizer.param_groups]
        rates.append([group["lr"] for group in groups])
    assert rates == [[0.01 * SCHEDULES["cosine"](i / 10)] * 2 for i in range(10)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", {0: 1, 0.999: 1}),
        ("halving", {0: 1, 0.124: 1, 0.125: 0.5, 0.249: 0.5, 0.25: 0.25, 0.5: 0.125, 0.749: 0.125, 0.75: 0.0625}),
        ("drops", {0: 1, 0.599: 1, 0.6: 0.1, 0.899: 0.1, 0.9: 0.01}),
        # Warm-up over the first .019: from .05; then (1 + cos(pi t)) / 2.
        ("cosine", {0: 0.05, 0.01: 0.55 * 0.99975328, 0.25: 0.85355339, 0.5: 0.5, 0.75: 0.14644661, 1: 0}),
    ],
)
def test_schedules(name: str, values: dict[float, float]) -> None:
    for done, rate in values.items():
        assert SCHEDULES[name](done) == pytest.approx(rate, abs=1e-8)


def test_networks_train_in_train_mode_and_inputs_are_made_in_eval_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = toy_train.training(tmp_path, "nrp")
    nets, modes = training.recipe.nets, []

    def noted(name: str) -> Callable[..., Any]:
        call = getattr(training.recipe, name)

        def wrapped(*given: Any) -> Any:
            modes.append((name, {net.training for net in nets.values()}))
            return call(*given)

        return wrapped

    for name in ("prepare", "steps"):
        monkeypatch.setattr(training.recipe, name, noted(name))
    training.step(training._crops(0))
    assert modes == [("prepare", {False}), ("steps", {True})]
    assert not any(net.training for net in nets.values())


def test_every_step_and_seed_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[bytes]] = {"crops": [], "inputs": []}
    for seed in (0, 1):
        training = toy_train.training(tmp_path, "rdp", seed=seed)
        prepare = training.recipe.prepare
        clean = toy.images(4, 32)

        def noted(_: Tensor, rng: Generator, prepare: Any = prepare, clean: Tensor = clean) -> Tensor:
            made: Tensor = prepare(clean, rng)
            drawn["inputs"].append(made.numpy().tobytes())
            return made

        monkeypatch.setattr(training.recipe, "prepare", noted)
        for step in range(3):
            drawn["crops"].append(training._crops(step).numpy().tobytes())
            training.step(training._crops(0))
    assert [len(set(made)) for made in drawn.values()] == [6, 6]


def test_extractors_take_turns(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "rdp", features=("toy/one", "toy/two"))
    members = training.recipe.features.members
    used = []
    for _ in range(4):
        before = [len(member.zooms) for member in members]
        training.step(training._crops(training.done))
        used.append([len(member.zooms) > old for member, old in zip(members, before, strict=True)])
    assert used == [[True, False], [False, True]] * 2


# It goes on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Ten steps in one go."""
    with pytest.MonkeyPatch.context() as patch:
        toy_train.install(patch.setitem)
        training = toy_train.training(tmp_path_factory.mktemp("whole"), features=("toy/one", "toy/two"))
        training.run()
    return training


def test_a_run_writes_what_it_found(whole: Training) -> None:
    found = rows(whole)
    assert [row["step"] for row in found] == ["2", "2", "4", "4", "6", "6", "8", "8", "10", "10"]
    assert all(float(row["feat"]) > 0 for row in found[::2])
    scores = {int(row["step"]): float(row["score"]) for row in found[1::2]}
    assert whole.best["step"] == min(scores, key=lambda step: scores[step])
    assert f"{whole.best['score']:.6g}" == f"{min(scores.values()):.6g}"
    said = weight_files.read_metadata(whole.product_file)
    assert said["defense"] == "rdp"
    assert said["net"] == {"width": 12, "blocks": 1, "unshuffle": 2}
    assert said["card"]["steps"] == whole.best["step"]
    assert said["card"]["options"]["features"] == ["toy/one", "toy/two"]
    kept = load_file(whole.product_file)
    assert all(torch.equal(kept[name], tensor.half()) for name, tensor in whole.best_state.items())


def test_the_reconstruction_is_kept_beside_the_product(whole: Training, tmp_path: Path) -> None:
    """The file rebuilds what R makes of P's latent; and both files are of one moment."""
    plugins.load()
    training = toy_train.training(tmp_path)
    training.step(training._crops(0))
    for name in ("purifier", "reconstructor"):
        training.recipe.nets[name].half().float()  # as weights are written
    training._keep({}, "")
    x = toy.images(2, 32)
    purifier, reconstructor = (training.recipe.nets[name] for name in ("purifier", "reconstructor"))
    rebuilt = reconstructor(x, purifier.encoder(x)).clamp(0, 1)  # type: ignore[operator]
    path = tmp_path / "rdp-reconstruction.safetensors"
    made = defense.resolve(f"rdp-reconstruction(weights={path})").value.purify(x, toy.image_rng(2))
    assert torch.allclose(made, rebuilt, atol=1e-6)
    assert not torch.allclose(made, training.recipe.purify(x), atol=1e-2)
    said = [weight_files.read_metadata(whole.out / f"{name}.safetensors") for name in ("rdp", "rdp-reconstruction")]
    assert said[1] == {**said[0], "defense": "rdp-reconstruction"}


def test_without_a_reconstructor_there_is_nothing_beside(tmp_path: Path) -> None:
    toy_train.training(tmp_path, without=("recon",))._keep({}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["rdp.safetensors"]


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


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "sr")
    training.validate = None
    training.run()
    assert training.best["step"] == 10
    assert toy_train.same(training.best_state, dict(training.recipe.product.state_dict()))


def test_tensorboard_shows_what_train_csv_holds(tmp_path: Path) -> None:
    """Also after a training was stopped beyond its last checkpoint: no step stands there twice."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def on_step(done: int, _: object) -> None:
        training.pace.checkpoint_minutes = 0 if done == 4 else 1e9
        if done == 8:
            raise RuntimeError("stopped")

    training = toy_train.training(tmp_path, "sr")
    with pytest.raises(RuntimeError, match="stopped"):
        training.run("", on_step)
    resumed = toy_train.training(tmp_path, "sr")
    resumed.resume()
    assert resumed.done == 5
    resumed.run()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [row for row in loop.read_csv(tmp_path / "train.csv") if row["step"]]
    names = {name for row in written for name in row} - {"step"}
    assert set(shown.Tags()["scalars"]) == names
    assert {"pix", "score", "seconds"} <= names
    for name in names:
        events, lines = shown.Scalars(name), [row for row in written if name in row]
        assert [event.step for event in events] == [int(row["step"]) for row in lines], name
        assert [event.value for event in events] == pytest.approx([float(row[name]) for row in lines], rel=1e-5), name


@pytest.mark.parametrize("name", ["rdp", "nrp", "hgd"])
def test_no_recipe_learns_from_the_network_that_judges_it(name: str) -> None:
    kind = recipes.get(name)
    for size in ("compact", "paper"):
        assert validate.JUDGE not in kind.settings(size, {}).features


# Checkpoints that cannot be used


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint\.pt in .*; leave --resume out to start anew"):
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
    with pytest.raises(UsageError, match=r"cannot be resumed: it is damaged, .* Remove it to start anew"):
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


# Gradients that are not finite


def poisoned(training: Training, group: str, when: Callable[[int], bool], value: float = float("nan")) -> None:
    """Let the loss of one optimizer be no number."""
    steps = training.recipe.steps

    def bad(clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[tuple[str, Tensor]]:
        for name, loss in steps(clean, inputs, rng):
            yield name, loss * value if name == group and when(training.done) else loss

    training.recipe.steps = bad  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("group", ["main", "discriminator"])
def test_a_poisoned_update_is_left_out(
    tmp_path: Path, group: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    training = toy_train.training(tmp_path)
    poisoned(training, group, lambda done: done == 2, value)
    for _ in range(2):
        training.step(training._crops(training.done))
    before = toy_train.states(training)
    with caplog.at_level(logging.WARNING):
        training.step(training._crops(2))
    assert f"step 2: the gradient of {group} is not finite; the update is left out" in caplog.text
    after = toy_train.states(training)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    others = {"purifier", "reconstructor", "main"} if group == "discriminator" else {"discriminator"}
    assert changed == others
    assert (training.skipped, training.done) == (1, 3)
    training.step(training._crops(3))
    assert all(value.isfinite().all() for value in toy_train.states(training).values())
    assert training.skipped == 1


def test_a_poisoned_batch_leaves_batch_statistics_alone(tmp_path: Path) -> None:
    training = toy_train.training(tmp_path, "hgd")
    training.step(training._crops(0))
    before = toy_train.states(training)
    prepare = training.recipe.prepare
    training.recipe.prepare = lambda clean, rng: prepare(clean, rng) * float("nan")  # type: ignore[method-assign]
    training.step(training._crops(1))
    assert training.skipped == 1
    assert toy_train.same(before, toy_train.states(training))
    del training.recipe.prepare
    training.step(training._crops(2))
    assert not toy_train.same(before, toy_train.states(training))


def test_a_training_that_only_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the discriminator's updates succeed in between."""
    monkeypatch.setattr(loop, "PATIENCE", 4)
    training = toy_train.training(tmp_path)
    poisoned(training, "main", lambda done: done != 3)
    with pytest.raises(
        RdpBenchError, match=r"training rdp has failed: 4 updates in a row .* Lower --rate \(now 0\.004\)"
    ):
        training.run()
    assert training.done == 7  # three failures, one success, then four
    assert training.skipped == 7


# Validation


def test_validation_sees_what_the_defense_will_do(tmp_path: Path) -> None:
    """What a recipe shows to validation is what its entry makes of the exported file."""
    plugins.load()
    for name in toy_train.NAMES:
        training = toy_train.training(tmp_path, name)
        for _ in range(2):
            training.step(training._crops(training.done))
        path = tmp_path / f"{name}.safetensors"
        weight_files.save(path, training.recipe.export(), training.metadata(""), half=False)
        x = toy.images(2, 224)
        shown = training.recipe.purify(x).detach()
        made = defense.resolve(f"{name}(weights={path})").value.purify(x, toy.image_rng(2))
        assert shown.shape == made.shape
        # Batch-norms are folded in the one and not in the other.
        assert torch.allclose(shown, made.detach(), atol=1e-5)


@pytest.fixture
def toy_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "SOURCE", "toy/one")
    monkeypatch.setattr(validate, "JUDGE", "toy/two")
    monkeypatch.setattr(validate, "SelfSupervised", lambda steps: validate.__dict__["_ssp"](steps=steps, level=1))
    from rdp_bench.attacks.ssp import SelfSupervised

    monkeypatch.setattr(validate, "_ssp", SelfSupervised, raising=False)


def test_validation_counts_agreement_and_psnr(toy_judges: None) -> None:
    clean = (toy.images(4, 32) * 255).round() / 255
    found = Validation(clean, "cpu")
    assert set(found.sets) == {"clean", "ssp", "mi-fgsm"}
    for name in ("ssp", "mi-fgsm"):
        assert 15 <= float((found.sets[name] - clean).abs().max()) * 255 <= 16.01
    # The identity: what is there without a defense.
    seen = found(lambda x: x)
    assert {key: seen[key] for key in found.undefended} == found.undefended
    assert seen["agree_clean"] == 100
    assert seen["psnr_clean"] == pytest.approx(100)
    for name in ("ssp", "mi-fgsm"):
        mse = ((found.sets[name] - clean) ** 2).mean((1, 2, 3)).numpy()
        assert seen[f"psnr_{name}"] == pytest.approx(float(np.mean(-10 * np.log10(mse))), rel=1e-4)
    judge = toy_train.Maps("", 10)
    logits = {name: judge(images) for name, images in found.sets.items()}
    wanted = logits["clean"].softmax(1)
    divergence = [float((wanted * (wanted.log() - other.log_softmax(1))).sum(1).mean()) for other in logits.values()]
    assert seen["score"] == pytest.approx(sum(divergence) / 3, rel=1e-3)
    agreed = [float((other.argmax(1) == wanted.argmax(1)).float().mean()) * 100 for other in logits.values()]
    assert [seen[f"agree_{name}"] for name in logits] == agreed
    # A perfect purifier.
    place = {name: iter([clean]) for name in found.sets}
    perfect = found(lambda x: next(next(p for n, p in place.items() if torch.equal(found.sets[n], x))))
    assert perfect["score"] == pytest.approx(0, abs=1e-6)
    assert perfect["psnr_ssp"] == pytest.approx(100)


def test_validation_of_larger_images(toy_judges: None) -> None:
    """A super-resolved image is judged at its size, told so, and compared after reduction."""
    clean = toy_train.photos(((32, 32),)).image(0)
    found = Validation(torch.from_numpy(clean.copy())[None].float() / 255, "cpu")
    zooms = found.judge.zooms
    del zooms[:]
    seen = found(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert 2.0 in zooms
    assert seen["psnr_clean"] > 30
