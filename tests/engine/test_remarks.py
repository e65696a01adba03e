"""What work says of a run belongs to that run."""

from pathlib import Path

from rdp_bench import user_reads
from rdp_bench.engine.worker import Worker
from tests.helpers.plans import new_process, plan


def test_files_that_entries_of_an_earlier_run_read_are_not_said_again(tmp_path: Path) -> None:
    """A notebook makes many runs in one process."""
    with new_process():
        made = plan(tmp_path)
        user_reads.unkeyed["defense 'earlier/net' reads net.pt while it works"] = None
        worker = Worker(made)
        assert [worker(job) for job in made.jobs] == [[] for _ in made.jobs]
