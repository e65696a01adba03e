"""A toy network with a self-supervised task, for `soap`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rdp_bench.registry import Entry, model
from tests.helpers import toy

NAME = "toy/two-views"


class TwoViews(toy.Toy):
    """Label consistency: how far the logits of an image are from those of its mirror image."""

    def __init__(self) -> None:
        self.net = toy.network(5)
        super().__init__(self.net, 5, NAME)

    def to(self, device: str) -> "TwoViews":
        """Where the weights are."""
        self.net.to(device)
        return self

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """The mean squared difference, `[n]`."""
        difference: Tensor = self.net(x.to(self.net[0].weight.dtype)) - self.net(x.flip(3).to(self.net[0].weight.dtype))
        return difference.square().mean(1)


def install(make: Callable[[], Any] = TwoViews, setitem: Callable[[Any, str, Any], None] = dict.__setitem__) -> None:
    """Let `NAME` be a model."""
    setitem(model.entries, NAME, Entry(NAME, make, "", "tests", 1, "tests"))


@contextmanager
def installed() -> Iterator[None]:
    """`NAME` is a model in this block."""
    install()
    try:
        yield
    finally:
        del model.entries[NAME]
