"""What work says of a run belongs to that run."""

from pathlib import Path

import pytest

from rdp_bench import user_reads
from rdp_bench.engine.named_twice import named_twice
from rdp_bench.engine.worker import Worker
from rdp_bench.results.record import read_run
from tests.helpers.commands import PLUGIN, cli
from tests.helpers.plans import new_process, plan


def test_files_that_entries_of_an_earlier_run_read_are_not_said_again(tmp_path: Path) -> None:
    """A notebook makes many runs in one process."""
    with new_process():
        made = plan(tmp_path)
        user_reads.unkeyed["defense 'earlier/net' reads net.pt while it works"] = None
        worker = Worker(made)
        assert [worker(job) for job in made.jobs] == [[] for _ in made.jobs]


BATCHED = """
import torch
from rdp_bench import Defense, defense

class Centred:
    random = False
    passes = 1
    def resolved(self): return {}
    def purify(self, x, rng): return (x - x.mean(0, keepdim=True) + .5).clamp(0, 1)

@defense("batched/mean", source="x")
def mean() -> Defense:
    return Centred()

class Loose(Centred):
    def purify(self, x, rng): return (x + .1 * torch.rand_like(x)).clamp(0, 1)

@defense("batched/loose", source="x")
def loose() -> Defense:
    return Loose()
"""


def test_a_defense_whose_output_depends_on_the_batch_or_on_chance_is_remarked_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = tmp_path / "batched.py"
    plugin.write_text(BATCHED)
    done = cli(
        "run", "table1", "--plugin", PLUGIN, "--plugin", plugin, "--dataset", "tiny/noise", "--source", "tiny/one",
        "--target", "tiny/two", "--attack", "fgsm", "--cache", tmp_path / "cache", "--out", tmp_path / "out",
        "--defense", "none,batched/mean,batched/loose,tiny/round,noise",
    )  # fmt: skip
    assert done.exit_code == 0
    remark = "does not repeat its output for an image that comes alone"
    said = [record.getMessage() for record in caplog.records if remark in record.getMessage()]
    assert sorted(text.split("'")[1] for text in said) == ["batched/loose", "batched/mean"]


READING = """
from pathlib import Path
import torch
from rdp_bench import Purifier, attack, defense, model

class Scale(Purifier):
    def __init__(self): self.factor = None
    def purify(self, x, rng):
        if self.factor is None:
            self.factor = float(Path(__file__).with_name("factor.txt").read_text())
        return x * self.factor
    def resolved(self): return {}

@defense("mine/scale", source="x")
def scale(): return Scale()

class Net:
    name, classes, weight = "mine/net", 5, None
    def __call__(self, x, zoom=1.0):
        if self.weight is None:
            self.weight = torch.tensor([float(Path(__file__).with_name("weight.txt").read_text())])
        return x.flatten(1)[:, :5] * self.weight
    def record(self): return {}

@model("mine/net", source="x")
def net(): return Net()

class Noting:
    def __call__(self, source, x, y, eps, rng): return (x + eps).clamp(0, 1)
    def resolved(self, eps_255): return {}
    def gradients(self, eps_255): return 1
    def notes(self): return ["mine/noting went too far"]

@attack("mine/noting", source="x")
def noting(): return Noting()
"""


def test_what_was_said_of_a_result_is_said_again_wherever_it_is_used(tmp_path: Path) -> None:
    """Also in another run, of more images, and never of what had no part in it."""
    plugin, cache = tmp_path / "reading.py", tmp_path / "cache"
    plugin.write_text(READING)
    (tmp_path / "factor.txt").write_text("0.5")
    (tmp_path / "weight.txt").write_text("2")

    def remarks(
        defenses: str, *more: str, targets: str = "mine/net", attacks: str = "mine/noting", whole: bool = False
    ) -> list[str]:
        out = tmp_path / "out"
        with new_process():
            done = cli(
                "run", "table1", "--plugin", PLUGIN, "--plugin", plugin, "--dataset", "tiny/noise", "--source",
                "tiny/one", "--target", targets, "--attack", attacks, "--defense", defenses, "--cache", cache,
                "--out", out, *more,
            )  # fmt: skip
        assert done.exit_code == 0, done.output
        found = read_run(out / "runs" / "table1.json").header["warnings"]
        if whole:
            return list(found)
        parts = {"factor.txt": "factor", "weight.txt": "weight", "mine/noting": "noting"}
        return sorted(short for part, short in parts.items() for text in found if part in text)

    first = remarks("none,mine/scale", "--limit", "3")
    assert first == ["factor", "noting", "weight"]
    assert remarks("none,mine/scale", "--limit", "3") == first
    assert remarks("none,mine/scale", "--limit", "2") == first
    assert remarks("none,mine/scale", "--limit", "4") == first
    assert remarks("none", "--limit", "3") == ["noting", "weight"]
    assert remarks("none", "--limit", "3", attacks="fgsm") == ["weight"]
    assert remarks("mine/scale", "--limit", "3", targets="tiny/two") == ["factor", "noting"]
    assert remarks("none", "--limit", "3", targets="tiny/two", attacks="fgsm") == []
    for path in cache.glob("*/*/*/remark-*.txt"):
        path.write_text("nothing to see here")
    damaged = remarks("none,mine/scale", "--limit", "3", whole=True)
    assert any("a remark on these results is damaged" in text for text in damaged)
    verified = cli("cache", "verify", "--cache", cache)
    assert "damaged, deleted with the rows that it is about" in verified.output
    assert remarks("none,mine/scale", "--limit", "3") == first  # computed again, and said again
    assert cli("cache", "prune", "--all", "--cache", cache).exit_code == 0
    assert not [*cache.rglob("remark-*")]


