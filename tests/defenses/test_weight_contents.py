"""Weight files of learned defenses: what is saved is read back, and hostile, damaged or wrong files are refused."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rdp_bench import plugins
from rdp_bench.errors import BadModelError
from rdp_bench.specs import FileSearch, files_from
from rdp_bench.weights import files as weight_files
from rdp_bench.weights import object_arrays
from rdp_bench.weights.object_arrays import read_arrays
from tests.helpers.learned import TINY, Trap, comdefend_arrays, image_rng, made, ours, photo, tiny
from tests.helpers.paths import ROOT

plugins.load()

pytestmark = pytest.mark.usefixtures("folder")


def test_what_is_saved_is_read_back(folder: Path) -> None:
    state = {"w": torch.randn(5, 3), "n": torch.tensor(7), "big": torch.tensor([1.0, 1e6])}
    about = {"defense": "rdp", "net": {"width": 4}, "card": {"steps": 3, "who": "…"}}
    path = folder / "new" / "a.safetensors"
    weight_files.save(path, state, about)
    assert weight_files.read_metadata(path) == about
    found = weight_files.read_tensors(path)
    assert torch.equal(found["w"], state["w"].half())
    assert torch.equal(found["big"], state["big"])  # too large for 16 bits
    assert found["n"].item() == 7
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    weight_files.save(path, {"w": state["w"].double()}, {}, half=False)
    assert torch.equal(weight_files.read_tensors(path)["w"], state["w"].double())
    assert weight_files.read_metadata(path) == {}


def test_half_weights_fill_a_network(folder: Path) -> None:
    net = tiny("rdp")
    weight_files.save(folder / "a.safetensors", net.state_dict(), {"defense": "rdp", "net": TINY["rdp"]})
    x = photo(1, 16)
    found = made("rdp(weights=a.safetensors)").forward(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found, net(x), atol=0.02)
    assert not torch.equal(found, net(x))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\xff" * 40,
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        (7).to_bytes(8, "little") + b'"hello"',
        (45).to_bytes(8, "little") + b'{"__metadata__": {"rdp-bench": "not json at"}}',
        (37).to_bytes(8, "little") + b'{"__metadata__": {"rdp-bench": "[1]"}}',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_damaged_headers_are_refused(folder: Path, content: bytes) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadModelError, match=r"a\.safetensors: refused"):
        weight_files.read_metadata(path)
    with pytest.raises(BadModelError):
        made("rdp(weights=a.safetensors)").resolved()


def test_other_peoples_files_say_nothing(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "b.safetensors", {"format": "pt"})
    torch.save({"a": torch.zeros(1)}, folder / "c.pth")
    assert [weight_files.read_metadata(folder / name) for name in ("a.safetensors", "b.safetensors", "c.pth")] == [
        {},
        {},
        {},
    ]


def test_files_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = folder / "a.safetensors", folder / "elsewhere" / "a.safetensors"
    outside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(b"")
    monkeypatch.chdir(outside.parent)
    assert weight_files.find("rdp", "a.safetensors") == inside  # --models-dir before the current folder
    assert weight_files.find("rdp", str(outside)) == outside
    with files_from(FileSearch()):
        assert weight_files.find("rdp", "a.safetensors").resolve() == outside
        with pytest.raises(BadModelError, match=r"weights b\.pth do not exist; looked for b\.pth\. Name a.*train"):
            weight_files.find("rdp", "b.pth")
    with pytest.raises(BadModelError, match=rf"looked for {folder}/b\.pth and b\.pth"):
        weight_files.find("rdp", "b.pth")
    with pytest.raises(BadModelError, match="weights 7 do not exist"):
        made("rdp(weights=7)").resolved()
    with pytest.raises(BadModelError, match=r"defense mine: no weights ship.*train.*mine\(weights=FILE\)"):
        weight_files.find("mine", None)


def test_a_file_that_ships_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "files", lambda package: tmp_path if package == "rdp_bench.data" else None)
    (tmp_path / "weights").mkdir()
    net = ours(tmp_path / "weights" / "rdp.safetensors", "rdp")
    x = photo(1, 16)
    assert torch.allclose(made("rdp").forward(x), net(x), atol=1e-5)
    with pytest.raises(BadModelError, match="no weights ship"):
        made("nrp").resolved()


def object_array(content: bytes, shape: str = "(2,)") -> bytes:
    """A .npy file of objects whose pickle is `content`."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


