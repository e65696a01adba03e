"""A store keeps its guarantees wherever it is: in a folder, in memory, in S3."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdp_bench.cache import copies
from rdp_bench.cache.files import Location
from rdp_bench.cache.locations import default_root, locate
from rdp_bench.cache.store import Artefact, Store
from rdp_bench.cache.url import UrlPath
from rdp_bench.errors import DamagedError, StorageError, UnreadableError, UsageError
from tests.cache.test_store_faults import ARRAYS, N
from tests.helpers.commands import cli
from tests.helpers.damage import Toy, flip, overwrite


def artefact(root: Location, kind: str = "eval", what: str = "this") -> Artefact:
    """One whole artefact in two shards."""
    made = Store(root).artefact(kind, {"kind": kind, "n": N, "what": what}, N)
    for low in (0, 3):
        made.write(low, low + 3, {name: array[low : low + 3] for name, array in ARRAYS[kind].items()})
    return made


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return {*found} == {*wanted} and all(np.array_equal(found[name], array) for name, array in wanted.items())


# --- the guarantees, wherever the store is ---------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_what_was_written_comes_back(root: Location, kind: str) -> None:
    made = artefact(root, kind)
    assert made.complete
    assert [shard[:2] for shard in made.shards()] == [(0, 3), (3, 6)]
    again = Store(root)
    assert list(again.everything()) == [(kind, made.key)]
    assert again.marked
    assert same(again.open(kind, made.key).read(), ARRAYS[kind])
    assert same(made.read(2, 5), {name: array[2:5] for name, array in ARRAYS[kind].items()})


def test_a_damaged_shard_is_deleted_and_made_again(root: Location) -> None:
    for bit in (-40, 5, 4000):
        made = artefact(root)
        path = made.shards()[1][2]
        assert same(made.read(), ARRAYS["eval"])
        flip(path, bit)
        with pytest.raises(DamagedError, match=path.name):
            made.read()
        assert not path.exists()
        assert made.missing(N) == [(3, 6)]


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"<html>not found</html>"])
def test_what_is_no_shard_is_damage(root: Location, content: bytes) -> None:
    made = artefact(root)
    overwrite(made.shards()[0][2], content)
    assert made.drop_damaged() == [made._path(0, 3)]
    assert made.missing(N) == [(0, 3)]


@pytest.mark.parametrize(("kind", "what"), [("eval", "that"), ("image_quality", "this")])
def test_a_shard_of_another_artefact_or_kind_is_discarded(root: Location, kind: str, what: str) -> None:
    mine, theirs = artefact(root), artefact(root, kind, what)
    overwrite(mine.shards()[0][2], theirs.shards()[0][2].read_bytes())
    with pytest.raises(DamagedError, match=r"its k(ey|ind) is"):
        mine.read()
    assert mine.missing(N) == [(0, 3)]


def test_a_shard_of_other_rows_is_discarded(root: Location) -> None:
    mine = artefact(root)
    overwrite(mine.shards()[0][2], mine.shards()[1][2].read_bytes())
    with pytest.raises(DamagedError, match="its rows is"):
        mine.read()


def test_an_edited_record_is_refused_and_written_again(root: Location) -> None:
    made = artefact(root)
    path = made.folder / "record.json"
    overwrite(path, json.dumps({"kind": "eval", "n": N, "what": "another"}).encode())
    with pytest.raises(DamagedError, match="does not hash to its key"):
        Store(root).open("eval", made.key)
    Store(root).artefact("eval", made.record, N).write_record()  # as the next run does
    assert Store(root).open("eval", made.key).complete


def test_two_writers_do_no_harm(root: Location) -> None:
    """Each writes the same rows, in batches of its own size, while the other reads and merges."""
    record = {"kind": "adv", "n": 40}
    whole = np.arange(40 * 12, dtype=np.int16).reshape(40, 3, 2, 2)
    wrong: list[object] = []

    def writer(batch: int) -> None:
        try:
            mine = Store(root).artefact("adv", record, 40)
            for low in range(0, 40, batch):
                high = min(low + batch, 40)
                mine.write(low, high, {"delta": whole[low:high]})
                if not np.array_equal(mine.read(low, high)["delta"], whole[low:high]):
                    wrong.append((low, high))
            mine.merge()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=writer, args=(batch,)) for batch in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    made = Store(root).artefact("adv", record, 40)
    assert np.array_equal(made.read()["delta"], whole)
    assert not [*made.failing()]


def test_rows_are_taken_over_under_the_new_key(root: Location) -> None:
    whole = artefact(root, "adv", "whole")
    part = Store(root).artefact("adv", {"kind": "adv", "n": 5, "what": "part"}, 5)
    assert part.copy_shards_of(whole) == 2
    assert np.array_equal(part.read()["delta"], ARRAYS["adv"]["delta"][:5])
    assert part.made() == whole.made()


# --- commands --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A finished run in a folder."""
    toy = Toy(tmp_path_factory.mktemp("whole"))
    assert toy.run().exit_code == 0
    return toy


