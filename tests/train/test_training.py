"""The training loop: losses fall, schedules and turns are followed, a run writes what it found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from rdp_bench import plugins
from rdp_bench.registry import defense
from rdp_bench.train import loop, recipes, validate
from rdp_bench.train.loop import Training
from rdp_bench.train.options import SCHEDULES
from rdp_bench.weights import files as weight_files
from tests.helpers import toy, toy_train
from tests.helpers.trainings import rows

pytestmark = pytest.mark.usefixtures("toys")


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
    # Most of the error that a denoiser is measured by cannot be known.
    assert min(losses[-3:]) < (0.97 if name == "denoiser" else 0.95) * losses[0], losses


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