def test_a_npy_with_code_is_refused_and_not_run(folder: Path) -> None:
    mark, path = folder / "ran", folder / "enc.npy"
    array = np.zeros(3, np.float32)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        listed = np.empty(2, object)
        listed[:] = [array, Trap(mark)]
        for content in (pickle.dumps(listed, protocol), pickle.dumps(Trap(mark), protocol)):
            path.write_bytes(object_array(content))
            with pytest.raises(BadModelError, match=r"enc\.npy: refused.*Expected \.npy with one object array"):
                read_arrays(path)
            comdefend_arrays(folder / "dec.npy", [12, 3], 0)
            with pytest.raises(BadModelError, match="refused"):
                made("comdefend(weights=enc.npy)").purify(photo(), image_rng(1))
    assert not mark.exists()
    np.load(path, allow_pickle=True)
    assert mark.exists()  # the trap works


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "numpy.load",
        "numpy.core.multiarray.scalar",
        "rdp_bench.weights.files._Array",
        "rdp_bench.weights.files.pickle.loads",
        "numpy.core.multiarray._reconstruct.__globals__",
        "_codecs.decode",
    ],
)
def test_no_other_global_is_found(folder: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (folder / "a.npy").write_bytes(object_array(b"\x80\x02" + f"c{module}\n{attribute}\n.".encode()))
    with pytest.raises(BadModelError, match=f"it asks for {module}.{attribute}"):
        read_arrays(folder / "a.npy")


def test_bytes_are_spelled_in_latin1_only(folder: Path) -> None:
    """The codec is looked up by name, in modules: nobody else's name."""
    for name in ("utf-16", "rot13", "rdp_bench"):
        call = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX" + len(name).to_bytes(4, "little") + name.encode()
        (folder / "a.npy").write_bytes(object_array(call + b"\x86R."))
        with pytest.raises(BadModelError, match=f"bytes spelled in '{name}'"):
            read_arrays(folder / "a.npy")


def test_arrays_are_read_exactly(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal((2, 3)).astype("<f4"),
        rng.standard_normal(4).astype(">f4"),
        np.asfortranarray(rng.standard_normal((3, 2)).astype("<f8")),
    ]
    listed = np.empty(3, object)
    listed[:] = arrays
    for protocol in range(2, 5):
        (folder / "a.npy").write_bytes(object_array(pickle.dumps(listed, protocol), "(3,)"))
        found = read_arrays(folder / "a.npy")
        assert all(a.dtype == np.float32 for a in found)
        assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(found, arrays, strict=True))


def test_other_npy_files_are_refused(folder: Path) -> None:
    path = folder / "a.npy"

    def refused(why: str) -> None:
        with pytest.raises(BadModelError, match=why):
            read_arrays(path)

    np.save(path, np.zeros(3))
    refused("an array of numbers")
    for inner, why in (([np.zeros(2, int)], "instead of floats"), (["text"], "refused"), ([None], "refused")):
        listed = np.empty(1, object)
        listed[:] = inner
        np.save(path, listed, allow_pickle=True)
        refused(why)
    path.write_bytes(object_array(pickle.dumps([1, 2])))
    refused("no list of arrays")
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("a.npy", b"")
        box.writestr("b.npy", b"")
    refused("a zip of 2 files")
    whole = folder / "whole.npy"
    comdefend_arrays(whole, [3, 4, 5], 0)
    for share in (0.0, 0.3, 0.9, 0.99):
        path.write_bytes(whole.read_bytes()[: int(len(whole.read_bytes()) * share)])
        refused("refused")
    with pytest.raises(BadModelError):
        read_arrays(folder / "missing.npy")


def test_a_lying_array_is_refused(folder: Path) -> None:
    """Fewer bytes than the shape says: NumPy's own check is not there to help."""
    listed = np.empty(1, object)
    listed[:] = [np.zeros((2, 3), np.float32)]
    content = pickle.dumps(listed, 3)
    short = content.replace(b"C\x18" + bytes(24), b"C\x10" + bytes(16))
    assert short != content
    (folder / "a.npy").write_bytes(object_array(short, "(1,)"))
    with pytest.raises(BadModelError, match=r"4 numbers for shape \(2, 3\)"):
        read_arrays(folder / "a.npy")


def test_a_large_npy_is_refused_before_it_is_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comdefend_arrays(folder / "a.npy", [3, 16], 0)
    assert len(read_arrays(folder / "a.npy")) == 2
    monkeypatch.setattr(object_arrays, "LARGEST", 1000)
    with pytest.raises(BadModelError, match="larger than"):
        read_arrays(folder / "a.npy")


def test_comdefend_wants_both_files(folder: Path) -> None:
    widths = [3, 16, 32, 64, 128, 256, 128, 64, 32, 12]
    comdefend_arrays(folder / "enc.npy", widths, 0)
    with pytest.raises(BadModelError, match=r"dec\.npy do not exist"):
        made("comdefend(weights=enc.npy)").resolved()
    comdefend_arrays(folder / "dec.npy", widths, 1)
    with pytest.raises(BadModelError, match=r"does not fit comdefend: rec\.0\.weight: \[16, 3, 3, 3\] instead of"):
        made("comdefend(weights=enc.npy)").purify(photo(), image_rng(1))
    with pytest.raises(BadModelError, match=r"expected the encoder's file, enc\*\.npy"):
        made("comdefend(weights=dec.npy)").resolved()


