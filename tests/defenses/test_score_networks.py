"""Score networks: one interface, and files of their authors against plain second implementations and diffusers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, linear, pad, silu

from rdp_bench.defenses._networks import adm, edm, schedule
from rdp_bench.defenses._networks.score import Denoising, NoisePredicting, ScoreNetwork
from rdp_bench.defenses._score import ScoreFile, ddpm_step, framed, restored
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.registry import defense
from rdp_bench.weights import files as weight_files
from tests.helpers import toy
from tests.helpers.learned import Trap, image_rng, made, ours, photo, stirred, tiny

pytestmark = pytest.mark.usefixtures("folder")


# --- one interface ---------------------------------------------------------------------------------------

SPREAD = 0.2
"""Deviation of pixels N(.5, SPREAD^2), whose denoiser is known exactly."""


class OfGaussian(Denoising):
    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.view(-1, 1, 1, 1)
        return 0.5 + (x - 0.5) * SPREAD**2 / (SPREAD**2 + level**2)


class NoiseOfGaussian(NoisePredicting):
    """The same density, as a network that is told the step."""

    def outputs(self, x: Tensor, step: Tensor) -> Tensor:
        abar = torch.tensor(schedule.abars()).double()[step].view(-1, 1, 1, 1)
        variance = abar * (2 * SPREAD) ** 2 + 1 - abar  # of states, for images in [-1, 1]
        return (x * (1 - abar).sqrt() / variance).to(x.dtype)


@pytest.mark.parametrize("net", [OfGaussian(), NoiseOfGaussian()])
def test_three_forms_of_one_density(net: ScoreNetwork) -> None:
    """Denoiser, score and noise against the formulas of a Gaussian, whichever of them a network defines."""
    x, step = toy.random(2, 3, 4, 4).double() * 0.3 + 0.5, 149
    abar = schedule.abars()[step]
    sigma = torch.full((2,), schedule.noise_to_signal(abar)).double()
    total = SPREAD**2 + sigma[0] ** 2
    assert torch.allclose(net.denoise(x, sigma), 0.5 + (x - 0.5) * SPREAD**2 / total)
    assert torch.allclose(net.score(x, sigma), (0.5 - x) / total)
    state = math.sqrt(abar) * (2 * x - 1)  # the state of the same noisy image
    eps, variance = net.predict(state, step, abar)
    assert torch.allclose(eps, sigma[0] * (x - 0.5) / total)
    assert variance is None


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    x = (toy.random(1, 3, 2, 2).double() * 0.3 + 0.5).requires_grad_()
    density = torch.distributions.Normal(0.5, math.sqrt(SPREAD**2 + 0.1**2))
    (expected,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    assert torch.allclose(OfGaussian().score(x, torch.tensor([0.1]).double()), expected)


def test_images_of_one_batch_may_have_different_levels() -> None:
    x, sigma = photo(3, 16), torch.tensor([0.05, 0.2, 0.4])
    for net in (tiny("denoiser"), NoiseOfGaussian()):
        whole = net.denoise(x, sigma)
        for i in range(3):
            assert torch.allclose(whole[i], net.denoise(x[i : i + 1], sigma[i : i + 1])[0], atol=1e-6)


def test_frames() -> None:
    x, net = photo(1, 37), ScoreNetwork()
    assert framed(x, net) is x
    net.multiple = 8
    assert torch.equal(framed(x, net), pad(x, (0, 3, 0, 3), mode="reflect"))
    assert torch.equal(restored(framed(x, net), x.shape[-2:], net), x)
    tiny_image = x[..., :4, :4]
    assert torch.equal(framed(tiny_image, net), pad(tiny_image, (0, 4, 0, 4), mode="replicate"))
    net.size = 64
    larger = framed(x, net)
    assert larger.shape == (1, 3, 64, 64)
    assert torch.equal(larger, interpolate(x, (64, 64), mode="bilinear", align_corners=False))
    assert restored(larger, x.shape[-2:], net).shape == x.shape
    assert (restored(larger, x.shape[-2:], net) - x).abs().max() < 0.05


# --- our denoiser ----------------------------------------------------------------------------------------


def test_preconditioning_by_hand() -> None:
    """EDM, Table 1, at sigma_data .25; at noise 0 the image is returned as it is."""
    net, x = tiny("denoiser"), photo(2, 16)
    sigma = torch.tensor([0.1, 0.3])
    seen: list[Tensor] = []
    net.inner.register_forward_hook(lambda _, args, out: seen.extend([*args, out]))  # type: ignore[union-attr, operator]
    out = net(x, sigma)
    shown, level, residual = seen
    for i, s in enumerate((0.1, 0.3)):
        assert torch.allclose(shown[i], (x[i] - 0.5) / math.sqrt(s**2 + 0.25**2), atol=1e-6)
        clean = 0.25**2 / (s**2 + 0.25**2) * (x[i] - 0.5) + s * 0.25 / math.sqrt(s**2 + 0.25**2) * residual[i] + 0.5
        assert torch.allclose(out[i], clean, atol=1e-6)
        assert level[i].item() == pytest.approx(math.log(s / 0.002) / math.log(0.5 / 0.002), abs=1e-5)
    assert torch.allclose(net(x, torch.zeros(2)), x, atol=1e-6)
    assert residual.abs().mean() > 0.01
    assert not torch.allclose(net(x, sigma), net(x, sigma.flip(0)), atol=1e-3)


def test_the_size_is_compact() -> None:
    with torch.device("meta"):
        net = edm.Denoiser(**edm.SIZES["compact"])  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == 1_934_732 < 2e6


def test_ours_serves_every_entry(folder: Path) -> None:
    net = ours(folder / "a.safetensors", "denoiser")
    x = photo(2, 22)
    level = torch.full((2,), 0.1)
    wanted = net(pad(x, (0, 2, 0, 2), mode="reflect"), level)[..., :22, :22].clamp(0, 1)
    assert torch.allclose(made("denoiser(weights=a.safetensors, sigma=.1)").purify(x, image_rng(2)), wanted, atol=1e-5)
    assert torch.equal(
        made("purifier:a.safetensors(sigma=.1)").purify(x, image_rng(2)),
        made("denoiser(weights=a.safetensors, sigma=.1)").purify(x, image_rng(2)),
    )
    for label in ("diffpure(t=50, stride=25", "dds(sigma=.1", "lm(steps=2", "adp(steps=2"):
        entry = made(f"{label}, weights=a.safetensors)")
        out = entry.purify(x, image_rng(2))
        assert out.shape == x.shape
        assert entry.resolved()["weights"] == made("denoiser(weights=a.safetensors)").digest
        assert 0 <= out.min() < out.max() <= 1
        alone = entry.purify(x[1:], image_rng(2).select(torch.tensor([1])))
        assert torch.allclose(out[1:], alone, atol=1e-4)


# --- ADM -------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 64, "multipliers": (1, 2), "attention": (1,)}


def random_adm() -> adm.ADM:
    net = adm.ADM(**SMALL, size=None)
    return stirred(net, 3)  # type: ignore[return-value]


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])


def block(state: dict[str, Tensor], name: str, x: Tensor, time: Tensor, resize: str = "") -> Tensor:
    def resized(x: Tensor) -> Tensor:
        return (
            x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resize == "up" else avg_pool2d(x, 2) if resize else x
        )

    def conv(inner: str, x: Tensor, padding: int = 1) -> Tensor:
        return conv2d(x, state[f"{name}.{inner}.weight"], state[f"{name}.{inner}.bias"], padding=padding)

    hidden = conv("in_layers.2", resized(silu(norm(state, f"{name}.in_layers.0", x))))
    film = linear(silu(time), state[f"{name}.emb_layers.1.weight"], state[f"{name}.emb_layers.1.bias"])
    scale, shift = film[..., None, None].chunk(2, 1)
    hidden = conv("out_layers.3", silu(norm(state, f"{name}.out_layers.0", hidden) * (1 + scale) + shift))
    x = resized(x)
    return hidden + (conv("skip_connection", x, 0) if f"{name}.skip_connection.weight" in state else x)


def attention(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Head by head; a head's queries, keys and values are 64 rows each, one after the other."""
    flat = norm(state, f"{name}.norm", x).flatten(2)
    rows = state[f"{name}.qkv.weight"][..., 0] @ flat + state[f"{name}.qkv.bias"][:, None]
    heads = []
    for head in rows.split(3 * 64, 1):
        q, k, v = head.split(64, 1)
        weight = torch.softmax(q.transpose(1, 2) @ k / 8, -1)
        heads.append(v @ weight.transpose(1, 2))
    out = state[f"{name}.proj_out.weight"][..., 0] @ torch.cat(heads, 1) + state[f"{name}.proj_out.bias"][:, None]
    return x + out.view_as(x)


