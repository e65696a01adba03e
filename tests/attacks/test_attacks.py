"""The registered attacks: their table, their grammar, and what every one of them must do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rdp_bench.attacks.presets  # noqa: F401 - registers them
from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Attack
from rdp_bench.registry import attack as registry
from tests.attacks.test_modern_attacks import PRESETS
from tests.helpers import toy
from tests.helpers.settings import setting

EPS = 16 / 255
PLAIN: dict[str, Any] = {
    "momentum": 0.0, "nesterov": False, "scale_copies": 1, "diversity_prob": 0.0, "kernel_size": 1, "label": "true",
    "targeted": False, "random_start": False, "aux_weight": 0.0, "resize_back": False,
}  # fmt: skip

# What each runs at eps 16, as the authors' released code runs it.
TABLE: dict[str, dict[str, Any]] = {
    "fgsm": {"steps": 1, "alpha": 16.0},
    "i-fgsm": {"steps": 10, "alpha": 1.6},
    "mi-fgsm": {"steps": 10, "alpha": 1.6, "momentum": 1.0},
    "ni-fgsm": {"steps": 10, "alpha": 1.6, "momentum": 1.0, "nesterov": True},
    "dim": {"steps": 20, "alpha": 1.0, "momentum": 1.0, "diversity_prob": 0.7, "padded": 330, "label": "predicted"},
    "ti-dim": {"steps": 10, "alpha": 1.6, "momentum": 1.0, "diversity_prob": 0.7, "padded": 330, "kernel_size": 15},
    "si-ni-fgsm": {"steps": 10, "alpha": 1.6, "momentum": 1.0, "nesterov": True, "scale_copies": 5,
    "label": "predicted"},
    "sini-tidim": {
        "steps": 10, "alpha": 1.6, "momentum": 1.0, "nesterov": True, "scale_copies": 5, "label": "predicted",
        "diversity_prob": 0.5, "padded": 331, "resize_back": True, "kernel_size": 7,
    },
    "pgd": {"steps": 10, "alpha": 4.0, "random_start": True, "clip_start": True},
    "pgd-targeted": {
        "steps": 10, "alpha": 1.6, "random_start": True, "clip_start": False, "targeted": True,
    },
}  # fmt: skip


def make(text: str) -> Attack:
    return registry.resolve(text).value


def run(
    attack: Attack, x: torch.Tensor, y: torch.Tensor, member: Any = None, eps: float = EPS, seed: str = ""
) -> torch.Tensor:
    return attack(toy.source(member or toy.conv()), x, y, eps, toy.image_rng(len(x), seed))


def test_every_preset_is_in_the_table() -> None:
    # Plugins have a slash; attacks that are no setting of the engine, and modern ones, have tests of their own.
    ours = {name for name in registry.entries if "/" not in name and isinstance(make(name), GradientSign)}
    assert set(TABLE) == ours - set(PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_presets(name: str) -> None:
    resolved = make(name).resolved(16)
    expected = PLAIN | TABLE[name]
    padded = expected.pop("padded", None)
    assert {key: resolved.get(key, PLAIN.get(key)) for key in expected} == pytest.approx(expected)
    if padded:
        assert round(299 * resolved["diversity_size"]) == padded
    assert make(name).gradients(16) == expected["steps"] * expected["scale_copies"]


def test_presets_at_other_eps() -> None:
    """DIM counts its steps from eps; PGD-targeted's step never falls below 1/255."""
    assert [make("dim").resolved(eps)["steps"] for eps in (4, 8)] == [5, 10]
    assert [make("pgd-targeted").resolved(eps)["alpha"] for eps in (4, 8, 16)] == [1.0, 1.0, 1.6]
    assert make("mi-fgsm").resolved(4)["alpha"] == pytest.approx(0.4)


@pytest.mark.parametrize("entry", registry.entries.values(), ids=lambda entry: str(entry.name))
def test_presets_say_what_they_are_and_whence(entry: Any) -> None:
    assert entry.summary.endswith(".")
    assert entry.source


