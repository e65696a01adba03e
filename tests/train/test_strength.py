"""At the paper's size inputs are as strong as NRP's ssp.py makes them; options without effect are refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rdp_bench.cli import main
from rdp_bench.errors import UsageError
from rdp_bench.models.card import Card
from rdp_bench.models.classifier import PixelClassifier
from rdp_bench.train import extractor, recipes
from rdp_bench.train.extractor import Extractor
from tests.helpers import toy, toy_train

CARD = Card(name="f", summary="", arch="f", weights="file", input_size=224, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("name", ["rdp", "nrp"])
def test_papers_size_has_ssps_strength(name: str) -> None:
    paper = recipes.get(name).settings("paper", {})
    assert (paper.attack, paper.attack_steps, paper.scale, paper.crop, paper.eps) == ("paper", 100, "native", 128, 16.0)
    compact = recipes.get(name).settings("compact", {"attack": "paper"})
    assert (compact.attack_steps, compact.scale) == (10, "image")  # as the weights that ship were trained


class Sizes:
    """A network with feature maps that remembers how large its inputs were."""

    num_classes = 5

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
        self.seen: list[int] = []
        classifier = PixelClassifier(toy.network(), card, "hash")
        usual = classifier.logits_of_input
        monkeypatch.setattr(classifier, "logits_of_input", lambda x: (self.seen.append(x.shape[-1]), usual(x))[1])

        class ModelRef:
            load = staticmethod(lambda _: classifier)

        monkeypatch.setattr(classifier, "features", lambda x, levels, zoom: [classifier(x, zoom)], raising=False)
        monkeypatch.setattr(extractor, "find", lambda *_: ModelRef)


@pytest.mark.parametrize(("native", "expected"), [(False, 96), (True, 128)])
def test_scale_is_what_f_sees(native: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(monkeypatch, CARD)
    features = Extractor(["f"], (0,), "cpu", None, native)
    x = toy.images(1, 128)
    features(x), features.logits(x), features.joint(x)
    assert sizes.seen == [expected] * 3


def test_native_scale_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    Sizes(monkeypatch, replace(CARD, fixed_size=True))
    with pytest.raises(UsageError, match="takes images of one size, so --scale native is not possible"):
        Extractor(["f"], (0,), "cpu", None, True)
    monkeypatch.undo()
    toy_train.install(monkeypatch.setitem)
    with pytest.raises(UsageError, match="does not say what size of image it takes"):
        toy_train.recipe("rdp", scale="native")


def test_attack_steps_are_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_train.install(monkeypatch.setitem)
    counts = []
    for steps in (1, 7):
        made = toy_train.recipe("rdp", attack_steps=steps)
        (member,) = made.features.members
        before = len(member.zooms)
        made.prepare(toy.images(2, 32), torch.Generator())
        counts.append(len(member.zooms) - before)
    assert counts == [2, 8]  # the clean image's features once, then one look a step


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("sr", ("--attack-steps", 3), "--attack-steps has no effect on sr"),
        ("comdefend", ("--attack", "paper"), "--attack has no effect on comdefend"),
        ("comdefend", ("--levels", 2), "--levels has no effect on comdefend"),
        ("sr", ("--features", "toy/one"), "--features has no effect on sr"),
        ("sr", ("--eps", 8), "--eps has no effect on sr"),
        ("comdefend", ("--eps", 8), "--eps has no effect on comdefend"),
        ("hgd", ("--attack", "wide"), "--attack has no effect on hgd"),
        ("rdp", ("--blend", 0.5), "--blend has no effect on rdp"),
        ("ens-adv", ("--scale", "native"), "--scale has no effect on ens-adv"),
        *(
            (name, ("--clean", 0.5), f"--clean has no effect on {name}")
            for name in ("sr", "comdefend", "hgd", "denoiser", "ens-adv")
        ),
        ("denoiser", ("--scale", "native"), "--scale has no effect on denoiser"),
        ("rdp", ("--weight", "pix=3", "--weight", "pix=1"), "--weight gives pix twice; give it once"),
        ("rdp", ("--levels", ","), "--levels ',' names no level"),
        ("nrp", ("--clean", 1), "--clean is at least 0 and below 1, found 1"),
        ("rdp", ("--attack-steps", 0), "--attack-steps is at least 1, found 0"),
        ("rdp", ("--scale", "natve"), "unknown scale 'natve'. Did you mean 'native'?"),
    ],
)
def test_what_has_no_effect_is_refused(name: str, flags: tuple[Any, ...], message: str) -> None:
    found = CliRunner().invoke(main.main, ["train", name, "--images", ".", *map(str, flags)])
    assert found.exit_code == 2
    assert message in found.output
