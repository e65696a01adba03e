"""Weight files that a training writes hold the hashes of its photographs."""

from pathlib import Path

import pytest

from rdp_bench.data.photographs import PhotographHashes
from rdp_bench.errors import DamagedError
from rdp_bench.keys import hash_pixels
from rdp_bench.train.loop import Training
from rdp_bench.weights import files
from tests.helpers import toy_train

pytestmark = pytest.mark.usefixtures("toys")


def listed(path: Path) -> PhotographHashes:
    return PhotographHashes.from_json(files.read_photographs(path), str(path))


def trained(out: Path, start: Path | None = None) -> Path:
    training = Training(toy_train.recipe("rdp", steps=2), toy_train.photos(), out, start=start)
    return training.run()


def test_every_file_of_a_training_holds_them(tmp_path: Path) -> None:
    photos = toy_train.photos()
    expected = {bytes.fromhex(hash_pixels(photos.image(i))[:16]) for i in range(3)}
    trained(tmp_path)
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert written == ["rdp-reconstruction.safetensors", "rdp.safetensors"]
    for name in written:
        found = listed(tmp_path / name)
        assert (found.prefixes, found.count, found.complete) == (expected, 3, True)


def test_a_training_that_begins_with_weights_has_theirs_too(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    other = PhotographHashes.of("another folder", 7, 256, ["ab" * 32])
    state, about = files.read_tensors(first), files.read_metadata(first)
    for name, text, complete in (("known", other.to_json(), True), ("unknown", "", False)):
        start = tmp_path / f"{name}.safetensors"
        files.save(start, state, about, photographs=text)
        found = listed(trained(tmp_path / name, start))
        assert found.complete is complete
        assert (bytes.fromhex("ab" * 8) in found.prefixes) is complete
        assert found.count == (10 if complete else 3)
    files.save(start, state, about, photographs="damaged")
    with pytest.raises(DamagedError, match="the hashes of its photographs cannot be read"):
        trained(tmp_path / "damaged", start)
