"""No entry's output changes without its version: outputs of all built-in entries against `golden/outputs.json`."""

import json

import numpy as np
import pytest

from tests.helpers import golden_outputs as golden

PINS = json.loads(golden.FILE.read_text())
ENTRIES = list(golden.entries())
REWRITE = "python -m tests.helpers.golden_outputs"


def test_every_entry_has_a_pin_and_every_pin_an_entry() -> None:
    pinned = {(kind, name) for kind in golden.KINDS for name in PINS[kind]}
    assert pinned == {(kind, name) for kind, name, _ in ENTRIES}, f"write the missing pins: {REWRITE}"


@pytest.mark.parametrize(("kind", "name", "version"), ENTRIES, ids=[f"{k}-{n}" for k, n, _ in ENTRIES])
def test_an_output_is_what_its_version_gave(kind: str, name: str, version: str) -> None:
    pinned = PINS[kind][name]
    assert pinned["version"] == version, f"the version of {kind} {name} changed: write its new pin with {REWRITE}"
    allowed = golden.TOLERANCE_OF.get(name, golden.TOLERANCE[kind])
    moved = golden.distance(golden.pin(kind, name, version), pinned)
    assert moved <= allowed, (
        f"{kind} {name} gives another output than version {version} did (RMS {moved:.3g}, allowed {allowed}); if that "
        f"is meant, raise its version and run {REWRITE}"
    )


def test_projections_measure_the_root_mean_square() -> None:
    """Against the definition: noise of a known size on a photograph, and one pixel."""
    photo = golden.photos(64).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 2, photo.shape)

    def pin(image: np.ndarray) -> dict[str, object]:
        return {"shape": [], "sha256": repr(image.sum()), "projections": golden.projections(image)}

    assert golden.distance(pin(photo), pin(photo + noise)) == pytest.approx(2, rel=0.5)
    one = photo.copy()
    one[0, 0, 0, 0] += 100
    assert golden.distance(pin(photo), pin(one)) == pytest.approx(100 / photo.size**0.5, rel=0.01)


def test_the_tolerance_tells_neighbouring_settings_apart() -> None:
    """A changed default of a codec would fail the test above, not pass as another library's rounding."""
    quality = golden.pin("defense", "jpeg(quality=70)", "1")
    assert golden.distance(quality, PINS["defense"]["jpeg"]) > golden.TOLERANCE_OF["jpeg"]
    steps = golden.pin("attack", "mi-fgsm(momentum=.9)", "1")
    assert golden.distance(steps, PINS["attack"]["mi-fgsm"]) > golden.TOLERANCE["attack"]
    bits = golden.pin("defense", "bit-red(bits=6)", "1")
    assert golden.distance(bits, PINS["defense"]["bit-red"]) > golden.TOLERANCE_OF["bit-red"]
