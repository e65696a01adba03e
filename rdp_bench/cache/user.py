"""The user's own cache folder."""

from pathlib import Path

from rdp_bench.terminal import warn_once


def user_cache() -> Path:
    """The user's cache folder; a folder here, with a warning, where the user has no home (many containers)."""
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        here = Path(".cache").absolute()
        why = f"this user has no home folder; files are cached in {here}"
        warn_once(__name__, f"{why}. Set HOME, or name a folder with --cache")
        return here
