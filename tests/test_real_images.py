"""Real networks, real photographs, real devices: what toy models cannot show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from rdp_bench import plugins, registry
from rdp_bench.cli.main import main
from rdp_bench.data.open import open_dataset
from rdp_bench.engine.levels import to_float, to_uint8
from rdp_bench.engine.worker import configure_torch
from rdp_bench.errors import BadModelError
from rdp_bench.models import zoo
from rdp_bench.models.card import cards
from rdp_bench.rng import ImageRng

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"

needs_shared = [
    pytest.mark.shared,
    pytest.mark.skipif(not (SHARED / "nips17").is_dir(), reason="../shared/nips17 is not here"),
]
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def pixels(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = open_dataset(name, limit=count)
    return to_float(np.stack([data.image(i) for i in range(count)]), "cpu"), torch.tensor(list(data.labels))


def right(model: zoo.AnyModelRef, x: torch.Tensor, y: torch.Tensor) -> int:
    with torch.no_grad():
        return int((model.load("cpu")(x).argmax(1) == y).sum())


@pytest.mark.parametrize(("name", "least"), [("effnet-lite0", 17), ("effnet-lite1", 17), ("effnet-lite2", 17)])
def test_embedded_networks_know_the_embedded_photos(name: str, least: int) -> None:
    plugins.load()
    x, y = pixels("photos20", 20)
    assert right(zoo.find(name), x, y) >= least


def test_white_box_momentum_succeeds_and_stays_in_its_ball() -> None:
    plugins.load()
    x, y = pixels("photos20", 4)
    network = zoo.find("effnet-lite0").load("cpu")
    source = zoo.LoadedSource("lite0", [network])
    adv = registry.attack.resolve("mi-fgsm").value(source, x, y, 16 / 255, ImageRng(list("abcd")))
    final = to_float(to_uint8(adv), "cpu")
    assert float((final - x).abs().max()) <= 16 / 255 + 1e-6
    with torch.no_grad():
        assert not (network(final).argmax(1) == y).any()


def test_a_wrong_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    card = replace(cards()["effnet-lite0"], sha256="0" * 64)
    monkeypatch.setattr(zoo, "cards", lambda: {"effnet-lite0": card})
    with pytest.raises(BadModelError, match="the card says 000000000000"):
        zoo.find("effnet-lite0")
    assert not list(tmp_path.iterdir())


class TestShared:
    pytestmark = needs_shared

    @pytest.mark.parametrize(
        ("name", "percent"),
        [("effnet-lite0", 90), ("effnet-lite2", 92), ("mobilenetv2_100", 88), ("mobilenetv1_100", 83)],
    )
    def test_accuracy_on_nips2017(self, name: str, percent: int) -> None:
        """Within four points on 100 images: wrong labels, normalisation or weights cost far more."""
        x, y = pixels(str(SHARED / "nips17"), 100)
        assert right(zoo.find(name, SHARED / "weights"), x, y) >= percent - 4

    def test_a_weight_file_of_another_network_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "effnet-lite0.safetensors").symlink_to(SHARED / "weights" / "mobilenetv2_100.safetensors")
        with pytest.raises(BadModelError, match="does not fit tf_efficientnet_lite0: missing"):
            zoo.find("effnet-lite0", tmp_path).load("cpu")


class TestGpu:
    pytestmark = needs_gpu

    def test_logits_and_gradients_are_those_of_the_cpu(self) -> None:
        configure_torch("cuda")
        x, y = pixels("photos20", 4)
        member = zoo.find("effnet-lite0")
        found = []
        for device in ("cpu", "cuda"):
            leaf = x.to(device).requires_grad_()
            logits = member.load(device)(leaf)
            (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y.to(device)), leaf)
            found.append((logits.detach().cpu(), grad.cpu()))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
        assert torch.nn.functional.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), 0) > 0.999

    def test_a_run_on_the_gpu_repeats_itself(self, tmp_path: Path) -> None:
        def run(cache: str) -> Result:
            flags = ["--plugin", str(PLUGIN), "--dataset", "tiny/noise", "--source", "tiny/one", "--target", "tiny/two"]
            flags += ["--device", "cuda", "--cache", str(tmp_path / cache), "--out", str(tmp_path / "out")]
            names = ["--defense", "none", "--defense", "jpeg", "--defense", "tvm", "--defense", "r&p"]
            return CliRunner().invoke(main, ["run", "--grid", "table1", *flags, *names])

        first, second = run("one"), run("two")
        assert first.exit_code == 0, first.output
        assert first.stdout == second.stdout
