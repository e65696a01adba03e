"""TF-slim's ResNet-v2 against TF-slim and keras on random weights, and its weight files under TensorFlow's names."""

import contextlib
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.models import classifier, resnet_v2, zoo
from rdp_bench.models import convert as conversion
from rdp_bench.models.resnet_v2 import UNITS, ResNetV2, from_tensorflow, same_pool
from rdp_bench.weights import files as weight_files
from rdp_bench.weights import legacy
from rdp_bench.weights.kept import Kept
from tests.golden import slim
from tests.helpers import toy

SMALL = (2, 2, 2, 1)
Arrays = dict[str, NDArray[np.float32]]


def slim_variables(name: str, units: tuple[int, ...], classes: int = 1001) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every variable of slim's network and its shape, convolutions as [h, w, in, out]; by slim's own rules."""

    def conv(scope: str, size: int, before: int, after: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{scope}/weights", (size, size, before, after)
        if bias:
            yield f"{scope}/biases", (after,)
        else:
            yield from norm(f"{scope}/BatchNorm", after)

    def norm(scope: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield f"{scope}/{part}", (channels,)

    yield from conv(f"{name}/conv1", 7, 3, 64, True)
    channels = 64
    for number, (count, width) in enumerate(zip(units, (64, 128, 256, 512), strict=True), 1):
        for unit in range(1, count + 1):
            scope = f"{name}/block{number}/unit_{unit}/bottleneck_v2"
            yield from norm(f"{scope}/preact", channels)
            if unit == 1:
                yield from conv(f"{scope}/shortcut", 1, channels, 4 * width, True)
            yield from conv(f"{scope}/conv1", 1, channels, width, False)
            yield from conv(f"{scope}/conv2", 3, width, width, False)
            yield from conv(f"{scope}/conv3", 1, width, 4 * width, True)
            channels = 4 * width
    yield from norm(f"{name}/postnorm", channels)
    yield from conv(f"{name}/logits", 1, channels, classes, True)


def values(name: str, units: tuple[int, ...], classes: int = 1001) -> Arrays:
    """Random values for them, under which activations neither vanish nor explode."""
    rng = np.random.default_rng(0)
    out: Arrays = {}
    for variable, shape in slim_variables(name, units, classes):
        part = variable.rpartition("/")[2]
        if part == "weights":
            found = rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[:3]))
        elif part in ("gamma", "moving_variance"):
            found = rng.uniform(0.5, 1.5, shape)
        else:
            found = rng.normal(0, 0.3, shape)
        out[variable] = found.astype(np.float32)
    return out


def mmdnn(variables: Arrays) -> dict[str, Arrays]:
    """The same as tf_to_pytorch_model's files hold them: a table for each node of the graph."""
    parts = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var", "biases": "bias"}
    table: dict[str, Arrays] = {}
    for name, array in variables.items():
        layer, _, part = name.rpartition("/")
        node = "Conv2D" if part in ("weights", "biases") else "FusedBatchNorm"
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        table.setdefault(f"{layer}/{node}", {})[parts.get(part, part)] = turned
    return table


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protocol buffer of these fields."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB block: each key as what it shares with the one before and the rest."""
    out, before = b"", b""
    for key, value in entries:
        shared = next((i for i, pair in enumerate(zip(key, before, strict=False)) if pair[0] != pair[1]), 0)
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def checkpoint(variables: Arrays, kind: int = 0) -> bytes:
    """A V1 checkpoint as TensorFlow lays it out, with a block for every three entries."""
    meta, entries = [], []
    for name, array in variables.items():
        shape = message(*((2, message((1, side))) for side in array.shape))
        meta.append((1, message((1, name.encode()), (2, shape), (3, 1), (4, b""))))
        tensor = message((1, 1), (2, shape), (5, np.ascontiguousarray(array).tobytes()))
        entries.append((b"\0" + name.encode(), message((2, message((1, name.encode()), (2, b""), (3, tensor))))))
    entries.insert(0, (b"", message((1, message(*meta, (2, message((1, 1))))))))
    out, index = b"", []
    for start in range(0, len(entries), 3):
        part = block(entries[start : start + 3])
        index.append((entries[start][0], varint(len(out)) + varint(len(part))))
        out += part + bytes([kind]) + b"crc?"
    handles = b""
    for part in (block([]), block(index)):
        handles += varint(len(out)) + varint(len(part))
        out += part + b"\0crc?"
    return out + handles.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def write(path: Path, table: object) -> Path:
    np.save(path, table, allow_pickle=True)  # type: ignore[arg-type]
    return path


