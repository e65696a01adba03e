"""Data sets, models, attacks and defenses on tensors: what `load_dataset` and its siblings return."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.api.given import plain_value
from rdp_bench.api.settings import in_usual_settings
from rdp_bench.budgets import LINF
from rdp_bench.errors import RdpBenchError, UsageError
from rdp_bench.protocols import Attack, Classifier, Defense, Notes, Source

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.rng import ImageRng


@dataclass(frozen=True)
class LoadedAttack:
    """An attack that can be called on tensors; `load_attack` makes it.

    Attributes:
        label: its label.
        attack: the attack, as a run would use it.
        norm: of its budget, "linf" or "l2".
    """

    label: str
    attack: Attack
    norm: str = LINF

    @in_usual_settings
    def __call__(self, source: Any, x: "Tensor", y: "Tensor", eps: float, *, seed: int = 0) -> "Tensor":
        """Craft adversarial images.

        Args:
            source: what the attack differentiates: a model of `load_model`, a list of models (an ensemble, logits
                averaged), or a torch.nn.Module from images in [0, 1] to logits.
            x: images, float `[n, 3, h, w]` in [0, 1].
            y: labels `[n]`, whole numbers; for an attack that approaches target classes, those classes.
            eps: the budget. Under `linf` a number in [0, 1] such as 16/255; under `l2` the L2 norm of the change.
            seed: of all randomness. An image gets the same random numbers in every batch.

        Returns:
            Adversarial images, float32 `[n, 3, h, w]` in [0, 1], within `eps` of `x`. They are not rounded to 8 bits,
            as those of a run are.

        Raises:
            UsageError: images, labels or eps are not as described above.
            RdpBenchError: the attack fails, or its result is not within the budget.
        """
        import torch

        from rdp_bench.engine.levels import to_delta, to_uint8
        from rdp_bench.models.entry_calls import naming_entry
        from rdp_bench.numerics.precision import exact_float32

        what = f"attack '{self.label}'"
        x = checked_images(x, what)
        labels = torch.as_tensor(y).to(x.device)
        if labels.shape != (len(x),) or labels.is_floating_point() or labels.is_complex():
            raise UsageError(
                f"{what}: labels are {len(x)} whole numbers, found {labels.dtype} of shape {list(labels.shape)}"
            )
        eps = _budget(eps, self.norm, what)
        with torch.enable_grad(), exact_float32(), naming_entry(what):
            adv = self.attack(as_source(source, x), x.clone(), labels.long(), eps, image_rng(x, seed))
        to_delta(adv, x, to_uint8(x), 255 * eps if self.norm == LINF else eps, what, self.norm)  # raises
        if isinstance(self.attack, Notes):
            import logging

            for note in self.attack.notes():
                logging.getLogger("rdp_bench").warning("%s", note)
        return adv.detach().float().clamp(0, 1)


@dataclass(frozen=True)
class LoadedDefense:
    """A defense that can be called on tensors; `load_defense` makes it.

    Attributes:
        label: its label.
        defense: the defense, as a run would use it.
    """

    label: str
    defense: Defense

    def __call__(self, x: "Tensor", *, seed: int = 0) -> "Tensor":
        """Purify images.

        Args:
            x: images, float `[n, 3, h, w]` in [0, 1], square.
            seed: of all randomness. An image gets the same random numbers in every batch.

        Returns:
            Purified images, float32 `[n, 3, h', w']` in [0, 1]; larger than `x` for a defense that enlarges. A defense
            of several passes (`r&p-30`) gives the images of its first. Gradients flow where the defense lets them.

        Raises:
            UsageError: images are not as described above.
            RdpBenchError: the defense fails, or does not return images in [0, 1].
        """
        import torch

        from rdp_bench import torch_settings
        from rdp_bench.engine.levels import check_purified
        from rdp_bench.models.entry_calls import naming_entry
        from rdp_bench.numerics.precision import exact_float32

        what = f"defense '{self.label}'"
        x = checked_images(x, what)
        gradients = torch.is_grad_enabled()
        with torch_settings.usual(), torch.set_grad_enabled(gradients), exact_float32(), naming_entry(what):
            purified = self.defense.purify(x.clone(), image_rng(x, seed).fork("pass 0"))
            return check_purified(purified, x, self.label)


class ModuleClassifier:
    """A torch module from images in [0, 1] to logits, as a classifier."""

    def __init__(self, module: Any, classes: int) -> None:
        self._module = module
        self.name = type(module).__name__
        self.classes = classes

    def __call__(self, x: "Tensor", zoom: float = 1.0) -> "Tensor":  # noqa: ARG002 - it resizes by itself, or not
        """Logits `[n, classes]`."""
        logits: Tensor = self._module(x)
        return logits

    def record(self) -> dict[str, Any]:
        """Nothing: it is never part of a cache key."""
        return {}


def _budget(eps: Any, norm: str, what: str) -> float:
    """`eps` as a number.

    Raises:
        UsageError: it is none, negative, infinite or, under `linf`, above 1.
    """
    number = plain_value(eps)
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < inf:
        unit = "in [0, 1], as pixels are" if norm == LINF else "the L2 norm of the change, a number"
        raise UsageError(f"{what}: eps is {unit}, found {eps!r}")
    if norm == LINF and number > 1:
        hint = f"; did you mean {number:g}/255?" if number <= 255 else ""
        raise UsageError(f"{what}: eps is in [0, 1], as pixels are, found {number}{hint}")
    return float(number)


def as_source(source: Any, x: "Tensor") -> Source:
    """What an attack differentiates.

    Raises:
        UsageError: `source` is no model or list of models.
    """
    from rdp_bench.models.zoo import LoadedSource

    if hasattr(source, "members"):
        found: Source = source
        return found
    models = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    members = tuple(_classifier(each, x) for each in models)
    if not members:
        raise UsageError("an attack needs a source: a model, or a list of models")
    return LoadedSource("+".join(member.name for member in members), members)


def _classifier(model: Any, x: "Tensor") -> Classifier:
    import torch

    if isinstance(model, str) or not callable(model):
        raise UsageError(
            f"a source is a model of load_model or a torch.nn.Module, found {model!r}"
            + (f"; use load_model({model!r})" if isinstance(model, str) else "")
        )
    if isinstance(model, Classifier):
        return model
    changing = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
    if isinstance(model, torch.nn.Module) and any(
        module.training for module in model.modules() if isinstance(module, changing)
    ):
        raise UsageError(
            f"source {type(model).__name__} is in training mode, in which outputs depend on the batch and on chance; "
            "call its eval() first"
        )
    with torch.enable_grad():
        logits = model(x[:1].clone().requires_grad_())
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise UsageError(f"source {type(model).__name__} does not return logits [n, classes]")
    if not torch.isfinite(logits).all():
        raise UsageError(f"source {type(model).__name__} gives NaN or infinite logits, which have no gradient")
    if not logits.requires_grad:
        raise UsageError(f"source {type(model).__name__} gives logits without a gradient; an attack needs one")
    return ModuleClassifier(model, logits.shape[1])


def checked_images(x: Any, what: str) -> "Tensor":
    """`x` as float32 images.

    Raises:
        UsageError: no float tensor `[n, 3, h, w]` of square images in [0, 1]; the message begins with `what`.
    """
    import torch

    if not isinstance(x, torch.Tensor):
        raise UsageError(f"{what}: images are a torch tensor [n, 3, h, w], found {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3] or not len(x):
        raise UsageError(f"{what}: images are square, [n, 3, h, h] with n above 0, found shape {list(x.shape)}")
    if not x.is_floating_point():
        raise UsageError(f"{what}: images are float in [0, 1], found {x.dtype}; divide 8-bit images by 255")
    if not torch.isfinite(x).all():
        raise UsageError(f"{what}: images hold NaN or infinite pixels")
    low, high = map(float, x.detach().aminmax())
    if low < 0 or high > 1:
        raise UsageError(f"{what}: pixels are in [0, 1], found {low:.3g} to {high:.3g}; undo any normalisation")
    return x.float()


def image_rng(x: "Tensor", seed: int) -> "ImageRng":
    """A random stream per image, which depends on `seed` and the image's 8-bit pixels only.

    Raises:
        UsageError: the seed is no whole number.
    """
    seed = plain_value(seed)
    if type(seed) is not int:
        raise UsageError(f"a seed is a whole number, found {seed!r}")
    from rdp_bench.engine.levels import to_uint8
    from rdp_bench.rng import ImageRng

    return ImageRng([f"{seed}/{sha256(each.tobytes()).hexdigest()}" for each in to_uint8(x)], x.device)


def dataset_tensors(label: str, limit: int | None, size: int | None, device: str) -> "tuple[Tensor, Tensor]":
    """Images `[n, 3, size, size]` in [0, 1] and labels `[n]`."""
    import torch

    from rdp_bench.data.image_hashes import batch
    from rdp_bench.data.open import open_dataset
    from rdp_bench.engine.levels import to_float
    from rdp_bench.engine.options import require_counts

    require_counts(limit=limit, size=size)
    found = open_dataset(label, size=size, limit=limit)
    images = to_float(batch(found, 0, len(found.labels)), device)
    return images, torch.tensor(list(found.labels), device=device)


def classifier(label: str, models_dir: Path | None, device: str) -> Classifier:
    """The model that a label names, on `device`."""
    from rdp_bench.models.zoo import find

    if "+" in label:
        raise UsageError(f"model '{label}': load the models of an ensemble one by one and give an attack their list")
    try:
        return find(label, models_dir).load(device)
    except RuntimeError as error:
        raise RdpBenchError(f"model '{label}' cannot be loaded: {error}") from error
