"""Weight files as people save them: containers, prefixes, counters, normalisation layers, torchvision's layouts."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rdp_bench.errors import BadModelError
from rdp_bench.models import classifier, zoo
from rdp_bench.models.card import Card
from rdp_bench.weights import files as weight_files
from tests.helpers import toy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CARD = Card(name="tiny", summary="", arch="tiny", weights="file", input_size=24, mean=MEAN, std=STD)
State = dict[str, Any]


def net(seed: int = 0) -> nn.Module:
    """Two convolutions with a batch-norm between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Conv2d(4, 5, 1))).eval()


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def normalised(inner: str, buffers: str, mean: tuple[float, ...] = MEAN, scale: float = 1) -> Callable[[State], State]:
    constants = {"mean": mean, "std": STD}
    return lambda state: {
        **{f"{buffers}{name}": torch.tensor(values).view(1, 3, 1, 1) * scale for name, values in constants.items()},
        **{inner + name: tensor for name, tensor in state.items()},
    }


SAVED: dict[str, Callable[[State], State]] = {
    "module": prefixed("module."),
    "model": prefixed("model."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module.model."),
    "behind a normalisation": normalised("1.", "0."),
    "a normalisation with other names": normalised("model.", "normalize."),
    "buffers": normalised("", ""),
    "of 255": normalised("1.", "0.", scale=255),
    "after a nameless layer": prefixed("1."),
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": prefixed("module.")(state), "acc": 93.1},
    "ema": lambda state: {"ema": state, "model": {name: tensor + 1 for name, tensor in state.items()}},
    "state_dict_ema": lambda state: {"state_dict_ema": state, "state_dict": {n: t + 1 for n, t in state.items()}},
    "nested": lambda state: {"state_dict": {"model": state}},
    "averaged by torch": lambda state: {
        "n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()},
    },
    "thop": lambda state: {
        **state, "total_ops": torch.zeros(1), "conv.total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1),
    },
    "thop behind a prefix": lambda state: {
        **prefixed("module.")(state), "module.total_ops": torch.zeros(1), "total_params": torch.zeros(1),
    },
    "numpy scalars": lambda state: {"state_dict": state, "best": np.float64(0.93), "step": np.int64(7)},
    "numpy scalars among them": lambda state: {**state, "best": np.float32(0.93), "epoch": 3},
    "an old file": lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
}  # fmt: skip


@pytest.mark.parametrize("saved", SAVED)
def test_a_file_is_read_however_it_was_saved(saved: str, tmp_path: Path) -> None:
    good = net(1).state_dict()
    torch.save(SAVED[saved](good), tmp_path / "a.pth")
    made = net(2)
    classifier.load_state(made, weight_files.read_tensors(tmp_path / "a.pth"), CARD, tmp_path / "a.pth")
    found = made.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in good.items())


def test_purifiers_are_read_so_too(tmp_path: Path) -> None:
    good = net(1).state_dict()
    torch.save({"net": prefixed("module.")(good)}, tmp_path / "a.pth")
    made = net(2)
    weight_files.load_strict(made, weight_files.read_tensors(tmp_path / "a.pth"), "tiny", tmp_path / "a.pth")
    assert torch.equal(made.state_dict()["conv.weight"], good["conv.weight"])