def convert(path: Path, model: str = "resnet-v2-101") -> Path:
    """The converted file, named after the model and beside the released one."""
    out = path.with_name(f"{model}.safetensors")
    assert conversion.convert(path, out, model) > 0
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of seven units under both names."""
    for name in UNITS:
        monkeypatch.setitem(UNITS, name, SMALL)
    monkeypatch.setattr(classifier, "_loaded", Kept(weighed=True))


# --- the architecture ------------------------------------------------------------------------------------


def test_names_and_shapes_are_slims() -> None:
    for name, units in UNITS.items():
        with torch.device("meta"):
            wanted = {key: tuple(tensor.shape) for key, tensor in ResNetV2(units).state_dict().items()}
        named = {key: np.broadcast_to(np.float32(0), shape) for key, shape in slim_variables("resnet_v2_0", units)}
        assert {key: tuple(tensor.shape) for key, tensor in from_tensorflow(named).items()} == wanted, name
    assert sum(np.prod(shape) for _, shape in slim_variables("r", UNITS["resnet-v2-101"], 1000)) == 44_675_560  # keras'


@pytest.mark.parametrize("size", [3, 4, 7, 8, 13, 14])
def test_root_pooling_is_tensorflows_same(size: int) -> None:
    x = toy.random(2, 3, size, size) - 2  # zeros as padding would be seen
    out = -(-size // 2)
    before = max((out - 1) * 2 + 3 - size, 0) // 2
    found = same_pool(x)
    assert found.shape == (2, 3, out, out)
    for i in range(out):
        for j in range(out):
            top, left = (2 * k - before for k in (i, j))
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            assert torch.equal(found[:, :, i, j], window.amax((2, 3)))


def test_it_is_tf_slims_own() -> None:
    """Logits of TF-slim's code itself (tests/golden/slim.py), at its own size and at one with another root pooling."""
    units = UNITS["resnet-v2-101"]
    net = ResNetV2(units).eval()
    given = {name: slim.values(name, shape) for name, shape in slim_variables("resnet_v2_101", units)}
    net.load_state_dict(from_tensorflow(given))
    with np.load(slim.HERE / "slim.npz") as golden, torch.no_grad():
        for size in slim.SIZES:
            expected = torch.from_numpy(golden[str(size)])
            found = net(torch.from_numpy(slim.image(size)).permute(0, 3, 1, 2))[0]
            assert expected.shape == (1001,)
            assert float(expected.std()) > 0.1
            assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    found = pytest.importorskip("keras", reason="keras, the independent implementation, is not installed")
    if found.backend.backend() != "torch":
        pytest.skip("keras runs on another backend here")
    return found


def keras_name(variable: str) -> str:
    """slim's variable -> the path of keras' weight."""
    steps = variable.split("/")[1:]
    last = {
        "weights": "kernel", "biases": "bias", "gamma": "gamma", "beta": "beta", "moving_mean": "moving_mean",
        "moving_variance": "moving_variance",
    }[steps.pop()]  # fmt: skip
    if len(steps) == 1:
        return f"{ {'conv1': 'conv1_conv', 'postnorm': 'post_bn', 'logits': 'predictions'}[steps[0]] }/{last}"
    block, unit, layer = int(steps[0][-1]) + 1, steps[1].removeprefix("unit_"), "/".join(steps[3:])
    name = {
        "preact": "preact_bn", "shortcut": "0_conv", "conv1": "1_conv", "conv1/BatchNorm": "1_bn", "conv2": "2_conv",
        "conv2/BatchNorm": "2_bn", "conv3": "3_conv",
    }[layer]  # fmt: skip
    return f"conv{block}_block{unit}_{name}/{last}"


