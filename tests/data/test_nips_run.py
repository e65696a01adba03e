"""From `data get nips2017` to a run: its folder is accepted, and what differs from copy A is said."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdp_bench.data import nips2017
from rdp_bench.data.nips2017 import COPY_B, Known
from rdp_bench.download import nips2017 as obtain_module
from rdp_bench.keys import hash_pixels
from tests.helpers.commands import PLUGIN, cli

IDS = ("00000000000000a0", "00000000000000a1", "00000000000000a2", "00000000000000a3")
SIDE = 299


def pixels(seed: int, copy: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    small = np.random.default_rng(seed).integers(0, 256, (SIDE // 13, SIDE // 13, 3), np.uint8)
    return small.repeat(13, 0).repeat(13, 1) ^ np.uint8(copy == "B")


def png(seed: int, copy: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, copy)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of three of four images: two of copy B, one of copy A; image 3 is a card in copy B."""
    known = {}
    for i, id_ in enumerate(IDS):
        a, b = (hash_pixels(pixels(i, copy).transpose(2, 0, 1)) for copy in "AB")
        known[id_] = Known(i + 1, i + 2, a[:32], b[:16])
    monkeypatch.setattr(nips2017, "manifest", lambda: known)
    for module in (nips2017, obtain_module):
        monkeypatch.setattr(module, "CARDS", IDS[3:])
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    (folder / "images").mkdir(parents=True)
    for i, copy in enumerate("BAB"):
        (folder / "images" / f"{IDS[i]}.png").write_bytes(png(i, copy))
    rows = [f"{id_},{i + 1},{i + 2}" for i, id_ in enumerate(IDS)]
    (folder / "images.csv").write_text("\n".join(["ImageId,TrueLabel,TargetClass", *rows]) + "\n")
    return folder


def run(*args: object) -> tuple[int, str]:
    found = cli(
        "run", "--grid", "table2", "--plugin", PLUGIN.with_name("thousand.py"), "--target", "thousand/linear",
        "--defense", "none", "--no-progress", *args,
    )  # fmt: skip
    return found.exit_code, found.output


def test_a_run_accepts_what_data_get_leaves_and_says_what_differs(
    given: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli("data", "get", "nips2017", "--from", given).exit_code == 0
    with caplog.at_level(logging.WARNING):
        code, output = run("--dataset", "nips2017")
    assert code == 0, output
    assert "nips2017: 3 of the set's 4 images" in caplog.text
    record = json.loads(Path("rdp-bench-out/runs/table2.json").read_text())
    assert record["dataset"]["n"] == 3
    assert f"nips2017: 2 of 3 images are of {COPY_B}" in record["warnings"]


def test_a_run_refuses_a_card(given: Path) -> None:
    (given / "images" / f"{IDS[3]}.png").write_bytes(png(3, "B"))
    code, output = run("--dataset", given)
    assert code == 2
    assert f"image {IDS[3]}: this is the card 'This photo is no longer available' of copy B" in output
    (given / "images" / f"{IDS[3]}.png").write_bytes(png(3, "A"))
    assert run("--dataset", given)[0] == 0


def test_a_run_of_the_named_subset(given: Path) -> None:
    code, output = run("--dataset", f"{given}(subset=every-second)")
    assert code == 0, output
    record = json.loads(Path("rdp-bench-out/runs/table2.json").read_text())
    assert record["dataset"]["n"] == 2
    assert "nips2017: 2 of the set's 4 images (subset every-second)" in record["warnings"]
