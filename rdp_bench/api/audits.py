"""`rdp_bench.audit`: the audit of a defense from Python."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rdp_bench.api.wrap import CallableDefense, as_defense, named, registered
from rdp_bench.budgets import parse_eps
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Backward, Defense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rdp_bench.audits.card import Card
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run


class DifferentiableCall(CallableDefense):
    """A network or function whose gradient is autograd's: a module of torch is, until a probe finds otherwise."""

    differentiable = True
    backward: Backward = "exact"  # type: ignore[misc]

    def resolved(self) -> dict[str, Any]:
        """The backward pass: the same object in `evaluate` is attacked through the identity."""
        return {"backward": "exact"}


def audit(
    defense: Any,
    *,
    target: str = "effnet-lite2",
    sources: Sequence[str] | str = (),
    dataset: str = "photos20",
    eps: float | str = 4,
    budget: str = "quick",
    limit: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    models_dir: str | Path | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Card:
    """Audit a defense: what `rdp-bench audit` does, for objects of your own too.

    Args:
        defense: a label; a torch.nn.Module or function from images `[n, 3, h, w]` in [0, 1] to images, attacked through
            autograd; or a `Purifier`, attacked as its `backward` says. A mapping of one name to one of them names it.
        target: the model behind the defense.
        sources: sources of the transfer attacks; by default the embedded networks that are not the target.
        dataset: a data set, folder or CSV file.
        eps: L-infinity budget in /255.
        budget: "quick", "standard" or "full".
        limit: only the first so many images; by default 20 for "quick", else all.
        image_size: pixels that images are resized to as they are read.
        seed: of all randomness.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<number>".
        batch_size: images at once; by default as the device allows.
        models_dir: folder where weight files are looked for first.
        cache: folder of the cache, by default as for `rdp-bench run`.
        out: results folder, as `rdp-bench audit --out`: the card is in its folder `audit`. By default nothing is kept
            but the cache.
        progress: show a progress bar; by default where stderr is a terminal.

    Returns:
        The card: verdict, tiers and findings; see `rdp_bench.audits.card.Card`.

    Raises:
        UsageError: something named does not exist, or the defense declares no backward pass.
    """
    from rdp_bench import environment, plugins, registry
    from rdp_bench.api.work import work
    from rdp_bench.audits import formats
    from rdp_bench.audits.parts import Subject
    from rdp_bench.audits.run import audit as run_audit
    from rdp_bench.audits.run import planned
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.plan import make_plan
    from rdp_bench.engine.run import Run

    plugins.load()
    ours = named(registry.defense, defense, _as_defense)
    if len(ours.labels) != 1:
        raise UsageError(f"audit() takes one defense, found {len(ours.labels)}")
    models = None if models_dir is None else Path(models_dir)
    names = (sources,) if isinstance(sources, str) else tuple(sources)
    store, on = Store(None if cache is None else Path(cache)), environment.choose_device(device)
    with TemporaryDirectory(prefix="rdp-bench-") as temporary, registered(registry.defense, ours.entries):
        subject = Subject(ours.labels[0], target, dataset, parse_eps(eps), budget, names, models, image_size)
        images = limit or subject.settings.limit

        def plan_of(grid: Grid) -> Plan:
            return make_plan(grid, store, seed=seed, device=on, limit=images, models_dir=models)

        def perform(plan: Plan, heading: str) -> Run:  # noqa: ARG001 - for the command line
            running = Run(plan, Path(out or temporary), command)
            work(running, running.start(), batch_size, progress)
            return running

        command = f"rdp_bench.audit({ours.labels[0]!r}, target={target!r}, eps={eps!r}, budget={budget!r})"
        card = run_audit(subject, planned(subject, plan_of), perform, command)
    if out is not None:
        formats.write(card, Path(out))
    return card


def _as_defense(name: str, value: Any) -> Defense:
    found = as_defense(name, value)
    return DifferentiableCall(name, value) if type(found) is CallableDefense else found
