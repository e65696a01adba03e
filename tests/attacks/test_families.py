"""ViT, Swin and ConvNeXt, with random weights, as sources and targets of everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from rdp_bench import plugins, registry
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.attacks.parts.intermediate import _layer
from rdp_bench.errors import UsageError
from rdp_bench.models import card
from rdp_bench.models.classifier import PixelClassifier
from rdp_bench.models.defended import DefendedClassifier, parse
from rdp_bench.models.zoo import LoadedSource
from tests.helpers import families, toy
from tests.helpers.families import SIZE
from tests.helpers.grid_runs import GridRuns

plugins.load()
NAMES = tuple(families.CARDS)
EPS = 8 / 255

SHORT = {
    "admix": "(steps=2)", "apgd-ce": "(steps=3)", "apgd-dlr": "(steps=3)", "apgd-t": "(steps=3, targets=2)",
    "autoattack": "(steps=3, targets=2, queries=5)", "autoattack-rand": "(steps=3)",
    "bsr": "(steps=4, shuffle_copies=4)", "fab-t": "(steps=3, targets=2)", "fgsm": "", "noise": "",
    "pgn": "(steps=2, flat_samples=2)",
    "gra": "(steps=2, relevance_samples=2)", "ilpd": "(steps=3)", "sia": "(steps=2, structure_copies=2)",
    "spsa": "(steps=2, samples=8)", "square": "(queries=20)", "ssa": "(steps=2, spectrum_copies=2)",
    "ssp": "(steps=3, level=1)", "svre-mi-fgsm": "(steps=2, reduction_steps=1)", "dim": "(steps=4)",
    "vmi-fgsm": "(steps=2, variance_samples=2)", "vni-fgsm": "(steps=2, variance_samples=2)",
}  # fmt: skip
"""Labels of the attacks at a length for tests; the others take two steps."""
AIMLESS = {"noise", "ssp", "pgd-targeted"}
"""Attacks that do not lower the margin of the class, or not in a few steps."""


def margin(model: PixelClassifier, x: Tensor, y: Tensor) -> Tensor:
    """How far the logit of class y is above all others, `[n]`."""
    with torch.no_grad():
        logits = model(x)
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -torch.inf).amax(1)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[PixelClassifier]:
    """A classifier of each family, which takes images of its size only, or of any."""
    found = families.classifier(request.param)
    sizes = set[int]()
    handle = found.net.register_forward_pre_hook(lambda _, inputs: sizes.add(inputs[0].shape[-1]))
    yield found
    handle.remove()
    assert SIZE in sizes
    assert sizes == {SIZE} or not found.card.fixed_size


def test_the_prepared_network_is_that_of_timm(model: PixelClassifier) -> None:
    net, x = families.network(model.name), toy.images(3, 48)
    small = interpolate(x, size=SIZE, mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.card.mean, model.card.std))
    with torch.no_grad():
        wanted, found = net((small - mean) / std), model(x)
    assert float(wanted.std(0).mean()) > 0.03
    assert torch.allclose(found, wanted, atol=2e-4)
    assert (model(x, 1.1).shape, model.classes) == ((3, 1000), 1000)


@pytest.mark.parametrize("name", sorted(name for name in registry.attack.entries if "/" not in name))
def test_every_attack(name: str, model: PixelClassifier) -> None:
    attack: Any = registry.attack.resolve(name + SHORT.get(name, "(steps=2)")).value
    x = toy.images(2, SIZE)
    y = model(x).argmax(1)
    if name == "tgr" and model.name != "vit":
        with pytest.raises(UsageError, match=f"TGR needs a vision transformer with timm's blocks.*; {model.name} has"):
            attack(toy.source(model), x, y, EPS, toy.image_rng(2))
        return
    adv = attack(toy.source(model), x, y, EPS, toy.image_rng(2))
    assert 1 / 255 < float((adv - x).abs().max()) < EPS + 1e-6
    if name not in AIMLESS:
        assert (margin(model, adv, y) < margin(model, x, y) - 1e-3).all()


def test_ilpd_finds_a_stage_in_the_middle() -> None:
    found = {name: _layer(families.network(name), "auto", name) for name in NAMES}
    stages = {"vit": "blocks.1", "swin": "layers.1", "convnext": "stages.1"}
    for name, layer in found.items():
        wanted = dict(families.network(name).named_modules())[stages[name]]
        assert type(layer) is type(wanted)
        assert [*layer.state_dict()] == [*wanted.state_dict()]


FEW_CALLS = {
    "adp": "adp(runs=1, steps=2)", "diffpure": "diffpure(stride=75)", "dip": "dip(steps=2, width=4, levels=3)",
    "gdmp": "gdmp(steps=2)", "lm": "lm(steps=1)", "noise-vote": "noise-vote(n=2)",
}  # fmt: skip


LEFT_OUT = ("none", "nrp-resg", "soap", "gradual")
"""No defense, two without a network, and one with 68 or more network calls of the kind that diffpure makes."""


@pytest.mark.parametrize(
    "name", sorted(name for name in registry.defense.entries if "/" not in name and name not in LEFT_OUT)
)
def test_an_ensemble_of_them_behind_every_defense(name: str) -> None:
    label = FEW_CALLS.get(name, name)
    found = parse(f"adaptive({label}, vit+swin+convnext)")
    assert found is not None
    members = [DefendedClassifier(families.classifier(each), found[0]) for each in NAMES]
    x, y = toy.images(2, SIZE), torch.tensor([1, 4])
    adv = compose("MI|I(2)")(LoadedSource("all", members), x, y, EPS, toy.image_rng(2))
    assert float(((adv - x).abs() > 1 / 255).float().mean()) > 0.5

    def loss(images: Tensor) -> float:
        with torch.no_grad():
            logits = [member.stochastic_logits(images, toy.image_rng(2)) for member in members]
            return float(cross_entropy(sum(logits) / 3, y))  # type: ignore[arg-type]

    assert loss(adv) > loss(x)


GRID = """
title = "Families"
[axes]
attacks = ["mi-fgsm(steps=1)", "MI|I(1)|DI|SGM"]
defenses = ["none", "jpeg", "r&p", "rdp"]
eps = [8]
[profile.embedded]
dataset = "photos20(size=32)"
sources = ["vit", "swin+convnext", "white-box", "bpda(jpeg, swin)"]
targets = ["vit", "swin", "convnext"]
"""


def test_a_run_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, each in families.CARDS.items():
        monkeypatch.setitem(card.cards(), name, each)
    families.write_weights(tmp_path / "models")
    runs = GridRuns.make(tmp_path, monkeypatch, GRID)
    runs.done("--limit", 2, "--models-dir", tmp_path / "models")
    rows = runs.rows()
    assert len(rows) == (4 * 2 + 1) * 4 * 3  # with the clean images
    assert {row["status"] for row in rows} == {"done"}
