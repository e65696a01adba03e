"""Our formulas against torchattacks where both mean the same, and the adapter that runs its attacks."""

import pytest
import torch
from torch import Tensor, nn

import rdp_bench.attacks.presets
import rdp_bench.attacks.torchattacks  # noqa: F401 - both register attacks
from rdp_bench.attacks.gradient_sign import GradientSign
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Attack
from rdp_bench.registry import attack as registry
from tests.helpers import toy
from tests.helpers.settings import setting

torchattacks = pytest.importorskip("torchattacks", reason="an extra: pip install '.[torchattacks]'")

EPS, ALPHA = 16 / 255, 3 / 255


def theirs(kind: str, net: nn.Module, x: Tensor, y: Tensor, **params: float) -> Tensor:
    found: Tensor = getattr(torchattacks, kind)(net, eps=EPS, **params)(x, y)
    return found


def make(text: str) -> Attack:
    return registry.resolve(text).value


@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.parametrize(
    ("ours", "kind", "params"),
    [
        (setting(steps=1), "FGSM", {}),
        (setting(steps=7, alpha=3.0, momentum=1.0), "MIFGSM", {"alpha": ALPHA, "steps": 7, "decay": 1.0}),
        (setting(steps=7, alpha=3.0, momentum=0.4), "MIFGSM", {"alpha": ALPHA, "steps": 7, "decay": 0.4}),
        (setting(steps=7, alpha=3.0), "PGD", {"alpha": ALPHA, "steps": 7, "random_start": False}),
        (setting(steps=7, alpha=3.0), "BIM", {"alpha": ALPHA, "steps": 7}),
        (
            setting(steps=7, alpha=3.0, momentum=1.0, nesterov=True),
            "NIFGSM",
            {"alpha": ALPHA, "steps": 7, "decay": 1.0},
        ),
    ],
)
def test_equal_where_the_definitions_are(ours: GradientSign, kind: str, params: dict[str, float], seed: int) -> None:
    net = toy.network(seed=seed)
    x, y = toy.images(6, 32), torch.arange(6) % 5
    expected = theirs(kind, net, x, y, **params)
    adv = ours(toy.source(toy.Toy(net, 5)), x, y, EPS, toy.image_rng(6))
    assert float((adv - expected).abs().max()) < 1e-6
    assert float((adv - x).abs().max()) > EPS / 2


def test_the_equality_would_notice_another_attack() -> None:
    net = toy.network()
    x, y = toy.images(6, 32), torch.arange(6) % 5
    mi = theirs("MIFGSM", net, x, y, alpha=ALPHA, steps=7, decay=1.0)
    for other in ("MIFGSM", "NIFGSM"):
        decay = 1.0 if other == "NIFGSM" else 0.9
        assert float((theirs(other, net, x, y, alpha=ALPHA, steps=7, decay=decay) - mi).abs().max()) > 1e-3


# The adapter


def run(text: str, x: Tensor, y: Tensor, picked: list[int] | None = None, seed: str = "") -> Tensor:
    index = list(range(len(x))) if picked is None else picked
    rng = toy.image_rng(len(x), seed).select(torch.tensor(index))
    return make(text)(toy.source(toy.conv()), x[index], y[index], EPS, rng)


@pytest.mark.parametrize("text", ["torchattacks:PGD(steps=3, random_start=true)", "torchattacks:FGSM"])
def test_adapter_keeps_the_rules(text: str) -> None:
    x, y = toy.images(4, 16), torch.arange(4)
    x[0], x[1] = 0, 1
    before = x.clone()
    adv = run(text, x, y)
    assert adv.shape == x.shape
    assert float((adv - x).abs().max()) <= EPS + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert float((adv - x).abs().mean()) > 0.5 / 255
    assert torch.equal(x, before)
    assert not adv.requires_grad


def test_adapter_is_deterministic_and_independent_of_the_batch() -> None:
    text = "torchattacks:PGD(steps=3, random_start=true)"
    x, y = toy.images(4, 16), torch.arange(4)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    together = run(text, x, y)
    torch.manual_seed(2)
    assert torch.equal(run(text, x, y), together)
    torch.manual_seed(1)
    run(text, x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(run(text, x, y, [2, 0]), together[[2, 0]])
    assert torch.equal(run(text, x, y, [3]), together[[3]])


def test_adapter_draws_for_each_image_and_seed() -> None:
    text = "torchattacks:PGD(steps=1, alpha=.0001, random_start=true)"
    x, y = toy.images(1, 16).expand(3, -1, -1, -1).clone(), torch.zeros(3, dtype=torch.long)
    one, two = run(text, x, y), run(text, x, y, seed="other")
    assert len({tuple(image.flatten().tolist()) for image in torch.cat([one, two])}) == 6


def test_adapter_runs_the_library_with_our_eps() -> None:
    x, y = toy.images(3, 16), torch.arange(3)
    expected = theirs("MIFGSM", toy.network(), x, y, steps=3, alpha=2 / 255)
    assert float((run("torchattacks:MIFGSM(steps=3)", x, y) - expected).abs().max()) < 1e-6


def test_adapter_averages_the_logits_of_an_ensemble() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = toy.network(), toy.network(seed=30)

        def forward(self, z: Tensor) -> Tensor:
            return (self.one(z) + self.two(z)) / 2  # type: ignore[no-any-return]

    x, y = toy.images(3, 16), torch.arange(3)
    source = toy.source(toy.conv(), toy.conv(seed=30))
    adv = make("torchattacks:FGSM")(source, x, y, EPS, toy.image_rng(3))
    assert float((adv - theirs("FGSM", Both(), x, y)).abs().max()) < 1e-6


def test_adapter_clips_what_strays() -> None:
    """Gaussian noise knows nothing of eps."""
    x, y = toy.images(2, 16), torch.arange(2)
    adv = run("torchattacks:GN(std=.5)", x, y)
    assert EPS - 1e-6 <= float((adv - x).abs().max()) <= EPS + 1e-6


def test_adapter_says_what_it_runs() -> None:
    attack = make("torchattacks:PGD(steps=3)")
    resolved = attack.resolved(16)
    assert resolved["class"] == "PGD"
    assert resolved["params"]["steps"] == 3
    assert resolved["params"]["eps"] == 16
    assert resolved["params"]["alpha"] == pytest.approx(2 / 255)
    assert resolved["params"]["random_start"] is True
    assert resolved["torchattacks"]
    assert attack.gradients(16) == 3
    assert make("torchattacks:FGSM").gradients(16) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchattacks:PDG", r"unknown torchattacks attack 'PDG'\. Did you mean 'PGD'\?"),
        ("torchattacks:PGD(stepz=3)", r"unknown parameter 'stepz' of torchattacks:PGD\. Did you mean 'steps'\?"),
        ("torchattacks:PGD(eps=.1)", "unknown parameter 'eps' of torchattacks:PGD"),
        ("torchattacks:PGD(20)", "parameters are written name=value"),
        ("torchattacks:PGD(steps=many)", "expected a whole number or a finite number, like 10; found 'many'"),
        ("torchattacks:PGD(random_start=3)", "expected true or false, like true; found '3'"),
        ("torchattacks:PGD(model=3)", "unknown parameter 'model' of torchattacks:PGD"),
        ("torchattacks:Attack", "unknown torchattacks attack 'Attack'"),
        ("torchattacks:MultiAttack", "unknown torchattacks attack 'MultiAttack'"),
    ],
)
def test_what_the_adapter_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(text)
