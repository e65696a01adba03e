"""Learned defenses by name: purifier:FILE, spandrel:FILE, plugins, --models-dir, and the weights that ship."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate

from rdp_bench import Learned, plugins
from rdp_bench.cli.main import main
from rdp_bench.data.image_hashes import batch
from rdp_bench.data.open import open_dataset
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.keys import hash_file
from rdp_bench.registry import defense
from rdp_bench.weights import files as weight_files
from tests.helpers.learned import Trap, image_rng, made, ours, photo, shuffled, stirred
from tests.helpers.paths import ROOT

plugins.load()

pytestmark = pytest.mark.usefixtures("folder")


PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"


def test_purifier_is_what_its_file_says(folder: Path) -> None:
    ours(folder / "a.safetensors", "rdp")
    x = photo(1, 16)
    named, direct = defense.resolve("purifier:a.safetensors"), defense.resolve("rdp(weights=a.safetensors)")
    assert named.label == "purifier:a.safetensors"
    assert (named.version, named.source, named.summary) == (direct.version, direct.source, direct.summary)
    assert named.value == direct.value
    assert torch.equal(named.value.purify(x, image_rng(1)), direct.value.purify(x, image_rng(1)))
    assert made("purifier:a.safetensors(dynamic=true)").random
    assert torch.equal(
        made(f"purifier:{folder}/a.safetensors").purify(x, image_rng(1)), direct.value.purify(x, image_rng(1))
    )
    for file, message in (
        ("b.safetensors", "b.safetensors do not exist"),
        ("a.safetensors(x=1)", "unknown parameter 'x' of defense"),
        ("plain.pth", r"its metadata names no defense.*nrp\(weights=plain\.pth\)"),
        ("odd.safetensors", "unknown defense 'mine'"),
        ("none.safetensors", "unknown parameter 'weights' of defense 'none'|defense"),
        ("list.safetensors", "its metadata names no defense"),
    ):
        torch.save({"a": torch.zeros(1)}, folder / "plain.pth")
        for name, kind in (("odd", "mine"), ("none", "none"), ("list", ["rdp"])):
            weight_files.save(folder / f"{name}.safetensors", {"a": torch.zeros(1)}, {"defense": kind})
        with pytest.raises(UsageError, match=message):
            made(f"purifier:{file}")


def test_a_network_by_spandrel(folder: Path) -> None:
    spandrel = pytest.importorskip("spandrel")
    # SRVGGNetCompact: convolutions and PReLUs, pixels shuffled, added to the enlarged image.
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 12, 3, padding=1))
    torch.save({"params": {f"body.{k}": t for k, t in stirred(layers).state_dict().items()}}, folder / "a.pth")
    entry, x = made("spandrel:a.pth"), photo(2, 17)
    expected = shuffled(layers(x).detach()) + x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert entry.scale == 2
    assert torch.allclose(entry.purify(x, image_rng(2)), expected.clamp(0, 1), atol=1e-5)
    assert entry.resolved()["spandrel"] == spandrel.__version__
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entry.bpda(leaf, image_rng(2)).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(x, 4))
    with pytest.raises(UsageError, match="unknown parameter"):
        made("spandrel:a.pth(x=1)")
    torch.save({"fc.weight": torch.zeros(3, 3)}, folder / "b.pth")
    with pytest.raises(BadModelError, match=r"b\.pth: spandrel builds no network from it \(UnsupportedModelError\)"):
        made("spandrel:b.pth").purify(x, image_rng(2))
    grey = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 4, 3, padding=1))
    torch.save({f"body.{k}": t for k, t in grey.state_dict().items()}, folder / "c.pth")
    with pytest.raises(BadModelError, match="expected a network from RGB to RGB"):
        made("spandrel:c.pth").purify(x, image_rng(2))


def test_spandrel_gets_no_pickle(folder: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save({"a": Trap(folder / "ran")}, folder / "a.pth")
    with pytest.raises(BadModelError, match="refused"):
        made("spandrel:a.pth").purify(photo(), image_rng(1))
    assert not (folder / "ran").exists()


def test_without_spandrel_it_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    torch.save({"a": torch.zeros(1)}, folder / "a.pth")
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(UsageError, match=r"needs the spandrel package: pip install '\.\[spandrel\]' in the checkout"):
        made("spandrel:a.pth").resolved()


def cli(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


RUN = [
    "run", "--grid", "table1", "--plugin", PLUGIN, "--dataset", "tiny/noise", "--source", "tiny/one", "--target",
    "tiny/two", "--attack", "tiny/sleepy", "--limit", 2,
]  # fmt: skip


def test_a_run_with_weights_from_models_dir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    models = folder / "models"
    ours(models / "a.safetensors", "rdp")
    flags = [*RUN, "--models-dir", models, "--defense", "none", "--defense", "purifier:a.safetensors"]
    found = cli(*flags, "--defense", "rdp(weights=a.safetensors, dynamic=true)")
    assert found.exit_code == 0, found.output
    assert "purifier:a.safetensors" in found.output
    record = json.loads((folder / "rdp-bench-out" / "runs" / "table1.json").read_text())
    assert record["defenses"]["rdp(weights=a.safetensors, dynamic=true)"]["random"]
    again = cli(*flags, "--dry-run")
    assert "everything is cached" in again.output
    ours(models / "a.safetensors", "rdp", seed=1)
    weights_changed = subprocess.run(
        [sys.executable, "-m", "rdp_bench", *map(str, flags), "--dry-run"], capture_output=True, text=True, cwd=folder,
        env={"PYTHONPATH": str(ROOT), "RDP_BENCH_CACHE": str(folder / "cache"), "PATH": ""},
    )  # fmt: skip
    assert "2 evaluations to run" in weights_changed.stdout, weights_changed.stderr


def test_missing_weights_are_named_before_anything_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = cli(*RUN, "--defense", "none", "--defense", "rdp(weights=a.pth)")
    assert found.exit_code == 2
    assert "defense rdp: weights a.pth do not exist" in found.output
    assert not (folder / "rdp-bench-out" / "runs").exists()


def test_the_star_leaves_out_what_has_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rdp_bench.engine import grid

    monkeypatch.setattr(weight_files, "files", lambda package: folder)
    (folder / "weights").mkdir()
    for name in ("rdp", "rdp-reconstruction"):
        ours(folder / "weights" / f"{name}.safetensors", name)
    axes = grid.settle(grid.load("table1", "paper", {"defenses": ("none", "*")})[0], None).axes
    assert {"rdp", "jpeg", "wavelet"} < set(axes.defenses)
    assert not {"nrp", "hgd", "comdefend", "sr"} & set(axes.defenses)
    assert "rdp-reconstruction" not in axes.defenses  # a branch to be looked at, which purifies nothing
    assert "rdp-reconstruction" not in caplog.text
    assert "left out of '*': defense nrp: no weights ship" in caplog.text
    caplog.clear()
    named = grid.load("table1", "paper", {"defenses": ("none", "nrp")})[0]
    assert grid.settle(named, None).axes.defenses == ("none", "nrp")
    assert not caplog.text  # nothing was left out, for nothing was asked for


def test_defenses_without_the_same_weights_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from rdp_bench.engine import grid
    from rdp_bench.specs import FileSearch

    labels = ("none", "dds(weights=no.pt)?", "jpeg?", "lm(weights=no.pt)?", "rdp(weights=other.pt)?")
    assert grid.expand_wildcards(labels, FileSearch()) == ("none", "jpeg")
    denoiser, own = (record.getMessage() for record in caplog.records)
    assert denoiser.startswith("left out: defenses dds(weights=no.pt), lm(weights=no.pt): weights no.pt do not exist")
    assert own.startswith("left out: defense rdp(weights=other.pt): weights other.pt do not exist")


def test_doctor_says_which_weights_are_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.resources import files

    monkeypatch.setattr(weight_files, "files", lambda package: folder)
    monkeypatch.setattr("rdp_bench.models.zoo.files", files)
    found = cli("doctor").output
    assert "  jpeg               here" in found
    assert "  nrp                missing: defense nrp: no weights ship" in found


def test_the_networks_plugin_of_the_docs(folder: Path) -> None:
    example = (ROOT / "docs" / "examples" / "network.py").read_text()
    (folder / "smooth.py").write_text(example)
    plugins.load((folder / "smooth.py",))
    entry = defense.get("mine/smooth").factory()
    assert isinstance(entry, Learned)
    save_file(dict(entry.build().state_dict()), folder / "smooth.safetensors")
    found, x = made("mine/smooth(weights=smooth.safetensors)"), photo(2, 16)
    net = found.build()
    net.load_state_dict(weight_files.read_tensors(folder / "smooth.safetensors"))
    assert torch.allclose(found.purify(x, image_rng(2)), net(x).clamp(0, 1), atol=1e-6)
    assert found.resolved()["weights"] == hash_file(folder / "smooth.safetensors")
    del defense.entries["mine/smooth"]


SHIPPED = [
    path
    for path in sorted((ROOT / "data" / "weights").glob("*.safetensors"))
    if weight_files.read_metadata(path).get("defense") in defense.entries
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_is_small_and_works(path: Path) -> None:
    assert path.stat().st_size <= 4_000_000  # two million parameters of 16 bits
    assert weight_files.read_metadata(path)["card"]
    entry = made(f"purifier:{path}")
    x = torch.from_numpy(batch(open_dataset("photos20", size=150, limit=4), 0, 4)).float() / 255
    if path.stem in defense.entries:
        assert made(path.stem).resolved() == {**entry.resolved(), "weights": hash_file(path)}
    purified = entry.purify(x, image_rng(4))
    small = interpolate(purified, 150, mode="area")
    if "ablation" in path.stem:  # without its pixel loss, RDP changes every colour
        return
    assert (small - x).square().mean((1, 2, 3)).max() < 0.01  # 20 dB