def test_another_normalisation_is_refused() -> None:
    made, before = net(2), net(2).state_dict()
    state = normalised("1.", "0.", mean=(0.5, 0.5, 0.5))(net(1).state_dict())
    with pytest.raises(BadModelError, match=r"normalised by mean 0\.5, 0\.5, 0\.5, those of tiny by 0\.485"):
        classifier.load_state(made, OrderedDict(state), CARD, Path("a.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_two_networks_in_one_file_are_not_chosen_between() -> None:
    one, two = net(1).state_dict(), net(2).state_dict()
    state = OrderedDict({**prefixed("student.")(one), **prefixed("teacher.")(two)})
    with pytest.raises(BadModelError, match="unexpected"):
        classifier.load_state(net(3), state, CARD, Path("a.pth"))


def test_a_refusal_shows_one_of_each_kind() -> None:
    good = net(1).state_dict()
    state = OrderedDict(good)
    del state["conv.bias"], state["head.bias"]
    state |= {"conv.offset": torch.zeros(4), "fc.bias": torch.zeros(5), "bn.weight": torch.zeros(9)}
    with pytest.raises(BadModelError) as refused:
        weight_files.load_strict(net(2), state, "tiny", Path("a.pth"))
    text = str(refused.value)
    for shown in ("missing conv.bias", "unexpected conv.offset", "bn.weight: [9] instead of [4]", "2 more"):
        assert shown in text


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(kind: torch.dtype) -> None:
    made, before = net(2), net(2).state_dict()
    state = OrderedDict(net(1).state_dict())
    state["conv.weight"] = (state["conv.weight"] * 100).to(kind)
    with pytest.raises(BadModelError, match=r"conv\.weight: u?(int\d+|bool) instead of floats"):
        weight_files.load_strict(made, state, "tiny", Path("a.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_a_numpy_pickle_still_runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.fromfile, ("/etc/hostname",)

    torch.save({"state_dict": net().state_dict(), "best": Trap()}, tmp_path / "a.pth")
    with pytest.raises(BadModelError, match="refused"):
        weight_files.read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("version", ["2.5.1", "2.0.0+cpu", "1.13.1"])
def test_a_torch_whose_weights_only_is_unsafe_loads_no_pickle(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth")
    save_file(net().state_dict(), tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(BadModelError, match=r"Install torch 2\.6 or newer"):
        weight_files.read_tensors(tmp_path / "a.pth")
    assert weight_files.read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("version", ["2.6.0", "2.10.0+cu128", "3.0.0a0+git123"])
def test_later_ones_do(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", version)
    assert weight_files.read_tensors(tmp_path / "a.pth")


# Layouts that timm converts


def torchvisions(name: str) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = getattr(torchvision.models, name)(weights=None, **EXTRA.get(name, {}))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.copy_(toy.random(module.num_features, seed=1) / 9)  # type: ignore[union-attr,operator]
    return made.eval()


EXTRA: dict[str, dict[str, Any]] = {"inception_v3": {"init_weights": False}}
SIZE = {"inception_v3": 299}
CONVERTED = {
    "vgg11": "vgg11", "resnet18": "resnet18", "inception_v3": "inception_v3", "densenet121": "densenet121",
    "regnet_y_400mf": "regnety_004",
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_torchvisions_layout_gives_torchvisions_logits(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = torchvisions(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ours = timm.create_model(CONVERTED[name]).eval()
    card = replace(CARD, arch=CONVERTED[name], name=f"timm:{CONVERTED[name]}", input_size=SIZE.get(name, 224))
    classifier.load_state(ours, OrderedDict(theirs.state_dict()), card, Path("a.pth"))
    x = toy.random(1, 3, card.input_size, card.input_size)
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    assert float(expected.std()) > 0
    assert torch.allclose(found, expected, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(("name", "arch"), [("mobilenet_v2", "mobilenetv2_100")])
def test_a_layout_that_timm_does_not_convert_is_refused(name: str, arch: str) -> None:
    timm = pytest.importorskip("timm")
    card = replace(CARD, arch=arch)
    with pytest.raises(BadModelError, match=r"missing conv_stem\.weight; unexpected features\.0\.0\.weight.*plugin"):
        classifier.load_state(
            timm.create_model(arch), OrderedDict(torchvisions(name).state_dict()), card, Path("a.pth")
        )


# Where a file is looked for


@pytest.mark.parametrize(
    ("label", "file"),
    [
        ("resnet-v2-50", "resnet-v2-50.pth.tar"),
        ("mine", "mine.ckpt"),
        ("timm:resnet18.a1_in1k", "resnet18.a1_in1k.bin"),
        ("timm:resnet18.a1_in1k", "resnet18.a1_in1k/model.safetensors"),
        ("timm:resnet18.a1_in1k", "resnet18.a1_in1k/pytorch_model.bin"),
        ("timm:vgg16.tv_in1k", "vgg16.safetensors"),  # timm's own weights of that name without a tag
        ("timm:vgg16", "vgg16.tv_in1k.pth"),
        ("timm:vgg16", "vgg16.pth"),
    ],
)
def test_files_by_name(label: str, file: str, tmp_path: Path) -> None:
    place = tmp_path / file
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"")
    assert zoo._local(label, tmp_path) == place


def test_a_file_without_a_tag_is_not_that_of_other_weights(tmp_path: Path) -> None:
    """One file under two labels of a run would be one network measured as two."""
    pytest.importorskip("timm")
    (tmp_path / "inception_v3.safetensors").write_bytes(b"")
    assert zoo._local("timm:inception_v3.gluon_in1k", tmp_path) is None
    (tmp_path / "vgg16.safetensors").write_bytes(b"")
    (tmp_path / "vgg16.tv_in1k.safetensors").write_bytes(b"")
    assert zoo._local("timm:vgg16.tv_in1k", tmp_path) == tmp_path / "vgg16.tv_in1k.safetensors"


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("other", "..", "resnet18.a1_in1k"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    assert zoo._local("timm:resnet18.a1_in1k", tmp_path) is None
    assert zoo._local("timm:../other", tmp_path) is None


def test_a_ckpt_is_torchs_or_tensorflows(tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("model.")(net().state_dict())}, tmp_path / "a.ckpt")
    assert "model.conv.weight" in classifier.read(tmp_path / "a.ckpt", "tiny")
    (tmp_path / "b.ckpt").write_bytes(b"\0" * 99)
    with pytest.raises(BadModelError, match=r"holds a TensorFlow checkpoint\. Convert it: rdp-bench weights convert"):
        classifier.read(tmp_path / "b.ckpt", "tiny")


# Shapes of weights


class Deep(nn.Module):
    """A 5-d weight beside a 4-d and a 3-d one."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.flat, self.conv = nn.Conv3d(1, 2, 3), nn.Conv1d(2, 2, 3), nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def test_weights_of_other_dimensions_are_left_as_they_are() -> None:
    made = weight_files.channels_last(Deep())
    assert made.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert made.deep.weight.is_contiguous()


def test_a_purifier_with_a_5d_weight_is_made_ready() -> None:
    from rdp_bench.defenses._learned import ready

    assert not ready(Deep()).training
