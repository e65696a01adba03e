"""Self-supervised perturbation against a loop by hand, and the feature maps it is made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rdp_bench import plugins, registry
from rdp_bench.attacks.ssp import SelfSupervised, distort
from rdp_bench.errors import UsageError
from rdp_bench.models.card import Card
from rdp_bench.models.classifier import PixelClassifier
from rdp_bench.models.fold_batch_norm import fold_batch_norm
from tests.helpers import toy, toy_train

EPS = 16 / 255


def quadratic(x: Tensor) -> list[Tensor]:
    """One map, whose gradient is worked out below: 3 (x - .5)^2, per pixel."""
    return [3 * (x - 0.5) ** 2]


def by_hand(x: Tensor, start: Tensor, eps: float, steps: int, step: float) -> Tensor:
    """Of |3 (a - .5)^2 - 3 (x - .5)^2|^2: 2 (difference) 6 (a - .5), its sign."""
    a = start
    for _ in range(steps):
        difference = 3 * (a - 0.5) ** 2 - 3 * (x - 0.5) ** 2
        a = a + step * torch.sign(difference * (a - 0.5))
        a = torch.where(a > x + eps, x + eps, torch.where(a < x - eps, x - eps, a)).clamp(0, 1)
    return a


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("eps", [EPS, 2 / 255, 0.0])
def test_distort_is_the_loop_by_hand(steps: int, eps: float) -> None:
    x = toy.images(3)
    for start in (toy.random(3, 3, 8, 8, seed=4), x + 0.01):
        found = distort(quadratic, x, start, eps, steps, 0.01)
        assert torch.allclose(found, by_hand(x, start, eps, steps, 0.01), atol=1e-6)
        assert float((found - x).abs().max()) <= eps + 1e-6
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert not found.requires_grad


def test_eps_and_step_may_differ_from_image_to_image() -> None:
    x, start = toy.images(3), toy.random(3, 3, 8, 8)
    eps, step = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.0, 0.02, 0.06), (0.01, 0.02, 0.005)))
    together = distort(quadratic, x, start, eps, 3, step)
    for i in range(3):
        one = slice(i, i + 1)
        alone = distort(quadratic, x[one], start[one], float(eps[i]), 3, float(step[i]))
        assert torch.allclose(together[one], alone, atol=1e-7)
    assert torch.equal(together[0], x[0])


def test_a_gradient_may_be_changed_before_its_sign() -> None:
    x = 0.2 + toy.images(2) / 2
    start = x + 0.01
    turned = distort(quadratic, x, start, EPS, 1, 0.01, direction=torch.neg)
    assert torch.allclose(turned - start, start - distort(quadratic, x, start, EPS, 1, 0.01), atol=1e-6)


def test_it_moves_features_away_from_the_clean_ones() -> None:
    member = toy_train.Maps("toy", 0)
    x = toy.images(2, 16)

    def distance(adv: Tensor) -> float:
        return float((member.features(adv, (1,))[0] - member.features(x, (1,))[0]).square().mean())

    source = toy.source(member)
    few, many = (SelfSupervised(steps=n, level=1)(source, x, torch.zeros(2), EPS, toy.image_rng(2)) for n in (1, 20))
    noise = (x + EPS * toy.random(2, 3, 16, 16).sign()).clamp(0, 1)
    assert distance(many) > 1.2 * distance(few)
    assert distance(many) > 2 * distance(noise)


def test_the_attack_starts_from_pure_noise_of_its_own_stream_and_sums_members() -> None:
    one, two = toy_train.Maps("one", 0), toy_train.Maps("two", 10)
    x = toy.images(2, 16)
    attack = SelfSupervised(steps=3, step=0.02, level=0)
    found = attack(toy.source(one, two), x, torch.zeros(2), EPS, toy.image_rng(2))

    def loss(a: Tensor) -> Tensor:
        parts = [(m.features(a, (0,))[0] - m.features(x, (0,))[0]).square().mean((1, 2, 3)).sum() for m in (one, two)]
        return parts[0] + parts[1]

    a = toy.image_rng(2).normal(3, 16, 16)
    assert float(a.abs().max()) > 2  # no image
    for _ in range(3):
        leaf = a.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        a = (a + 0.02 * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert torch.equal(found, a)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    member, x = toy_train.Maps("toy", 0), toy.images(3, 16)
    attack = SelfSupervised(steps=4, level=1)
    together = attack(toy.source(member), x, torch.zeros(3), EPS, toy.image_rng(3))
    alone = attack(toy.source(member), x[2:], torch.zeros(1), EPS, toy.image_rng(3).select(torch.tensor([2])))
    assert torch.equal(together[2:], alone)


@pytest.mark.parametrize(("level", "plus", "minus"), [(0.0, 0.475, 0.475), (0.5, 0.287, 0.669), (1.0, 0.144, 0.826)])
def test_noise_puts_most_pixels_on_the_faces_of_the_ball(level: float, plus: float, minus: float) -> None:
    """The shares of N(0, 1) beyond either face, as computed for the facts; the image's range comes on top."""
    x = torch.full((1, 3, 200, 200), level)
    found = distort(lambda z: [z * 0], x, toy.image_rng(1).normal(3, 200, 200), EPS, 1, 0.01)
    up, down = ((found == face.clamp(0, 1)).float().mean() for face in (x + EPS, x - EPS))
    within = 1 - plus - minus
    if level == 0:
        minus += within / 2  # what lies between the lower face and black is black
    if level == 1:
        plus += within / 2
    assert (float(up), float(down)) == (pytest.approx(plus, abs=0.01), pytest.approx(minus, abs=0.01))