def plain_adm(state: dict[str, Tensor], x: Tensor, step: Tensor) -> Tensor:
    """Two levels of two blocks, attention in the second, written out."""
    rates = torch.tensor([10_000 ** (-i / 32) for i in range(32)])
    angles = step[:, None].float() * rates
    time = torch.cat([angles.cos(), angles.sin()], 1)
    for name in ("time_embed.0", "time_embed.2"):
        time = linear(time, state[f"{name}.weight"], state[f"{name}.bias"])
        time = silu(time) if name.endswith("0") else time
    x = conv2d(x, state["input_blocks.0.0.weight"], state["input_blocks.0.0.bias"], padding=1)
    kept = [x]
    for i in range(1, 6):
        x = block(state, f"input_blocks.{i}.0", x, time, "down" if i == 3 else "")
        x = attention(state, f"input_blocks.{i}.1", x) if i > 3 else x
        kept.append(x)
    x = block(state, "middle_block.0", x, time)
    x = block(state, "middle_block.2", attention(state, "middle_block.1", x), time)
    for i in range(6):
        x = block(state, f"output_blocks.{i}.0", torch.cat([x, kept.pop()], 1), time)
        x = attention(state, f"output_blocks.{i}.1", x) if i < 3 else x
        x = block(state, "output_blocks.2.2", x, time, "up") if i == 2 else x
    return conv2d(silu(norm(state, "out.0", x)), state["out.2.weight"], state["out.2.bias"], padding=1)