# Grammar


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("MI", {"momentum": 1.0}),
        ("FGSM", {"steps": 1}),
        ("MI(.5)", {"momentum": 0.5}),
        ("MI(mu=.5)", {"momentum": 0.5}),
        ("NI", {"momentum": 1.0, "nesterov": True}),
        ("I(20)|MI", {"steps": 20, "momentum": 1.0}),
        ("I(20, 1)|MI", {"steps": 20, "alpha": 1.0, "momentum": 1.0}),
        ("I(steps=auto, alpha=1)", {"steps": None, "alpha": 1.0}),
        ("PGD", {"random_start": True, "step_ratio": 2.5}),
        ("PGD(40)", {"random_start": True, "step_ratio": 2.5, "steps": 40}),
        ("MI|DI(p=.7)|TI(15)|SI(5)", {"momentum": 1.0, "diversity_prob": 0.7, "kernel_size": 15, "scale_copies": 5}),
        (
            "NI|DI|TI|SI",
            {"momentum": 1.0, "nesterov": True, "diversity_prob": 0.7, "kernel_size": 15, "scale_copies": 5},
        ),
        ("DI(.5, 1.2, true)", {"diversity_prob": 0.5, "diversity_size": 1.2, "resize_back": True}),
        ("DI(p=1, back=true, size=1.1)", {"diversity_prob": 1.0, "diversity_size": 1.1, "resize_back": True}),
        ("MI | TI(7) | OWN", {"momentum": 1.0, "kernel_size": 7, "label": "predicted"}),
        ("MI|AUX", {"momentum": 1.0, "aux_weight": 0.4}),
        ("PGD|TARGETED", {"random_start": True, "step_ratio": 2.5, "targeted": True}),
        ("SI(m=3)|MI", {"scale_copies": 3, "momentum": 1.0}),
    ],
)
def test_compositions(text: str, fields: dict[str, Any]) -> None:
    found = make(text)
    assert isinstance(found, GradientSign)
    assert found == setting(**fields)
    named = {field.name: getattr(part, field.name) for part in found.parts for field in dataclasses.fields(part)}
    assert all(named[key] == value for key, value in fields.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MI|DII", r"unknown part 'DII' of an attack\. Did you mean 'DI'\?"),
        ("MI|XYZ", r"unknown part 'XYZ' of an attack\. Known: ADMIX, AUX, BSR, DI"),
        ("mi|TI", "unknown part 'mi' of an attack"),
        ("MI|", "cannot read ''"),
        ("MI||TI", "cannot read ''"),
        ("MI|MI", "part MI is given twice"),
        ("pgd(targeted=true, loss_function=cw)", "cw has no gradient far from a target"),
        ("MI|TI(7)|TI(15)", "part TI is given twice"),
        ("TI(14)", "kernel_size is odd"),
        ("MI|TI(8)", "kernel_size is odd"),
        ("TI(0)", "kernel_size is odd"),
        ("TI(7.5)", "expected a whole number, like 15; found '7.5'"),
        ("TI(-3)", "kernel_size is odd and at least 1"),
        ("DI(p=1.5)", "diversity_prob is a probability"),
        ("DI(p=-.1)", "diversity_prob is a probability"),
        ("DI(p=often)", "found 'often'"),
        ("DI(size=1)", "diversity_size is above 1"),
        ("DI(prob=.5)", "unknown argument 'prob' of DI"),
        ("DI(.5, p=.7)", "twice"),
        ("DI(p=.5, diversity_prob=.7)", "twice"),
        ("DI(1, 2, true, 4)", "DI takes 3 values: diversity_prob, diversity_size, resize_back"),
        ("FGSM(3)", "FGSM takes 0 values: none"),
        ("SI(0)", "scale_copies is at least 1"),
        ("SI(auto)", "SI"),
        ("MI(-1)", "momentum is not negative"),
        ("MI(0)|NI(0)", "nesterov needs momentum"),
        ("MI(nan)", "momentum"),
        ("MI(inf)", "finite"),
        ("I(0)", "steps is above 0"),
        ("I(10, 0)", "alpha is above 0"),
        ("I(10, inf)", "finite"),
        ("I(true)", "found 'true'"),
        ("DI(p=0, size=3)", "diversity_size has no effect with diversity_prob=0"),
        ("sini-tidim(diversity_prob=0, diversity_size=3)", "diversity_size has no effect with diversity_prob=0"),
        ("pgd(random_start=false, clip_start=false)", "clip_start has no effect with random_start=false"),
        ("pgd(alpha=1, step_ratio=2)", "step_ratio has no effect with alpha=1"),
        ("dim(alpha_floor=2)", "alpha_floor has no effect with alpha=1"),
        ("pgd-targeted(alpha_floor=-1)", "alpha_floor is 0 to 255"),
        ("OWN|TARGETED", "a targeted attack uses label=true"),
        ("mi-fgsm(kernel_size=4)", "kernel_size is odd"),
        ("mi-fgsm(momentun=1)", r"unknown parameter 'momentun' of attack 'mi-fgsm'\. Did you mean 'momentum'\?"),
        ("mi-fgsm(label=mine)", "expected 'true' or 'predicted'; found 'mine'"),
        ("mi-fgsn", r"unknown attack 'mi-fgsn'\. Did you mean 'mi-fgsm'\?"),
    ],
)
def test_what_the_grammar_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(text)