def test_resolved_gradients_and_refusals() -> None:
    plugins.load()
    attack: Any = registry.attack.resolve("ssp").value
    assert attack.resolved(16) == attack.resolved(4) == {"steps": 100, "step": 0.01, "level": 2}
    assert attack.gradients(16) == 100
    other: Any = registry.attack.resolve("ssp(steps=10, level=3)").value
    assert (other.resolved(8), other.gradients(8)) == ({"steps": 10, "step": 0.01, "level": 3}, 10)
    for bad in ("steps=0", "step=0", "step=-1", "level=-1"):
        with pytest.raises(UsageError, match="steps is 1 to 100000, step above 0 and at most 1, level 0 to 100"):
            registry.attack.resolve(f"ssp({bad})")


def test_a_source_without_features_is_named() -> None:
    blind, seeing = toy.conv(), toy_train.Maps("toy", 0)
    with pytest.raises(UsageError, match=f"ssp needs feature maps, and {blind.name} has no method `features`"):
        SelfSupervised(steps=1)(toy.source(seeing, blind), toy.images(1), torch.zeros(1), EPS, toy.image_rng(1))


# Feature maps of timm networks

CARD = Card(
    name="tiny", summary="", arch="tiny", weights="file", input_size=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def classifier(arch: str, fold: bool = False, **card: Any) -> PixelClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(arch, pretrained=False, num_classes=7).eval()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
    if fold:
        assert fold_batch_norm(net, torch.rand(1, 3, 64, 64)) > 10
    return PixelClassifier(net, replace(CARD, **card), "hash")


def hooked(made: PixelClassifier, name: str, x: Tensor, zoom: float, before: bool = False) -> Tensor:
    """What goes out of (or into) a module of the network while it classifies."""
    caught: list[Tensor] = []
    module = made.net.get_submodule(name)
    keep: Callable[..., None] = lambda _, args, out=None: caught.append((args[0] if before else out).clone())  # noqa: E731
    handle = module.register_forward_pre_hook(keep) if before else module.register_forward_hook(keep)
    made(x, zoom)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("arch", ["efficientnet_lite0", "resnet18"])
@pytest.mark.parametrize("zoom", [1.0, 1.5])
def test_features_are_the_networks_own(arch: str, fold: bool, zoom: float) -> None:
    made = classifier(arch, fold)
    x = toy.images(2, 48)
    infos: Any = made.net.feature_info
    names = [info["module"] for info in infos]
    assert len(names) == 5
    found = made.features(x, (1, 2, 4), zoom)
    for level, given in zip((1, 2, 4), found, strict=True):
        assert torch.allclose(given, hooked(made, names[level], x, zoom), atol=1e-5)
        assert given.shape[-1] == round(64 * zoom) // infos[level]["reduction"]
    (alone,) = made.features(x, (2,), zoom)
    assert torch.allclose(alone, found[1], atol=1e-6)


@pytest.mark.parametrize(("arch", "channels"), [("efficientnet_lite0", 1280), ("resnet18", 512)])
def test_without_levels_it_is_the_last_map_before_pooling(arch: str, channels: int) -> None:
    made = classifier(arch)
    x = toy.images(2, 48)
    (found,) = made.features(x, (), 1.5)
    assert found.shape == (2, channels, 3, 3)
    assert torch.allclose(found, hooked(made, "global_pool", x, 1.5, before=True), atol=1e-5)


def test_features_see_what_the_classifier_sees() -> None:
    """Resized, cropped and normalised alike; a network of a fixed size ignores zoom."""
    x = toy.images(2, 48)
    made = classifier("resnet18", crop=0.8)
    large = interpolate(x, size=(80, 80), mode="bicubic", align_corners=False)[:, :, 8:72, 8:72]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CARD.mean, CARD.std))
    expected = made.net.get_submodule("maxpool")(
        made.net.get_submodule("act1")(
            made.net.get_submodule("bn1")(made.net.get_submodule("conv1")((large - mean) / std))
        )
    )
    expected = made.net.get_submodule("layer1")(expected)
    assert torch.allclose(made.features(x, (1,))[0], expected, atol=1e-4)
    fixed = classifier("resnet18", fixed_size=True)
    assert torch.equal(fixed.features(x, (2,), 2.0)[0], fixed.features(x, (2,))[0])


def test_features_pass_gradients_to_the_image() -> None:
    made, x = classifier("resnet18"), toy.images(1, 48).requires_grad_()
    (grad,) = torch.autograd.grad(made.features(x, (2,))[0].square().sum(), x)
    assert float(grad.abs().max()) > 0


def test_what_gives_no_features_is_refused() -> None:
    with pytest.raises(UsageError, match="tiny has feature levels 0 to 4, asked for 5"):
        classifier("resnet18").features(toy.images(1, 48), (2, 5))
    with pytest.raises(UsageError, match="timm gives no feature maps of tiny"):
        PixelClassifier(toy.network(), CARD, "hash").features(toy.images(1))
