"""Results are stored under the hash of the weights that made them, whenever the file was replaced."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rdp_bench.engine.plan import Plan
from rdp_bench.engine.run import Run
from rdp_bench.engine.schedule import run_here
from rdp_bench.engine.worker import Worker
from rdp_bench.errors import BadModelError
from rdp_bench.metrics import lpips
from rdp_bench.metrics.measurements import measure
from rdp_bench.models import classifier as network_module
from rdp_bench.models import zoo
from rdp_bench.registry import defense
from rdp_bench.weights import files as weight_files
from rdp_bench.weights.kept import Kept
from tests.helpers import toy
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process, plan

CHANGED = "changed since planning; run again"

NETWORK = """
from dataclasses import dataclass
from rdp_bench import Learned, defense

@defense("mine/smooth", source="made up")
@dataclass(frozen=True)
class Smooth(Learned):
    "One convolution."
    kind = "mine/smooth"
    def build(self, **net):
        from torch import nn
        return nn.Conv2d(3, 3, 1, groups=3, bias=False)
"""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with new_process():
        yield


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return path


def smooth(path: Path, factor: float) -> None:
    """The weights of a defense that multiplies each colour; a file of the same size and, to be nasty, time."""
    save_file({"weight": torch.full((3, 1, 1, 1), factor)}, path)
    os.utime(path, (1e9, 1e9))


def stored(made: Plan) -> int:
    return len(list(made.store.root.glob("*/??/*/*.safetensors")))


def outcomes(made: Plan) -> list[str]:
    return [outcome.reason for outcome in run_here(made.jobs, Worker(made)) if outcome.reason]


def test_a_defense_whose_weights_are_replaced_after_planning_fails(tmp_path: Path, network: Path) -> None:
    file = tmp_path / "smooth.safetensors"
    smooth(file, 1.0)
    axes: dict[str, Any] = {"defenses": (f"mine/smooth(weights={file})",), "attacks": (), "image_quality": True}
    made = plan(tmp_path, network, **axes)
    smooth(file, 0.0)
    (reason,) = outcomes(made)
    assert CHANGED in reason
    assert str(file) in reason
    assert stored(made) == 0
    # A new plan has a key of its own, and so has the old file when it is back.
    again = plan(tmp_path, network, **axes)
    assert [job.key for job in again.jobs] != [job.key for job in made.jobs]
    assert outcomes(again) == []
    assert stored(again) > 0
    smooth(file, 1.0)
    back = plan(tmp_path, network, **axes)
    assert [job.key for job in back.jobs] == [job.key for job in made.jobs]
    assert not any(back.done(job) for job in back.jobs)


def test_an_attack_through_a_defense_whose_weights_are_replaced_fails(tmp_path: Path, network: Path) -> None:
    file = tmp_path / "smooth.safetensors"
    smooth(file, 1.0)
    made = plan(tmp_path, network, sources=(f"exact(mine/smooth(weights={file}), tiny/one)",), clean=False)
    smooth(file, 0.5)
    reasons = outcomes(made)
    assert len(reasons) == 2
    assert all(CHANGED in reason for reason in reasons)
    assert stored(made) == 0


@pytest.mark.parametrize("role", ["targets", "sources"])
def test_a_network_whose_file_is_replaced_after_planning_fails(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        network_module, "_loaded", Kept(weighed=True)
    )  # another test may have loaded the very same weights
    monkeypatch.setattr("rdp_bench.engine.class_counts.ClassCounts.add", lambda *_: None)  # the other one has five
    folder = tmp_path / "models"
    folder.mkdir()
    found = zoo.find("effnet-lite0")
    assert isinstance(found, zoo.ModelRef)
    assert found.file
    file = folder / "effnet-lite0.pth"
    shutil.copy(found.file, file)
    made = plan(tmp_path, models_dir=folder, **{role: ("effnet-lite0",)}, clean=role == "targets", limit=1)
    jobs = made.jobs
    state = {name: tensor.clone() for name, tensor in weight_files.read_tensors(file).items()}
    torch.save({name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}, file)
    worker = Worker(made)
    reasons = {str(outcome.job): outcome.reason for outcome in run_here(jobs, worker)}
    if role == "targets":
        assert all(CHANGED in reason for name, reason in reasons.items() if "against" in name)
        assert not list(made.store.root.glob("eval/??/*/*.safetensors"))
    else:
        assert CHANGED in reasons["fgsm on effnet-lite0"]
        assert not list(made.store.root.glob("adv/??/*/*.safetensors"))


def test_one_process_sees_that_weights_were_trained_on(tmp_path: Path, network: Path) -> None:
    file = tmp_path / "smooth.safetensors"
    x = torch.rand(1, 3, 8, 8)
    found = []
    for factor in (1.0, 0.5):
        smooth(file, factor)
        plan(tmp_path, network)
        made: Any = defense.resolve(f"mine/smooth(weights={file})").value
        found.append(made.resolved()["weights"])
        assert torch.allclose(made.purify(x, toy.image_rng(1)), factor * x)
    assert len(set(found)) == 2


def test_one_process_sees_that_the_file_of_a_network_was_replaced(tmp_path: Path) -> None:
    found: Any = zoo.find("effnet-lite0")
    file = tmp_path / "effnet-lite0.pth"
    shutil.copy(found.file, file)
    first = zoo.find("effnet-lite0", tmp_path)
    before, one = first.record()["weights"], first.load("cpu")
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00")
    second = zoo.find("effnet-lite0", tmp_path)
    assert second.record()["weights"] != before
    assert first.load("cpu") is one  # what was loaded is still what the first plan means
    torch.save({k: v.clone() for k, v in weight_files.read_tensors(Path(found.file)).items()}, file)
    assert zoo.find("effnet-lite0", tmp_path).load("cpu") is not one


def test_two_classes_of_one_name_and_file_are_two_networks(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass
from rdp_bench import Learned, defense

def made(name, sign):
    @defense(name, source="made up")
    @dataclass(frozen=True)
    class Made(Learned):
        "One convolution, or its negative."
        kind = "mine/any"
        def build(self, **net):
            from torch import nn
            class Signed(nn.Conv2d):
                def forward(self, x):
                    return sign * super().forward(x)
            return Signed(3, 3, 1, groups=3, bias=False)
        def purify(self, x, draws):
            return self.forward(x)

made("mine/plus", 1)
made("mine/minus", -1)
"""
    path, file = tmp_path / "two.py", tmp_path / "smooth.safetensors"
    path.write_text(text)
    smooth(file, 1.0)
    plan(tmp_path, path)
    x = torch.rand(1, 3, 8, 8)
    found: list[Any] = [defense.resolve(f"mine/{sign}(weights={file})").value for sign in ("plus", "minus")]
    outputs = [each.purify(x, toy.image_rng(1)) for each in found]
    assert torch.allclose(outputs[0], x)
    assert torch.allclose(outputs[1], -x)


