"""The command line as tests call it, and the plugin that they run it on."""

from pathlib import Path

from click.testing import CliRunner, Result

from rdp_bench.cli import main

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"


def cli(*args: object) -> Result:
    """`rdp-bench ARGS` in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])
