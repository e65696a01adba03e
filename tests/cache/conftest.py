"""Places for a store: a folder, an object store in memory, and S3 as moto's server speaks it on loopback."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdp_bench.cache.files import Location
from rdp_bench.cache.locations import locate

BUCKET = "tests"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)  # type: ignore[call-overload]
    yield address
    server.stop()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in the bucket that nobody used before; the environment of a user who may read and write it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in this process's memory that nobody used before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The root of a store of each kind."""
    return tmp_path / "cache" if request.param == "folder" else locate(request.getfixturevalue(request.param))
