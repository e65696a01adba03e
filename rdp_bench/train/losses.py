"""The loss terms of the recipes, as functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference in float32: the paper writes a norm; released code of similar methods uses the mean."""
    return (a.float() - b.float()).abs().mean()


def low_l1(a: Tensor, b: Tensor) -> Tensor:
    """`l1` of images `[n, 3, h, w]` averaged over squares of 8 x 8 pixels: what features see little of."""
    return l1(avg_pool2d(a.float(), 8), avg_pool2d(b.float(), 8))


def feature_l1(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """`l1` of feature maps, averaged over the maps (RDP Eq. 2 and 7)."""
    return torch.stack([l1(x, y) for x, y in zip(a, b, strict=True)]).mean()


def generator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(fake) - mean D(real)): RDP Eq. 5, over the mean of real scores as its text says."""
    score = fake - real.mean()
    return bce(score, torch.ones_like(score))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Relativistic average (Jolicoeur-Martineau 2019): real above the mean fake, fake below the mean real."""
    above, below = real - fake.mean(), fake - real.mean()
    return (bce(above, torch.ones_like(above)) + bce(below, torch.zeros_like(below))) / 2


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of logits `[n, classes]`, mean over images."""
    wanted = teacher.log_softmax(1)
    return (wanted.exp() * (wanted - student.log_softmax(1))).sum(1).mean()
