"""Adversarial perturbations and Gaussian noise by frequency: the paper's Figure 3, and its claim in numbers.

The paper says that perturbations "tend to have more high-frequency components" than Gaussian noise. Here that is
measured: power relative to white noise of the same RMS, by distance from the centre of the spectrum.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rdp_bench.errors import RdpBenchError
from rdp_bench.reports.figures import drawing
from rdp_bench.reports.figures.drawing import COLORS, INK, PAGE, SMALL, ReportFigure, tidy
from rdp_bench.reports.figures.image_grid import Row, Tile, rows_of_tiles
from rdp_bench.reports.figures.sample_images import SampleImages
from rdp_bench.results.rows import display_name
from rdp_bench.specs import CLEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RINGS = 48
"""Of equal width, from the centre of the spectrum to its corner."""

HIGH = 0.25
"""Cycles per pixel above which a frequency counts as high: half of the largest along an axis."""

COLUMNS = ("noise", "frequency", "frequencies", "power", "low", "high", "images")
_NOISE = "Gaussian noise"
_SEED = 3


@dataclass(frozen=True)
class Radial:
    """Power of each image by ring, over that of white noise of its RMS; rows are images."""

    name: str
    power: "Array"  # [n, RINGS]

    @property
    def mean(self) -> "Array":
        """[RINGS], over the images."""
        mean: Array = self.power.mean(0)
        return mean

    @property
    def spread(self) -> "Array":
        """[2, RINGS]: between these are four of five images."""
        between: Array = np.quantile(self.power, [0.1, 0.9], axis=0)
        return between


def spectrum(noise: "NDArray[Any]") -> "Array":
    """Power of the centred 2-D Fourier transform of `[..., h, w]`, over its mean; a flat spectrum is 1 everywhere.

    By Parseval's theorem the mean power is the mean square of the pixels times their number.
    """
    power = np.abs(np.fft.fftshift(np.fft.fft2(noise), axes=(-2, -1))) ** 2
    mean = power.mean((-2, -1), keepdims=True)
    flat: Array = power / np.where(mean, mean, 1)
    return flat


def rings(size: int) -> "tuple[NDArray[np.int64], Array, NDArray[np.int64]]":
    """Ring of each frequency of a centred spectrum `[size, size]`; mean frequency and number of frequencies of each."""
    steps = np.fft.fftshift(np.fft.fftfreq(size))
    distance = np.hypot(steps[:, None], steps)
    index = np.minimum((distance * RINGS * np.sqrt(2)).astype(int), RINGS - 1)
    counts = np.bincount(index.ravel(), minlength=RINGS)
    return index, np.bincount(index.ravel(), distance.ravel(), RINGS) / np.maximum(counts, 1), counts


def radial(noise: "NDArray[Any]") -> "Array":
    """Mean power by ring of each image's noise `[n, channels, h, w]`, channels averaged: `[n, RINGS]`."""
    index, _, counts = rings(noise.shape[-1])
    sums = [np.bincount(index.ravel(), spectrum(image).mean(0).ravel(), RINGS) for image in noise]
    means: Array = np.array(sums) / np.maximum(counts, 1)
    return means


def gaussian(like: "NDArray[Any]", seed: int = _SEED) -> "Array":
    """N(0, s^2) of the shape `[n, channels, h, w]` and each image's RMS of `like`."""
    rms = np.sqrt((like.astype(np.float64) ** 2).mean((1, 2, 3), keepdims=True))
    noise: Array = rms * np.random.default_rng(seed).standard_normal(like.shape)
    return noise


def spectra(kept: SampleImages) -> ReportFigure | None:
    """Samples and spectra as the paper shows them, a column a kind of noise, and the radial average over all images.

    None where no adversarial set is stored.
    """
    sets: dict[str, Any] = {}
    for attack in kept.attacks:
        try:
            sets[display_name(attack)] = kept.perturbations(attack)
        except RdpBenchError:
            continue
    if not sets:
        return None
    first = next(iter(sets.values()))
    noises = {_NOISE: gaussian(first), **sets}
    lines = [Radial(name, radial(noise)) for name, noise in noises.items()]
    _, at, counts = rings(first.shape[-1])
    rows = [
        {
            "noise": line.name, "frequency": f"{f:.5f}", "frequencies": int(count), "images": len(line.power),
            **{name: f"{value:.6g}" for name, value in zip(("power", "low", "high"), values, strict=True)},
        }
        for line in lines
        for f, count, *values in zip(at, counts, line.mean, *line.spread, strict=True)
        if count
    ]  # fmt: skip
    caption = (
        f"Perturbations and Gaussian noise by frequency. Above: an image under noise of the RMS of {next(iter(sets))} "
        f"and under attacks {kept.crafted}. Middle: the log magnitude of the centred spectrum of what was added, all "
        f"on one scale. Below: power by spatial frequency, mean over {len(first)} images (bands: four of five images), "
        "relative to white noise of the same RMS, which is 0 dB. In brackets: the share of the power above the dashed "
        f"line, {HIGH} cycles per pixel; white noise has {100 * counts[at > HIGH].sum() / counts.sum():.0f} % there."
    )
    with drawing.styled():
        figure = _pictures(kept, noises)
        _curves(figure, lines, at, counts)
        return ReportFigure("spectra", caption, drawing.save(figure, dpi=300), tidy(COLUMNS, rows))


def _pictures(kept: SampleImages, noises: dict[str, Any]) -> "Figure":
    """The first image under each noise above the noise's spectrum."""
    levels = {name: np.log10(spectrum(noise[0]).mean(0) + 1e-12) / 2 for name, noise in noises.items()}
    limits = (-1.5, 1.5)  # decades of magnitude around white noise
    below = [Tile(level, cmap="gray", limits=limits) for level in levels.values()]
    above: list[Tile | None] = []
    try:
        clean = kept.images(CLEAN)[0].astype(float)
        above = [Tile(np.clip(clean + noise[0], 0, 255).round().astype(np.uint8)) for noise in noises.values()]
    except RdpBenchError as error:
        above = [Tile(None, text=str(error)) for _ in noises]
    return rows_of_tiles([Row(above, heads=list(noises)), Row(below)], PAGE, below=2.2)


def _curves(figure: "Figure", lines: list[Radial], at: "Array", counts: "NDArray[np.int64]") -> None:
    width, height = figure.get_size_inches()
    ax: Axes = figure.add_axes((0.55 / width, 0.38 / height, (width - 2.3) / width, 1.75 / height))
    seen = (at <= 0.5) & (counts > 0)
    colors = [INK, *COLORS]
    dashes = ["-", "-", "-", (0, (4, 2))]  # FGSM and DIM lie on each other
    for line, color, dash in zip(lines, colors * 9, dashes * 9, strict=False):
        share = 100 * (line.mean * counts)[at > HIGH].sum() / (line.mean * counts).sum()
        ax.plot(
            at[seen],
            _db(line.mean[seen]),
            color=color,
            linestyle=dash,
            linewidth=1.2,
            label=f"{line.name} ({share:.0f} %)",
        )
        ax.fill_between(at[seen], *_db(line.spread[:, seen]), color=color, alpha=0.13, linewidth=0)
    ax.axvline(HIGH, color=INK, linewidth=0.6, linestyle=(0, (3, 3)))
    ax.set_xlim(0, 0.5)
    ax.set_xlabel("spatial frequency, cycles per pixel")
    ax.set_ylabel("power, dB")
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)


def _db(power: "Array") -> "Array":
    return 10 * np.log10(np.maximum(power, 1e-6))
