"""Where stores are: a folder of this machine, or a URL that fsspec opens."""

import os
import re
from hashlib import sha256
from pathlib import Path

from rdp_bench.cache.files import Location
from rdp_bench.cache.url import UrlPath, connect
from rdp_bench.cache.user import user_cache
from rdp_bench.errors import UsageError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NEARLY_URL = re.compile(r"(s3|gs|gcs|az|abfs|https?|memory)?:", re.IGNORECASE)


def locate(text: str | os.PathLike[str]) -> Location:
    """The folder or URL that a user names; `file://` is a folder.

    Raises:
        UsageError: the URL names no place in a store, or its protocol is not known or needs a missing package.
    """
    name = os.fspath(text)
    if not name.strip():
        raise UsageError("--cache is empty; name a folder, or leave out --cache")
    if "://" in name and "::" in name:
        raise UsageError(f"--cache {name}: name one store, like s3://bucket/prefix; URLs in chains are not opened")
    if not _URL.match(name):
        if isinstance(text, str) and (_NEARLY_URL.match(name) or "://" in name) and not Path(name).exists():
            raise UsageError(
                f"--cache {name}: is no URL like s3://bucket/prefix; write ./{name} for a folder of that name"
            )
        return Path(name).expanduser()
    protocol, _, rest = name.partition("://")
    if protocol.lower() in ("file", "local"):
        if not rest.startswith("/"):
            raise UsageError(f"--cache {name}: a file URL has three slashes, like file:///folder")
        return Path(rest)
    if not rest.strip("/") and protocol.lower() != "memory":
        raise UsageError(f"--cache {name}: name a bucket, like s3://bucket/prefix")
    return connect(f"{protocol.lower()}://{rest}")


def default_root() -> Location:
    """Where artefacts live unless told otherwise: $RDP_BENCH_CACHE, else the user's cache folder.

    Raises:
        UsageError: the variable names neither a folder nor a URL.
    """
    if given := os.environ.get("RDP_BENCH_CACHE"):
        try:
            found = locate(given)
        except UsageError as error:
            raise UsageError(str(error).replace("--cache", "RDP_BENCH_CACHE", 1)) from error
        if isinstance(found, Path) and found.exists() and not found.is_dir():
            raise UsageError(f"RDP_BENCH_CACHE {given}: this is a file; name a folder")
        return found
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else user_cache()) / "rdp-bench"


def local_folder(root: Location) -> Path:
    """Where what belongs to this machine alone is kept, such as times and inodes of its files: `root` if it is here."""
    if not isinstance(root, UrlPath):
        return root
    base = os.environ.get("XDG_CACHE_HOME")
    own = sha256(root.url.encode()).hexdigest()[:16]
    return (Path(base) if base else user_cache()) / "rdp-bench-copies" / "machine" / own
