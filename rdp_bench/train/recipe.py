"""Base of recipes: what differs between trainings (networks, inputs, losses). The loop is shared."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rdp_bench.defenses._learned import Learned
from rdp_bench.errors import UsageError, unknown_name
from rdp_bench.keys import key_of
from rdp_bench.rng import ImageRng
from rdp_bench.train.extractor import Extractor
from rdp_bench.train.options import Options
from rdp_bench.train.validate import Validation
from rdp_bench.weights.files import load_strict

if TYPE_CHECKING:
    from pathlib import Path

AVERAGE = "average"

Step = tuple[str, Tensor]
"""The name of an optimizer, and the loss that it minimises."""


class Recipe:
    """Base of a recipe.

    * `nets`: every network that is trained, by name; the first one becomes the product. With the option `average`,
      also "average", the moving average of the networks of the optimizer "main".
    * `optimizers`: Adam by name, each over the parameters of some networks.
    * `terms`: the loss terms of the last step, for train.csv.
    * `parts`: what --without may leave out.
    * `without_effect`: options that change nothing here, and are refused.
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, dict[str, Any]]]
    loss_weights: ClassVar[dict[str, float]] = {}
    parts: ClassVar[tuple[str, ...]] = ()
    without_effect: ClassVar[tuple[str, ...]] = ()
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # torch's
    uses_features: ClassVar[bool] = True
    frozen_statistics: ClassVar[bool] = False  # networks stay in eval mode

    nets: dict[str, nn.Module]
    net_args: dict[str, Any]

    def __init__(self, options: Options, device: str, models_dir: "Path | None" = None) -> None:
        self.options, self.device = options, device
        self.weights = self.weights_of(options)
        self.features: Any = (
            Extractor(options.features, options.levels, device, models_dir, options.scale == "native")
            if self.uses_features
            else None
        )
        self.models_dir = models_dir
        self.terms: dict[str, Tensor] = {}
        # Seeded on the CPU, so that a training starts alike on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.nets = self.build()
        groups = self.groups()
        if options.average:
            trained = nn.ModuleDict({name: self.nets[name] for name in groups["main"]})
            average = AveragedModel(trained, avg_fn=partial(_averaged, options.average), use_buffers=True)
            self.nets[AVERAGE] = average
        for net in self.nets.values():
            net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = {
            group: torch.optim.Adam(
                [p for name in names for p in self.nets[name].parameters()],
                options.rate,
                betas=self.betas,
                fused=True,  # one pass over all weights, where the default makes ten over each
            )
            for group, names in groups.items()
        }
        if options.average:
            # Only after an update that was made: one that is skipped changes nothing.
            self.optimizers["main"].register_step_post_hook(lambda *_: average.update_parameters(trained))

    @classmethod
    def settings(cls, size: str, given: dict[str, Any]) -> Options:
        """The recipe's defaults at `size`, overridden by what the user gave.

        Raises:
            UsageError: an unknown size, an option that has no effect, or no loss is left.
        """
        for name in cls.without_effect:
            if given.get(name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} has no effect on {cls.name}; leave it out")
        if size not in cls.defaults:
            raise unknown_name(f"size of {cls.name}", size, cls.defaults)
        options = Options(cls.name, size, **cls.defaults[size]).with_given(given)
        cls.weights_of(options)
        return options

    @classmethod
    def weights_of(cls, options: Options) -> dict[str, float]:
        """The weight of every loss term; 0 where --without leaves its part out (`recon` that of `recon-pix` too).

        Raises:
            UsageError: an unknown part or term, a weight of a part that is left out, or all weights are 0.
        """
        for part in options.without:
            if part not in cls.parts:
                raise unknown_name(f"part of {cls.name}", part, cls.parts, "See --without")
        weights = cls.loss_weights | dict(options.weights)
        gone = {term: part for part in options.without for term in weights if f"{term}-".startswith(f"{part}-")}
        for term, _ in options.weights:
            if term not in cls.loss_weights:
                raise unknown_name(f"loss weight of {cls.name}", term, cls.loss_weights)
            if term in gone:
                raise UsageError(f"--weight {term} has no effect with --without {gone[term]}; leave one of them out")
        weights |= dict.fromkeys(gone, 0.0)
        if not any(weights.values()):
            raise UsageError(
                f"--without and --weight leave {cls.name} without a loss: every weight is 0 ({', '.join(weights)}). "
                "Keep one above 0"
            )
        return weights

    def build(self) -> dict[str, nn.Module]:
        """The networks with their initial weights; sets `net_args`, the arguments of the product's constructor."""
        raise NotImplementedError

    def groups(self) -> dict[str, list[str]]:
        """The networks of each optimizer."""
        return {"main": list(self.nets)}

    def prepare(self, clean: Tensor, rng: Generator) -> Tensor:
        """Training inputs for crops `[n, 3, h, h]` in [0, 1], made with the networks in eval mode."""
        raise NotImplementedError

    def steps(self, clean: Tensor, inputs: Tensor, rng: Generator) -> Iterator[Step]:
        """The losses of one step, in order. The optimizer of a loss has stepped when the next loss is requested."""
        raise NotImplementedError

    def defense(self) -> Learned:
        """The defense that the product belongs to, with the parameters for validation."""
        raise NotImplementedError

    def purify(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` purified by the defense with the product as its network; for validation."""
        entry = self.defense()
        object.__setattr__(entry, "net", lambda _: self.product)  # frozen, and else it would look for a file
        return entry.purify(x, ImageRng([str(i) for i in range(len(x))], x.device))

    def validation(self, clean: Tensor) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
        """The validation of `purify`, on held-out photographs `clean` `[n, 3, h, h]`."""
        return Validation(clean, self.device, self.models_dir)

    def frozen(self) -> list[Any]:
        """The classifiers that make inputs or losses and are not trained."""
        return self.features.members if self.features else []

    def frozen_hashes(self) -> dict[str, str]:
        """The hash of the weights of each of them, by name; of a plugin's classifier, that of its record."""
        return {net.name: getattr(net, "weights_hash", None) or key_of(net.record()) for net in self.frozen()}

    @property
    def product(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.averaged(next(iter(self.nets)))

    def averaged(self, name: str) -> nn.Module:
        """The moving average of a network, or the network itself without the option `average`."""
        average: Any = self.nets.get(AVERAGE)
        return average.module[name] if average is not None else self.nets[name]

    def begin_with(self, tensors: Mapping[str, Tensor], what: str, where: "Path") -> None:
        """Begin with other weights of the product.

        Raises:
            UsageError: they are of another network.
        """
        first = next(iter(self.nets))
        for net in {self.nets[first], self.averaged(first)}:
            load_strict(net, tensors, what, where)

    def export(self) -> dict[str, Tensor]:
        """The tensors of the weight file."""
        return dict(self.product.state_dict())

    def extra_exports(self) -> dict[str, nn.Module]:
        """Networks that are saved with the product, by the name of their entry.

        They are built with the product's `net_args`.
        """
        return {}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of `terms` without those of weight 0. Records all terms for train.csv."""
        self.terms |= {name: value.detach() for name, value in terms.items()}
        used = [self.weights.get(name, 1.0) * value for name, value in terms.items() if self.weights.get(name, 1.0)]
        return torch.stack(used).sum()


def _averaged(decay: float, average: Tensor, now: Tensor, steps: Tensor | int) -> Tensor:
    """The average of weights after one more step: `decay` of it, and less in the first steps."""
    if not now.is_floating_point():
        return now
    share = min(decay, (1 + int(steps)) / (10 + int(steps)))
    return average.lerp(now, 1 - share)
