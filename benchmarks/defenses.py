"""How fast the defenses are, each beside its nearest peer or its bare network: `python -m benchmarks.defenses`.

Ours and theirs run in turn, in one process, on the same 8-bit images of 299 pixels; a number is the median.
Ours purifies a batch and is counted by the image; theirs gets what it takes (a batch where it can).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from rdp_bench import plugins
from rdp_bench.defenses._tv import inpaint, objective
from rdp_bench.registry import defense
from rdp_bench.rng import ImageRng

SIZE = 299
MU = 1 / 0.03
STEPS = 12


class Row(NamedTuple):
    """One measurement; `note` says what the number is beside its unit."""

    name: str
    value: float
    note: str


def images(n: int) -> Tensor:
    """Crops of the photographs that scikit-image ships, 8-bit, `[n, 3, 299, 299]`."""
    from skimage import data

    photos = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    cut = [np.roll(photos[i % 4], -40 * (i // 4), axis=1)[:SIZE, 100 : 100 + SIZE] for i in range(n)]
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous().float() / 255


def in_turn(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, called in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over the rounds of their time by ours: what else runs on the machine slows both in a round."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def ours(name: str, x: Tensor) -> Callable[[], object]:
    entry = defense.resolve(name).value
    return lambda: entry.purify(x, ImageRng([str(i) for i in range(len(x))]))


def every_defense(n: int, repeats: int) -> list[Row]:
    """Milliseconds an image of each entry."""
    x = images(n)
    names = ["jpeg", "fd", "bit-red", "tvm", "r&p", "pixel-deflection", "wavelet"]
    taken = in_turn({name: ours(name, x) for name in names}, repeats)
    return [Row(name, 1e3 * statistics.median(seconds) / n, "ms an image") for name, seconds in taken.items()]


@torch.no_grad()
def learned(n: int, repeats: int) -> list[Row]:
    """Defenses that are one network and nothing else, beside that network on images of the size it needs."""
    x = images(n)
    found = []
    for name in ("rdp", "nrp", "hgd"):
        entry: Any = defense.resolve(name).value
        net = entry.net("cpu")
        grown = pad(x, (0, -SIZE % getattr(net, "multiple", 1)) * 2, mode="reflect")
        taken = in_turn({"whole": ours(name, x), "bare": lambda net=net, grown=grown: net(grown)}, repeats)
        found.append(Row(name, 1e3 * statistics.median(taken["whole"]) / n, "ms an image"))
        found.append(
            Row(f"{name}, of its bare network's time", ratio(taken["whole"], taken["bare"]), "times, at most 1.02")
        )
    return found


def against_peers(n: int, repeats: int) -> list[Row]:
    """JPEG, bit reduction and R&P beside ART, torchvision and plain Pillow."""
    from art.defences.preprocessor import FeatureSqueezing, JpegCompression
    from torchvision.transforms import v2

    x = images(n)
    last = x.permute(0, 2, 3, 1).contiguous().numpy()
    art_jpeg = JpegCompression(clip_values=(0, 1), quality=75)
    art_bits = FeatureSqueezing(clip_values=(0, 1), bit_depth=5)
    vision_jpeg, vision_resize = v2.JPEG(75), v2.RandomResize(310, 331, interpolation=v2.InterpolationMode.NEAREST)

    def torchvision_jpeg() -> None:
        torch.stack([vision_jpeg((image * 255).round().byte()) for image in x]).float() / 255

    def pillow() -> None:
        # From a batch to a batch `[n, 3, h, w]`, as the others.
        done = []
        for image in (x.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8):
            file = BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=75)
            done.append(np.asarray(Image.open(file)))
        (torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).float() / 255).contiguous()

    def resize_and_pad() -> None:
        done = []
        for image in x:
            big = vision_resize(image)
            edge = big.shape[-1]
            top, left = (int(torch.randint(0, 332 - edge, ())) for _ in range(2))
            placed = v2.functional.pad(big, [left, top, 331 - edge - left, 331 - edge - top], fill=0.5)
            done.append(v2.functional.horizontal_flip(placed) if torch.rand(()) < 0.5 else placed)
        torch.stack(done)

    pairs: list[tuple[str, str, Callable[[], object]]] = [
        ("jpeg", "ART JpegCompression", lambda: art_jpeg(last)),
        ("jpeg", "torchvision v2.JPEG", torchvision_jpeg),
        ("jpeg", "Pillow and numpy in a loop", pillow),
        ("bit-red", "ART FeatureSqueezing", lambda: art_bits(last)),
        ("r&p", "torchvision v2, image by image", resize_and_pad),
    ]
    rows = []
    for name, peer, call in pairs:
        taken = in_turn({"ours": ours(name, x), "theirs": call}, repeats)
        rows.append(Row(f"{peer} / {name}", ratio(taken["theirs"], taken["ours"]), "times our time"))
    return rows


def total_variation(n: int, repeats: int, with_art: bool) -> list[Row]:
    """TVM beside scikit-image's split Bregman (denoising: it knows no mask) and ART's TotalVarMin."""
    from skimage.restoration import denoise_tv_bregman

    x = images(n)
    kept = (ImageRng([str(i) for i in range(n)]).uniform(*x.shape[1:]) < 0.5).float()
    last = x.permute(0, 2, 3, 1).contiguous().numpy()
    taken = in_turn(
        {
            "tvm": lambda: inpaint(x, kept, MU, STEPS),
            "scikit-image": lambda: [denoise_tv_bregman(image, weight=MU, channel_axis=-1) for image in last],
        },
        repeats,
    )
    rows = [
        Row("tvm", 1e3 * statistics.median(taken["tvm"]) / n, "ms an image"),
        Row("scikit-image denoise_tv_bregman / tvm", ratio(taken["scikit-image"], taken["tvm"]), "times our time"),
    ]
    x, kept = x[:1], kept[:1]
    least = objective(inpaint(x, kept, MU, 1000), x, kept, MU).item()
    found = objective(inpaint(x, kept, MU, STEPS), x, kept, MU).item()
    rows.append(Row("tvm above its minimum", 100 * (found / least - 1), f"%, {STEPS} steps; the minimum: 1000 steps"))
    for tolerance, name in ((1e-2, "at its stopping rule (RMS change .01)"), (1e-4, "run on (RMS change .0001)")):
        u = split_bregman(x[0], kept[0], MU, tolerance)
        above = objective(u[None], x, kept, MU).item() / least - 1
        rows.append(Row(f"split Bregman, {name}, above it", 100 * above, "%"))
    if with_art:
        ours = statistics.median(taken["tvm"]) / n
        found = {steps: art_total_variation(last[0], steps) for steps in (10, 320)}
        for steps, (seconds, _) in found.items():
            rows.append(Row(f"ART TotalVarMin, {steps} iterations / tvm", seconds / ours, "times our time, once"))
        above = found[10][1] / found[320][1] - 1
        rows.append(Row("ART's 10 iterations (its default) above its 320", 100 * above, "%, of its own objective"))
    return rows


def art_total_variation(image: NDArray[np.float32], iterations: int) -> tuple[float, float]:
    """Seconds and the objective reached, ART's own: its data term is not squared, its solver L-BFGS-B."""
    from art.defences.preprocessor import TotalVarMin

    solver = TotalVarMin(clip_values=(0, 1), max_iter=iterations)
    np.random.seed(0)  # noqa: NPY002 - what ART draws from
    start = time.perf_counter()
    found = solver(image[None])[0][0]
    seconds = time.perf_counter() - start
    np.random.seed(0)  # noqa: NPY002 - what ART draws from
    mask = np.random.rand(*image.shape) < solver.prob  # noqa: NPY002
    parts = (
        solver._loss_func(found[:, :, c].ravel().astype(float), image[:, :, c], mask[:, :, c], solver.norm, solver.lamb)
        for c in range(3)
    )
    return seconds, float(sum(parts))


