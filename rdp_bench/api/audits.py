"""`rdp_bench.audit`: the audit of a defense from Python."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rdp_bench.api.given import in_plain_values, path_text
from rdp_bench.api.names import names_of
from rdp_bench.api.settings import in_usual_settings
from rdp_bench.api.wrap import CallableDefense, as_defense, named, registered
from rdp_bench.cache.locations import locate
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Backward, Defense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rdp_bench.cache.files import Location
    from rdp_bench.engine.grid import Grid
    from rdp_bench.engine.plan import Plan
    from rdp_bench.engine.run import Run
    from rdp_bench.results.cards import Card


class DifferentiableCall(CallableDefense):
    """A network or function whose gradient is autograd's: a module of torch is, until a probe finds otherwise."""

    differentiable = True
    backward: Backward = "exact"  # type: ignore[misc]

    def resolved(self) -> dict[str, Any]:
        """The backward pass: the same object in `evaluate` is attacked through the identity."""
        return {"backward": "exact"}


@in_plain_values
@in_usual_settings
def audit(
    defense: Any,
    *,
    target: str = "effnet-lite2",
    sources: Sequence[str] | str = (),
    dataset: str | Path = "photos20",
    eps: float | str = 4,
    budget: str = "quick",
    limit: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    models_dir: str | Path | None = None,
    cache: str | Location | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    executor: str | None = None,
    workers: int | str | None = None,
    ray_address: str | None = None,
    slurm: str | None = None,
) -> Card:
    """Audit a defense: what `rdp-bench audit` does, for objects of your own too.

    Args:
        defense: a label; a torch.nn.Module or function from images `[n, 3, h, w]` in [0, 1] to images, attacked through
            autograd; or a `Purifier`, attacked as its `backward` says. A mapping of one name to one of them names it.
        target: the model behind the defense.
        sources: sources of the transfer attacks; by default "effnet-lite0", and from "standard" on also "effnet-lite1"
            (never the target).
        dataset: a data set, folder or CSV file.
        eps: L-infinity budget in /255.
        budget: "quick", "standard" or "full".
        limit: only the first so many images; by default 20 for "quick", else all.
        image_size: pixels that images are resized to as they are read.
        seed: of all randomness.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<number>".
        batch_size: images per batch; by default as for `evaluate`.
        models_dir: folder where weight files are looked for first.
        cache: folder or URL of the cache, by default as for `rdp-bench run`.
        out: results folder, as `rdp-bench audit --out`: the card is in its folder `audit`. By default nothing is kept
            but the cache.
        fresh: compute everything again; what the cache holds of it is deleted.
        progress: show a progress bar; by default where stderr is a terminal.
        executor: where jobs are done, as for `evaluate`: "serial" (this process, the default), "ray", "slurm", or that
            of a plugin. Workers elsewhere know the defense by its label only.
        workers: their number, or "auto".
        ray_address: a running Ray cluster.
        slurm: options of sbatch, like "partition=gpu,time=4:00:00,gres=gpu:1".

    Returns:
        The card: verdict, tiers and findings; see `rdp_bench.results.cards.Card`.

    Raises:
        UsageError: something named does not exist, or the defense declares no backward pass.
        RdpBenchError: the defense fails on clean images.
    """
    from rdp_bench import plugins, registry
    from rdp_bench.api.place import Where, placement
    from rdp_bench.api.work import work
    from rdp_bench.audits.grid import AuditAxes, AuditGrid
    from rdp_bench.audits.run import audit as run_audit
    from rdp_bench.audits.run import planned
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.executors.kept import keeping
    from rdp_bench.engine.options import require_counts
    from rdp_bench.engine.plan import make_plan
    from rdp_bench.engine.run import Run
    from rdp_bench.reports import audits
    from rdp_bench.results.cards import FOLDER

    images = path_text(dataset)
    require_counts(limit=limit, batch_size=batch_size)
    if not isinstance(target, str):
        raise UsageError(f"audit() takes one target, a model's name, found {target!r}")
    plugins.load()
    ours = named(registry.defense, defense, _as_defense)
    if len(ours.labels) != 1:
        raise UsageError(f"audit() takes one defense, found {len(ours.labels)}")
    models = None if models_dir is None else Path(models_dir)
    surrogates = (sources,) if isinstance(sources, str) else tuple(sources)
    store = Store(locate(cache) if isinstance(cache, str) else cache)
    place = {"executor": executor, "workers": workers, "ray_address": ray_address, "slurm": slurm}
    given = {name: value for name, value in place.items() if value is not None}
    where = Where(placement(given, {}, FOLDER), limit, batch_size, models)
    if not where.here and ours.entries:
        raise UsageError(
            f"executor={where.placement.executor!r}: '{ours.labels[0]}' is an object of this process, which "
            "workers elsewhere do not have; register it in a plugin file, or leave out executor"
        )
    with TemporaryDirectory(prefix="rdp-bench-") as temporary, registered(registry.defense, ours.entries):
        axes = AuditAxes((ours.labels[0],), (target,), surrogates, images, (eps,), budget, image_size=image_size)
        grid = AuditGrid(FOLDER, axes)
        (subject,) = grid.subjects(models)
        on, made = where.device(device), set[str]() if fresh else None

        def plan_of(grid: Grid) -> Plan:
            return make_plan(grid, store, seed=seed, device=on, limit=limit, models_dir=models)

        def perform(plan: Plan, heading: str) -> Run:  # noqa: ARG001 - for the command line
            running = Run(plan, Path(out or temporary), command)
            # Not every part has the defense itself: one is of fixed(DEFENSE) alone.
            names = names_of(plan.grid, {f"?{label}": name for label, name in ours.titles.items()})
            jobs = running.start(made)
            running.record["names"] = names
            work(running, jobs, batch_size, progress, where=where)
            return running

        asked = {
            "target": target, "sources": surrogates, "dataset": images, "eps": eps, "budget": budget, "limit": limit,
            "image_size": image_size, "seed": seed,
        }  # fmt: skip
        kept = [f"{name}={value!r}" for name, value in asked.items() if value not in (None, ())]
        command = f"rdp_bench.audit({', '.join([repr(ours.labels[0]), *kept])})"
        plans = planned(subject, plan_of, list(grid.parts(subject, limit)))
        with keeping():
            card = run_audit(subject, plans, perform, command, fresh=made)
    return card if out is None else audits.write(card, Path(out))[0]


def _as_defense(name: str, value: Any) -> Defense:
    found = as_defense(name, value)
    return DifferentiableCall(name, value) if type(found) is CallableDefense else found
