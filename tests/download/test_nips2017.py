"""NIPS-2017 DEV out of folders, zips and addresses: verified pixels and labels, or an error that names them."""

import csv
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rdp_bench.cli.main import main
from rdp_bench.data import nips2017 as devset
from rdp_bench.data.nips2017 import CARDS, COPY_B, Known, manifest, nips2017
from rdp_bench.data.open import open_dataset
from rdp_bench.download import nips2017 as obtain_module
from rdp_bench.download.nips2017 import fetch_nips2017
from rdp_bench.errors import BadImageError, FetchError, RdpBenchError, UsageError
from rdp_bench.keys import hash_pixels
from tests.helpers.paths import TESTS
from tests.helpers.web_server import HTML, Server, serve, status

SHARED = TESTS.parent.parent / "shared" / "nips17"

IDS = ("00000000000000a0", "00000000000000a1", "00000000000000a2", "00000000000000a3")
TABLE = "ImageId,URL,TrueLabel,TargetClass\n" + "".join(f"{id_},x,{i + 1},{i + 5}\n" for i, id_ in enumerate(IDS))


def pixels(seed: int, size: int = 299) -> np.ndarray[Any, np.dtype[np.uint8]]:
    small = np.random.default_rng(seed).integers(0, 256, (size // 13 + 1, size // 13 + 1, 3), np.uint8)
    return small.repeat(13, 0).repeat(13, 1)[:size, :size]


def png(seed: int, size: int = 299) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(file, "PNG")
    return file.getvalue()


CONTENT = {"dev_dataset.csv": TABLE.encode()} | {f"images/{id_}.png": png(i) for i, id_ in enumerate(IDS)}


@pytest.fixture(autouse=True)
def small_set(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A set of four images; in its copy B every pixel differs by one level, and the last image is a card."""
    if "shared" in request.keywords:
        return

    def hashed(image: Any) -> str:
        return hash_pixels(image.transpose(2, 0, 1))

    known = {id_: Known(i + 1, i + 5, hashed(pixels(i))[:32], hashed(pixels(i) ^ 1)[:16]) for i, id_ in enumerate(IDS)}
    monkeypatch.setattr(devset, "manifest", lambda: known)
    for module in (devset, obtain_module):
        monkeypatch.setattr(module, "CARDS", IDS[3:])


def zipped(content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    return file.getvalue()


def folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, part in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(part)
    return path


def get(to: Path, *args: object) -> Result:
    return CliRunner().invoke(main, ["data", "get", "nips2017", "--to", str(to), *map(str, args)])


def whole(to: Path) -> bool:
    """Exactly the set is there, as our own loader sees it."""
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    found = open_dataset(str(to))
    right = all((found.image(i).transpose(1, 2, 0) == pixels(i)).all() for i in range(4))
    return right and files == sorted(CONTENT) and list(found.ids) == list(IDS)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["folder", "zip", "url", "deep"])
def source(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> str:
    """The set as a folder, a zip, an address; and as an author's repository has it, under Kaggle's name."""
    if request.param == "folder":
        return str(folder(tmp_path / "given", CONTENT))
    deep = {f"repo-main/dataset/{name.replace('dev_dataset', 'images')}": part for name, part in CONTENT.items()}
    extra = {f"repo-main/adversarial/{IDS[0]}.png": png(99), "repo-main/code/images.csv": b"no table"}
    server.answers = [serve(zipped(CONTENT))]
    (tmp_path / "given.zip").write_bytes(
        zipped(deep | {"repo-main/code/a/b/images.csv": b"none"} | dict([*extra.items()][:1]))
    )
    return {"zip": str(tmp_path / "given.zip"), "deep": str(tmp_path / "given.zip"), "url": server.url}[request.param]


def test_a_formula_in_the_table_is_marked_once(tmp_path: Path) -> None:
    """dev_dataset.csv has names of authors, which a spreadsheet must not execute; a repetition adds no second mark."""
    table = TABLE.replace(",x,", ",=1+1,", 1)
    given = folder(tmp_path / "given", CONTENT | {"dev_dataset.csv": table.encode()})
    for _ in range(2):
        assert get(tmp_path / "to", "--from", given).exit_code == 0
        assert (tmp_path / "to" / "dev_dataset.csv").read_text() == table.replace(",=1+1,", ",'=1+1,")


def test_it_comes_from_anywhere(source: str, tmp_path: Path) -> None:
    to = tmp_path / "to"
    found = get(to, "--from", source)
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0] == f"nips2017 in {to}: 4 of 4 images, pixels and labels verified"
    assert f"--dataset {to}" in found.stdout
    assert (to / "dev_dataset.csv").read_text() == TABLE
    assert whole(to)


def test_a_second_call_brings_what_is_missing(tmp_path: Path, server: Server) -> None:
    to = tmp_path / "to"
    some = {name: part for name, part in CONTENT.items() if IDS[1] not in name and IDS[3] not in name}
    found = get(to, "--from", folder(tmp_path / "some", some))
    assert found.exit_code == 0
    assert "2 of 4 images, pixels and labels verified" in found.stdout
    assert f"missing: {IDS[1]}, {IDS[3]}" in found.stderr
    assert list(open_dataset(str(to)).ids) == [IDS[0], IDS[2]]
    before = {path: path.stat().st_mtime_ns for path in (to / "images").iterdir()}
    server.answers = [serve(zipped(CONTENT))]
    assert get(to, "--from", server.url).exit_code == 0
    assert whole(to)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert get(to, "--from", server.url).exit_code == 0
    assert get(to).exit_code == 0
    assert len(server.requests) == 1  # what is whole is asked of nobody


def test_half_a_table_grows_and_never_shrinks(tmp_path: Path) -> None:
    to = tmp_path / "to"
    half = TABLE.encode().splitlines(keepends=True)[:3]
    assert get(to, "--from", folder(tmp_path / "half", CONTENT | {"dev_dataset.csv": b"".join(half)})).exit_code == 0
    assert len(open_dataset(str(to)).ids) == 2
    assert get(to, "--from", folder(tmp_path / "all", CONTENT)).exit_code == 0
    assert whole(to)
    assert get(to, "--from", tmp_path / "half").exit_code == 0
    assert whole(to)


@pytest.mark.parametrize(("old", "new"), [("a3,x,4", "a3,x,7"), ("a3,x,4,8", "a3,x,4,9")])
def test_other_labels_are_refused(tmp_path: Path, old: str, new: str) -> None:
    to = tmp_path / "to"
    changed = CONTENT | {"dev_dataset.csv": TABLE.replace(old, new).encode()}
    found = get(to, "--from", folder(tmp_path / "a", changed))
    assert found.exit_code == 2
    assert re.search(r"line 5: T.* of 00000000000000a3, but NIPS-2017 DEV has [48]", found.stderr)
    assert not to.exists()
    folder(to, {"dev_dataset.csv": changed["dev_dataset.csv"]})
    found = get(to, "--from", folder(tmp_path / "b", CONTENT))
    assert found.exit_code == 2
    assert "choose another --to" in found.stderr
    assert left(to) == ["dev_dataset.csv"]


def test_shifted_labels_do_not_pass(tmp_path: Path) -> None:
    rows = [f"{id_},x,{i + 2},{i + 5}" for i, id_ in enumerate(IDS)]
    shifted = CONTENT | {"dev_dataset.csv": "\n".join([TABLE.splitlines()[0], *rows]).encode()}
    given = folder(tmp_path / "given", shifted)
    assert "TrueLabel 2 of 00000000000000a0, but NIPS-2017 DEV has 1" in get(tmp_path / "to", "--from", given).stderr
    with pytest.raises(BadImageError, match=r"line 2: TrueLabel 2 of 00000000000000a0, but NIPS-2017 DEV has 1"):
        open_dataset(str(given))


def copy_b(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed) ^ 1).save(file, "PNG")
    return file.getvalue()


def test_copy_b_is_named_and_its_cards_are_refused(tmp_path: Path) -> None:
    to = tmp_path / "to"
    given = CONTENT | {f"images/{id_}.png": copy_b(i) for i, id_ in enumerate(IDS) if i != 1}
    found = get(to, "--from", folder(tmp_path / "b", given))
    assert found.exit_code == 1
    assert f"2 images are of {COPY_B}" in found.stdout
    assert re.search(rf"refused: {IDS[3]}: .*'This photo is no longer available' of copy B", found.stderr)
    assert list(open_dataset(str(to)).ids) == list(IDS[:3])
    differences = (to / "differences.csv").read_text().splitlines()
    assert differences[0] == "ImageId,difference"
    assert [line[:16] for line in differences[1:]] == [IDS[0], IDS[2], IDS[3]]
    assert "This photo is no longer available" in differences[3]
    assert get(to, "--from", folder(tmp_path / "a", CONTENT)).exit_code == 0
    assert whole(to)  # all of copy A now, and no differences
    assert get(to, "--from", tmp_path / "b").exit_code == 0
    assert whole(to)  # copy A is never replaced by copy B


def test_a_card_in_the_folder_is_not_listed(tmp_path: Path) -> None:
    given = CONTENT | {f"images/{IDS[3]}.png": copy_b(3)}
    to = folder(tmp_path / "to", given)
    found = get(to, "--from", folder(tmp_path / "b", given))
    assert found.exit_code == 1
    assert re.search(rf"refused: {IDS[3]}: .*no longer available", found.stderr)
    assert IDS[3] not in (to / "dev_dataset.csv").read_text()


def test_a_folder_without_any_image_of_the_set_is_not_written(tmp_path: Path) -> None:
    found = get(tmp_path / "to", "--from", folder(tmp_path / "given", {"dev_dataset.csv": TABLE.encode()}))
    assert found.exit_code == 1
    assert "0 of 4 images" in found.stdout
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["dev_dataset.csv", f"images/{IDS[1]}.png"])
def test_a_fifo_in_the_source_is_refused_at_once(tmp_path: Path, name: str) -> None:
    given = folder(tmp_path / "given", CONTENT)
    (given / name).unlink()
    os.mkfifo(given / name)
    command = [sys.executable, "-m", "rdp_bench", "data", "get", "nips2017", "--from", given, "--to", tmp_path / "to"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)  # hung for ever
    assert done.returncode in (1, 2)
    if name == "dev_dataset.csv":
        assert "not a regular file (a FIFO" in done.stderr


def test_a_fifo_among_the_images_is_refused(tmp_path: Path) -> None:
    given = folder(tmp_path / "given", CONTENT)
    (given / "images" / f"{IDS[1]}.png").unlink()
    os.mkfifo(given / "images" / f"{IDS[1]}.png")
    found = fetch_nips2017(tmp_path / "to", str(given))
    assert found.images == 3
    assert re.search(r"not a regular file \(a FIFO", found.refused[IDS[1]])


def test_only_a_jpeg_says_why_it_is_not_taken(tmp_path: Path) -> None:
    content = {name: part for name, part in CONTENT.items() if IDS[0] not in name} | {f"images/{IDS[0]}.jpg": png(0)}
    found = fetch_nips2017(tmp_path / "to", str(folder(tmp_path / "given", content)))
    assert "the set's images are PNG files" in found.refused[IDS[0]]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", CONTENT)
    given = folder(tmp_path / "given", {"dev_dataset.csv": TABLE.encode()})
    (given / "images").symlink_to(real / "images")
    (real / "images" / "up").symlink_to(given)
    assert fetch_nips2017(tmp_path / "to", str(given)).copy_a == list(IDS)


def test_wrong_pixels_are_not_kept(tmp_path: Path) -> None:
    to = tmp_path / "to"
    bad = {
        **CONTENT, f"images/{IDS[0]}.png": png(77), f"images/{IDS[1]}.png": CONTENT[f"images/{IDS[1]}.png"][:-50],
        f"images/{IDS[2]}.png": HTML, f"images/{IDS[3]}.png": png(3, 224),
    }  # fmt: skip
    found = get(to, "--from", folder(tmp_path / "bad", bad))
    assert found.exit_code == 1
    assert "0 of 4 images" in found.stdout
    assert not to.exists()
    for id_, why in zip(
        IDS, ("its pixels differ from this image", "damaged or truncated", "not an image", "224 x 224"), strict=True
    ):
        assert re.search(rf"refused: {id_}: .*{why}", found.stderr)
    assert get(to, "--from", folder(tmp_path / "good", CONTENT)).exit_code == 0
    assert whole(to)


def test_a_damaged_file_is_replaced_and_another_image_is_left_alone(tmp_path: Path) -> None:
    to = folder(tmp_path / "to", CONTENT | {f"images/{IDS[0]}.png": b"\0" * 99})
    given = folder(tmp_path / "given", CONTENT)
    assert get(to, "--from", given).exit_code == 0
    assert whole(to)
    (to / "images" / f"{IDS[0]}.png").write_bytes(png(55))
    found = get(to, "--from", given)
    assert found.exit_code == 2
    assert "is not the image of that name in NIPS-2017 DEV" in found.stderr
    assert (to / "images" / f"{IDS[0]}.png").read_bytes() == png(55)


@pytest.mark.parametrize(
    "name", ["../../escaped.png", "{root}/escaped.png", "images/../../../escaped.png", "..\\escaped.png"]
)
def test_no_entry_leaves_the_folder(tmp_path: Path, name: str) -> None:
    content = CONTENT | {
        name.format(root=tmp_path): png(5),
        f"../../{IDS[0]}.png": png(6),
        f"../{IDS[1]}.png": CONTENT[f"images/{IDS[1]}.png"],
    }
    del content[f"images/{IDS[1]}.png"]
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(content))
    to = tmp_path / "deep" / "to"
    assert get(to, "--from", path).exit_code == 0
    assert whole(to)
    assert left(tmp_path) == ["a.zip", "deep"]
    assert left(tmp_path / "deep") == ["to"]


@pytest.mark.parametrize("id_", ["../../../escaped", "/etc/x", "00000000000000A0", "0", "", "00000000000000a0/../b"])
def test_no_row_leaves_the_folder(tmp_path: Path, id_: str) -> None:
    given = folder(tmp_path / "given", {"dev_dataset.csv": f"ImageId,TrueLabel\n{id_},5\n".encode()})
    found = get(tmp_path / "to", "--from", given)
    assert found.exit_code == 2
    assert "dev_dataset.csv, line 2: " in found.stderr
    assert not (tmp_path / "to").exists()


def test_two_candidates_of_one_name(tmp_path: Path) -> None:
    content = CONTENT | {f"other/images/{IDS[2]}.png": png(9)}
    found = get(tmp_path / "to", "--from", folder(tmp_path / "given", content))
    assert found.exit_code == 1
    assert re.search(rf"refused: {IDS[2]}: 2 files have this name", found.stderr)


def test_archives_that_are_not_what_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, to = tmp_path / "a.zip", tmp_path / "to"
    good = zipped(CONTENT)
    path.write_bytes(good[: len(good) // 2])
    assert "expected a folder, a zip, or an address" in get(to, "--from", path).stderr
    path.write_bytes(zipped({"readme.txt": b"x"}))
    assert "contains no dev_dataset.csv or images.csv" in get(to, "--from", path).stderr
    assert not to.exists()
    at = good.index(b"IDAT") + 500
    path.write_bytes(good[:at] + bytes([good[at] ^ 8]) + good[at + 1 :])
    found = get(to, "--from", path)
    assert found.exit_code == 1
    assert re.search(rf"refused: {IDS[0]}: images/{IDS[0]}\.png: damaged in the archive", found.stderr)
    monkeypatch.setattr(obtain_module, "_LARGEST", 1000)
    bomb = zipped(CONTENT | {f"images/{IDS[0]}.png": b"\0" * 100_000})
    path.write_bytes(bomb)
    assert "every file of the set is smaller" in get(to, "--from", path).stderr


@pytest.mark.parametrize("given", ["no/such/folder", "ftp://127.0.0.1/a.zip", "file:///etc", "a.txt"])
def test_a_source_that_is_none(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    found = get(tmp_path / "to", "--from", given)
    assert found.exit_code == 2
    assert f"--from {given}: expected a folder, a zip, or an address" in found.stderr
    assert not (tmp_path / "to").exists()


# --- the set from the web ---


def test_a_cut_archive_is_not_kept_and_comes_anew(server: Server, tmp_path: Path) -> None:
    """The server says that half of it is all there is."""
    good, to = zipped(CONTENT), tmp_path / "to"
    server.answers = [serve(good[: len(good) // 2])]
    found = get(to, "--from", server.url)
    assert found.exit_code == 1
    assert re.search(r"set\.zip: [\d,]+ bytes, but not a complete zip", found.stderr)
    assert left(to) == []
    server.answers = [serve(good)]
    assert get(to, "--from", server.url).exit_code == 0
    assert whole(to)


def test_a_page_instead_of_the_set(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(HTML, kind="text/html")]
    found = get(tmp_path / "to", "--from", server.url)
    assert found.exit_code == 1
    assert "text/html that begins with" in found.stderr
    assert left(tmp_path / "to") == []


def test_an_interrupted_call_goes_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, to = zipped(CONTENT), tmp_path / "to"
    server.answers = [serve(good, upto=5000), *[status(503)] * 5, serve(good)]
    assert "5,000 bytes are kept" in get(to, "--from", server.url).stderr
    assert [path.name.endswith(".zip.part") for path in to.iterdir()] == [True]

    def stop(path: Path, content: bytes) -> None:
        if path.suffix == ".png":
            raise KeyboardInterrupt
        real(path, content)

    real = obtain_module.write_atomic
    monkeypatch.setattr(obtain_module, "write_atomic", stop)
    assert get(to, "--from", server.url).exit_code == 130
    assert server.ranges()[-1] == "bytes=5000-"
    monkeypatch.setattr(obtain_module, "write_atomic", real)
    asked = len(server.requests)
    assert get(to, "--from", server.url).exit_code == 0
    assert len(server.requests) == asked  # the archive was here already
    assert whole(to)


def test_without_a_source_the_second_address_stands_in_for_the_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Any) -> None:
        (status(404) if request.path == "/first" else serve(zipped(CONTENT)))(request)

    server.answers = [answer]
    base = server.url.removesuffix("/set.zip")
    monkeypatch.setattr(obtain_module, "SOURCES", (f"{base}/first", f"{base}/second"))
    assert get(tmp_path / "to").exit_code == 0
    assert whole(tmp_path / "to")
    monkeypatch.setattr(obtain_module, "SOURCES", (f"{base}/first",) * 2)
    found = get(tmp_path / "other")
    assert found.exit_code == 1
    assert found.stderr.count("HTTP 404") == 2
    assert "pass its folder or zip as --from" in found.stderr


def test_the_addresses_are_in_the_help() -> None:
    shown = " ".join(CliRunner().invoke(main, ["data", "get", "--help"]).output.split())
    kaggle, github = obtain_module.SOURCES
    assert kaggle.replace("/api/v1/datasets/download/", "/datasets/") in shown
    assert github.removesuffix("/archive/refs/heads/main.zip") in shown


def test_a_run_without_the_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="fetch it: rdp-bench data get nips2017"):
        open_dataset("nips2017")
    with pytest.raises(UsageError, match="one folder per class, and pass --dataset"):
        open_dataset("imagenet-val")


# --- what ships ---


def test_the_manifest_ships() -> None:
    found = manifest()
    assert len(found) == 1000
    for id_, known in found.items():
        assert re.fullmatch("[0-9a-f]{16}", id_)
        assert re.fullmatch("[0-9a-f]{32}", known.copy_a)
        assert re.fullmatch("[0-9a-f]{16}", known.copy_b)
        assert 1 <= known.label <= 1000
        assert 1 <= known.target <= 1000
        assert known.target != known.label
    for copy in ("copy_a", "copy_b"):
        assert len({getattr(known, copy) for known in found.values()}) == 1000
    assert {*CARDS} < {*found}


@pytest.mark.shared
def test_the_manifest_agrees_with_the_shared_copy_a() -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/nips17 beside this checkout")
    hashes = dict(reversed(line.split()) for line in (SHARED / "pixels.sha256").read_text().splitlines())
    assert hashes.keys() == manifest().keys()
    assert all(hashes[id_].startswith(known.copy_a) for id_, known in manifest().items())
    with (SHARED / "dev_dataset.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ImageId"] for row in rows] == devset.subsets()[devset.EVERY_SECOND]
    for row in rows:
        known = manifest()[row["ImageId"]]
        assert (int(row["TrueLabel"]), int(row["TargetClass"])) == (known.label, known.target)


@pytest.mark.shared
def test_the_real_half_is_verified(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared/nips17 beside this checkout")
    lines = (SHARED / "dev_dataset.csv").read_text().splitlines(keepends=True)[:31]
    given = folder(tmp_path / "given", {"dev_dataset.csv": "".join(lines).encode()})
    (given / "images").symlink_to(SHARED / "images")
    real = nips2017(given / "dev_dataset.csv")
    path = tmp_path / "a.zip"
    path.write_bytes(
        zipped({"dev_dataset.csv": "".join(lines).encode()} | {p.name: p.read_bytes() for p in real.paths})
    )
    found = fetch_nips2017(tmp_path / "to", str(path))
    assert found.copy_a == list(real.ids)
    assert (found.copy_b, found.missing, found.refused) == ([], [], {})
    assert list(open_dataset(str(tmp_path / "to")).ids) == list(real.ids)


def test_errors_are_ours() -> None:
    assert issubclass(FetchError, RdpBenchError)
    assert not issubclass(FetchError, UsageError)
    assert issubclass(BadImageError, UsageError)
