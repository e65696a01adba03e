"""Networks that take only some sizes of image, where an attack or a defense zooms."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from rdp_bench.defenses.randomization import Randomization
from rdp_bench.models.card import Card
from rdp_bench.models.classifier import PixelClassifier, nearest_size
from tests.helpers import toy
from tests.helpers.settings import setting

CARD = Card(name="tiny", summary="", arch="tiny", weights="file", input_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)


class Picky(nn.Module):
    """Takes multiples of `step`, or one size alone."""

    num_classes = 5

    def __init__(self, step: int = 1, only: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.step, self.only, self.seen = step, only, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.step or self.only not in (None, x.shape[-1]):
            raise RuntimeError("sizes of tensors must match")
        if x.device.type != "meta":
            self.seen.append(x.shape[-1])
        out: Tensor = self.conv(x).mean((2, 3))
        return out


@pytest.mark.parametrize(
    ("net", "wanted", "expected"),
    [
        (Picky(), 71, 71),
        (Picky(32), 64, 64),
        (Picky(32), 71, 64),
        (Picky(32), 90, 96),
        (Picky(32), 81, 96),
        (Picky(64), 71, 64),
        (Picky(only=64), 71, 64),
        (Picky(only=64), 300, 64),
    ],
)
def test_the_nearest_size_that_a_network_takes(net: nn.Module, wanted: int, expected: int) -> None:
    assert nearest_size(net, wanted, 64) == expected


def test_a_network_that_shapes_tell_nothing_about_is_asked_for_what_was_wanted() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert float(x.sum()) or True  # needs numbers
            return conv2d(x, torch.zeros(5, 3, 1, 1))

    assert nearest_size(Opaque(), 71, 64) == 71


def test_zoomed_images_are_shown_at_that_size(caplog: pytest.LogCaptureFixture) -> None:
    net = Picky(32)
    classifier = PixelClassifier(net, CARD, "hash")
    classifier(toy.images(1, 90), 90 / 64)
    classifier(toy.images(1, 64))
    classifier(toy.images(1, 90), 90 / 64)
    assert net.seen == [96, 64, 96]
    assert caplog.text.count("tiny accepts no input of 90 pixels; zoomed images are resized to 96") == 1
    fixed = PixelClassifier(Picky(only=64), replace(CARD, fixed_size=True), "hash")
    fixed(toy.images(1, 80), 80 / 64)


@pytest.mark.parametrize("arch", ["dla34", "hrnet_w18_small"])
def test_input_diversity_and_random_resizing(arch: str) -> None:
    """Raised before: feature maps of different scales did not match at 247 pixels."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = PixelClassifier(timm.create_model(arch).eval(), replace(CARD, name=arch), "hash")
    x = toy.images(2, 76)
    attack = setting(steps=1, momentum=1.0, diversity_prob=1.0)
    adv = attack(toy.source(classifier), x, torch.tensor([1, 2]), 8 / 255, toy.image_rng(2))
    assert float((adv - x).abs().max()) > 0
    purified = Randomization().purify(x, toy.image_rng(2))
    assert classifier(purified, purified.shape[-1] / x.shape[-1]).isfinite().all()


@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "resnet18", "inception_v3", "mobilenetv2_100"])
def test_networks_of_any_size_keep_every_size(arch: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(arch).eval()
    assert all(nearest_size(net, size, 224) == size for size in (224, 232, 247, 248, 331))