class Remote(Toy):
    """A toy whose cache is at a URL."""

    url: str

    @property
    def cache(self) -> Any:
        return self.url


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    toy = Remote(tmp_path)
    toy.url = request.getfixturevalue(request.param)
    return toy


def test_a_run_at_a_url_gives_what_it_gives_in_a_folder(remote: Remote, whole: Toy) -> None:
    found = remote.run()
    assert found.exit_code == 0, found.output
    assert remote.values() == whole.values()
    listed = cli("cache", "ls", "--cache", remote.url)
    assert listed.exit_code == 0
    assert f"MB in {remote.url}" in listed.output
    # Damage of every kind of object costs that batch; the next run makes it again.
    root = locate(remote.url)
    assert isinstance(root, UrlPath)
    for kind in ("adv", "eval", "image_quality", "sample"):
        for path in [path for path in (root / kind).files() if path.name.endswith("safetensors")][:2]:
            flip(path, -80)
    found = remote.verify()
    assert found.exit_code == 1
    assert found.output.count("damaged, deleted") == 8
    assert remote.run().exit_code == 0
    assert remote.values() == whole.values()
    assert remote.verify().exit_code == 0
    pruned = cli("cache", "prune", "--all", "--cache", remote.url)
    assert pruned.exit_code == 0, pruned.output
    assert [path.name for path in root.files()] == ["rdp-bench-cache.json"]


