"""The plugin of docs/examples that runs classes of TransferAttack, on a stand-in for that repository."""

import sys
from pathlib import Path

import pytest
import torch

from rdp_bench import plugins, registry
from tests.helpers import toy
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

STAND_IN = '''
import torch
from torch.nn.functional import cross_entropy

class MIFGSM:
    """The interface of TransferAttack's classes: `forward` returns the change of the images."""

    def __init__(self, model_name, epsilon, alpha, epoch, device):
        self.model, self.epsilon, self.alpha, self.epoch = self.load_model(model_name), epsilon, alpha, epoch
        assert next(self.model.parameters()).device == device

    def __call__(self, data, label):
        delta, g = torch.zeros_like(data), 0
        for _ in range(self.epoch):
            delta.requires_grad_()
            (grad,) = torch.autograd.grad(cross_entropy(self.model(data + delta), label), delta)
            g = g + grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True)
            delta = (delta.detach() + self.alpha * g.sign()).clamp(-self.epsilon, self.epsilon)
            delta = (data + delta).clamp(0, 1) - data
        return delta + 0 * torch.rand(1)

def load_attack_class(name):
    return {"mifgsm": MIFGSM}[name]
'''


def test_a_class_of_transferattack_is_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transferattack.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transferattack", raising=False)
    with new_process():
        # From its own folder, which comes first in sys.path: a file called transferattack.py would hide the repository.
        plugins.load([ROOT / "docs" / "examples" / "of_transferattack.py"])
        attack = registry.attack.resolve("transferattack(steps=4)").value
        x, y = toy.images(3, 16), torch.arange(3)
        source = toy.source(toy.conv(), toy.conv(seed=5))
        found = attack(source, x, y, 8 / 255, toy.image_rng(3))
        ours = registry.attack.resolve("mi-fgsm(steps=4)").value(source, x, y, 8 / 255, toy.image_rng(3))
    assert float((found - ours).abs().max()) < 1e-5
    assert attack.resolved(8) == {"name": "mifgsm", "steps": 4}
