"""What a newcomer types wrong gets one clear line and the right exit status."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.commands import PLUGIN, ROOT, cli
from tests.helpers.plans import new_process


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


TINY = ["--plugin", PLUGIN, "--dataset", "tiny/noise", "--source", "tiny/one", "--target", "tiny/two"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "tabel1"], "unknown grid 'tabel1'. Did you mean 'table1'?"),
        (["--grid", "gone.toml"], "grid file gone.toml does not exist"),
        (["--profile", "papre"], "unknown profile 'papre' of grid table1. Did you mean 'paper'?"),
        (["--attack", "mi-fgms"], "Did you mean 'mi-fgsm'?"),
        (["--attack", "MI|TJ(7)"], "unknown part 'TJ' of an attack"),
        (["--attack", "dim(steps=0)"], "steps is above 0 and at most 100000, or auto"),
        (["--attack", "fgsm", "--attack", "fgsm"], "the axis 'attacks' lists fgsm twice"),
        (["--defense", "jpge"], "unknown defense 'jpge'. Did you mean 'jpeg'?"),
        (["--defense", "jpeg(quality=high)"], "expected a whole number, like 75; found 'high'"),
        (["--source", "effnet-lite9"], "unknown model 'effnet-lite9'. Did you mean 'effnet-lite"),
        (["--source", "tiny/one+tiny/one"], "names a model twice"),
        (["--target", "mobilenetv2_100"], "needs a weight file mobilenetv2_100.safetensors"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
        (["--eps", "-1"], "eps -1 is not within 0 and 255"),
        (["--eps", "256"], "eps 256 is not within 0 and 255"),
        (["--limit", "0"], "expected a whole number above 0"),
        (["--batch-size", "many"], "expected auto or a number above 0"),
        (["--device", "gpu"], "expected auto, cpu, cuda or cuda:<number>"),
        (["--models-dir", "nowhere"], "no such folder"),
        (["--plugin", "nowhere.py"], "plugin file nowhere.py does not exist"),
    ],
)
def test_bad_requests_are_refused_in_one_line(flags: list[str], message: str) -> None:
    grid = [] if "--grid" in flags else ["--grid", "table1"]
    found = cli("run", *grid, *TINY, *flags)
    assert found.exit_code == 2, found.output
    errors = [line for line in found.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in found.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_absent() -> None:
    found = cli("run", "--grid", "table1", *TINY, "--device", "cuda")
    assert found.exit_code == 2
    assert "sees no CUDA device here; use --device cpu" in found.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes = [", "not valid TOML"),
        ("[axs]", "unknown key 'axs' of grid bad. Did you mean 'axes'?"),
        ('[axes]\nattack = ["fgsm"]', "unknown axis 'attack' of grid bad. Did you mean 'attacks'?"),
        ("[axes]\neps = 16", "'eps' is a list of numbers, like [8, 16], found 16"),
        ('[axes]\ntargets = []\ndataset = "photos20"', "the axis 'targets' is empty"),
        ('[axes]\ntargets = ["effnet-lite2"]\ndefenses = ["none"]', "no data set"),
        ('[axes]\nclean = false\ntargets = ["effnet-lite2"]\ndefenses = ["none"]', "leave nothing to run"),
    ],
)
def test_bad_grid_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    found = cli("run", "--grid", "bad.toml")
    assert found.exit_code == 2
    assert message in found.output


def test_every_flag_reaches_the_plan(tmp_path: Path) -> None:
    """Each flag is set to something unusual and found again where a run reads it."""
    from rdp_bench.cli import run as module

    seen: dict[str, Any] = {}

    def spy(plan: Any, options: Any, *_: object, **__: object) -> Any:
        seen.update(plan=plan, batch=options.batch_size)
        raise SystemExit(7)

    real, module.perform = module.perform, spy
    try:
        flags = ["--attack", "dim(steps=3)", "--defense", "bit-red(bits=3)", "--eps", "2.5", "--seed", "9"]
        flags += ["--limit", "4", "--batch-size", "3", "--cache", tmp_path / "elsewhere", "--device", "cpu"]
        assert cli("run", "--grid", "table1", *TINY, *flags).exit_code == 7
    finally:
        module.perform = real
    plan = seen["plan"]
    assert (plan.seed, plan.n, plan.device, seen["batch"]) == (9, 4, "cpu", 3)
    assert plan.store.root == tmp_path / "elsewhere"
    assert plan.attacks["dim(steps=3)"].value.count(2.5) == 3
    assert plan.defenses["bit-red(bits=3)"].value.bits == 3
    assert plan.grid.axes.eps == (2.5,)
    assert (plan.dataset.name, *plan.sources, *plan.targets) == ("tiny/noise", "tiny/one", "tiny/two")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    """A weight file that would run code when unpickled is refused, and its code does not run."""
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "effnet-lite0.pth").write_bytes(pickle.dumps(Trap()))
    flags = ["--dataset", "photos20", "--target", "effnet-lite0", "--source", "effnet-lite0", "--limit", "1"]
    found = cli("run", "--grid", "table1", *flags, "--models-dir", tmp_path, "--attack", "fgsm", "--defense", "none")
    assert found.exit_code == 1
    assert "effnet-lite0.pth: refused (holds more than tensors)" in found.output
    assert "2 failed" in found.output
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = cli("run", "--grid", "table1", *TINY, "--out", tmp_path / "file" / "out")
    assert found.exit_code == 2
    assert "--out" in found.output
    assert "name another folder" in found.output


def test_a_full_disk_stops_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdp_bench.cache.store import Artefact
    from rdp_bench.errors import StorageError

    def full(*_: object) -> None:
        raise StorageError("cannot write adv: No space left on device. Free space, or name another folder")

    monkeypatch.setattr(Artefact, "write", full)
    found = cli("run", "--grid", "table1", *TINY, "--attack", "fgsm", "--defense", "none")
    assert found.exit_code == 1
    assert found.output.count("No space left on device") == 1
    assert "Traceback" not in found.output


def test_report_without_a_run_says_how_to_start() -> None:
    found = cli("report")
    assert found.exit_code == 2
    assert "rdp-bench run table1" in found.output


@pytest.mark.parametrize("kind", ["attacks", "defenses", "models", "datasets", "grids"])
def test_list_shows_every_entry(kind: str) -> None:
    from rdp_bench import registry
    from rdp_bench.engine import grid
    from rdp_bench.models.card import cards

    found = cli("list", kind, "--plugin", PLUGIN)
    assert found.exit_code == 0
    names = set(grid.builtin()) if kind == "grids" else set(registry.registries[kind[:-1]].entries)
    if kind == "models":
        names |= set(cards())
    shown = {line.split()[0] for line in found.output.splitlines()}
    assert names <= shown
    assert names


def test_doctor_names_what_is_missing() -> None:
    found = cli("doctor")
    assert found.exit_code == 0
    assert "effnet-lite0       here" in found.output
    assert "mobilenetv2_100    missing" in found.output
    assert "photos20           here, 20 images" in found.output


def test_cache_prune_needs_to_be_told_what() -> None:
    assert cli("cache", "prune").exit_code == 2


def test_the_module_runs_uninstalled() -> None:
    found = subprocess.run([sys.executable, "-m", "rdp_bench", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.startswith("rdp-bench, version ")


def test_a_warning_of_every_part_is_printed_once() -> None:
    code = (
        "import logging; from rdp_bench.cli.main import main; main(['list', 'grids'], standalone_mode=False); "
        "[logging.getLogger('rdp_bench.part').warning(text) for text in ('one', 'two', 'one')]"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stderr.splitlines() == ["WARNING: one", "WARNING: two"]


def test_a_taken_name_is_refused_with_both_origins() -> None:
    from rdp_bench.errors import RdpBenchError
    from rdp_bench.registry import Registry

    registry: Registry[int] = Registry("number")
    registry("one", source="here")(int)
    with pytest.raises(RdpBenchError, match=r"'one' is taken: by builtins.int, wanted by builtins.float"):
        registry("one", source="there")(float)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("cache", "prune", "--all", "--older-than", "365"), "use one of them"),
        (("cache", "prune", "--older-than", "nan"), "expected a number of days"),
        (("report", "--out", ""), "the path is empty"),
        (("run", "table1", "--shard", "1/1000000000"), "n at most 100000"),
        (("run", "table1", "--dry-run", "--shard", "1/2"), "--dry-run shows the whole plan"),
        (("run", "table1", "--no-wait"), "--no-wait belongs to --executor slurm"),
        (("cache", "ls", "--cache", " "), "--cache is empty"),
        (("cache", "ls", "--cache", "s3:bucket"), "is no URL like s3://bucket/prefix"),
        (("cache", "ls", "--cache", "://x"), "is no URL like s3://bucket/prefix"),
        (("cache", "ls", "--cache", "my_store://x"), "is no URL like s3://bucket/prefix"),
        (("cache", "ls", "--cache", "simplecache::s3://b/x"), "URLs in chains are not opened"),
        (("cache", "ls", "--cache", "file://host/x"), "a file URL has three slashes"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(args: tuple[str, ...], why: str, tmp_path: Path) -> None:
    done = cli(*args)
    assert done.exit_code == 2
    assert why in done.output


def test_a_plugin_cannot_take_the_name_of_a_built_in_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rdp_bench import model\n\n@model('effnet-lite2', source='-')\ndef net():\n    raise ValueError\n"
    )
    flags = ("--plugin", tmp_path / "mine.py", "--dry-run", "--cache", tmp_path / "cache")
    with new_process():
        done = cli("run", "table1", "--limit", "2", "--target", "effnet-lite2", *flags)
    assert done.exit_code == 2
    assert "model effnet-lite2 is built in, and " in done.output
    assert "registers another; rename it" in done.output


@pytest.mark.parametrize("name", ["effnet-lite0", "effnet-lite0+effnet-lite2"])
def test_an_ensemble_cannot_take_the_name_of_a_model(name: str, tmp_path: Path) -> None:
    grid = tmp_path / "mine.toml"
    grid.write_text(
        f'title = "x"\n[axes]\ndataset = "photos20"\nsources = ["{name}"]\ntargets = ["effnet-lite2"]\n'
        f'attacks = ["fgsm"]\neps = [8]\ndefenses = ["none"]\nensembles = {{ "{name}" = ["effnet-lite1"] }}\n'
    )
    done = cli("run", grid, "--dry-run", "--cache", tmp_path / "cache")
    assert done.exit_code == 2
    assert f"ensemble '{name}' has the name of a model" in done.output
