"""The networks behind the members of a source, for parts that hook into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdp_bench.errors import UsageError
from rdp_bench.protocols import BehindDefense, HasNet

if TYPE_CHECKING:
    from torch import nn

    from rdp_bench.protocols import Classifier


def network(member: Classifier, what: str) -> nn.Module:
    """The network of one member of a source, behind whatever defense.

    Raises:
        UsageError: the member is no `torch.nn.Module` and has none; `what` names the attack that asked.
    """
    from torch import nn

    while isinstance(member, BehindDefense):
        member = member.inner
    if isinstance(member, HasNet) and isinstance(member.net, nn.Module):
        return member.net
    if isinstance(member, nn.Module):
        return member
    raise UsageError(f"{what} hooks into the layers of the source; '{member.name}' is not a torch.nn.Module")
