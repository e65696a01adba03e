"""What is sent when, to whom: a scripted executor, no networks."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest

from rdp_bench.engine import schedule
from rdp_bench.engine.jobs import CraftJob, EvaluateJob, JobResult
from rdp_bench.engine.schedule import Answer, Event, Lost, Progress, Ready, Refused, Schedule, answer
from rdp_bench.engine.tasks import Part, Task
from rdp_bench.errors import RdpBenchError, StorageError


def craft(name: str, source: str = "a") -> CraftJob:
    return CraftJob(name, {"kind": "adv"}, source, name, 8.0)


def judge(of: CraftJob | None, defense: str = "none") -> EvaluateJob:
    key = f"{defense} {of.key if of else 'clean'}"
    return EvaluateJob(key, {}, defense, (("target", {}),), {}, of)


def parts(*jobs: CraftJob | EvaluateJob, n: int = 1, cut: int = 1, cost: float = 1.0) -> list[Part]:
    """Each job in `cut` tasks of equal rows."""
    edges = [n * i // cut for i in range(cut + 1)]
    return [
        Part(Task(number, job.key, low, high), job, cost * (high - low))
        for number, job in enumerate(jobs)
        for low, high in pairwise(edges)
    ]


class Scripted:
    """Workers that answer as `reply` says; by default each task is done at once, in the order of sending."""

    def __init__(self, workers: int, reply: Callable[[str, Task], Event | None] | None = None) -> None:
        self.events: deque[Event] = deque(Ready(f"w{i}", f"host{i}") for i in range(workers))
        self.reply = reply or Answer
        self.sent: list[tuple[str, Task]] = []

    def send(self, worker: str, task: Task) -> None:
        self.sent.append((worker, task))
        if event := self.reply(worker, task):
            self.events.append(event)

    def wait(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        pass

    @property
    def order(self) -> list[str]:
        return [f"{task.key}[{task.low}:{task.high}]" for _, task in self.sent]


def ends(outcomes: list[JobResult]) -> dict[str, str]:
    return {outcome.job.key: outcome.reason for outcome in outcomes}


def test_rows_of_a_set_are_judged_once_they_are_crafted_and_not_before() -> None:
    one = craft("one")
    executor = Scripted(1)
    outcomes = list(Schedule(parts(judge(one), one, n=4, cut=2)).run(executor))
    order = executor.order
    assert sorted(order) == ["none one[0:2]", "none one[2:4]", "one[0:2]", "one[2:4]"]
    for rows in ("0:2", "2:4"):
        assert order.index(f"one[{rows}]") < order.index(f"none one[{rows}]")
    assert ends(outcomes) == {"one": "", "none one": ""}
    assert [outcome.job.key for outcome in outcomes][-1] == "none one"


def test_half_a_set_can_be_judged_while_the_other_half_is_crafted() -> None:
    one = craft("one")
    executor = Scripted(2, lambda worker, task: Answer(worker, task) if (task.key, task.low) != ("one", 2) else None)
    run = Schedule(parts(one, judge(one), n=4, cut=2)).run(executor)
    with pytest.raises(RdpBenchError):  # the second half never ends
        list(run)
    assert executor.order == ["one[0:2]", "one[2:4]", "none one[0:2]"]


def test_a_set_that_fails_fails_what_judges_it_and_nothing_else() -> None:
    one, two = craft("one"), craft("two")
    executor = Scripted(1, lambda worker, task: Answer(worker, task, "broken" if task.key == "one" else ""))
    outcomes = list(Schedule(parts(one, judge(one), two, judge(two), n=2, cut=2)).run(executor))
    assert ends(outcomes) == {
        "one": "broken", "none one": "its adversarial set failed: broken", "two": "", "none two": "",
    }  # fmt: skip
    assert not [name for name in executor.order if name.startswith("none one")]
    assert len([name for name in executor.order if name.startswith("one")]) == 1  # its other rows are not tried


def test_an_evaluation_that_fails_for_some_rows_does_the_others_and_says_the_first_reason() -> None:
    executor = Scripted(1, lambda worker, task: Answer(worker, task, f"row {task.low}" if task.low else "", ("x",)))
    (outcome,) = Schedule(parts(judge(None), n=3, cut=3)).run(executor)
    assert (outcome.reason, outcome.remarks) == ("row 1", ("x",))
    assert len(executor.sent) == 3


def test_the_task_of_a_lost_worker_goes_to_another() -> None:
    lost: list[str] = []

    def reply(worker: str, task: Task) -> Event:
        if worker == "w0":
            lost.append(task.key)
            return Lost("w0", "killed")
        return Answer(worker, task)

    executor = Scripted(2, reply)
    outcomes = list(Schedule(parts(judge(None, "a"), judge(None, "b"))).run(executor))
    assert not any(ends(outcomes).values())
    assert len(lost) == 1  # a lost worker is sent nothing more
    assert ("w1", lost[0]) in [(worker, task.key) for worker, task in executor.sent]


def test_a_task_that_workers_die_of_fails_and_the_run_goes_on() -> None:
    def reply(worker: str, task: Task) -> Event:
        if "deadly" not in task.key:
            return Answer(worker, task)
        executor.events.append(Lost(worker, f"{worker} was killed"))
        return Ready(f"{worker}+")  # another takes its place

    executor = Scripted(1, reply)
    outcomes = list(Schedule(parts(judge(None, "deadly"), judge(None, "b"))).run(executor))
    assert ends(outcomes)["b clean"] == ""
    assert "3 workers were lost while they did it, the last: w0++ was killed" in ends(outcomes)["deadly clean"]


def test_a_task_that_gets_on_may_lose_any_number_of_workers() -> None:
    count = 0

    def reply(worker: str, task: Task) -> Event:
        nonlocal count
        count += 1
        if count > 7:
            return Answer(worker, task)
        executor.events += [Progress(worker, task, 1), Lost(worker, "killed")]
        return Ready(f"w{count}")

    executor = Scripted(1, reply)
    assert ends(list(Schedule(parts(judge(None))).run(executor))) == {"none clean": ""}


def test_a_worker_that_refuses_is_not_asked_again() -> None:
    executor = Scripted(
        2, lambda worker, task: Refused(worker, "host1: no torch") if worker == "w1" else Answer(worker, task)
    )
    outcomes = list(Schedule(parts(*(judge(None, name) for name in "abcd"))).run(executor))
    assert not any(ends(outcomes).values())
    assert [worker for worker, _ in executor.sent].count("w1") == 1


def test_without_workers_the_run_ends_and_says_why() -> None:
    executor = Scripted(1, lambda worker, _: Refused(worker, "host0: torch is 2.1 there"))
    with pytest.raises(RdpBenchError, match=r"2 jobs are not done, and no worker is left: host0: torch is 2.1 there"):
        list(Schedule(parts(judge(None, "a"), judge(None, "b"))).run(executor))


def test_long_tasks_come_first() -> None:
    for short, long in ((craft("short"), craft("long")), (craft("short", "a"), craft("long", "b"))):
        made = [*parts(short), *parts(short, long, cost=5.0)[1:]]
        executor = Scripted(1)
        list(Schedule(made).run(executor))
        assert executor.order == ["long[0:1]", "short[0:1]"]
        executor = Scripted(1)
        list(Schedule(made, in_order=True).run(executor))
        assert executor.order == ["short[0:1]", "long[0:1]"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_goes_on_with_the_source_that_it_has_loaded(workers: int) -> None:
    jobs = [craft(f"{source}{i}", source) for i in range(3) for source in "ab"]
    executor = Scripted(workers)
    list(Schedule(parts(*jobs)).run(executor))
    for worker in {worker for worker, _ in executor.sent}:
        sources = [task.key[0] for sender, task in executor.sent if sender == worker]
        assert sum(one != other for one, other in pairwise(sources)) == (0 if workers == 2 else 1)


def test_results_that_do_not_arrive_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "PATIENCE", (0.0, 0.0, 0.0))
    looks: list[bool] = []

    def landed(_: Part) -> bool:
        looks.append(True)
        return len(looks) == 2

    list(Schedule(parts(judge(None)), landed=landed).run(Scripted(1)))  # late, but there
    with pytest.raises(StorageError, match="same folder on all machines"):
        list(Schedule(parts(judge(None)), landed=lambda _: False).run(Scripted(1)))


def test_a_failed_gpu_is_no_answer() -> None:
    """Each later task of that process would fail, too: its end sends them to others."""
    pytest.importorskip("torch")  # a process without it uses no GPU
    task = Task(0, "key", 0, 1)

    def raising(error: BaseException) -> Callable[[Task], None]:
        def do(_: Task) -> None:
            raise error

        return do

    with pytest.raises(RuntimeError, match="illegal memory access"):
        answer("here", task, raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
    assert answer("here", task, raising(RuntimeError("shape"))).reason == "RuntimeError: shape"
    assert answer("here", task, raising(SystemExit(0))).reason == "SystemExit: 0"
    with pytest.raises(KeyboardInterrupt):
        answer("here", task, raising(KeyboardInterrupt()))
