"""SGM: gradients that pass skip connections rather than residual branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rdp_bench.attacks.parts.base import Part
from rdp_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rdp_bench.attacks.parts.base import Run

PROJECTIONS = ("downsample", "shortcut")
"""Names of the modules that timm, torchvision and this package put on a skip connection that changes its shape."""

SUMS = {"add", "add_"}
VIEWS = {"reshape", "view", "flatten", "permute", "transpose", "contiguous", "__getitem__"}
FOLLOWED = SUMS | VIEWS


@dataclass(frozen=True)
class SkipGradient(Part):
    """The gradient of every residual branch f of z + f(z) is multiplied by gamma (Wu et al. 2020).

    A branch is found where it is added: to the input of the module that runs, to an earlier such sum, or to the output
    of a projection (`PROJECTIONS`). This holds for ResNets, EfficientNets, ConvNeXt and transformers alike. The
    authors' code multiplies at the ReLUs of a branch, which is the same; it leaves the first block of every stage as it
    is, and the paper does not, which is followed here. Its division by the standard deviation at each block changes no
    sign.
    """

    id: ClassVar[str] = "skip-gradient"
    order: ClassVar[int] = 37
    off: ClassVar[Any] = 1.0
    aliases: ClassVar = {"gamma": "skip_gamma"}

    skip_gamma: float = 0.2
    """The authors' for ResNets; they use .5 for DenseNets, which concatenate instead of adding."""

    def rules(self) -> Mapping[str, bool]:
        """Ranges of the fields."""
        return {"skip_gamma is from 0 to 1": 0 <= self.skip_gamma <= 1}

    @contextmanager
    def around(self, run: Run) -> Iterator[None]:
        """Hooks in every member of the source."""
        from rdp_bench.attacks.parts.networks import network

        nets = {id(net): (net, member.name) for member in run.source.members for net in [network(member, "SGM")]}
        with ExitStack() as stack:
            for net, name in nets.values():
                watch = _Watch(self.skip_gamma, name)
                stack.enter_context(watch.mode())
                for handle in watch.hooks(net):
                    stack.callback(handle.remove)
            yield


class _Watch:
    """Follows the forward pass of one network, and multiplies the gradient of each branch that is added to a skip."""

    def __init__(self, gamma: float, name: str) -> None:
        self.gamma, self.name = gamma, name
        self.running: list[list[Tensor]] = []
        """For each module that runs, outermost first: the tensors on its skip connections."""
        self.found = 0

    def hooks(self, net: nn.Module) -> Iterator[Any]:
        """Registers what notices that a module starts and ends; a layer without modules inside adds no branch."""
        for name, module in net.named_modules():
            projects = name.rpartition(".")[2] in PROJECTIONS
            if projects or module is net or next(module.children(), None) is not None:
                yield module.register_forward_pre_hook(self._start)
                yield module.register_forward_hook(partial(self._end, projects=projects, whole=module is net))

    def _start(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        if not self.running:
            self.found = 0
        self.running.append([each for each in inputs if hasattr(each, "register_hook")])

    def _end(self, module: nn.Module, inputs: object, output: Tensor, *, projects: bool, whole: bool) -> None:  # noqa: ARG002
        self.running.pop()
        if projects and self.running:
            self.running[-1].append(output)
        if whole and output.requires_grad and not self.found:
            raise UsageError(
                f"SGM needs a source with residual branches (z + f(z)); none was found in {self.name}. Choose another "
                "source, or the attack without SGM"
            )

    def mode(self) -> Any:
        """A context in which sums are seen."""
        from torch.overrides import TorchFunctionMode

        watch = self

        class Mode(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
            ) -> Any:
                name = getattr(func, "__name__", "")
                if name not in FOLLOWED or not watch.running:
                    return func(*args, **(kwargs or {}))
                return watch.followed(partial(func, *args, **(kwargs or {})), args[: 2 if name in SUMS else 1])

        return Mode()

    def followed(self, call: Callable[[], Tensor], operands: tuple[Any, ...]) -> Tensor:
        """The result of a sum or view; what is made from a skip connection continues it."""
        skips = self.running[-1]
        on = [any(each is skip for skip in skips) for each in operands]
        if not any(on):
            return call()
        if not all(on):
            branch = operands[on.index(False)]
            if getattr(branch, "requires_grad", False) and not branch.is_leaf:
                # Before the sum, which may be written into the branch.
                branch.register_hook(partial(_times, self.gamma))
                self.found += 1
        out = call()
        skips.append(out)
        return out


def _times(gamma: float, grad: Tensor) -> Tensor:
    return gamma * grad
