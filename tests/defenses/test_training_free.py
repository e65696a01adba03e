"""Training-free defenses: what every entry promises, and each simple one against something independent."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from rdp_bench import Learned, plugins
from rdp_bench.defenses._score import ScoreBased
from rdp_bench.defenses.dip import DeepImagePrior
from rdp_bench.defenses.noise import GaussianNoise
from rdp_bench.defenses.soap import SelfSupervisedPurification
from rdp_bench.registry import defense
from tests.helpers.training_free import image_rng, made, photo

plugins.load()


OWN_TESTS = (Learned, ScoreBased, DeepImagePrior, GaussianNoise, SelfSupervisedPurification)
"""Kinds whose tests are in files of their own."""

TRAINING_FREE = [
    name
    for name, entry in defense.entries.items()
    if entry.origin.startswith("rdp_bench.defenses.")
    and not (isinstance(entry.factory, type) and issubclass(entry.factory, OWN_TESTS))
]
"""Every built-in defense that needs no weights: a new one is tested as soon as it is registered."""


def test_the_defenses_of_the_paper_are_among_them() -> None:
    assert {"none", "jpeg", "fd", "bit-red", "tvm", "r&p", "r&p-30", "pixel-deflection", "wavelet"} <= {*TRAINING_FREE}


@pytest.mark.parametrize("size", [8, 32, 37])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_output_is_an_image_of_the_promised_size(name: str, size: int) -> None:
    entry, x = made(name), photo(2, size)
    before = x.clone()

    purified = entry.purify(x, image_rng("a", "b"))

    assert purified.shape == (2, 3, round(entry.scale * size), round(entry.scale * size))
    assert purified.dtype == torch.float32
    assert 0 <= purified.min() <= purified.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_an_image_gets_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    entry, x = made(name), photo(3)

    together = entry.purify(x, image_rng("a", "b", "c"))

    assert torch.equal(together, entry.purify(x, image_rng("a", "b", "c")))
    for i, seed in enumerate("abc"):
        assert torch.equal(together[i : i + 1], entry.purify(x[i : i + 1], image_rng(seed)))
    assert torch.equal(together[[2, 0]], entry.purify(x[[2, 0]], image_rng("c", "a")))


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_it_is_random_where_it_says_so(name: str) -> None:
    entry, x = made(name), photo()

    differs = {not torch.equal(entry.purify(x, image_rng("a")), entry.purify(x, image_rng(s))) for s in "bcdef"}

    assert any(differs) == entry.random


@pytest.mark.parametrize("value", [0.0, 128 / 255, 1.0])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_flat_image_stays_about_flat(name: str, value: float) -> None:
    x = torch.full((1, 3, 32, 32), value)

    purified = made(name).purify(x, image_rng())

    # fd's step of 25 moves a mean by at most 12.5/8 grey levels; r&p pads with grey .5.
    error = (purified - value).abs()
    if name.startswith("r&p"):
        error = error[purified != 0.5]
    assert torch.isfinite(purified).all()
    assert error.numel() == 0 or error.max() <= (0.5 / 31 + 1e-6 if name == "bit-red" else 1.7 / 255)


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_backward_is_what_it_says(name: str) -> None:
    entry = made(name)
    x = photo(2, 32).requires_grad_()
    weight = torch.rand(entry.purify(x.detach(), image_rng("a", "b")).shape, generator=torch.Generator().manual_seed(1))

    out = entry.bpda(x, image_rng("a", "b"))
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)

    assert torch.allclose(out.detach(), entry.purify(x.detach(), image_rng("a", "b")), atol=1e-6)
    if entry.backward == "identity":
        assert torch.equal(gradient, weight)
    else:
        # Each of the entries here is linear in its input, up to a constant.
        step = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
        change = entry.purify(x.detach() + step, image_rng("a", "b")) - entry.purify(x.detach(), image_rng("a", "b"))
        assert torch.allclose((change * weight).sum(), (gradient * step).sum(), rtol=1e-4)
    assert entry.differentiable == (entry.backward == "exact")


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_every_entry_says_what_it_is_and_whose(name: str) -> None:
    entry = defense.get(name)

    assert len(entry.summary) > 20
    assert entry.source
    assert made(name).passes == (30 if name == "r&p-30" else 1)


@pytest.mark.parametrize(
    "text",
    [
        "jpeg(quality=0)",
        "jpeg(quality=101)",
        "bit-red(bits=0)",
        "bit-red(bits=9)",
        "fd(low=0)",
        "tvm(keep=0.0)",
        "tvm(keep=1.5)",
        "tvm(weight=0.0)",
        "tvm(steps=0)",
        "r&p(patterns=0)",
        "pixel-deflection(window=0)",
        "pixel-deflection(deflections=-1)",
        "pixel-deflection(sigma=-1.0)",
        "wavelet(sigma=-1.0)",
        "wavelet(jpeg=101)",
    ],
)
def test_impossible_parameters_are_refused_with_the_value_found(text: str) -> None:
    with pytest.raises(Exception, match=r"found (-1|\d)"):
        defense.resolve(text)


def test_the_shelf_can_be_listed_without_torch() -> None:
    script = (
        "import pkgutil, importlib, sys, rdp_bench.defenses as d\n"
        "names = [m.name for m in pkgutil.iter_modules(d.__path__) if not m.name.startswith('_')]\n"
        "[importlib.import_module(f'rdp_bench.defenses.{n}') for n in names]\n"
        "print(len(names), sorted({'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    count, _, heavy = done.stdout.strip().partition(" ")
    assert int(count) >= len(TRAINING_FREE) - 1  # r&p and r&p-30 share a file
    assert heavy == "[]"


@pytest.mark.parametrize("quality", [1, 75, 95])
def test_jpeg_is_pillow_to_the_bit(quality: int) -> None:
    x = photo(2, 45)

    purified = made(f"jpeg(quality={quality})").purify(x, image_rng("a", "b"))

    for image, found in zip(x, purified, strict=True):
        file = BytesIO()
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).astype(np.float32) / np.float32(255)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_bit_reduction_by_hand() -> None:
    # 2 bits: levels 0, 1/3, 2/3, 1; borders at 1/6, 1/2, 5/6; an exact half goes to the even level.
    x = torch.tensor([0.0, 0.16, 0.17, 0.49, 0.5, 0.51, 0.83, 0.84, 1.0]).expand(1, 3, 1, 9)

    purified = made("bit-red(bits=2)").purify(x, image_rng())

    assert (purified[0, 0, 0] * 3).round().tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert torch.allclose(purified * 3, (purified * 3).round(), atol=1e-6)


def test_bit_reduction_has_32_levels_and_no_bias() -> None:
    grey = (torch.arange(256) / 255).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)

    purified = made("bit-red").purify(grey, image_rng())

    assert len(set(purified.flatten().tolist())) == 32
    assert abs((purified - grey).mean()) < 1e-4
    assert torch.equal(made("bit-red(bits=8)").purify(grey, image_rng()), grey)


def test_fd_is_the_quantised_cosine_transform_of_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = photo(1, 32)
    step = np.full((8, 8), 30.0)
    step[:4, :4] = 25.0

    purified = made("fd").purify(x, image_rng())

    for colour in range(3):
        for top in range(0, 32, 8):
            for left in range(0, 32, 8):
                block = x[0, colour, top : top + 8, left : left + 8].double().mul(255).round().numpy()
                scaled = np.round(fft.dctn(block, norm="ortho") / step, 9)
                expected = np.clip(fft.idctn(np.round(scaled) * step, norm="ortho") / 255, 0, 1)
                found = purified[0, colour, top : top + 8, left : left + 8].numpy()
                assert np.allclose(found, expected, atol=1e-6)


def test_fd_rounds_a_mean_half_way_between_levels_to_the_even_one() -> None:
    # A flat block of value v has the one coefficient 8 v: 8 * 14.0625 = 112.5 = 4.5 steps of 25.
    x = torch.full((1, 3, 8, 8), 14.0625 / 255)

    assert torch.allclose(made("fd").purify(x, image_rng()) * 255, torch.tensor(4 * 25 / 8))


def test_fd_pads_with_the_edge() -> None:
    x = photo(1, 37)

    padded = made("fd").purify(pad(x, (0, 3, 0, 3), mode="replicate"), image_rng())

    assert torch.equal(made("fd").purify(x, image_rng()), padded[..., :37, :37])


@pytest.mark.parametrize("size", [32, 299])
def test_rp_shows_the_image_resized_on_grey(size: int) -> None:
    least, most = round(310 / 299 * size), round(331 / 299 * size)
    x = photo(1, size) * 0.4  # never grey .5
    seen: set[int] = set()
    for seed in range(12):
        purified = made("r&p").purify(x, image_rng(str(seed)))[0]
        inside = (purified != 0.5).all(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        edge = len(rows)
        assert len(columns) == edge
        assert least <= edge < most
        assert inside.sum() == edge * edge  # one square, grey all around

        # Ratios in float32, as TensorFlow has them: that decides where a product is whole.
        source = [int(np.float32(k) * (np.float32(size) / np.float32(edge))) for k in range(edge)]
        resized = x[0][:, source][:, :, source]
        shown = purified[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mirrored = torch.equal(shown, resized.flip(2))
        assert mirrored or torch.equal(shown, resized)
        seen.add(edge + 1000 * mirrored)
    assert {s // 1000 for s in seen} == {0, 1}
    assert size < 100 or len({s % 1000 for s in seen}) > 4


def test_rp_draws_every_size_and_place() -> None:
    x = torch.zeros(400, 3, 32, 32)  # 33 or 34, in 35

    purified = made("r&p").purify(x, image_rng(*map(str, range(400))))

    inside = (purified == 0)[:, 0]
    places = {(int(i.any(1).sum()), int(i.any(1).nonzero()[0]), int(i.any(0).nonzero()[0])) for i in inside}
    expected = {(edge, top, left) for edge in (33, 34) for top in range(36 - edge) for left in range(36 - edge)}
    assert places == expected
