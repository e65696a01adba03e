"""Ensemble adversarial training (Tramer et al. 2018) of a target, by distillation from its natural self."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.attacks import _loop
from rdp_bench.attacks.gradient_sign import compose
from rdp_bench.attacks.parts.ball import sign_stepper
from rdp_bench.models.classifier import create, load_state, prepared, unfolded_state
from rdp_bench.models.zoo import LoadedSource, find
from rdp_bench.numerics.resizing import resize
from rdp_bench.rng import ImageRng
from rdp_bench.train.extractor import WHOLE
from rdp_bench.train.losses import distillation
from rdp_bench.train.recipe import Recipe, Step
from rdp_bench.train.validate import EPS, score

if TYPE_CHECKING:
    from pathlib import Path

STUDENT = "effnet-lite2"
SHOWN = 256
"""Pixels to which a crop is enlarged: photographs are smaller than the benchmark's images."""


class EnsAdv(Recipe):
    """The student sees clean images and images attacked from static sources; its teacher sees the clean ones.

    Each batch draws its source (--features), one to three steps, and by a coin a smoothed gradient. A quarter of its
    images are attacked at --eps, the others at U(1/4, 1) of it. Batch statistics stay as they are.

    The product lies --blend of the way from the teacher's weights to the student's: between them robustness lasts
    longer than the loss of clean accuracy does (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """

    name = "ens-adv"
    parts = ("clean", "adv")
    without_effect = ("levels", "attack", "clean", "scale", "average")
    loss_weights: ClassVar = {"clean": 1.0, "adv": 1.0}
    uses_features = False
    frozen_statistics = True
    defaults: ClassVar = {
        "compact": {"steps": 2000, "batch": 16, "crop": 224, "rate": 1e-4, "schedule": "cosine",
                    "features": ("effnet-lite0", "effnet-lite1"), "attack_steps": 3, "blend": 0.7},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """The student, a copy of the natural network."""
        self.member: Any = find(STUDENT, self.models_dir)
        teacher: Any = self.member.load(self.device)
        self.teacher = teacher
        self.sources: list[Any] = [find(label, self.models_dir).load(self.device) for label in self.options.features]
        self.net_args = {"of": STUDENT}
        student: Any = copy.deepcopy(teacher)
        student.requires_grad_(True)
        return {"student": student}

    def begin_with(self, tensors: Mapping[str, Tensor], what: str, where: "Path") -> None:
        """Begin with other weights of the student, such as an earlier product; the teacher stays the natural network.

        Raises:
            BadModelError: they are of another network.
        """
        card = self.teacher.card
        net = create(card)
        load_state(net, OrderedDict(tensors), card, where)
        super().begin_with(prepared(net, card, "").to(self.device).state_dict(), what, where)

    def frozen(self) -> list[Any]:
        """The teacher and the sources."""
        return [self.teacher, *self.sources]

    @property
    def zoom(self) -> float:
        """How much of a whole image's pixels a training image has."""
        return SHOWN / WHOLE

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """Attacked images of `clean` after enlarging, `[n, 3, 256, 256]`."""
        x = resize(clean, SHOWN).clamp(0, 1)
        with torch.no_grad():
            self.wanted = self.teacher(x, self.zoom)
        n, device = len(x), x.device
        source = self.sources[int(torch.randint(len(self.sources), (), generator=rng, device=device))]
        steps = int(torch.randint(1, self.options.attack_steps + 1, (), generator=rng, device=device))
        coarse = bool(torch.rand((), generator=rng, device=device) < 0.5)
        share = torch.rand(n, generator=rng, device=device) * 0.75 + 0.25
        share[: n // 4] = 1.0
        eps = (share * self.options.eps / 255).view(n, 1, 1, 1)
        noise = (torch.rand(x.shape, generator=rng, device=device) * 2 - 1) * eps / 2
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        parts = compose("MI|TI(15)" if coarse else "MI").parts
        shown = _loop.Function(lambda images: source(images, self.zoom))
        run = _loop.begin(parts, shown, x, self.wanted.argmax(1), eps, eps * 1.25 / steps)
        self.clean = x
        return _loop.ascend(run, x + noise, sign_stepper(low, high, run.alpha), steps)

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """KL divergence from the teacher's view of the clean image, on clean and on attacked ones."""
        student = self.nets["student"]
        logits = student(torch.cat([self.clean, inputs]), self.zoom)
        on_clean, on_adv = logits.chunk(2)
        yield (
            "main",
            self.total({"clean": distillation(self.wanted, on_clean), "adv": distillation(self.wanted, on_adv)}),
        )

    def validation(self, clean: Tensor) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
        """See `TargetValidation`."""
        return TargetValidation(clean, self)

    def purify(self, x: Tensor) -> Tensor:
        """Nothing: what is trained is the target."""
        return x

    def blended(self) -> Any:
        """The product: teacher and student mixed, weight by weight."""
        mixed = copy.deepcopy(self.teacher)
        for weight, trained in zip(mixed.parameters(), self.nets["student"].parameters(), strict=True):
            weight.data.lerp_(trained.detach(), self.options.blend)
        return mixed

    def export(self) -> dict[str, Tensor]:
        """The product under timm's names."""
        return unfolded_state(self.blended())


class TargetValidation:
    """Agreement of the product with its teacher's clean view: clean, and under attacks from lite0 at eps 16."""

    def __init__(self, clean: Tensor, recipe: EnsAdv) -> None:
        self.product, self.sets, self.images = recipe.blended, {}, len(clean)
        source = find("effnet-lite0", recipe.models_dir).load(recipe.device)
        x = clean.to(recipe.device)
        attacks = {
            "fgsm": compose("FGSM|OWN"),
            "mi-fgsm": compose("MI|OWN"),
            "ti-dim": compose("MI|DI(p=.7)|TI(15)|OWN"),
        }
        rng = ImageRng([f"validation/{i}" for i in range(len(x))], recipe.device)
        self.sets = {"clean": x}
        for name, attack in attacks.items():
            parts = [
                attack(LoadedSource("effnet-lite0", [source]), part, torch.zeros(len(part), dtype=torch.long),
                       EPS, rng.select(torch.arange(i * 16, i * 16 + len(part))))
                for i, part in enumerate(torch.split(x, 16))
            ]  # fmt: skip
            self.sets[name] = (torch.cat(parts) * 255).round() / 255
        with torch.no_grad():
            self.wanted = torch.cat([recipe.teacher(part) for part in torch.split(x, 16)])
        found = self._evaluate(recipe.teacher)
        self.undefended = {key: value for key, value in found.items() if key != "score"}

    def __call__(self, purify: Callable[[Tensor], Tensor]) -> dict[str, float]:  # noqa: ARG002
        """Agreement in percent on each set; `score`: KL divergence, clean plus the mean of the attacked."""
        return self._evaluate(self.product())

    def _evaluate(self, net: Any) -> dict[str, float]:
        found, divergence = {}, {}
        for name, images in self.sets.items():
            with torch.no_grad():
                logits = torch.cat([net(part) for part in torch.split(images, 16)])
            found[f"agree_{name}"] = 100 * float((logits.argmax(1) == self.wanted.argmax(1)).float().mean())
            divergence[name] = float(distillation(self.wanted, logits))
        return found | {"score": score(divergence)}
