"""The command line as tests call it, and the plugin that they run it on."""

from click.testing import CliRunner, Result

from rdp_bench.cli.main import main
from tests.helpers.paths import ROOT

PLUGIN = ROOT / "tests" / "plugin" / "tiny.py"


def cli(*args: object) -> Result:
    """`rdp-bench ARGS` in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])
