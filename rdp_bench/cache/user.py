"""The user's own cache folder."""

import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


def user_cache() -> Path:
    """The user's cache folder; a folder here, with a warning, where the user has no home (many containers)."""
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        here = Path(".cache").absolute()
        _say_once(f"this user has no home folder; files are cached in {here}. Set HOME, or name a folder with --cache")
        return here


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)
