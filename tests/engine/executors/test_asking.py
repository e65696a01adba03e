"""What is asked of Slurm and of a head of Ray before anything is begun."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rdp_bench.engine.executors import on_ray, on_slurm
from rdp_bench.engine.executors.on_slurm import SlurmArray
from rdp_bench.errors import UsageError


class Notes:
    """Notes of a run whose array was submitted before."""

    folder = Path()

    def kept(self, name: str) -> dict[str, str]:
        assert name == "array.json"
        return {"id": "12345"}


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], SlurmArray]:
    """An array where squeue is the given shell script."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def made(script: str) -> SlurmArray:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
        found = SlurmArray.__new__(SlurmArray)
        found._board, found._id = Notes(), ""  # type: ignore[assignment]
        return found

    return made


def test_an_earlier_array_that_lives_is_followed(array: Callable[[str], SlurmArray]) -> None:
    found = array("echo RUNNING")
    assert found.submit() == "Slurm array 12345"
    assert found.alive()


@pytest.mark.parametrize("script", ["echo no controller >&2; exit 1", "sleep 30"])
def test_an_array_that_cannot_be_seen_is_no_success(
    script: str, array: Callable[[str], SlurmArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_slurm, "PATIENCE", 0.5)
    found = array(script)
    with pytest.raises(UsageError, match="whether Slurm array 12345 of an earlier command still works"):
        found.submit()
    found._id = "12345"
    assert found.alive()  # one that was submitted by this command is waited for


def test_seconds_of_the_signal() -> None:
    assert on_slurm.seconds("300") == 300
    with pytest.raises(UsageError, match="--slurm signal_delay_s=5m: expected seconds, like 300"):
        on_slurm.seconds("5m")


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Answers one connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            one, _ = listening.accept()
            with one:
                one.recv(64)
                one.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_what_is_no_head_of_ray_is_refused_at_once() -> None:
    with (
        server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address,
        pytest.raises(UsageError, match=f"--ray-address {address}: what answers there is no head of a Ray cluster"),
    ):
        on_ray._refuse_bad(address)
    with server(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:  # the settings of HTTP/2
        on_ray._refuse_bad(address)