@pytest.mark.parametrize(
    ("text", "preset"),
    [
        ("FGSM", "fgsm"),
        ("I", "i-fgsm"),
        ("MI", "mi-fgsm"),
        ("NI", "ni-fgsm"),
        ("MI|DI(p=.7)|TI(15)", "ti-dim"),
        ("TI|DI|MI", "ti-dim"),
        ("NI|SI(5)|OWN", "si-ni-fgsm"),
        ("I(auto, 1)|MI|DI|OWN", "dim"),
        ("PGD", "pgd"),
        ("mi-fgsm(diversity_prob=.7, kernel_size=15)", "ti-dim"),
    ],
)
def test_a_composition_is_its_preset(text: str, preset: str) -> None:
    x, y = toy.images(5, 32), torch.arange(5)
    assert make(text) == make(preset)
    assert torch.equal(run(make(text), x, y), run(make(preset), x, y))


def test_compose_reads_what_the_registry_reads() -> None:
    assert compose("MI|DI(p=.7)|TI(15)") == make("ti-dim")


# What holds for every attack

ALL = [*TABLE, "NI|DI|TI(15)|SI(3)", "PGD(3)|MI|DI(p=.5, back=true)|TARGETED"]
MEMBERS: dict[str, list[Callable[[], toy.Toy]]] = {
    "conv": [toy.conv],
    "flat": [toy.flat],
    "mean": [toy.mean],
    "ensemble": [toy.conv, lambda: toy.conv(seed=30)],
}
ENSEMBLE = [(name, "ensemble") for name in ("fgsm", "dim", "NI|DI|TI(15)|SI(3)", "pgd-targeted")]


@pytest.mark.parametrize(
    ("name", "members"), [*((name, members) for name in ALL for members in ("conv", "flat", "mean")), *ENSEMBLE]
)
def test_every_attack_keeps_the_rules(name: str, members: str) -> None:
    source = toy.source(*(member() for member in MEMBERS[members]))
    x, y = toy.images(4, 16), torch.tensor([0, 1, 2, 3])
    x[0], x[1] = 0, 1  # black, white: the range binds
    before = x.clone(), y.clone()
    weights = [p.clone() for m in source.members if hasattr(m, "logits") for p in _parameters(m)]
    attack = make(name)
    for eps in (0.0, EPS, 40 / 255):
        adv = attack(source, x, y, eps, toy.image_rng(4))
        assert adv.shape == x.shape
        assert adv.dtype == torch.float32
        assert not adv.requires_grad
        assert adv.data_ptr() != x.data_ptr()
        assert torch.isfinite(adv).all()
        assert float((adv - x).abs().max()) <= eps + 1e-6
        assert float(adv.min()) >= 0
        assert float(adv.max()) <= 1
        if eps == 0:
            assert torch.equal(adv, x)
        elif members in ("conv", "ensemble"):
            assert float((adv - x).abs().mean()) > eps / 4  # it does something
        if eps == EPS:
            assert torch.equal(adv, attack(source, x, y, eps, toy.image_rng(4)))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    after = [p for m in source.members if hasattr(m, "logits") for p in _parameters(m)]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, after, strict=True))


def _parameters(member: Any) -> list[torch.Tensor]:
    return list(member.logits.parameters()) if isinstance(member.logits, torch.nn.Module) else []


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("pgd", "PGD"))])
def test_a_flat_model_changes_nothing(name: str) -> None:
    x = toy.images(3, 16)
    assert torch.equal(run(make(name), x, torch.arange(3), toy.flat()), x)


