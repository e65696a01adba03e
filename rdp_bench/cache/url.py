"""A store's files in an object store, by any URL that fsspec opens: `s3://bucket/prefix`, `gs://...`, `memory://...`.

`UrlPath` has the methods of `pathlib.Path` that the store uses, so that the store has one code for both. A put of an
object store replaces the object whole, so nothing is renamed. Every error becomes an `OSError` with one line.
"""

import errno
import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any, NamedTuple, TypeVar

from rdp_bench.cache import copies
from rdp_bench.errors import UsageError

T = TypeVar("T")

_ATOMIC_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2", "memory"})
"""Protocols whose put shows a reader the old object or the whole new one. Others get a temporary name and a rename."""

_WORDS = {
    "NoCredentialsError": "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    "PartialCredentialsError": "its credentials are incomplete; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; create it, or name another one",
    "InvalidAccessKeyId": "its credentials are refused; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "its credentials are refused; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "its credentials have expired; sign in again",
    "AccessDenied": "permission denied",
    "403": "permission denied, or the credentials are refused",
    "EndpointConnectionError": "its server cannot be reached",
    "ConnectTimeoutError": "its server does not answer",
    "ClientConnectorError": "its server cannot be reached",
    "ConnectionClosedError": "its server closed the connection",
}
"""By the name of an error's class or the code that S3 answers with."""


class Stat(NamedTuple):
    """What is known of an object, named as `os.stat_result` names it."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class UrlPath:
    """An object, or all objects whose names begin with it and a slash."""

    url: str  # without a slash at the end
    fs: Any = field(compare=False, repr=False)
    """The fsspec file system."""
    info: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """What a listing said of it."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "UrlPath":
        return UrlPath(f"{self.url}/{name}", self.fs)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        head, dot, _ = self.name.rpartition(".")
        return head if dot else self.name

    @property
    def parent(self) -> "UrlPath":
        return UrlPath(self.url.rpartition("/")[0], self.fs)

    @property
    def _inside(self) -> str:
        return str(self.fs._strip_protocol(self.url))

    # --- reading ---

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The object's bytes. Shards are read from a copy on this machine, which is made at the first read."""
        assert mode == "rb"
        if not self.name.endswith(".safetensors"):
            return io.BytesIO(self.read_bytes())
        return copies.opened(self._copy, lambda: _call(self.fs.cat_file, self._inside))

    def read_bytes(self) -> bytes:
        return bytes(_call(self.fs.cat_file, self._inside))

    def forget_copy(self) -> bool:
        """Delete the copy on this machine; whether there was one."""
        return copies.forget(self._copy)

    @property
    def _copy(self) -> copies.Copy:
        """The name of the copy of the object as it is, or was listed: one that was replaced has another name."""
        found = self.info if self.info is not None else _call(self.fs.info, self._inside)
        stamp = found.get("ETag") or found.get("etag") or found.get("md5Hash") or _time(found)
        return copies.Copy(self.url, f"{stamp} {found.get('size')}")

    def exists(self) -> bool:
        """Whether there is such an object. Raises `OSError` where the answer is not known."""
        try:
            _call(self.fs.info, self._inside)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return any(True for _ in self.iterdir())

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["UrlPath"]:
        """The objects and folders directly below; none where there are none."""
        try:
            found = _call(self.fs.ls, self._inside, detail=True)
        except FileNotFoundError:
            return
        for info in found:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name and info["name"].rstrip("/") != self._inside.rstrip("/"):
                yield UrlPath(f"{self.url}/{name}", self.fs, info)

    def files(self) -> list["UrlPath"]:
        """All objects below, in one listing."""
        try:
            found = _call(self.fs.find, self._inside, detail=True)
        except FileNotFoundError:
            return []
        begin = len(self._inside.rstrip("/")) + 1
        return [UrlPath(f"{self.url}/{name[begin:]}", self.fs, info) for name, info in sorted(found.items())]

    def lstat(self) -> Stat:
        info = self.info if self.info is not None else _call(self.fs.info, self._inside)
        return Stat(int(info.get("size") or 0), _time(info))

    # --- writing ---

    def put(self, content: bytes) -> None:
        """Write the object; a reader sees the old one or the whole new one."""
        protocol = self.url.partition("://")[0]
        if protocol in _ATOMIC_PUT:
            _call(self.fs.pipe_file, self._inside, content)
            return
        temporary = f"{self.parent._inside}/.{self.name}.{uuid.uuid4().hex[:8]}.tmp"
        _call(self.fs.makedirs, self.parent._inside, exist_ok=True)
        _call(self.fs.pipe_file, temporary, content)
        _call(self.fs.mv, temporary, self._inside)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _call(self.fs.rm_file, self._inside)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Nothing: an object store has no folders."""

    def probe(self) -> None:
        """Ask for an object that is not there, to learn whether the store answers.

        Raises:
            UsageError: it does not; the message says why.
        """
        try:
            self.fs.cat_file((self / "rdp-bench-cache.json")._inside)
        except Exception as error:
            reason = reason_of(error)
            if reason or not isinstance(error, FileNotFoundError):
                raise UsageError(f"the cache {self} cannot be used: {reason or _plain(error)}") from error


def connect(url: str) -> UrlPath:
    """The root of a store.

    Raises:
        UsageError: fsspec, or the package for this protocol, is not installed, or does not know the URL.
    """
    protocol = url.partition("://")[0]
    try:
        import fsspec

        # Other processes write too: a listing that is remembered would be wrong.
        fs, _ = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = "pip install '.[s3]' in the checkout" if protocol in ("s3", "s3a") else f"{error}"
        raise UsageError(f"--cache {url}: {protocol} needs a package that is not installed: {extra}") from error
    except Exception as error:
        raise UsageError(f"--cache {url}: {_plain(error)}") from error
    return UrlPath(url.rstrip("/"), fs)


def reason_of(error: BaseException | None) -> str:
    """What a known error of an object store says to its user, in words; empty for others."""
    while error is not None:
        response = getattr(error, "response", None)
        code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
        for name in (code, *(kind.__name__ for kind in type(error).__mro__)):
            if name in _WORDS:
                return _WORDS[name]
        error = error.__cause__ or error.__context__
    return ""


def _call(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """`function`, whose errors become those of the operating system."""
    try:
        return function(*args, **options)
    except Exception as error:
        reason = reason_of(error)
        if isinstance(error, FileNotFoundError) and not reason:
            raise FileNotFoundError(errno.ENOENT, "there is no such object") from error
        if isinstance(error, PermissionError):
            raise PermissionError(errno.EACCES, reason or "permission denied") from error
        raise OSError(errno.EIO, reason or _plain(error)) from error


def _plain(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _time(info: dict[str, Any]) -> float:
    """When an object was written, in seconds since 1970, as its store says it; 0 if it does not."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        found = info.get(name)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return 0.0
