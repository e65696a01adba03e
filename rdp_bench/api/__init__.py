"""The Python interface: what `import rdp_bench` offers for scripts and notebooks. torch is loaded when it is needed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdp_bench.api import loaded, wrap
from rdp_bench.api.audits import audit as audit
from rdp_bench.api.given import in_plain_values, path_text
from rdp_bench.api.loaded import LoadedAttack, LoadedDefense
from rdp_bench.api.names import names_of
from rdp_bench.api.result import Result, read
from rdp_bench.api.settings import in_usual_settings
from rdp_bench.api.wrap import Given, Named, as_attack, as_defense, named, registered
from rdp_bench.budgets import LINF
from rdp_bench.errors import UsageError
from rdp_bench.protocols import Classifier

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.cache.files import Location
    from rdp_bench.engine.grid import Grid

__all__ = [
    "LoadedAttack",
    "LoadedDefense",
    "Result",
    "audit",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_defense",
    "load_model",
    "load_results",
]

NAME = "evaluate"
"""Of the run of `evaluate` without a grid."""


@in_plain_values
def load_dataset(
    name: str | Path, *, limit: int | None = None, size: int | None = None, device: str = "auto"
) -> "tuple[Tensor, Tensor]":
    """Load labelled images.

    Args:
        name: a data set (`rdp-bench list datasets`), a folder, or a CSV file, as `--dataset` takes it.
        limit: only the first so many images.
        size: pixels that images are resized to as they are read; by default the data set's own, mostly 299.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<number>".

    Returns:
        Images, float32 `[n, 3, size, size]` in [0, 1], and labels, int64 `[n]`, counted from 0. All of them are held in
        memory: an image of 299 pixels takes 1.1 MB.

    Raises:
        UsageError: an unknown name, a limit or size below 1. BadImageError: files that are missing or cannot be read.
    """
    _load_entries()
    return loaded.dataset_tensors(path_text(name), limit, size, _device(device))


@in_usual_settings
def load_model(name: str, *, models_dir: str | Path | None = None, device: str = "auto") -> Classifier:
    """Load a classifier.

    Args:
        name: a model (`rdp-bench list models`), or `timm:<name>`.
        models_dir: folder where weight files are looked for first.
        device: as in `load_dataset`.

    Returns:
        The classifier: called with images `[n, 3, h, w]` in [0, 1] it gives logits `[n, classes]`. It resizes and
        normalises by itself.

    Raises:
        UsageError: an unknown name. BadModelError: its weights are missing or not what they should be.
    """
    _load_entries()
    return loaded.classifier(name, _path(models_dir), _device(device))


@in_usual_settings
def load_attack(attack: Any, *, norm: str = LINF) -> LoadedAttack:
    """Load an attack.

    Args:
        attack: a label, like "mi-fgsm", "dim(steps=10)" or "MI|TI(15)"; an `Attack`; or a function
            `attack(source, x, y, eps)`, or `attack(source, x, y, eps, rng)` if it is random.
        norm: of its budget, "linf" or "l2".

    Returns:
        A callable `(source, x, y, eps, seed=0)`; see `LoadedAttack.__call__`.

    Raises:
        UsageError: an unknown name or parameter, or an attack without such a budget.
    """
    from rdp_bench import registry
    from rdp_bench.budgets import NORMS, bounded
    from rdp_bench.errors import unknown_name

    _load_entries()
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if isinstance(attack, str):
        made = registry.attack.resolve(attack)
        label, value = made.label, made.value
    else:
        label = wrap.label_of(_name(attack))
        value = as_attack(label, attack)
    value = bounded(label, value, norm)
    if not callable(value) or label.startswith("files:"):
        raise UsageError(f"attack '{label}' reads images crafted elsewhere; it can be part of evaluate() only")
    return LoadedAttack(label, value, norm)


@in_usual_settings
def load_defense(defense: Any, *, models_dir: str | Path | None = None) -> LoadedDefense:
    """Load a defense.

    Args:
        defense: a label, like "rdp", "jpeg(quality=95)" or "jpeg >> rdp"; a `Purifier`; a torch.nn.Module or function
            from images to images. What is random takes a second argument called `rng`.
        models_dir: folder where weight files are looked for first.

    Returns:
        A callable `(x, seed=0)`; see `LoadedDefense.__call__`.

    Raises:
        UsageError: an unknown name or parameter. BadModelError: weights that are missing.
    """
    from rdp_bench import registry
    from rdp_bench.specs import FileSearch

    _load_entries()
    if isinstance(defense, str):
        made = registry.defense.resolve(defense, files=FileSearch(models_dir=_path(models_dir)))
        made.value.resolved()  # finds its weights, or says that they are missing
        return LoadedDefense(made.label, made.value)
    label = wrap.label_of(_name(defense))
    return LoadedDefense(label, as_defense(label, defense))


def load_results(
    out: str | Path = "rdp-bench-out", *, only: Sequence[str] = (), cache: "str | Location | None" = None
) -> Result:
    """Read the runs of a results folder.

    Args:
        out: a folder that `rdp-bench run` or `evaluate(out=...)` wrote.
        only: the grids whose runs are read; all by default.
        cache: folder or URL of the cache, by default as for `rdp-bench run`; used for predictions that `out` lacks, and
            for images.

    Returns:
        The runs. Numbers are computed from the predictions in `out`; a cell without them is "failed" and says why.

    Raises:
        UsageError: there is no run, or a record cannot be read or was edited.
    """
    from rdp_bench.cache.store import Store

    return read(Path(out), Store(_location(cache)), [only] if isinstance(only, str) else only)


@in_plain_values
@in_usual_settings
def evaluate(
    ours: Given = None,
    *,
    defenses: Given = None,
    attacks: Given = None,
    sources: Sequence[str] | str | None = None,
    targets: Sequence[str] | str | None = None,
    dataset: str | Path | None = None,
    eps: Sequence[float | str] | float | str | None = None,
    norm: str | None = None,
    grid: str | Path | None = None,
    profile: str = "embedded",
    limit: int | None = None,
    image_size: int | None = None,
    defense_samples: int | None = None,
    success: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    precision: str = "float32",
    models_dir: str | Path | None = None,
    cache: "str | Location | None" = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: bool | None = None,
    executor: str | None = None,
    workers: int | str | None = None,
    ray_address: str | None = None,
    slurm: str | None = None,
) -> Result:
    """Measure defenses under transfer attacks: what `rdp-bench run` does, for objects of your own too.

    Everything is kept in the cache. A second call computes only what is new; an object counts as new where its code,
    its attributes or its weights have changed.

    Args:
        ours: defenses of your own by name: a torch.nn.Module or function from images `[n, 3, h, w]` in [0, 1] to
            images (square, in [0, 1]), or a `Purifier`. A network is used in evaluation mode. What is random takes a
            second argument called `rng` (`rdp_bench.rng.ImageRng`). A value may be a label too.
        defenses: labels (or objects) to compare with, "none" among them. Default: those of `grid`, else "none".
        attacks: labels, `Attack` objects, or functions `attack(source, x, y, eps)`; a list or a mapping of names.
        sources: models that adversarial images are crafted on; "a+b" is an ensemble.
        targets: models that are attacked.
        dataset: a data set, folder or CSV file.
        eps: budgets in /255, like 8 or "8/255"; under norm "l2" the norm of the change.
        norm: "linf" (default) or "l2".
        grid: a built-in grid or a path to a TOML file; the arguments above replace its axes, `ours` is added to its
            defenses. Without it, `attacks`, `sources`, `targets`, `dataset` and `eps` are needed.
        profile: of the grid, "embedded" or "paper".
        limit: only the first so many images.
        image_size: pixels that images are resized to as they are read.
        defense_samples: evaluations of a random defense.
        success: also compute the attack success rate: of the images that are classified correctly without an attack,
            the share that is not under the attack. Default: as `grid` says, else no.
        seed: of all randomness.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<number>".
        batch_size: images per batch; by default 20 on a CPU, 5 through a defense, and on a GPU what its memory allows.
        precision: of the networks: "float32", "tf32" (GPU), or "bfloat16" for sources and learned defenses.
        models_dir: folder where weight files are looked for first.
        cache: folder or URL of the cache, by default as for `rdp-bench run`.
        out: results folder to write, as `rdp-bench run --out`. By default a temporary one: see `Result.report`.
        fresh: compute the cells again; what the cache holds of them is deleted.
        progress: show a progress bar; by default where stderr is a terminal.
        executor: where jobs are done: "serial" (this process), "ray", "slurm", or that of a plugin. Default: what
            `grid` says, else "serial". Workers elsewhere know entries by their label only, no objects of this process;
            the call waits for them, whatever `grid` says.
        workers: their number, or "auto".
        ray_address: a running Ray cluster.
        slurm: options of sbatch, like "partition=gpu,time=4:00:00,gres=gpu:1".

    Returns:
        The results. A cell that could not be computed is "failed" and says why; see `Result.failed`.

    Raises:
        UsageError: something named does not exist, is of the wrong kind, or its name is taken.
    """
    from tempfile import TemporaryDirectory

    from rdp_bench import registry
    from rdp_bench.api.place import Where, placement
    from rdp_bench.api.work import work
    from rdp_bench.cache.store import Store
    from rdp_bench.engine.options import require_counts
    from rdp_bench.engine.plan import make_plan
    from rdp_bench.engine.run import Run

    require_counts(limit=limit, batch_size=batch_size)
    if grid is None and profile != "embedded":
        raise UsageError(f"profile={profile!r} is of a grid, and none is given; leave it out, or name the grid")
    _load_entries()
    models = _path(models_dir)
    others = named(registry.defense, defenses, as_defense)
    own = named(registry.defense, ours, as_defense)
    crafted = named(registry.attack, attacks, as_attack)
    if twice := set(own.entries) & set(others.entries):
        raise UsageError(f"two defenses are called '{min(twice)}'; give them other names")
    given = {
        "defenses": None if defenses is None else others.labels, "attacks": None if attacks is None else crafted.labels,
        "sources": _list(sources), "targets": _list(targets),
        "dataset": path_text(dataset), "eps": _list(eps), "norm": norm, "image_size": image_size,
        "defense_samples": defense_samples, "success": success,
    }  # fmt: skip
    if empty := [name for name, value in given.items() if value == []]:
        raise UsageError(f"{empty[0]} is empty; leave it out, or name what to use")
    given = {name: value for name, value in given.items() if value is not None}
    file = path_text(grid)
    call = _call(file, own, given)
    place = {"executor": executor, "workers": workers, "ray_address": ray_address, "slurm": slurm, "wait": True}
    place = {name: value for name, value in place.items() if value is not None}
    with registered(registry.defense, {**others.entries, **own.entries}), registered(registry.attack, crafted.entries):
        chosen = _grid(file, profile, given, own.labels, models)
        where = Where(placement(place, dict(chosen.run), chosen.name), limit, batch_size, models)
        if not where.here and (mine := [*own.entries, *others.entries, *crafted.entries]):
            raise UsageError(
                f"executor={where.placement.executor!r}: '{mine[0]}' is an object of this process, which "
                "workers elsewhere do not have; register it in a plugin file that a grid names, or leave out executor"
            )
        plan = make_plan(
            chosen,
            Store(_location(cache)),
            seed=seed,
            device=where.device(device),
            limit=limit,
            models_dir=models,
            precision=precision,
        )
        keep = None if out is not None else TemporaryDirectory(prefix="rdp-bench-")
        folder = Path(out if out is not None else keep.name)  # type: ignore[union-attr]
        running = Run(plan, folder, call)
        names = names_of(chosen, {**others.titles, **crafted.titles, **own.titles})
        jobs = running.start(set() if fresh else None)
        running.record["names"] = names
        work(running, jobs, batch_size, bool(progress) if progress is not None else None, where=where)
    return read(folder, plan.store, [chosen.name], keep)


def _grid(name: str | None, profile: str, given: dict[str, Any], own: list[str], models_dir: Path | None) -> "Grid":
    """The grid of `evaluate`: a file's with `given` axes, or one of these axes alone; `own` defenses come last."""
    from rdp_bench import plugins
    from rdp_bench.engine import grid

    if name is None:
        lacking = [axis for axis in ("dataset", "sources", "targets", "attacks", "eps") if axis not in given]
        if lacking:
            raise UsageError(f"evaluate() needs {', '.join(lacking)}, or a grid, such as grid='table1'")
        defenses = given.get("defenses", ["none"])
        axes = {**given, "defenses": [*defenses, *(label for label in own if label not in defenses)]}
        return grid.from_axes(NAME, "Evaluation", axes)
    changes = {axis: tuple(value) if isinstance(value, list) else value for axis, value in given.items()}
    if "targets" in changes:
        changes["baselines"] = ()
    if grid.expand_suite(name) != [name]:
        raise UsageError(f"grid '{name}' lists grids; evaluate() runs one: name one of {grid.expand_suite(name)}")
    found, files = grid.load(name, profile, changes)
    plugins.load(files)
    settled = replace(grid.settle(found, models_dir), plugins=files)
    return grid.extend(settled, {"defenses": own})


def _call(grid: str | None, own: Named, given: dict[str, Any]) -> str:
    """The call, as a run's record says what made it."""
    words = [str(own.labels)] if own.labels else []
    words += [f"grid={grid!r}"] if grid else []
    return f"rdp_bench.evaluate({', '.join([*words, *(f'{name}={value!r}' for name, value in given.items())])})"


def _load_entries() -> None:
    from rdp_bench import plugins

    plugins.load()


def _device(name: str) -> str:
    from rdp_bench import environment

    if not isinstance(name, str):
        raise UsageError(f"device {name!r}: expected auto, cpu, cuda or cuda:<number>")
    return environment.choose_device(name)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _location(cache: "str | Location | None") -> "Location | None":
    from rdp_bench.cache.locations import locate

    return locate(cache) if isinstance(cache, str) else cache


def _list(value: Any) -> list[Any] | None:
    if value is None:
        return None
    return [value] if isinstance(value, str | int | float) else list(value)


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", None) or type(value).__name__).strip("<>")
