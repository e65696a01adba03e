"""Files from the web: taken up where they stopped, and there whole or not at all. Standard library only.

What has come so far is PATH.part, and PATH.part.tag what the server calls this version of the file (its ETag), so
that two versions are never joined. A server may stall, hang up early, redirect, ignore what is asked of it or answer
with a web page: each is tried again where that can help, and told where it cannot.
"""

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rdp_bench import __version__
from rdp_bench.errors import FetchError, StorageError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""

TRIES = 5
"""Connections in a row that bring nothing new before we give up."""

PAUSE = 1.0
"""Seconds before the second of them; each pause is twice the one before."""

LARGEST = 2**32
"""Bytes; a server that sends more than this is not believed."""

_LATER = {408, 425, 429, 500, 502, 503, 504}
"""Answers that another try may change."""


class _AgainError(Exception):
    """A connection brought no more; the next one may."""


def download(
    url: str, path: Path, magic: bytes = b"", progress: Callable[[int, int | None], None] | None = None
) -> None:
    """Fetch `url` (http or https) to `path`; `magic` is how the file must begin.

    `tell` is called with the bytes that are there and the bytes there will be (None where nobody knows).

    Raises:
        FetchError: no such thing there, not such a file, or nothing came TRIES times in a row.
        StorageError: the disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f"{path.name}.part")
    with _disk(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    tries = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, magic, progress or (lambda *_: None))
        except (_AgainError, http.client.HTTPException, OSError) as error:
            tries = 1 if _size(part) > before else tries + 1
            if tries == TRIES:
                raise FetchError(
                    f"{url}: {_reason(error)}; given up after {TRIES} tries. {_size(part):,} bytes are kept: "
                    "the same command goes on from there"
                ) from error
            time.sleep(PAUSE * 2 ** (tries - 1))
        else:
            part.replace(path)
            _tag(part).unlink(missing_ok=True)
            return


def _fetch(url: str, part: Path, magic: bytes, progress: Callable[[int, int | None], None]) -> None:
    """Get what is missing of `part` over one connection; returns when it is whole."""
    have = _size(part)
    headers = {"User-Agent": f"rdp-bench/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _tag(part).is_file():
            headers["If-Range"] = _tag(part).read_text()
    try:
        answer = urlopen(Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310 - the caller checked the scheme
    except HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            _forget(part)
            raise _AgainError("the server has another file than the one begun") from error
        if error.code in _LATER:
            raise
        raise FetchError(f"{url}: {_reason(error)}; is the address right?") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise FetchError(f"{url}: not an address ({error})") from error
    with answer:
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise FetchError(f"{url}: redirects to {answer.url}, which is not encrypted")
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            _forget(part)
            have = 0
        if answer.status == 206 and not resumed:
            raise _AgainError("the server sent another part than it was asked for")
        length = answer.headers.get("Content-Length", "")
        end = have + int(length) if length.isdecimal() else None
        tag = answer.headers.get("ETag", "")
        with _writing(part) as write:
            if tag.startswith('"'):  # a weak one, W/"...", names no exact bytes
                _tag(part).write_text(tag)
            progress(have, end)
            while chunk := answer.read1(1 << 16):
                if not have and chunk[: len(magic)] != magic[: len(chunk)]:
                    _forget(part)
                    kind = answer.headers.get_content_type()
                    raise FetchError(f"{url}: no such file, but {kind} that begins with {chunk[:40]!r}")
                have += len(chunk)
                if have > LARGEST:
                    _forget(part)
                    raise FetchError(f"{url}: more than {LARGEST >> 30} GiB, which cannot be right")
                write(chunk)
                progress(have, end)
        if end is not None and have < end:
            raise _AgainError(f"the connection ended after {have:,} of {end:,} bytes")


@contextmanager
def _writing(part: Path) -> Iterator[Callable[[bytes], object]]:
    """Append to `part`; what goes wrong here is the disk's fault, and no reason to try again."""

    def write(chunk: bytes) -> None:
        with _disk(part):
            file.write(chunk)
            file.flush()

    with _disk(part):
        file = part.open("ab")
    with file:
        yield write


@contextmanager
def _disk(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {part}: {error.strerror or error}. Free space, or name another folder"
        ) from error


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _forget(part: Path) -> None:
    for path in (part, _tag(part)):
        path.unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    inner = error.reason if isinstance(error, URLError) else error
    if isinstance(inner, TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection broke off"
    return str(inner) or type(inner).__name__
