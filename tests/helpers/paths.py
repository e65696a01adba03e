"""Where the tests and the checkout are."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