REMEMBERING = """
from pathlib import Path
from rdp_bench import Purifier, defense

def text(name): return Path(__file__).with_name(name).read_text()

FACTOR = {}

@defense("mine/scale2", source="x")
class Late(Purifier):
    def purify(self, x, rng):
        if not FACTOR:
            FACTOR[0] = float(text("factor.txt"))
        return x * FACTOR[0]
    def resolved(self): return {}

@defense("mine/scale", source="x")
class Early(Purifier):
    def __init__(self): self.factor = float(text("factor.txt"))
    def purify(self, x, rng): return x * self.factor
    def resolved(self): return {}
"""


def test_what_an_entry_still_holds_is_said_in_every_run_of_a_process(tmp_path: Path) -> None:
    """Its file is in the key of another entry, whose name is the beginning of its own."""
    plugin = tmp_path / "reading.py"
    plugin.write_text(REMEMBERING)
    (tmp_path / "factor.txt").write_text("0.5")
    said = []
    with new_process():
        for number in (1, 2):
            done = cli(
                "run", "table1", "--plugin", PLUGIN, "--plugin", plugin, "--dataset", "tiny/noise", "--source",
                "tiny/one", "--target", "tiny/two", "--attack", "fgsm", "--defense", "mine/scale,mine/scale2",
                "--cache", tmp_path / f"cache{number}", "--out", tmp_path / "out", "--limit", "2",
            )  # fmt: skip
            assert done.exit_code == 0, done.output
            found = read_run(tmp_path / "out" / "runs" / "table1.json").header["warnings"]
            said.append([text.partition(" reads")[0] for text in found if "factor.txt" in text])
    assert said == [["defense 'mine/scale2'"]] * 2


def test_a_remark_on_one_target_is_of_its_results_only_also_where_another_fails(tmp_path: Path) -> None:
    (tmp_path / "reading.py").write_text(READING)
    (tmp_path / "nan.py").write_text(NAN)
    (tmp_path / "weight.txt").write_text("2")

    def said(targets: str) -> bool:
        with new_process():
            cli(
                "run", "table1", "--plugin", PLUGIN, "--plugin", tmp_path / "reading.py", "--plugin",
                tmp_path / "nan.py", "--dataset", "tiny/noise", "--source", "tiny/one", "--target", targets,
                "--attack", "fgsm", "--defense", "none", "--cache", tmp_path / "cache", "--out", tmp_path / "out",
            )  # fmt: skip
        found = read_run(tmp_path / "out" / "runs" / "table1.json").header["warnings"]
        return any("weight.txt" in text for text in found)

    assert said("mine/net,tiny/two,nan/net")
    assert len([*(tmp_path / "cache").glob("eval/*/*/remark-*.txt")]) == 2  # clean and attacked
    assert said("mine/net")
    assert not said("tiny/two")


NAN = """
import torch
from rdp_bench import Classifier, model

class Nan:
    name = "nan/net"
    classes = 5
    def __call__(self, x, zoom=1.0): return x.flatten(1)[:, :5] * float("nan")
    def record(self): return {}

@model("nan/net", source="x")
def net() -> Classifier:
    return Nan()
"""


def test_a_source_of_nan_is_no_attack_that_failed(tmp_path: Path) -> None:
    """The sign of NaN is zero: the images would be the clean ones, and every defense would hold."""
    plugin = tmp_path / "nan.py"
    plugin.write_text(NAN)
    done = cli(
        "run", "table1", "--plugin", PLUGIN, "--plugin", plugin, "--dataset", "tiny/noise", "--source", "nan/net",
        "--target", "tiny/two", "--attack", "fgsm", "--defense", "none", "--cache", tmp_path / "cache", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "source 'nan/net' gives NaN or infinite outputs for a clean image" in done.output


def test_labels_that_mean_the_same_are_named(tmp_path: Path) -> None:
    """Averages, leaderboards and Holm's correction would weigh them twice."""
    made = plan(
        tmp_path, attacks=("fgsm", "mi-fgsm", "mi-fgsm(steps=10)"),
        defenses=("none", "jpeg", "jpeg(quality=75)", "jpeg(quality=9)"),
        sources=("tiny/one+tiny/two", "tiny/one", "tiny/two+tiny/one"),
    )  # fmt: skip
    assert named_twice(made.records()) == [
        f"{kind} '{second}' is {kind} '{first}': averages and tests count it twice"
        for kind, first, second in (
            ("attack", "mi-fgsm", "mi-fgsm(steps=10)"), ("defense", "jpeg", "jpeg(quality=75)"),
            ("source", "tiny/one+tiny/two", "tiny/two+tiny/one"),
        )
    ]  # fmt: skip