def test_adm_by_a_second_implementation() -> None:
    net, x, step = random_adm(), toy.random(2, 3, 16, 16), torch.tensor([149, 7])
    with torch.no_grad():
        expected = plain_adm(dict(net.state_dict()), x, step)
        assert torch.allclose(net(x, step), expected, atol=1e-5)
    assert expected.shape == (2, 6, 16, 16)
    assert expected.std() > 0.05


def diffusers_names(levels: int) -> Iterator[tuple[str, str]]:
    """Prefixes of ADM's modules and of diffusers'."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    for level in range(levels):
        for i in range(2):
            yield f"input_blocks.{1 + 3 * level + i}.0", f"down_blocks.{level}.resnets.{i}"
            yield f"input_blocks.{1 + 3 * level + i}.1", f"down_blocks.{level}.attentions.{i}"
        yield f"input_blocks.{3 + 3 * level}.0", f"down_blocks.{level}.downsamplers.0"
        for i in range(3):
            yield f"output_blocks.{3 * level + i}.0", f"up_blocks.{level}.resnets.{i}"
            yield f"output_blocks.{3 * level + i}.1", f"up_blocks.{level}.attentions.{i}"
        yield f"output_blocks.{3 * level + 2}.{2 if level < 1 else 1}", f"up_blocks.{level}.upsamplers.0"
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    yield "middle_block.1", "mid_block.attentions.0"


INSIDE = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0", "": "",
}  # fmt: skip


def as_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ADM's tensors under diffusers' names; queries, keys and values of all heads apart."""
    found: dict[str, Tensor] = {}
    prefixes = dict(diffusers_names(2))
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        prefix = max((p for p in prefixes if module == p or module.startswith(p + ".")), key=len)
        inner = module.removeprefix(prefix).removeprefix(".")
        if inner == "qkv":
            parts = tensor.view(-1, 3, 64, *tensor.shape[1:]).transpose(0, 1).flatten(1, 2)
            for part, letter in zip(parts, "qkv", strict=True):
                found[f"{prefixes[prefix]}.to_{letter}.{kind}"] = part.squeeze(-1) if kind == "weight" else part
            continue
        place = ".".join(filter(None, (prefixes[prefix], INSIDE[inner], kind)))
        found[place] = tensor.squeeze(-1) if inner == "proj_out" and kind == "weight" else tensor
    return found


