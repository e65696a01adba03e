"""The code of docs/python.md runs; the commands of docs/tutorial.md make the table that it promises."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import cli
from tests.helpers.paths import ROOT
from tests.helpers.plans import new_process

DOCS = ROOT / "docs"
SMALL = '"photos20(size=32)"'


def test_the_python_page(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks).replace('"photos20"', SMALL).replace("limit=20", "limit=1")
    assert code.count(SMALL) == 3
    checks = (
        "assert adv.shape == pure.shape == x.shape == (1, 3, 32, 32)\n"
        "assert set(frame.status) == {'done'} and len(frame) == 20\n"
        "assert errors.loc['ours'].notna().all()\n"
        "assert page.is_file() and again.to_dataframe().equals(frame)\n"
        "assert set(result.to_dataframe().status) == {'done'}\n"
        "assert 'Ours (noise)' in result.table() and 'one step' in result.table()\n"
        "assert 'ours-noise' in set(result.to_dataframe().defense)\n"
    )
    (tmp_path / "page.py").write_text(f"{code}\n{checks}")
    found = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RDP_BENCH_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "not part of cache keys" not in found.stderr
    assert "crafted on effnet-lite0" in found.stdout


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("rdp-bench ")]
    return [shlex.split(line)[1:] for line in lines]


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, run, show, report, *real_images = commands()
    assert [words[0] for words in real_images] == ["data", "run", "report"]
    assert (check[0], run[0], show[0], report[0]) == ("check", "run", "show", "report")
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    small = ["--dataset", "photos20(size=32)", "--limit", "1", "--attack", "fgsm", "--target", "effnet-lite2-ens"]
    small += ["--source", "effnet-lite0", "--name", "jpeg=Codec"]
    with new_process():
        checked = cli(*check)
        assert "8 of 8 checks passed" in checked.output
        done = cli(*run, *small)
    assert done.exit_code == 0, done.output
    with (tmp_path / "rdp-bench-out" / "results.csv").open() as file:
        defenses = list(dict.fromkeys(row["defense"] for row in csv.DictReader(file)))
    assert {"none", "jpeg", "rdp"} < set(defenses)
    assert defenses[-1] == "mine/blur"
    shown = cli(*show)
    assert shown.exit_code == 0, shown.output
    assert "Ours" in shown.output
    assert cli(*report).exit_code == 0
    tex = tmp_path / "rdp-bench-out" / "report" / "tables" / "table1_effnet-lite2-ens_eps16.tex"
    assert tex.name in (DOCS / "tutorial.md").read_text()
    assert "Ours & " in tex.read_text()
    assert "Codec & " in tex.read_text()


def test_completion_works_as_documented(tmp_path: Path) -> None:
    assert "_RDP_BENCH_COMPLETE=bash_source rdp-bench" in (DOCS / "tutorial.md").read_text()
    code = "import sys; sys.argv[0] = 'rdp-bench'; from rdp_bench.cli.main import main; main()"
    for words, expected in (("rdp-bench run tab", "table1"), ("rdp-bench run --defense +rd", "+rdp")):
        found = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "_RDP_BENCH_COMPLETE": "bash_complete", "COMP_WORDS": words,
                 "COMP_CWORD": str(len(words.split()) - 1), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert f"plain,{expected}" in found.stdout.splitlines(), found
