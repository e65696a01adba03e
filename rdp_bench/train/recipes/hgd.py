"""HGD: a denoiser guided by what a frozen classifier makes of its output (Liao et al. 2018)."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rdp_bench.attacks import _loop
from rdp_bench.attacks.parts.ball import sign_stepper
from rdp_bench.defenses._networks import hgd
from rdp_bench.defenses.hgd import GuidedDenoiser
from rdp_bench.errors import UsageError
from rdp_bench.train.losses import feature_l1, l1
from rdp_bench.train.recipe import Recipe, Step

KINDS = 8
"""What the authors' list of training sets names: clean, noise, four of FGSM, two and four iterations."""

OWN, JOINT = {2: 1, 3: 1, 4: 1}, {5: 1, 6: 2, 7: 4}
"""Kinds that attack the guide whose turn it is, and all guides at once, with their number of steps."""


class Hgd(Recipe):
    """The denoised image shall look to the guide as the clean one does.

    Loss terms: `feat`, L1 between the guide's last maps before pooling (or those of --levels): feature-guided, as
    all four published configurations are; `logits`, L1 between logits, is off: --weight feat=0 --weight logits=1
    is the logit-guided variant. The guides (--features) take turns.
    """

    name = "hgd"
    without_effect = ("attack", "attack_steps", "clean", "blend")
    loss_weights: ClassVar = {"feat": 1.0, "logits": 0.0}
    defaults: ClassVar = {
        # A hundred epochs of eight versions of 30,000 images.
        "paper": {"steps": 750_000, "batch": 32, "crop": 256, "rate": 1e-2, "schedule": "drops",
                  "features": ("timm:inception_v3.tf_in1k",), "levels": ()},
        "compact": {"steps": 2000, "batch": 16, "crop": 96, "rate": 2e-3, "schedule": "cosine", "levels": ()},
    }  # fmt: skip

    def build(self) -> dict[str, nn.Module]:
        """The denoiser."""
        if self.options.eps < 2 or self.options.eps % 1:
            raise UsageError(
                f"--eps of hgd is a whole number from 2: sizes are drawn below it; found {self.options.eps}"
            )
        self.net_args: dict[str, Any] = dict(hgd.SIZES[self.options.size])
        return {"denoiser": hgd.Denoiser(**self.net_args)}

    def defense(self) -> GuidedDenoiser:
        """The denoiser."""
        return GuidedDenoiser()

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """Each image of `clean` in the version that its place in the batch and the step give it.

        Sizes are whole numbers from 1 to one below --eps, in /255: the authors' generator leaves its upper end out.
        Attacks take the network's own prediction for the label, and steps of size over number. 8-bit, as files are.
        """
        n, device = len(clean), clean.device
        high = int(self.options.eps)
        eps = torch.randint(1, high, (n, 1, 1, 1), generator=rng, device=device) / 255
        noise = torch.randint(2, clean.shape, generator=rng, device=device) * 2 - 1
        kinds = [(place + self.features.turn) % KINDS for place in range(n)]
        out = clean.clone()
        noisy = [place for place, kind in enumerate(kinds) if kind == 1]
        out[noisy] += (eps * noise)[noisy]
        for logits, steps in ((self.features.logits, OWN), (self.features.joint, JOINT)):
            places = [place for place, kind in enumerate(kinds) if kind in steps]
            if places:
                out[places] = attacked(logits, clean[places], eps[places], [steps[kinds[place]] for place in places])
        return (out.clamp(0, 1) * 255).round() / 255

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:  # noqa: ARG002
        """The denoiser."""
        denoised = self.nets["denoiser"](inputs)
        terms = {}
        for name, view, distance in (("feat", self.features, feature_l1), ("logits", self.features.logits, l1)):
            if self.weights[name]:
                with torch.no_grad():
                    wanted = view(clean)
                terms[name] = distance(view(denoised), wanted)
        yield "main", self.total(terms)


def attacked(logits: Callable[[Tensor], Tensor], x: Tensor, eps: Tensor, steps: list[int]) -> Tensor:
    """`x` after sign steps away from the classes that `logits` predicts for it, clipped to [0, 1].

    Args:
        logits: images -> `[n, classes]`.
        x: images `[n, 3, h, w]` in [0, 1].
        eps: how far each image moves in all, `[n, 1, 1, 1]`.
        steps: into how many steps of one size each image's way is divided.
    """
    adv = x.clone()
    alpha = eps / torch.tensor(steps, device=x.device).view(-1, 1, 1, 1)
    labels: Tensor | None = None
    for done in range(max(steps)):
        moving = [i for i, count in enumerate(steps) if count > done]
        known = None if labels is None else labels[moving]
        run = _loop.begin((), _loop.Function(logits), x[moving], known, eps[moving], alpha[moving])
        step = sign_stepper(torch.zeros_like(run.x), torch.ones_like(run.x), run.alpha)
        adv[moving] = _loop.ascend(run, adv[moving], step, 1)
        labels = run.labels if labels is None else labels
    return adv