PLUGIN_MODEL = '''
from pathlib import Path
from rdp_bench import model
from rdp_bench.keys import hash_file
FILE = Path(__file__).with_name("weights.txt")

@model("mine/net", source="made up")
class Net:
    """Reads a number."""
    name, classes = "mine/net", 5
    def __init__(self):
        self.factor = float(FILE.read_text())
    def __call__(self, x, zoom=1.0):
        return self.factor * x.flatten(1)[:, :5]
    def record(self):
        return {"weights": hash_file(FILE)}
'''


def test_a_plugin_model_is_made_anew_for_each_plan(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(PLUGIN_MODEL)
    found = []
    for factor in (1.0, -1.0):
        (tmp_path / "weights.txt").write_text(str(factor))
        made = plan(tmp_path, path, targets=("mine/net",))
        net: Any = made.models["mine/net"].load("cpu")
        assert float(net(torch.ones(1, 3, 2, 2))[0, 0]) == factor
        found.append(made.models["mine/net"].record())
    assert found[0] != found[1]
    (tmp_path / "weights.txt").write_text("3")
    with pytest.raises(BadModelError, match="mine/net: its record changed since planning"):
        made.models["mine/net"].load("cpu")


def test_lpips_is_that_of_the_planned_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torchmetrics")
    real = lpips.files
    alexnet = tmp_path / "alexnet.pth"
    channels = tmp_path / "channels.pth"
    torch.manual_seed(0)
    net = torchvision.models.alexnet(weights=None)
    torch.save(net.state_dict(), alexnet)
    torch.save(
        {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}, channels
    )
    assert real is not None
    monkeypatch.setattr(lpips, "files", lambda: (alexnet, channels))
    planned = lpips.record()
    assert planned
    x, y = toy.images(1, 32), toy.images(1, 32, seed=1)
    first = measure(x, y, {"lpips": planned})["lpips"]
    torch.save(
        {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) * 2 for i, n in enumerate((64, 192, 384, 256, 256))}, channels
    )
    now = lpips.record()
    assert now
    assert now != planned
    second = measure(x, y, {"lpips": now})["lpips"]
    assert torch.allclose(second, 2 * first)
    lpips._load.cache_clear()
    with pytest.raises(BadModelError, match=CHANGED):
        measure(x, y, {"lpips": planned})


def test_a_run_says_which_cells_lack_their_weights(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As faults go: the file is overwritten when the first line of the run appears."""
    file, out = tmp_path / "smooth.safetensors", tmp_path / "out"
    smooth(file, 1.0)
    args = ("run", "--grid", tmp_path / "tiny.toml", "--plugin", PLUGIN, "--plugin", network, "--out", out)
    args += ("--cache", tmp_path / "cache")
    defenses = ["none", f"mine/smooth(weights={file})"]
    (tmp_path / "tiny.toml").write_text(
        f'[axes]\nattacks = ["fgsm"]\ndefenses = {defenses}\neps = [8]\ndataset = "tiny/noise"\n'
        'sources = ["tiny/one"]\ntargets = ["tiny/two"]\n'
    )
    real = Run.start

    def start(self: Run, *rest: Any) -> Any:
        found = real(self, *rest)
        smooth(file, 0.0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Run, "start", start)
        found = cli(*args)
    assert found.exit_code == 1
    assert "2 of 4 cells done, 2 failed" in found.output
    assert f"{file}: its weights {CHANGED}" in found.output
    assert cli(*args).exit_code == 0


# --- the check itself ----------------------------------------------------------------------------------------


def test_a_file_that_is_swapped_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Also where the old content is back, at its old time, before anybody looks."""
    file = tmp_path / "w"
    file.write_bytes(b"planned")
    expected = weight_files.hash_file(file)

    def swapped() -> None:
        with weight_files.unchanged(file, expected):
            state = file.stat()
            file.write_bytes(b"another")
            file.read_bytes()
            file.write_bytes(b"planned")
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))

    with weight_files.unchanged(file, expected):
        assert file.read_bytes() == b"planned"
    with pytest.raises(BadModelError, match=CHANGED):
        swapped()


def test_a_file_that_breaks_while_it_is_read_is_called_changed(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"planned")
    expected = weight_files.hash_file(file)

    def broken() -> None:
        with weight_files.unchanged(file, expected):
            file.unlink()
            raise BadModelError("damaged")

    with pytest.raises(BadModelError, match=CHANGED):
        broken()
    file.write_bytes(b"planned")
    with pytest.raises(BadModelError, match="does not fit"), weight_files.unchanged(file, expected):
        raise BadModelError("does not fit")