def test_other_commands_at_a_url(memory: str, tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    remote.url = memory
    dry = remote.run("--dry-run")
    assert "estimated time" in dry.output, dry.output
    assert not Store(locate(memory)).marked  # it wrote nothing
    assert remote.run().exit_code == 0
    assert "everything is cached" in remote.run("--dry-run").output
    assert "everything is cached" in remote.run("--limit", 4, "--dry-run").output
    assert remote.run("--limit", 4, "--fresh").exit_code == 0
    assert remote.run("--limit", 4).exit_code == 0
    for command in (("export", "--images"), ("report",)):
        found = remote.command(*command)
        assert found.exit_code == 0, found.output


def test_prune_leaves_alone_what_is_not_a_cache(remote: Remote) -> None:
    root = locate(remote.url)
    assert isinstance(root, UrlPath)
    (root / "thesis.txt").put(b"mine")
    for args in (("prune", "--all"), ("verify",)):
        found = cli("cache", *args, "--cache", remote.url)
        assert found.exit_code == 2
        assert "is not proven to be a cache of rdp-bench" in found.output
    Store(root).mark()
    assert cli("cache", "prune", "--all", "--cache", remote.url).exit_code == 0
    assert (root / "thesis.txt").read_bytes() == b"mine"


# --- copies on this machine ------------------------------------------------------------------------------


def test_an_object_is_fetched_once_and_again_where_its_copy_is_damaged(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artefact(locate(s3))
    fetched: list[str] = []
    real = copies.opened

    def counting(copy: copies.Copy, fetch: Callable[[], bytes]) -> Any:
        def noted() -> bytes:
            fetched.append(copy.url)
            return fetch()

        return real(copy, noted)

    monkeypatch.setattr(copies, "opened", counting)
    for _ in range(3):
        assert same(made.read(), ARRAYS["eval"])
    assert len(fetched) == 2
    for path in copies.folder().glob("??/*"):
        flip(path, -40)
    assert same(made.read(), ARRAYS["eval"])
    assert len(fetched) == 4
    assert made.complete  # nothing was deleted in the store


def test_a_copy_of_an_object_that_was_replaced_is_not_read(s3: str) -> None:
    made = artefact(locate(s3))
    made.read()
    other = {name: array[:3] for name, array in ARRAYS["eval"].items()} | {"predicted": np.full(3, 7, np.int32)}
    Store(locate(s3)).artefact("eval", made.record, N).write(0, 3, other)
    assert made.read()["predicted"].tolist() == [7, 7, 7, 3, 4, 5]


def test_the_oldest_copies_are_deleted_first(s3: str) -> None:
    made = artefact(locate(s3))
    made.read(0, 3)
    import os

    (first,) = copies.folder().glob("??/*")
    os.utime(first, (1, 1))
    made.read(3, 6)
    assert copies.shrink(first.stat().st_size + 100) == 1
    assert not first.exists()
    assert same(made.read(), ARRAYS["eval"])


# --- places and their errors -----------------------------------------------------------------------------


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert locate("folder/inside") == Path("folder/inside")
    assert locate(f"file://{tmp_path}") == tmp_path
    assert str(locate("memory://a/b/")) == "memory://a/b"
    assert isinstance(locate("s3://bucket"), UrlPath)
    monkeypatch.setenv("RDP_BENCH_CACHE", "memory://mine")
    assert str(default_root()) == "memory://mine"
    with pytest.raises(UsageError, match="name a bucket"):
        locate("s3://")
    with pytest.raises(UsageError, match="Protocol not known: nope"):
        locate("nope://bucket")


def one_line(place: str, *words: str) -> None:
    """Every command says in one line why this cache cannot be used."""
    for command in (("cache", "ls"), ("cache", "prune", "--all"), ("run", "table1", "--dry-run")):
        found = cli(*command, "--cache", place)
        assert found.exit_code == 2, found.output
        assert "Traceback" not in found.output
        assert len(found.output.strip().splitlines()) == 1, found.output
        assert all(word in found.output for word in (place, *words)), found.output


def test_a_missing_bucket_is_said(s3: str) -> None:
    one_line("s3://absent/prefix", "there is no such bucket; create it, or name another one")


def test_missing_credentials_are_said(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    one_line(s3, "no credentials were found; set AWS_ACCESS_KEY_ID")


def test_a_server_that_is_away_is_said(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    one_line(s3, "its server cannot be reached")


def test_a_missing_package_is_said() -> None:
    code = "import sys; sys.modules['s3fs'] = None; from rdp_bench.cache.locations import locate; locate('s3://bucket')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: --cache s3://bucket: s3 needs a package that is not installed" in done.stderr
    assert "pip install '.[s3]' in the checkout" in done.stderr


ANSWER = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


@pytest.fixture
def forbidding(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BaseHTTPRequestHandler]]:
    """A server that holds nothing and forbids every change; `everything` forbids reading, too."""

    class Handler(BaseHTTPRequestHandler):
        everything = False

        def answer(self) -> None:
            if self.command in ("GET", "HEAD") and not Handler.everything:
                status, text = 404, ANSWER.format("NoSuchKey", "The specified key does not exist.")
                if "list-type" in self.path:
                    status, text = 200, "<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
            else:
                status, text = 403, ANSWER.format("AccessDenied", "Access Denied")
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Connection", "close")  # what was sent with the request is not read
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_that_may_not_be_read_is_said(s3: str, forbidding: Any) -> None:
    forbidding.everything = True
    one_line(s3, "permission denied")


def test_a_store_that_may_not_be_written_is_said(s3: str, forbidding: Any, tmp_path: Path) -> None:
    made = Store(locate(s3)).artefact("eval", {"kind": "eval", "n": N}, N)
    assert made.missing(N) == [(0, N)]
    with pytest.raises(StorageError, match="permission denied"):
        made.write(0, N, ARRAYS["eval"])
    forbidding.everything = True
    with pytest.raises(UnreadableError, match="permission denied"):
        Store.open(made.store, "eval", made.key)  # type: ignore[arg-type]
    forbidding.everything = False
    toy = Remote(tmp_path)
    toy.url = s3
    found = toy.run()
    assert found.exit_code == 2
    assert f"--cache {s3} cannot be written to (permission denied)" in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("named", "says"), [("file", "this is a file; name a folder"), ("file://x/y", "three slashes")]
)
def test_a_variable_that_names_no_folder_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, says: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RDP_BENCH_CACHE", named)
    with pytest.raises(UsageError, match=rf"RDP_BENCH_CACHE {named}.*{says}"):
        default_root()