@pytest.mark.parametrize(("depth", "units"), [("50", (3, 4, 6, 3)), ("101", UNITS["resnet-v2-101"])])
def test_it_is_keras_resnet(keras: Any, depth: str, units: tuple[int, ...]) -> None:
    """Logits and gradients. Keras has slim's strides, biases and epsilon, and differs in two things.

    Its logits are a dense layer (the same sums), and its root pooling pads zeros on every side: at an odd size and
    above positive maps these are slim's windows, so the test's root convolution has a large bias.
    """
    theirs = getattr(keras.applications, f"ResNet{depth}V2")(
        weights=None, input_shape=(65, 65, 3), classes=11, classifier_activation=None
    )
    given = values("resnet_v2_50", units, 11)
    given["resnet_v2_50/conv1/biases"] += 15
    by_path = {keras_name(name): array for name, array in given.items()}
    assert set(by_path) == {weight.path for weight in theirs.weights}
    for weight in theirs.weights:
        weight.assign(by_path[weight.path].reshape(weight.shape))
    ours = ResNetV2(units, 11).eval()
    ours.load_state_dict(from_tensorflow(given))
    one, two = ((toy.random(2, 3, 65, 65) * 2 - 1).requires_grad_() for _ in range(2))
    assert float(ours.conv1(one).detach().min()) > 0
    a, b = ours(one), theirs(two.permute(0, 2, 3, 1), training=False).cpu()
    assert a.shape == b.shape == (2, 11)
    assert float((a - b).norm() / b.norm()) < 1e-5
    (ga,), (gb,) = (torch.autograd.grad(out.square().sum(), leaf) for out, leaf in ((a, one), (b, two)))
    assert float((ga - gb).norm() / gb.norm()) < 1e-2  # rounding moves a few units over ReLU's kink


def test_the_last_unit_of_a_block_strides() -> None:
    net = ResNetV2(SMALL, 5).eval()
    strides = [[unit.stride for unit in block] for block in net.blocks]  # type: ignore[union-attr]
    assert strides == [[1, 2], [1, 2], [1, 2], [1]]
    sizes = [m.shape[-1] for m in net.forward_intermediates(torch.zeros(1, 3, 299, 299), [0, 1, 2, 3, 4])]
    assert sizes == [150, 38, 19, 10, 10]
    assert [m.shape[-1] for m in net.forward_intermediates(torch.zeros(1, 3, 65, 65), [0, 2])] == [33, 5]


# --- weight files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tf2torch_resnet_v2_101.npy", "resnet_v2_101.ckpt", "resnet-v2-101.safetensors"])
@pytest.mark.usefixtures("small")
def test_a_found_file_becomes_a_classifier(tmp_path: Path, form: str) -> None:
    given = values("resnet_v2_101", SMALL)
    plain = ResNetV2(SMALL).eval()
    plain.load_state_dict(from_tensorflow(given))
    if form.endswith(".npy"):
        convert(write(tmp_path / form, mmdnn(given)))
    elif form.endswith(".ckpt"):
        (tmp_path / form).write_bytes(checkpoint(given))
        convert(tmp_path / form)
    else:
        weight_files.save(tmp_path / form, plain.state_dict(), {}, half=False)
    # A converted file is used although the released one is in the same folder.
    made = zoo.find("resnet-v2-101", tmp_path).load("cpu")
    x = toy.images(2, 299)
    with torch.no_grad():
        expected, found = plain(x * 2 - 1), made(x)
    assert made.classes == 1000
    assert found.shape == (2, 1000)
    assert torch.allclose(found, expected[:, 1:], atol=1e-3)  # 0 is background
    assert float(expected.std()) > 0.1
    # Norms after a convolution are folded into it; the others stand after a sum.
    left = sum(isinstance(module, nn.BatchNorm2d) for module in made.net.modules())  # type: ignore[attr-defined]
    assert left == sum(SMALL) + 1


