"""The block of lines that the documentation begins with: every line runs, and says what it should."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rdp_bench as rb


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    return rb.load_dataset("photos20", limit=2, size=64, device="cpu")


@pytest.fixture(scope="module")
def adv(photos: tuple[Tensor, Tensor]) -> Tensor:
    x, y = photos
    return rb.load_attack("MI|TI(15)")(rb.load_model("effnet-lite0", device="cpu"), x, y, eps=16 / 255)


def test_load_dataset(photos: tuple[Tensor, Tensor]) -> None:
    x, y = photos
    assert x.shape == (2, 3, 64, 64)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert y.shape == (2,)
    assert y.dtype == torch.int64


def test_load_model(photos: tuple[Tensor, Tensor]) -> None:
    assert rb.load_model("effnet-lite2", device="cpu")(photos[0]).shape == (2, 1000)


def test_load_attack(photos: tuple[Tensor, Tensor], adv: Tensor) -> None:
    x, y = photos
    moved = (adv - x).abs().amax(dim=(1, 2, 3)) * 255
    assert torch.allclose(moved, torch.full((2,), 16.0), atol=1e-2)
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1
    source = rb.load_model("effnet-lite0", device="cpu")
    loss = nn.functional.cross_entropy
    assert loss(source(adv), y) > loss(source(x), y) + 1


def test_load_defense(adv: Tensor) -> None:
    pure = rb.load_defense("rdp")(adv)
    assert pure.shape == adv.shape
    assert not torch.equal(pure, adv)


class Blur(nn.Module):
    """Averages over 3 x 3 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def test_evaluate(tmp_path: Path) -> None:
    result = rb.evaluate(
        {"ours": Blur()}, defenses=["none", "jpeg", "rdp"], attacks=["mi-fgsm", "ti-dim"], sources=["effnet-lite0"],
        targets=["effnet-lite2"], dataset="photos20(size=64)", eps=[8, 16], limit=2, cache=tmp_path / "cache",
        device="cpu",
    )  # fmt: skip
    frame = result.to_dataframe()
    assert len(frame) == 4 * (1 + 2 * 2)
    assert set(frame["defense"]) == {"none", "jpeg", "rdp", "ours"}
    assert set(frame["status"]) == {"done"}
    assert not result.failed
    assert "ours" in result.table()
    assert "crafted on effnet-lite0" in result.table()
    assert r"\toprule" in result.latex()
    assert len(result.plot().axes) == 2
    page = result.report(tmp_path / "out")
    assert page == tmp_path / "out" / "report" / "index.html"
    assert "ours" in page.read_text()
    again = rb.load_results(tmp_path / "out", cache=tmp_path / "cache")
    assert again.to_dataframe().equals(frame)