CONFIG: dict[str, Any] = {
    "sample_size": 16, "in_channels": 3, "out_channels": 6, "block_out_channels": [64, 128], "layers_per_block": 2,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 64, "flip_sin_to_cos": True, "freq_shift": 0, "norm_num_groups": 32, "norm_eps": 1e-5,
    "attn_norm_num_groups": 32,
}  # fmt: skip


def test_adm_by_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    net, x, step = random_adm(), toy.random(2, 3, 16, 16), torch.tensor([149, 7])
    other = diffusers.UNet2DModel(**CONFIG)
    other.load_state_dict(as_diffusers(dict(net.state_dict())))
    with torch.no_grad():
        expected = other.eval()(x, step).sample
        assert torch.allclose(net(x, step), expected, atol=1e-5)
    assert expected.std() > 0.05


def test_adm_has_the_size_of_the_released_file() -> None:
    with torch.device("meta"):
        net = adm.ADM()
    assert sum(p.numel() for p in net.parameters()) == 552_814_086
    assert adm.arguments(net.state_dict()) == {
        "width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (3, 4, 5),
    }  # fmt: skip
    assert (net.size, net.multiple) == (256, 32)


def test_adm_from_its_authors_file(folder: Path) -> None:
    net = random_adm()
    torch.save(net.state_dict(), folder / "adm.pt")
    assert isinstance(ScoreFile(weights=made("dds(weights=adm.pt)").weights).load(), adm.ADM)
    found = made("dds(weights=adm.pt)")
    loaded = found.file.net("cpu")
    assert loaded.size == 256
    loaded.size = 32  # so that the test is fast
    x = photo(1, 20)
    seen = interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    step = found.step
    abar = schedule.abars()[step]
    state = math.sqrt(abar) * (2 * seen - 1) + math.sqrt(1 - abar) * image_rng(1).normal(3, 32, 32)
    with torch.no_grad():
        eps = net(state, torch.tensor([step]))[:, :3]
        out = found.purify(x, image_rng(1))
    clean = ((state - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(out, interpolate(clean, (20, 20), mode="bilinear", align_corners=False), atol=1e-4)
    assert made("diffpure(t=500, weights=adm.pt)").resolved()["noise_to_signal"] == 1.7121  # no limit of ours


# --- other files -----------------------------------------------------------------------------------------


def test_dncnn_from_its_authors_file(folder: Path) -> None:
    """Denoised smoothing's files: five layers here, 17 there; batch norms of eps 1e-4; the noise is subtracted."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-4)]
    layers += [nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1, bias=False)]
    plain = stirred(nn.Sequential(*layers))
    state = {f"module.dncnn.{k}": t for k, t in plain.state_dict().items()}
    torch.save({"arch": "imagenet_dncnn", "epoch": 3, "state_dict": state}, folder / "best.pth.tar")
    x = photo(1, 15)
    entry = made("denoised-smoothing(weights=best.pth.tar, sigma=.1)")
    noisy = x + 0.1 * image_rng(1).normal(3, 15, 15)
    expected = (noisy - plain(noisy)).clamp(0, 1)
    assert torch.allclose(entry.purify(x, image_rng(1)), expected.detach(), atol=1e-5)
    with pytest.raises(BadModelError, match=r"one noise level, and this purifier needs several; denoised-smoothing"):
        made("diffpure(weights=best.pth.tar)").purify(x, image_rng(1))
    with pytest.raises(BadModelError, match=r"one noise level, and this purifier needs several; denoised-smoothing"):
        made("denoiser(weights=best.pth.tar)").purify(x, image_rng(1))


def pipeline(folder: Path, channels: int = 3, **scheduler: Any) -> nn.Module:
    """A folder as diffusers saves a DDPM, of `channels` output channels."""
    diffusers = pytest.importorskip("diffusers")
    config = CONFIG | {"out_channels": channels, "block_out_channels": [32, 32], "attention_head_dim": 32}
    net = stirred(diffusers.UNet2DModel(**config))
    save_file({k: t.contiguous() for k, t in net.state_dict().items()}, folder / "unet" / "weights.safetensors")
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    said = {
        "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
        "prediction_type": "epsilon",
    }  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said | scheduler))
    return net


@pytest.fixture
def pipe(folder: Path) -> Path:
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
    return folder


LABEL = "dds(sigma=.1, weights=unet/weights.safetensors)"


def test_a_pipeline_of_diffusers(pipe: Path) -> None:
    net, x = pipeline(pipe), photo(1, 16)
    entry = made(LABEL)
    abar = schedule.abars()[entry.step]
    state = math.sqrt(abar) * (2 * x - 1) + math.sqrt(1 - abar) * image_rng(1).normal(3, 16, 16)
    with torch.no_grad():
        eps = net(state, entry.step).sample  # type: ignore[operator]
        found = entry.purify(x, image_rng(1))
    clean = ((state - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(found, clean, atol=1e-5)
    before = entry.resolved()["weights"]
    config = pipe / "unet" / "config.json"
    config.write_text(config.read_text().replace('"freq_shift": 0', '"freq_shift": 1'))
    assert made(LABEL).resolved()["weights"] != before


def test_a_pipeline_of_another_schedule_is_refused(pipe: Path) -> None:
    pipeline(pipe, beta_schedule="scaled_linear", prediction_type="v_prediction")
    with pytest.raises(
        BadModelError, match="beta_schedule is scaled_linear, expected linear; prediction_type is v_pred"
    ):
        made(LABEL).purify(photo(1, 16), image_rng(1))
    (pipe / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(BadModelError, match=r"needs .*scheduler_config.json, which says what it was trained for"):
        made(LABEL).resolved()


def scheduler(pipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pipe / "scheduler" / "scheduler_config.json").read_text())
    return found


def test_a_pipeline_that_does_not_say_what_it_predicts_predicts_noise(pipe: Path) -> None:
    pipeline(pipe)
    x = photo(1, 16)
    wanted = made(LABEL).purify(x, image_rng(1))
    said = {k: v for k, v in scheduler(pipe).items() if k != "prediction_type"}
    (pipe / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    assert torch.equal(made(LABEL).purify(x, image_rng(1)), wanted)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is .*, expected None"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, expected False"),
        ({"variance_type": "learned", "channels": 6}, "variance_type learned of a network of 6 output channels"),
        ({"variance_type": "learned_range"}, "variance_type learned_range of a network of 3 output channels"),
        ({"variance_type": "fixed_large", "channels": 6}, "variance_type fixed_large of a network of 6"),
        ({"variance_type": "fixed_large_log"}, "variance_type fixed_large_log .* is not supported"),
        ({"channels": 6}, "variance_type fixed_small of a network of 6"),
    ],
)
def test_a_scheduler_whose_noise_is_another_is_refused(pipe: Path, said: dict[str, Any], message: str) -> None:
    pipeline(pipe, **said)
    with pytest.raises(BadModelError, match=message):
        made(LABEL).purify(photo(1, 16), image_rng(1))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_steps_take_the_variance_that_the_scheduler_says(pipe: Path, variance: str) -> None:
    """One step of diffusers' own scheduler."""
    channels = 6 if variance == "learned_range" else 3
    net = pipeline(pipe, channels, variance_type=variance, trained_betas=None, rescale_betas_zero_snr=False)
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler.from_config(scheduler(pipe), clip_sample=True)
    loaded = made(LABEL).net("cpu")
    x, step = 2 * photo(1, 16) - 1, 400
    with torch.no_grad():
        torch.manual_seed(0)
        drawn = torch.randn(x.shape)
        found = ddpm_step(loaded, x, step, schedule.all_steps(), lambda: drawn)
        torch.manual_seed(0)
        expected = theirs.step(net(x, step).sample, step, x).prev_sample
    assert torch.allclose(found, expected, atol=1e-5)
    assert made("dds(weights=unet/weights.safetensors)").resolved()["net"] == (
        "fixed_large" if variance == "fixed_large" else None
    )


def test_without_diffusers_it_says_how_to_get_it(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    save_file({"a": torch.zeros(1)}, pipe / "unet" / "weights.safetensors")
    (pipe / "unet" / "config.json").write_text("{}")
    schedule_of = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    (pipe / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule_of | {"prediction_type": "epsilon"}))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"needs the diffusers package: pip install '\.\[diffusers\]' in the checkout"):
        made(LABEL).purify(photo(1, 16), image_rng(1))


def test_files_that_are_no_score_network_are_refused(folder: Path) -> None:
    x = photo(1, 16)
    torch.save({"a": Trap(folder / "ran")}, folder / "trap.pt")
    with pytest.raises(BadModelError, match="refused"):
        made("dds(weights=trap.pt)").purify(x, image_rng(1))
    assert not (folder / "ran").exists()
    torch.save({"conv.weight": torch.zeros(1)}, folder / "other.pt")
    with pytest.raises(BadModelError, match=r"not a score network. Known are files of rdp-bench train denoiser"):
        made("dds(weights=other.pt)").purify(x, image_rng(1))
    state = random_adm().state_dict()
    torch.save(state | {"label_emb.weight": torch.zeros(1000, 256)}, folder / "cond.pt")
    with pytest.raises(BadModelError, match="a class-conditional network; the unconditional one is 256x256"):
        made("dds(weights=cond.pt)").purify(x, image_rng(1))
    del state["middle_block.1.qkv.bias"]
    torch.save(state, folder / "part.pt")
    with pytest.raises(BadModelError, match=r"does not fit denoiser .*missing middle_block"):
        made("dds(weights=part.pt)").purify(x, image_rng(1))
    weight_files.save(folder / "rdp.safetensors", {"a": torch.zeros(1)}, {"defense": "rdp"})
    with pytest.raises(BadModelError, match="holds 'rdp', expected 'denoiser'"):
        made("dds(weights=rdp.safetensors)").resolved()


def test_the_star_leaves_them_out() -> None:
    """Their cost, and that they are controls: a grid names them."""
    from rdp_bench.engine import grid

    everything = grid.settle(grid.load("table1", "embedded", {"defenses": ("none", "*")})[0], None).axes.defenses
    names = ("diffpure", "gdmp", "gradual", "dds", "lm", "adp", "denoised-smoothing", "denoiser", "noise", "noise-vote")
    assert not set(names) & set(everything)
    assert set(names) <= set(defense.entries)
    assert "rdp" in everything