def split_bregman(x: Tensor, kept: Tensor, mu: float, tolerance: float) -> Tensor:
    """The reference code's iteration on `[c, h, w]` in float64, its border arithmetic mended.

    Gauss-Seidel in red-black order, so that it ends this year; the order changes the path, not the rule.
    """
    x, kept = x.double(), kept.double()
    penalty = 2 * mu
    height, width = x.shape[1:]
    place = torch.arange(height)[:, None] + torch.arange(width)
    inner = torch.ones_like(x)
    neighbours = _around(inner)
    u = x * kept
    d, b = u.new_zeros(2, *u.shape), u.new_zeros(2, *u.shape)
    for _ in range(100):
        before = u.clone()
        for sweep in range(20):
            colour = place % 2 == sweep % 2
            flow = d - b
            back = -flow[0] - flow[1]
            back[..., 1:] += flow[0][..., :-1]
            back[:, 1:] += flow[1][:, :-1]
            update = (penalty * (_around(u) + back) + mu * kept * x) / (mu * kept + penalty * neighbours)
            u = torch.where(colour, update, u)
        t = b.clone()
        t[0][..., :-1] += u.diff(dim=-1)
        t[1][:, :-1] += u.diff(dim=-2)
        length = penalty * t.square().sum(0).sqrt()
        d = length / (length + 1) * t
        b = t - d
        if (u - before).square().mean().sqrt() <= tolerance:
            break
    return u


def _around(u: Tensor) -> Tensor:
    """The sum of the up to four neighbours."""
    total = torch.zeros_like(u)
    total[..., 1:] += u[..., :-1]
    total[..., :-1] += u[..., 1:]
    total[:, 1:] += u[:, :-1]
    total[:, :-1] += u[:, 1:]
    return total


def rows(n: int = 8, repeats: int = 7, with_art: bool = True) -> list[Row]:
    """All measurements."""
    plugins.load()
    measured = every_defense(n, repeats) + learned(n, repeats)
    if find_spec("art") is None:
        return [*measured, Row("peers", float("nan"), "are not installed: pip install -e '.[bench]'")]
    return measured + against_peers(n, repeats) + total_variation(n, repeats, with_art)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-art-tvm", action="store_true", help="skip ART's TotalVarMin, which takes a minute")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, batches of {arguments.images}, median of {arguments.repeats}")
    for row in rows(arguments.images, arguments.repeats, not arguments.no_art_tvm):
        print(f"{row.name:<62} {row.value:9.2f} {row.note}")


if __name__ == "__main__":
    main()
