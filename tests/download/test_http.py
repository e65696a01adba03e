"""`download`: from servers that misbehave, the whole file or none."""

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.download import http as download_module
from rdp_bench.download.http import download
from rdp_bench.errors import FetchError, StorageError
from tests.helpers.web_server import HTML, Server, redirect_to, serve, status

BODY = b"PK\x03\x04" + np.random.default_rng(0).bytes(300_000)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(BODY, tag='"one"')]
    told: list[tuple[int, int | None]] = []
    download(server.url, tmp_path / "a.zip", b"PK\x03\x04", lambda *state: told.append(state))
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert left(tmp_path) == ["a.zip"]
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert server.requests[0].headers["User-Agent"].startswith("rdp-bench/")


def test_what_broke_off_goes_on_there(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(BODY, upto=end) for end in (100_000, 100_001, 250_000)] + [serve(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", "bytes=100001-", "bytes=250000-"]


def test_a_stalling_server_is_left_and_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(BODY, upto=70_000, then=lambda: time.sleep(3)), serve(BODY)]
    begin = time.perf_counter()
    download(server.url, tmp_path / "a.zip")
    assert time.perf_counter() - begin < 2.5
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=70000-"]


def test_one_that_never_answers_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "TRIES", 2)
    server.answers = [lambda _: time.sleep(1)]
    with pytest.raises(FetchError, match=r"set\.zip: no data for 0\.3 seconds; given up after 2 tries\. 0 bytes"):
        download(server.url, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(BODY, upto=123_456, tag='"one"')] + [status(503)] * 5 + [serve(BODY, tag='"one"')]
    with pytest.raises(FetchError, match=r"HTTP 503 .*given up after 5 tries\. 123,456 bytes are kept"):
        download(server.url, tmp_path / "a.zip")
    assert left(tmp_path) == ["a.zip.part", "a.zip.part.tag"]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert left(tmp_path) == ["a.zip"]
    assert server.ranges()[-1] == "bytes=123456-"
    assert server.requests[-1].headers["If-Range"] == '"one"'


def test_two_versions_are_never_joined(server: Server, tmp_path: Path) -> None:
    other = BODY[::-1]
    server.answers = [serve(BODY, upto=100_000, tag='"one"'), serve(other, tag='"two"')]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == other
    (tmp_path / "b.zip.part").write_bytes(BODY + b"more than there is")
    server.answers = [serve(BODY)]
    download(server.url, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == BODY


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(BODY, upto=200_000, ranges=False), serve(BODY, ranges=False)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=200000-"]


def test_a_server_that_sends_another_part_is_not_believed(server: Server, tmp_path: Path) -> None:
    def wrong(request: Any) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 5-9/{len(BODY)}")
        request.send_header("Content-Length", "5")
        request.end_headers()
        request.wfile.write(BODY[5:10])

    server.answers = [serve(BODY, upto=200_000), wrong, serve(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_all_was_here_already_but_for_the_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(BODY)
    server.answers = [serve(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_length_that_is_too_large_is_found_out(server: Server, tmp_path: Path) -> None:
    """All bytes came; the server says there are more, and then that there are not."""
    server.answers = [serve(BODY, claims=len(BODY) + 10), serve(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    server.requests.clear()
    server.answers = [serve(BODY, claims=len(BODY) + 10, ranges=False)]
    with pytest.raises(
        FetchError, match=r"the connection ended after 300,004 of 300,014 bytes; given up after 5 tries"
    ):
        download(server.url, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_redirects_are_followed_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    server.answers = [redirect_to(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    server.answers = [status(302, "/set.zip")]
    with pytest.raises(FetchError, match="HTTP 302"):
        download(server.url, tmp_path / "b.zip")
    server.answers = [status(302, "file:///etc/hostname")]
    with pytest.raises(FetchError, match="HTTP 302"):
        download(server.url, tmp_path / "c.zip")
    assert left(tmp_path) == ["a.zip"]


def test_redirected_requests_keep_their_range(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(BODY[:99])
    server.answers = [redirect_to(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges() == ["bytes=99-", "bytes=99-"]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_no_means_no(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code)]
    with pytest.raises(FetchError, match=rf"set\.zip: HTTP {code} .*; is the address right\?"):
        download(server.url, tmp_path / "a.zip")
    assert len(server.requests) == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_busy_servers_are_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code), status(code), serve(BODY)]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_web_page_is_no_zip(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(HTML, kind="text/html; charset=utf-8")]
    with pytest.raises(
        FetchError, match=r"set\.zip: expected another type of file, found text/html that begins with b'<!doctype html>"
    ):
        download(server.url, tmp_path / "a.zip", b"PK\x03\x04")
    assert left(tmp_path) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("ends_well", [True, False])
def test_chunks_without_a_length(server: Server, tmp_path: Path, ends_well: bool) -> None:
    def chunked(request: Any) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for start in range(0, len(BODY), 50_000):
            piece = BODY[start : start + 50_000]
            if not ends_well and start and len(server.requests) == 1:
                return
            request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    server.answers = [chunked]
    download(server.url, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert len(server.requests) == (1 if ends_well else 2)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"
    with pytest.raises(FetchError, match="refused; given up after 5 tries"):
        download(url, tmp_path / "a.zip")


@pytest.mark.parametrize("url", ["http://127.0.0.1/a b", "http://127.0.0.1:x/a", "http://127.0.0.1/ü"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError, match="not an address"):
        download(url, tmp_path / "a.zip")


def test_a_flood_is_stopped(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "LARGEST", 100_000)
    server.answers = [serve(BODY)]
    with pytest.raises(FetchError, match="which cannot be right"):
        download(server.url, tmp_path / "a.zip")
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server.answers = [serve(BODY)]
    with pytest.raises(StorageError, match=r"cannot write .*name another folder"):
        download(server.url, tmp_path / "file" / "a.zip")
    assert not server.requests