@pytest.mark.usefixtures("small")
def test_features(tmp_path: Path) -> None:
    convert(write(tmp_path / "tf2torch_resnet_v2_152.npy", mmdnn(values("resnet_v2_152", SMALL))), "resnet-v2-152")
    made: Any = zoo.find("resnet-v2-152", tmp_path).load("cpu")
    x = toy.images(1, 299)
    caught: list[Tensor] = []
    hook = made.net.blocks[1].register_forward_hook(lambda _, args, out: caught.append(out))
    expected = made(x)
    hook.remove()
    root, second = made.features(x, (0, 2))
    assert torch.equal(second, caught[0])
    assert root.shape == (1, 64, 150, 150)
    (last,) = made.features(x, ())
    assert torch.allclose(made.net.logits(last.mean((2, 3), keepdim=True)).flatten(1)[:, 1:], expected)
    with pytest.raises(UsageError, match="has feature levels 0 to 4, asked for 5"):
        made.features(x, (5,))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(made.features(leaf)[0].square().sum(), leaf)
    assert float(grad.abs().max()) > 0


def test_a_missing_file_is_asked_for_and_the_command_that_converts_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match=r"resnet-v2-101\.safetensors or \.pth in --models-dir; no --models-dir"):
        zoo.find("resnet-v2-101")
    with pytest.raises(
        BadModelError,
        match=r"Download https://github\.com/ylhz.*/tf2torch_resnet_v2_152\.npy .*Convert it: rdp-bench weights conv",
    ):
        zoo.find("resnet-v2-152", tmp_path)
    for name in ("resnet-v2-101.safetensors", "resnet-v2-101.pth"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"several files for resnet-v2-101: keep one of resnet-v2-101\.pth, resnet-v2"):
        zoo.find("resnet-v2-101", tmp_path)


@pytest.mark.parametrize("name", ["tf2torch_resnet_v2_101.npy", "tf_resnet_v2_101.npy", "resnet_v2_101.ckpt"])
def test_a_released_file_is_not_loaded_before_it_is_converted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(BadModelError, match=f"Convert it: rdp-bench weights convert .*{name} .*--model resnet-v2-101"):
        zoo.find("resnet-v2-101", tmp_path)


def test_a_tensorflow_checkpoint_under_the_models_own_name_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "resnet-v2-101.ckpt").write_bytes(checkpoint({"a": np.ones(3, np.float32)}))
    with pytest.raises(BadModelError, match=r"holds a TensorFlow checkpoint\. Convert it: rdp-bench weights convert"):
        zoo.find("resnet-v2-101", tmp_path).load("cpu")


@pytest.mark.usefixtures("small")
def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    table = mmdnn(values("resnet_v2_101", (2, 2, 3, 1)))
    path = write(tmp_path / "tf_resnet_v2_101.npy", table)
    with pytest.raises(BadModelError, match=r"does not fit resnet-v2-101: unexpected blocks\.2\.2\.preact\.weight"):
        convert(path)
    del table["resnet_v2_101/postnorm/FusedBatchNorm"]
    write(path, table)
    with pytest.raises(BadModelError, match=r"missing postnorm\.weight"):
        convert(path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_named_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(3, 4)).astype(np.float32)
    table = {"a/Conv2D": {"weights": whole.T, "bias": whole[0].astype(">f8")}, "b": {"value": np.array([[3, 4]])}}
    found = legacy.read_mmdnn(write(tmp_path / "a.npy", table))
    assert list(found) == ["a/Conv2D/weights", "a/Conv2D/bias", "b/value"]
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_array_equal(found["a/Conv2D/weights"], whole.T)
    np.testing.assert_array_equal(found["a/Conv2D/bias"], whole[0])
    np.testing.assert_array_equal(found["b/value"], [[3, 4]])