@pytest.mark.parametrize("name", ALL)
def test_the_global_seed_does_not_matter(name: str) -> None:
    x, y = toy.images(3, 16), torch.arange(3)
    model = toy.conv()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    expected = run(make(name), x, y, model)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn from the global stream
    torch.manual_seed(2)
    assert torch.equal(run(make(name), x, y, model), expected)


@pytest.mark.parametrize("name", [name for name in ALL if "TARGETED" not in name and name != "pgd-targeted"])
def test_untargeted_attacks_raise_the_loss(name: str) -> None:
    model = toy.conv()
    x = toy.images(8, 16)
    y = model(x).argmax(1)
    adv = run(make(name), x, y, model)
    loss = torch.nn.functional.cross_entropy
    assert (loss(model(adv), y, reduction="none") > loss(model(x), y, reduction="none")).float().mean() > 0.8


# An image's result is its own


@pytest.mark.parametrize(("name", "members"), [*((name, "conv") for name in ALL), *ENSEMBLE])
def test_neighbours_do_not_matter(name: str, members: str) -> None:
    x, y = toy.images(6, 16), torch.tensor([0, 1, 2, 3, 4, 0])
    source = toy.source(*(member() for member in MEMBERS[members]))
    attack = make(name)
    together = attack(source, x, y, EPS, toy.image_rng(6))
    order = torch.tensor([4, 2, 0, 5])
    shuffled = attack(source, x[order], y[order], EPS, toy.image_rng(6).select(order))
    assert torch.equal(shuffled, together[order])
    for i in (0, 3):
        alone = attack(source, x[i : i + 1], y[i : i + 1], EPS, toy.image_rng(6).select(torch.tensor([i])))
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", ["pgd", "ti-dim", "sini-tidim", "pgd-targeted"])
def test_the_seed_matters_to_random_attacks(name: str) -> None:
    x, y = toy.images(4, 32), torch.arange(4)
    one, two = run(make(name), x, y), run(make(name), x, y, seed="other")
    assert all(not torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_equal_images_get_their_own_draws() -> None:
    x = toy.images(1, 32).expand(3, -1, -1, -1).clone()
    adv = run(make("ti-dim"), x, torch.zeros(3, dtype=torch.long))
    assert not torch.equal(adv[0], adv[1])
    assert not torch.equal(adv[1], adv[2])


# Known errors of other libraries, absent here


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("TI(7)", "MI|TI(7)"),  # torchattack overwrites TI's momentum
        ("NI(.1)|I(10)", "NI|I(10)"),  # and multiplies the new gradient by it in NI and SI-NI
        ("NI(.1)|SI(5)", "NI|SI(5)"),
        ("MI(.1)|DI", "MI|DI"),
        ("MI", "NI"),
        ("MI|SI(2)", "MI|SI(3)"),
        ("MI|TI(3)", "MI|TI(7)"),
        ("MI", "MI|DI(p=1)"),
    ],
)
def test_every_part_counts(one: str, two: str) -> None:
    x, y = toy.images(3, 32), torch.arange(3)
    assert not torch.equal(run(make(one), x, y), run(make(two), x, y))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("MI|SI(1)", "MI"),
        ("MI|TI(1)", "MI"),
        ("MI|DI(p=0)", "MI"),
        ("MI(0)", "I"),
        ("I(1)", "FGSM"),
        ("I(1)|MI", "FGSM"),  # the first step knows no momentum
        ("I(1)|NI", "FGSM"),
    ],
)
def test_parts_that_say_nothing_change_nothing(one: str, two: str) -> None:
    x, y = toy.images(3, 32), torch.arange(3)
    assert torch.equal(run(make(one), x, y), run(make(two), x, y))


@pytest.mark.parametrize("name", ["fgsm", "mi-fgsm"])
def test_pixels_are_not_truncated(name: str) -> None:
    """Steps end on x +- eps exactly, so rounding to 8 bits gives +- 16 levels, never -17 or 15."""
    x = torch.randint(16, 240, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    adv = run(make(name), x, torch.arange(4))
    levels = (adv * 255).round() - (x * 255).round()
    assert levels.abs().max() == 16
    if name == "fgsm":
        assert set(levels.flatten().tolist()) == {-16.0, 16.0}
