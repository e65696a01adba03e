"""Downloads that resume, with the standard library. A file exists under its final name only when it is complete.

The received bytes are in PATH.part, and the server's ETag of this version of the file is in PATH.part.tag, so that two
versions are never joined. A server may stall, close the connection early, redirect, ignore the requested range, or
answer with a web page. The request is repeated if that can help; otherwise an error says what happened.

pooch cannot replace this module: it does not resume, does not limit the size, and accepts truncated files unless the
hash is known in advance (docs/design.md).
"""

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rdp_bench import __version__
from rdp_bench.cache.files import writing
from rdp_bench.errors import FetchError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection is closed."""

TRIES = 5
"""Consecutive connections without new bytes before the download fails."""

PAUSE = 1.0
"""Seconds before the second connection; each later pause is twice as long."""

LARGEST = 2**32
"""The largest accepted file in bytes."""

_LATER = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes after which the request is repeated."""


class _AgainError(Exception):
    """The connection failed in a way that may not recur."""


def download(
    url: str, path: Path, magic: bytes = b"", progress: Callable[[int, int | None], None] | None = None
) -> None:
    """Download `url` to `path`, resuming an earlier call.

    Args:
        url: an http or https address; https may not redirect to http.
        path: the file to write.
        magic: the first bytes that the file must have.
        progress: called with the bytes received so far and the total, or None if the total is unknown.

    Raises:
        FetchError: the address is wrong, the server refuses or sends another type of file, the file is larger than
            LARGEST, or TRIES consecutive connections brought no new bytes.
        StorageError: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(part):
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
                    "the same command resumes there"
                ) from error
            time.sleep(PAUSE * 2 ** (tries - 1))
        else:
            part.replace(path)
            _tag(part).unlink(missing_ok=True)
            return


def _fetch(url: str, part: Path, magic: bytes, progress: Callable[[int, int | None], None]) -> None:
    """Append the missing bytes to `part` over one connection; return when the file is complete."""
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
            raise _AgainError("the file on the server has changed") from error
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
            raise _AgainError("the server sent another range than requested")
        length = answer.headers.get("Content-Length", "")
        end = have + int(length) if length.isdecimal() else None
        tag = answer.headers.get("ETag", "")
        with _writing(part) as write:
            if tag.startswith('"'):  # a weak ETag, W/"...", does not identify exact bytes
                _tag(part).write_text(tag)
            progress(have, end)
            while chunk := answer.read1(1 << 16):
                if not have and chunk[: len(magic)] != magic[: len(chunk)]:
                    _forget(part)
                    kind = answer.headers.get_content_type()
                    raise FetchError(
                        f"{url}: expected another type of file, found {kind} that begins with {chunk[:40]!r}"
                    )
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
    """Yield a function that appends to `part`; its errors come from the disk, so the download is not repeated."""

    def write(chunk: bytes) -> None:
        with writing(part):
            file.write(chunk)
            file.flush()

    with writing(part):
        file = part.open("ab")
    with file:
        yield write


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
        return f"no data for {TIMEOUT:g} seconds"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection broke off"
    return str(inner) or type(inner).__name__
