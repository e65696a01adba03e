"""Super-resolvers and denoisers of many architectures, through the spandrel package: `spandrel:FILE`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.defenses._learned import Learned, upsample_nearest
from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.protocols import Backward
from rdp_bench.registry import defense
from rdp_bench.specs import Quoted, parse_spec, refuse_weights, with_params
from rdp_bench.weights import files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rdp_bench.rng import ImageRng

INSTALL = "pip install '.[spandrel]' in the checkout"


@dataclass(frozen=True)
class Spandrel(Learned):
    """A network whose architecture spandrel finds from its tensors' names; spandrel handles sizes and padding.

    It is called without gradients, so its stand-in repeats each pixel as often as the network's scale says.
    """

    differentiable: ClassVar[bool] = False
    backward: ClassVar[Backward] = "stand-in"
    kind: ClassVar[str] = "spandrel"

    @property
    def scale(self) -> float:
        """Output size over input size; loads the network."""
        return float(getattr(self.net("cpu"), "scale", 1))

    def resolved(self) -> dict[str, Any]:
        """The weights by their hash, and the version of the package that has the architecture."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return {**super().resolved(), "spandrel": version("spandrel")}
        except PackageNotFoundError as error:
            raise UsageError(f"defense 'spandrel:{self.weights}' needs the spandrel package: {INSTALL}") from error

    def load(self) -> nn.Module:
        """The network, built from tensors that this package's reader read."""
        import torch
        from spandrel import ImageModelDescriptor, ModelLoader

        path = self.paths[0]
        state = files.read_tensors(path)
        try:
            found = ModelLoader().load_from_state_dict(state)
        except Exception as error:  # each architecture fails in its own way
            raise BadModelError(f"{path}: spandrel builds no network from it ({type(error).__name__})") from error
        if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
            raise BadModelError(f"{path}: expected a network from RGB to RGB, found {found.architecture.name}")

        class Network(torch.nn.Module):
            """Images `[n, 3, h, w]` one by one, as spandrel wants them, to `[n, 3, scale h, scale w]`."""

            def __init__(self) -> None:
                super().__init__()
                self.model = found.model
                self.scale = found.scale

            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([found(image[None]) for image in x]).clone()  # out of inference mode

        return Network()

    def stand_in(self, x: Tensor, rng: ImageRng) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """See the class."""
        return upsample_nearest(x, int(self.scale))


def of_file(text: str) -> Spandrel:
    """`spandrel:FILE`."""
    spec = parse_spec(text)
    refuse_weights(text, spec)
    name = Quoted(spec.name.removeprefix("spandrel:"))
    return with_params(Spandrel(), replace(spec, params=(*spec.params, ("weights", name))), "defense")


defense.label_scheme(
    "super-resolver or denoiser that spandrel knows", r"spandrel:.+", "spandrel:FILE", of_file, id="spandrel"
)
