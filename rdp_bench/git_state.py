"""The commit of the repository that a folder or file is in, as far as git tells; never an error."""

import os
import shutil
import subprocess
from pathlib import Path

from rdp_bench.keys import Record

_SECONDS = 10.0
_NOT_PASSED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Variables that a git hook sets, which would name another repository."""


def commit_of(path: Path) -> Record | None:
    """`{"commit", "dirty"}` of the repository that contains a folder or file.

    Returns:
        The commit as hexadecimal digits. `dirty` is True if tracked files were changed, or if `path` is a file that is
        not tracked; None if git could not tell. Nothing if git is not installed, or there is no repository or commit.
    """
    git = shutil.which("git")
    folder = path if path.is_dir() else path.parent
    if git is None or not folder.is_dir():
        return None
    commit = _answer(git, folder, "rev-parse", "--verify", "-q", "HEAD")
    if not commit:
        return None
    changed = _answer(git, folder, "status", "--porcelain", "--untracked-files=no")
    dirty = None if changed is None else bool(changed)
    if dirty is False and path.is_file():
        dirty = _answer(git, folder, "ls-files", "--error-unmatch", "--", path.name) is None
    return {"commit": commit, "dirty": dirty}


def _answer(git: str, folder: Path, *words: str) -> str | None:
    """What git prints; None if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # `status` then writes nothing into the repository
    command = [git, "-c", "core.fsmonitor=false", *words]
    try:
        found = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.decode("utf-8", "replace").strip() if found.returncode == 0 else None