class Trap:
    """A pickle that runs code where it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_named_arrays_and_nothing_else(tmp_path: Path) -> None:
    mark, good = tmp_path / "ran", {"weights": np.ones((2, 2), np.float32)}
    path = tmp_path / "a.npy"
    bad: list[object] = [
        {"a": Trap(mark)}, {"a": {"weights": Trap(mark)}}, {Trap(mark): good}, Trap(mark), [good], good, "text", 3,
        {"a": {"weights": "text"}}, {"a": {"weights": [1.0]}}, {"a": {"weights": np.array(["x"])}},
        {"a": {"weights": np.array([None])}}, {"a": {"weights": np.array([1j])}}, {"a": [np.ones(2)]}, {"a": None},
    ]  # fmt: skip
    for table in bad:
        write(path, table)
        with pytest.raises(BadModelError, match=r"a\.npy: refused .* one dictionary of dictionaries of float arrays"):
            legacy.read_mmdnn(path)
    assert not mark.exists()
    whole = write(path, {"a": good}).read_bytes()
    for low, high in pairwise(range(0, len(whole), 7)):
        path.write_bytes(whole[:low])
        with pytest.raises(BadModelError, match=r"a\.npy: refused"):
            legacy.read_mmdnn(path)
        path.write_bytes(whole[:low] + bytes(b ^ 255 for b in whole[low:high]) + whole[high:])
        try:
            found = legacy.read_mmdnn(path)
        except BadModelError:
            continue
        assert all(array.size == 4 for array in found.values())  # other numbers, or another name
    np.save(path, np.ones(3))
    with pytest.raises(BadModelError, match="refused"):
        legacy.read_mmdnn(path)
    path.write_bytes(pickle.dumps({"a": good}))
    with pytest.raises(BadModelError, match="refused"):
        legacy.read_mmdnn(path)
    with pytest.raises(BadModelError, match="refused"):
        legacy.read_mmdnn(tmp_path / "missing.npy")


def test_a_checkpoint_that_tensorflow_wrote() -> None:
    found = legacy.read_tf_checkpoint(slim.HERE / "slim.ckpt")
    assert len(found) == 12
    for name, array in found.items():
        np.testing.assert_array_equal(array, slim.values(name, array.shape))
        assert name.startswith("resnet_v2_101/")  # global_step, a whole number, is left out


def test_checkpoints_of_many_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {f"net/layer{i}/weights": rng.normal(size=(i % 3 + 1,) * (i % 5)).astype(np.float32) for i in range(40)}
    (tmp_path / "a.ckpt").write_bytes(checkpoint(given))
    found = legacy.read_tf_checkpoint(tmp_path / "a.ckpt")
    assert list(found) == list(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    good = (slim.HERE / "slim.ckpt").read_bytes()
    bad = [b"", b"hello", b"\0" * 5000, good[:-1], checkpoint({}), checkpoint({"a": np.ones(3, np.float32)}, kind=1)]
    bad += [good[:cut] for cut in range(0, len(good), 211)]
    bad += [good[:cut] + good[-48:] for cut in range(0, len(good) - 48, 211)]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(BadModelError, match=r"a\.ckpt: refused .*a TensorFlow checkpoint in one file"):
            legacy.read_tf_checkpoint(path)
    for at in range(0, len(good), 13):
        path.write_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
        with contextlib.suppress(BadModelError):  # or other numbers, or another name
            legacy.read_tf_checkpoint(path)
    with pytest.raises(BadModelError, match="refused"):
        legacy.read_tf_checkpoint(tmp_path / "missing.ckpt")


def test_the_names_of_files_are_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "resnet-v2-101.pth").write_bytes(b"any")
    record = zoo.find("resnet-v2-101", tmp_path).record()
    assert set(record) == {"card", "numerics", "weights"}
    assert set(record["card"]) == {
        "arch", "crop", "fixed_size", "in_order", "input_size", "interpolation", "kwargs", "label_offset", "mean",
        "std",
    }  # fmt: skip
    assert resnet_v2.UNITS[record["card"]["arch"]] == (3, 4, 23, 3)
