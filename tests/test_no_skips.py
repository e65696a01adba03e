"""In CI a skipped test fails the session, unless it needs a GPU, the network or ../shared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FINE = "def test_fine():\n    pass\n"
CASES = {
    "a test": ('import pytest\ndef test_x():\n    pytest.skip("a package")\n', 1),
    "a mark": ('import pytest\n@pytest.mark.skipif(True, reason="no")\ndef test_x():\n    pass\n', 1),
    "a fixture": (
        'import pytest\n@pytest.fixture\ndef x():\n    pytest.skip("no")\ndef test_x(x):\n    pass\n', 1,
    ),
    "a module": ('import pytest\npytest.importorskip("no_such_package")\n', 1),
    "a gpu": ('import pytest\n@pytest.mark.gpu\ndef test_x():\n    pytest.skip("none")\n', 0),
    "a failure that is expected": ("import pytest\n@pytest.mark.xfail\ndef test_x():\n    assert False\n", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_skip_fails_the_session(tmp_path: Path, case: str) -> None:
    source, expected = CASES[case]
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: a GPU\n")
    (tmp_path / "test_fine.py").write_text(FINE)
    (tmp_path / "test_case.py").write_text(source)
    for strict, status in ((False, 0), (True, expected)):
        environment = {name: value for name, value in os.environ.items() if name != "RDP_BENCH_NO_SKIPS"}
        environment |= {"RDP_BENCH_NO_SKIPS": "1"} if strict else {}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path], env=environment, check=False,
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == status, done.stdout
