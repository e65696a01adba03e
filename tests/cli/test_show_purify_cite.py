"""`show`, `purify`, `cite`, `report --open`, and `-v` on either side."""

import csv
import io
import json
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rdp_bench as rb
from rdp_bench import plugins
from rdp_bench.results.rows import COLUMNS
from tests.helpers.commands import PLUGIN, cli

Folder = tuple[Path, Path]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A results folder and its cache."""
    folder = tmp_path_factory.mktemp("show")
    plugins.load((PLUGIN,))
    rb.evaluate(
        {"Ours": lambda x: x * 0.5}, defenses=["none", "tiny/nan"], attacks=["fgsm", "i-fgsm"],
        sources="tiny/one", targets="tiny/two", dataset="tiny/noise", eps=16, cache=folder / "cache",
        out=folder / "out", device="cpu",
    )  # fmt: skip
    return folder / "out", folder / "cache"


def test_show(done: Folder) -> None:
    out, cache = done
    result = cli("show", out, "--cache", cache)
    assert result.exit_code == 0, result.output
    frame = rb.load_results(out, cache=cache).to_dataframe()
    row = frame.query("defense == 'ours' and attack == 'fgsm'").iloc[0]
    assert f"{row['value']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}]" in result.output
    assert "Ours" in result.output
    assert "crafted on tiny/one" in result.output
    assert "I-FGSM" in result.output
    assert "failed" in result.output
    assert "cells have no number; the first: " in result.output
    board = result.output.partition("Error under attack")[0]
    mean = frame.query("defense == 'ours' and metric == 'error'")["value"].mean()
    assert board.partition("\nOurs ")[2].split()[0] == f"{mean:.1f}"
    assert "2 of 2 cells" not in board  # each with a number has its mean
    assert "[" not in cli("show", out, "--cache", cache, "--no-intervals").output.partition("cells have")[0]


def test_show_as_data(done: Folder) -> None:
    out, cache = done
    frame = rb.load_results(out, cache=cache).to_dataframe()
    as_json = json.loads(cli("show", out, "--cache", cache, "--json").stdout)
    assert [row["value"] for row in as_json] == [None if v != v else v for v in frame["value"]]
    as_csv = list(csv.DictReader(io.StringIO(cli("show", out, "--cache", cache, "--csv").stdout)))
    assert tuple(as_csv[0]) == COLUMNS
    assert [row["defense"] for row in as_csv] == list(frame["defense"])


def test_show_refuses(done: Folder, tmp_path: Path) -> None:
    out, cache = done
    assert cli("show", out, "--json", "--csv").exit_code == 2
    missing = cli("show", tmp_path / "nowhere")
    assert missing.exit_code == 2
    assert "holds no run" in missing.output
    assert "unknown run 'x'" in cli("show", out, "--cache", cache, "--only", "x").output


def test_show_without_its_predictions_fails(done: Folder, tmp_path: Path) -> None:
    out = tmp_path / "moved"
    shutil.copytree(done[0], out)
    for file in (out / "predictions").iterdir():
        file.unlink()
    for form in ((), ("--csv",), ("--json",)):
        shown = cli("show", out, "--cache", tmp_path / "empty", *form)
        assert shown.exit_code == 1, form
        assert "could not be read" in shown.stderr


def test_cite_of_no_run_prints_nothing_else(tmp_path: Path) -> None:
    missing = cli("cite", tmp_path)
    assert missing.exit_code == 2
    assert missing.stdout == ""


def test_cite(done: Folder, tmp_path: Path) -> None:
    plain = cli("cite").output
    assert plain.count("@") == 2
    assert plain.count("{") == plain.count("}")
    assert rb.__version__ in plain
    used = cli("cite", done[0]).output
    assert "% attack fgsm: " in used
    assert "% defense ours: your code" in used
    assert cli("cite", tmp_path).exit_code == 2


def photo(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)).save(path)


def test_purify(tmp_path: Path) -> None:
    import torch

    for name, size in (("a.png", 32), ("b.png", 48)):
        photo(tmp_path / "in" / name, size, size)
    result = cli("purify", tmp_path / "in", tmp_path / "out", "--defense", "bit-red(bits=2)", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "2 images purified by bit-red(bits=2)" in result.output
    for name in ("a.png", "b.png"):
        clean, purified = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("in", "out"))
        x = torch.from_numpy(clean.copy()).permute(2, 0, 1)[None].float() / 255
        expected = (rb.load_defense("bit-red(bits=2)")(x) * 255).round().byte()[0].permute(1, 2, 0).numpy()
        assert (purified == expected).all()
        assert len(np.unique(purified)) == 4


def test_purify_is_repeatable(tmp_path: Path) -> None:
    photo(tmp_path / "one.png", 32, 32)
    for out, seed in (("first", 1), ("again", 1), ("other", 2)):
        cli("purify", tmp_path / "one.png", tmp_path / out, "--defense", "r&p", "--seed", seed, "--device", "cpu")
    first, again, other = ((tmp_path / out / "one.png").read_bytes() for out in ("first", "again", "other"))
    assert first == again != other


def test_purify_resizes_on_request(tmp_path: Path) -> None:
    photo(tmp_path / "wide.png", 40, 30)
    refused = cli("purify", tmp_path / "wide.png", tmp_path / "out", "--defense", "jpeg", "--device", "cpu")
    assert refused.exit_code == 2
    assert "40 x 30 pixels; images are square: name a size" in refused.output
    done = cli("purify", tmp_path / "wide.png", tmp_path / "out", "--defense", "jpeg", "--size", 24, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "out" / "wide.png").size == (24, 24)


def test_purify_refuses(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png", 16, 16)
    photo(tmp_path / "in" / "a.bmp", 16, 16)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for source, to, why in (
        ("in", "out", "several images called a"),
        ("empty", "out", "holds no images"),
        ("nowhere", "out", "no such file or folder"),
        ("in/a.png", "in", "is the folder of the images"),
        ("in/a.png", "file", "is a file; OUT is a folder"),
    ):
        result = cli("purify", tmp_path / source, tmp_path / to, "--defense", "jpeg")
        assert result.exit_code == 2
        assert why in result.output
    assert "unknown defense 'jpg'" in cli("purify", tmp_path / "in/a.png", tmp_path / "out", "--defense", "jpg").output


def test_report_opens_the_page(done: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    out, cache = done
    assert cli("report", "--out", out, "--cache", cache).exit_code == 0
    assert not opened
    assert cli("report", "--out", out, "--cache", cache, "--open").exit_code == 0
    assert opened == [(out / "report" / "index.html").resolve().as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    failed = cli("report", "--out", out, "--cache", cache, "--open")
    assert failed.exit_code == 1
    assert "no browser could be opened" in failed.output


def test_verbose_on_either_side(tmp_path: Path) -> None:
    for args in (("-v", "cache", "ls"), ("cache", "ls", "-v"), ("cache", "-v", "ls"), ("cache", "ls", "--verbose")):
        assert cli(*args, "--cache", tmp_path).exit_code == 0
    (tmp_path / "bad.py").write_text("1/0")
    for args in (("-v", "list", "attacks"), ("list", "attacks", "-v")):
        assert cli(*args).exit_code == 0