def test_a_file_of_another_defense_is_refused(folder: Path) -> None:
    ours(folder / "a.safetensors", "rdp")
    for use in (lambda entry: entry.resolved(), lambda entry: entry.purify(photo(), image_rng(1))):
        with pytest.raises(BadModelError, match=r"holds 'rdp', expected 'nrp'; use rdp\(weights=a\.safetensors\)"):
            use(made("nrp(weights=a.safetensors)"))


@pytest.mark.parametrize("net", [{"width": 4, "depth": 3}, {"width": "x"}, {"width": -4}, [1], None, {"width": 5}])
def test_a_file_that_lies_about_its_network_is_refused(folder: Path, net: Any) -> None:
    weight_files.save(folder / "a.safetensors", tiny("rdp").state_dict(), {"defense": "rdp", "net": net})
    with pytest.raises(BadModelError, match=r"no rdp network is built with|does not fit rdp"):
        made("rdp(weights=a.safetensors)").purify(photo(), image_rng(1))


@pytest.mark.parametrize("kind", TINY)
def test_wrong_tensors_are_refused(folder: Path, kind: str) -> None:
    x = photo()
    torch.save({"fc.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, folder / "a.pth")
    refusal = "not a score network" if kind == "denoiser" else rf"does not fit {kind}.*: missing .*; and \d+ more"
    with pytest.raises(BadModelError, match=rf"a\.pth.* {refusal}"):
        made(f"{kind}(weights=a.pth)").purify(x, image_rng(1))
    state = dict(tiny(kind).state_dict())
    name = next(iter(state))
    for bad, why in ((state[name][:1], "instead of"), (state[name] * float("nan"), "NaN or infinite")):
        weight_files.save(folder / "a.safetensors", {**state, name: bad}, {"defense": kind, "net": TINY[kind]})
        with pytest.raises(BadModelError, match=why):
            made(f"{kind}(weights=a.safetensors)").purify(x, image_rng(1))


@pytest.mark.parametrize("kind", TINY)
def test_keys_follow_the_content_of_a_file(folder: Path, kind: str) -> None:
    ours(folder / "a.safetensors", kind)
    ours(folder / "b.safetensors", kind)
    ours(folder / "c.safetensors", kind, seed=1)
    a, b, c = (made(f"{kind}(weights={name}.safetensors)").resolved() for name in "abc")
    assert a == b
    assert a != c
    assert "a.safetensors" not in json.dumps(a)
    assert a["net"] == TINY[kind]


def test_keys_follow_both_of_comdefends_files(folder: Path) -> None:
    comdefend_arrays(folder / "enc.npy", [3, 12], 0)
    comdefend_arrays(folder / "dec.npy", [12, 3], 0)
    comdefend_arrays(folder / "enc2.npy", [3, 12], 0)
    comdefend_arrays(folder / "dec2.npy", [12, 3], 1)
    first, second = (made(f"comdefend(weights={name}.npy)").resolved() for name in ("enc", "enc2"))
    assert {key for key in first if first[key] != second[key]} == {"weights"}


def test_a_network_is_loaded_once(folder: Path) -> None:
    ours(folder / "a.safetensors", "rdp")
    ours(folder / "b.safetensors", "rdp")
    ours(folder / "c.safetensors", "rdp", seed=1)
    a, b, c = (made(f"rdp(weights={name}.safetensors)").net("cpu") for name in "abc")
    assert a is b
    assert a is not c
    assert not a.training


def test_resolving_loads_no_torch(folder: Path) -> None:
    ours(folder / "a.safetensors", "rdp")
    comdefend_arrays(folder / "enc.npy", [3, 12], 0)
    comdefend_arrays(folder / "dec.npy", [12, 3], 0)
    code = f"""
import sys
from pathlib import Path
from rdp_bench import plugins
from rdp_bench.registry import defense
from rdp_bench.specs import FileSearch
plugins.load()
files = FileSearch(models_dir=Path({str(folder)!r}))
for text in ("rdp(weights=a.safetensors, dynamic=true)", "purifier:a.safetensors", "comdefend(weights=enc.npy)"):
    made = defense.resolve(text, files=files).value
    made.resolved(), made.random, made.scale, made.passes
assert not {{"torch", "numpy", "safetensors", "spandrel"}} & set(sys.modules), sys.modules.keys()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
