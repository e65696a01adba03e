"""The commit that git reports: of a folder, of a file, and of nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rdp_bench.git_state import commit_of


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "net.py").write_text("one = 1\n")
    git(folder, "add", "net.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_repository(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository) == {"commit": commit, "dirty": False}
    assert commit_of(repository / "net.py") == {"commit": commit, "dirty": False}


def test_results_beside_the_code_do_not_make_it_dirty(repository: Path) -> None:
    (repository / "out.csv").write_text("1")
    found = commit_of(repository)
    assert found
    assert found["dirty"] is False


def test_a_changed_file_does(repository: Path) -> None:
    (repository / "net.py").write_text("one = 2\n")
    for path in (repository, repository / "net.py"):
        found = commit_of(path)
        assert found
        assert found["dirty"] is True


def test_a_plugin_that_no_commit_contains_is_dirty(repository: Path) -> None:
    (repository / "new.py").write_text("two = 2\n")
    found = commit_of(repository / "new.py")
    assert found
    assert found["dirty"] is True


def test_a_hooks_repository_is_not_taken_for_this_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = commit_of(repository)
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert commit_of(repository) == expected


def test_no_repository_no_commit_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "absent" / "file.py") is None


def test_without_git_nothing_is_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("git is not installed")

    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(subprocess, "run", run)
    assert commit_of(repository) is None


def test_a_git_that_fails_is_no_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", run)
    assert commit_of(repository) is None
