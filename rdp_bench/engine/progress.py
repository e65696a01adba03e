"""Progress of a run on stderr: what is being done, how much is left, when it ends."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rdp_bench.engine.jobs import CraftJob, Job
from rdp_bench.engine.plan import Plan
from rdp_bench.engine.rates import Estimates, Rates, of_plan
from rdp_bench.protocols import StochasticLogits
from rdp_bench.specs import show
from rdp_bench.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

    from rdp_bench.models.zoo import AnyModelRef, SourceSpec
    from rdp_bench.protocols import Classifier

log = logging.getLogger(__name__)


class Costs:
    """Seconds that jobs take, from the rates that this machine remembers, or from what `measure` found."""

    def __init__(self, plan: Plan, rates: Rates | None = None) -> None:
        self.plan = plan
        self.estimates = Estimates(plan, of_plan(plan) if rates is None else rates)
        self.gradient: dict[str, float] = {}
        self.forward: dict[str, float] = {}
        self.purify: dict[str, float] = {}

    def of(self, job: Job) -> float:
        """Estimated seconds for the images of `job` that are still missing."""
        return self.each(job) * self.images(job)

    def each(self, job: Job) -> float:
        """Estimated seconds per image."""
        found = self._measured(job)
        return self.estimates.each(job) if found is None else found

    def known(self, job: Job) -> bool:
        """Whether this machine has measured such a job."""
        return self._measured(job) is not None or self.estimates.known(job)

    def _measured(self, job: Job) -> float | None:
        """What `measure` found of all parts of `job`; None where it lacks one."""
        try:
            if isinstance(job, CraftJob):
                count = self.plan.attacks[job.attack].value.gradients(job.eps)
                source = self.plan.sources[job.source]
                samples = source.attacked_defense.samples if source.attacked_defense else 1
                return count * samples * sum(self.gradient[_name(source, member)] for member in source.members)
            passes = self.plan.defenses[job.defense].value.passes
            looks = sum(self.forward[label] for label, _ in job.evals)
            return passes * job.defense_samples * (self.purify[job.defense] + looks)
        except KeyError:
            return None

    def images(self, job: Job) -> int:
        """Images of `job` that are not in the store."""
        records = [job.record] if isinstance(job, CraftJob) else job.measurements
        missing = [self.plan.artefact(record).missing(self.plan.n) for record in records]
        return max((sum(high - low for low, high in ranges) for ranges in missing), default=0)


def measure(plan: Plan, jobs: Sequence[Job], images: int = 2) -> Costs:
    """Time one gradient, one prediction and one purification of each kind that `jobs` need, on a few images."""
    import torch
    from torch.nn.functional import cross_entropy

    from rdp_bench.engine.levels import to_float
    from rdp_bench.engine.worker import Worker
    from rdp_bench.rng import ImageRng

    costs = Costs(plan)
    worker = Worker(plan)
    count = min(images, plan.n)
    x = to_float(worker.clean(0, count), plan.device)
    y = torch.tensor(list(plan.dataset.labels[:count]), device=plan.device)

    def clock(times: dict[str, float], name: str, prepare: Callable[[], Callable[[], object]]) -> None:
        """Time what `prepare` returns, once; what cannot be done will say so when its turn comes."""
        if name in times:
            return
        try:
            work = prepare()
            work()
            _finish(plan.device)
            begin = time.perf_counter()
            work()
            _finish(plan.device)
            times[name] = (time.perf_counter() - begin) / count
        except Exception as error:  # an entry may raise anything
            log.info("%s cannot be timed: %s", name, error)

    rng = ImageRng([str(i) for i in range(count)], plan.device)

    def gradient(source: SourceSpec, number: int) -> Callable[[], Tensor]:
        model = source.load(plan.device).members[number]

        def work() -> Tensor:
            leaf = x.detach().requires_grad_()
            logits = model.stochastic_logits(leaf, rng) if isinstance(model, StochasticLogits) else model(leaf)
            return torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), leaf)[0]

        return work

    def forward(model: Classifier) -> Tensor:
        with torch.no_grad():
            return model(x)

    for job in jobs:
        if isinstance(job, CraftJob):
            source = plan.sources[job.source]
            for number, member in enumerate(source.members):
                clock(costs.gradient, _name(source, member), partial(gradient, source, number))
            continue
        defense = plan.defenses[job.defense].value
        clock(costs.purify, job.defense, lambda d=defense, w=rng: partial(d.purify, x.clone(), w))  # type: ignore[misc]
        for label, _ in job.evals:
            clock(costs.forward, label, lambda n=label: partial(forward, worker.model(n)))  # type: ignore[misc]
    return costs


def _finish(device: str) -> None:
    """Wait for what a GPU has been given."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def _name(source: SourceSpec, member: AnyModelRef) -> str:
    return f"{source.name} {member.name}" if source.attacked_defense else member.name


class ProgressBar:
    """A progress bar over estimated seconds; silent where stderr is no terminal, unless told otherwise.

    Every batch that is reported corrects the estimates: its time counts for the rest of its job and for related jobs.
    """

    def __init__(self, jobs: Sequence[Job], costs: Costs, *, show_bar: bool | None = None) -> None:
        from tqdm import tqdm

        self.jobs, self.costs = {job.key: job for job in jobs}, costs
        self.left = {job.key: costs.images(job) for job in jobs}
        self.began = self.since = time.perf_counter()
        off = not sys.stderr.isatty() if show_bar is None else not show_bar
        line = "{percentage:3.0f}% |{bar:24}| {desc}"
        self.bar = tqdm(total=1.0, disable=off, file=sys.stderr, dynamic_ncols=True, bar_format=line)

    def remaining(self) -> float:
        """Estimated seconds until all jobs are done."""
        return sum(count * self.costs.each(self.jobs[key]) for key, count in self.left.items() if count)

    def start(self) -> None:
        """The first job begins now."""
        self.since = time.perf_counter()

    def __call__(self, job: Job, images: int) -> None:
        """Count `images` of `job` as finished."""
        now = time.perf_counter()
        if images and job.key in self.left:
            self.costs.estimates.note(job, (now - self.since) / images)
            self.left[job.key] = max(0, self.left[job.key] - images)
        self.since = now
        self.set_description(str(job), refresh=False)

    def set_description(self, what: str, *, refresh: bool = True) -> None:
        """Show what is being done, since when, and how long the rest will take."""
        if self.bar.disable:
            return
        gone, left = time.perf_counter() - self.began, self.remaining()
        self.bar.total = gone + left
        self.bar.n = min(gone, self.bar.total)
        text = f"{duration(gone)} gone, about {duration(left)} left: {printable(what, lines=False)}"
        self.bar.set_description_str(text, refresh=refresh)
        self.bar.update(0)

    def close(self) -> None:
        """Leave the bar as it stands, and keep what was learned of this machine."""
        self.bar.close()
        self.costs.estimates.rates.save()


def duration(seconds: float) -> str:
    """Seconds for a reader.

    >>> duration(8), duration(100), duration(7300)
    ('8 s', '2 min', '2 h 2 min')
    """
    if seconds < 60:
        return f"{show(round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
