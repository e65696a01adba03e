"""claims.json: what is read of it, and that claims are computed from predictions, by hand-made errors of 20 images.

Errors of the runs: FGSM none 10, JPEG 19, RDP 1; MI-FGSM 14, 13, 2; clean 0, 3, 0 (tests.helpers.reports.by_hand).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from rdp_bench.errors import UsageError
from rdp_bench.results import submission
from rdp_bench.results.rows import Run
from rdp_bench.results.submission import MOST_BYTES, SubmittedClaim, read_submission
from rdp_bench.results.submission_check import CheckedClaim, ClaimsVerified, check_claims
from tests.helpers.reports import small

VALID: dict[str, Any] = {
    "format": 1,
    "title": "Twenty images",
    "authors": ["A. Author"],
    "commands": ["rdp-bench run --grid table1"],
    "links": ["https://example.org/paper?x=1#y"],
    "claims": [
        {"says": "No defense: 50 %.", "grid": "table1", "cells": {"attack": "fgsm", "defense": "none"},
         "compare": "equal", "value": 50},
    ],
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    (folder / "claims.json").write_text(json.dumps({**VALID, **changes}))
    return folder / "claims.json"


def claims_of(folder: Path, *claims: dict[str, Any]) -> tuple[SubmittedClaim, ...]:
    """Claims of the run table1 as they are read from a file."""
    written = [{"says": "It is so.", "grid": "table1", **claim} for claim in claims]
    return read_submission(write(folder, claims=written)).claims


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small(tmp_path_factory.mktemp("run"))[0]


def checked(run: Run, folder: Path, *claims: dict[str, Any]) -> tuple[CheckedClaim, ...]:
    return check_claims(claims_of(folder, *claims), {"table1": run})


def problem(run: Run, folder: Path, **claim: Any) -> str:
    return checked(run, folder, claim)[0].problem


# --- reading ---------------------------------------------------------------------------------------------


def test_a_valid_file_is_read_as_it_is(tmp_path: Path) -> None:
    found = read_submission(write(tmp_path))
    assert (found.title, found.authors, found.links[0]) == ("Twenty images", ("A. Author",), VALID["links"][0])
    assert found.claims[0].cells.attack == "fgsm"
    assert found.claims[0].value == 50.0


CLAIM = VALID["claims"][0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"title": ""}, "title is empty"),
        ({"title": "x" * 501}, "title has 501 letters"),
        ({"title": "a\x1b[31m"}, "title has a control character"),
        ({"title": "a\nb"}, "title has a control character: a\\nb"),
        ({"titel": "x"}, "unknown field 'titel' of"),
        ({"authors": []}, "'authors' is empty"),
        ({"authors": ["a"] * 51}, "'authors' has 51 entries"),
        ({"authors": "A"}, "'authors' is a list, found 'A'"),
        ({"commands": ["rm -rf x"]}, "'commands' are those of rdp-bench"),
        ({"links": ["javascript:alert(1)"]}, "'links' are https addresses"),
        ({"links": ["https://x.org/a b"]}, "'links' are https addresses"),
        ({"links": ["https://x.org/<script>"]}, "'links' are https addresses"),
        ({"claims": []}, "'claims' is empty"),
        ({"claims": [CLAIM] * 201}, "'claims' has 201 entries"),
        ({"claims": [{**CLAIM, "value": None}]}, "claim 1: 'equal' needs value"),
        ({"claims": [CLAIM, {**CLAIM, "value": 101}]}, "claim 2: value is a percentage"),
        ({"claims": [{**CLAIM, "value": float("nan")}]}, "claim 1: value is a percentage"),
        ({"claims": [{**CLAIM, "compare": "lower"}]}, "claim 1: 'lower' needs than"),
        ({"claims": [{**CLAIM, "than": {"defense": "rdp"}}]}, "'equal' compares with value"),
        ({"claims": [{**CLAIM, "compare": "about"}]}, "'claims[0].compare'"),
        ({"claims": [{**CLAIM, "cells": {"defense": "*"}}]}, "'defense' is one label"),
        ({"claims": [{**CLAIM, "cells": {"defence": "rdp"}}]}, "Did you mean 'defense'?"),
        ({"claims": [{**CLAIM, "cells": {"attack": ["fgsm", "fgsm"]}}]}, "a value is named twice"),
        ({"claims": [{**CLAIM, "cells": {"target": []}}]}, "an axis has an empty list"),
        ({"claims": [{**CLAIM, "cells": {"eps": "16"}}]}, "'eps' is a number"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_submission(write(tmp_path, **changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is a list, not an object"),
        (b" " * (MOST_BYTES + 1), "has more than 200 kB"),
        (json.dumps(VALID).replace('"value": 50', f'"value": 1{"0" * 400}').encode(), "claims.json"),
        (json.dumps(VALID).replace('"value": 50', f'"value": {"9" * 5000}').encode(), "is not JSON"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "claims.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_submission(path)


def test_only_so_much_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(submission, "MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(UsageError, match="has more than"):
        read_submission(path)


# --- claims about a value --------------------------------------------------------------------------------

BOTH = {"attack": "*", "defense": "none"}
CLEAN = {"attack": "clean", "defense": "jpeg"}


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ({"cells": {"attack": "fgsm", "defense": "none"}, "compare": "equal", "value": 50.0}, True),
        ({"cells": {"attack": "fgsm", "defense": "none"}, "compare": "equal", "value": 50.05}, True),
        ({"cells": {"attack": "fgsm", "defense": "none"}, "compare": "equal", "value": 50.06}, False),
        ({"cells": BOTH, "compare": "equal", "value": 60.0}, True),  # (10 + 14) / 40
        ({"cells": {"attack": ["mi-fgsm", "fgsm"], "defense": "none"}, "compare": "equal", "value": 60.0}, True),
        ({"cells": BOTH, "compare": "equal", "value": 50.0}, False),
        ({"cells": BOTH, "metric": "accuracy", "compare": "equal", "value": 40.0}, True),
        ({"cells": BOTH, "compare": "at most", "value": 60.0}, True),
        ({"cells": BOTH, "compare": "at most", "value": 59.9}, False),
        ({"cells": BOTH, "compare": "at least", "value": 60.0}, True),
        ({"cells": BOTH, "compare": "at least", "value": 60.1}, False),
        ({"cells": CLEAN, "metric": "accuracy", "compare": "equal", "value": 85}, True),
        ({"cells": CLEAN, "compare": "equal", "value": 15}, True),
    ],
)  # fmt: skip
def test_a_value_is_that_of_the_predictions(run: Run, tmp_path: Path, claim: dict[str, Any], holds: bool) -> None:
    assert (problem(run, tmp_path, **claim) == "") == holds


def test_a_false_value_is_told_with_the_right_one(run: Run, tmp_path: Path) -> None:
    told = problem(run, tmp_path, cells=BOTH, compare="at most", value=10)
    assert told.startswith("claimed at most 10, found 60.0 % (")


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"attack": "fgsm"}, "'defense' is left out, and the run has 3 (none, jpeg, rdp)"),
        ({"defense": "none"}, "'attack' is left out, and the run has 2 (fgsm, mi-fgsm)"),
        ({"attack": "fgsm", "defense": "rpd"}, "unknown defense 'rpd' of the run. Did you mean 'rdp'?"),
        ({"attack": "fgsm", "defense": "rdp", "eps": 8}, "unknown eps '8' of the run. Known: 16"),
        ({"attack": ["clean", "fgsm"], "defense": "rdp"}, "clean images and attacks have no common mean"),
        ({"attack": "clean", "defense": "rdp", "eps": 16}, "clean images have no source and no eps"),
    ],
)
def test_cells_that_are_not_those_of_the_run(run: Run, tmp_path: Path, cells: dict[str, Any], says: str) -> None:
    assert says in problem(run, tmp_path, cells=cells, compare="equal", value=50)


def test_a_run_that_is_not_there(run: Run, tmp_path: Path) -> None:
    told = problem(run, tmp_path, grid="table2", cells=BOTH, compare="equal", value=60)
    assert told == "unknown run 'table2'. Did you mean 'table1'? Known: table1"


def test_a_mean_needs_every_combination(tmp_path: Path) -> None:
    """A target without a defense has no cell behind it: a mean over the others would be another number."""
    whole, _ = small(tmp_path, targets=("t", "ens"))
    cells = [cell for cell in whole.cells if (cell.target, cell.defense) != ("ens", "rdp")]
    run = Run(whole.record, cells, whole.rows, whole.wrong, whole.predicted)
    told = problem(run, tmp_path, cells={"attack": "fgsm", "target": "*", "defense": "rdp"}, compare="equal", value=5)
    assert told == "the run table1 has no cell a fgsm eps 16 -> rdp -> ens"


def test_a_cell_without_predictions_has_no_number(run: Run, tmp_path: Path) -> None:
    wrong = {key: errors for key, errors in run.wrong.items() if key.attack != "fgsm"}
    gone = Run(run.record, run.cells, run.rows, wrong, run.predicted)
    assert "the run has no result" in problem(gone, tmp_path, cells=BOTH, compare="equal", value=60)


# --- comparisons -----------------------------------------------------------------------------------------

RDP = {"cells": {"attack": "fgsm", "defense": "rdp"}, "compare": "lower", "than": {"defense": "none"}}


def test_a_difference_is_tested_image_by_image(run: Run, tmp_path: Path) -> None:
    """RDP is right on 9 images that no defense loses, and the reverse never happens."""
    (found,) = checked(run, tmp_path, RDP)
    assert found.problem == ""
    p = binomtest(0, 9, 0.5).pvalue
    assert found.found.endswith(f", p {p:.2g}")
    assert found.found.startswith("5.0 % (")
    assert " against 50.0 % (" in found.found


def test_what_is_not_significant_does_not_hold(run: Run, tmp_path: Path) -> None:
    """JPEG is right on one image of MI-FGSM's more: 13 against 14."""
    told = problem(run, tmp_path, cells={"attack": "mi-fgsm", "defense": "jpeg"}, compare="lower",
                   than={"defense": "none"})  # fmt: skip
    assert told.startswith("the difference is not significant: 65.0 %")


def test_the_wrong_direction_does_not_hold(run: Run, tmp_path: Path) -> None:
    assert problem(run, tmp_path, **{**RDP, "compare": "higher"}).startswith("claimed higher, found 5.0 %")
    assert problem(run, tmp_path, **{**RDP, "metric": "accuracy"}).startswith("claimed lower, found 95.0 %")
    assert problem(run, tmp_path, **{**RDP, "metric": "accuracy", "compare": "higher"}) == ""


def test_a_claimed_difference_is_compared(run: Run, tmp_path: Path) -> None:
    assert problem(run, tmp_path, **RDP, value=45) == ""
    assert problem(run, tmp_path, **RDP, value=46).startswith("claimed lower by 46, found by 45.0")


def test_many_comparisons_are_corrected_together(run: Run, tmp_path: Path) -> None:
    """Holm: the smallest of m p-values counts m times. 2 x 2^-9 = .0039; twelve times .047, thirteen times .051."""
    assert not any(found.problem for found in checked(run, tmp_path, *[RDP] * 12))
    assert all("not significant" in found.problem for found in checked(run, tmp_path, *[RDP] * 13))
    value = {"cells": BOTH, "compare": "equal", "value": 60}
    assert not any(found.problem for found in checked(run, tmp_path, *[RDP] * 12, *[value] * 5))


def test_a_mean_is_compared_with_a_cell_in_equal_units(run: Run, tmp_path: Path) -> None:
    """No defense: over both attacks 60 %, under FGSM alone 50 %; 14 images differ by a half or none, all upward."""
    claim = {"cells": {"attack": "*", "defense": "none"}, "compare": "higher", "than": {"attack": "fgsm"}, "value": 10}
    (found,) = checked(run, tmp_path, claim)
    assert "not significant" in found.problem  # images 10 to 13: p = 2^-3
    assert ", p 0.12 " in found.problem


@pytest.mark.parametrize(
    ("change", "says"),
    [({"n": 9}, "a test needs 10 images, the run has 9"), ({"grid": "other"}, "the two runs have different images")],
)
def test_what_cannot_be_tested_does_not_hold(run: Run, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    if "n" in change:
        few, _ = small(tmp_path / "few", n=9)
        runs, than = {"table1": few}, {"defense": "none"}
    else:
        about = {**run.record["dataset"], "images": "cd" * 32}
        other = Run({**run.record, "dataset": about}, run.cells, run.rows, run.wrong, run.predicted)
        runs, than = {"table1": run, "other": other}, {"grid": "other", "defense": "none"}
    (found,) = check_claims(claims_of(tmp_path, {**RDP, "than": than}), runs)
    assert found.problem.startswith(says)


def test_another_run_on_the_same_images_is_a_rival(run: Run, tmp_path: Path) -> None:
    claim = {**RDP, "than": {"grid": "twin", "defense": "none"}}
    (found,) = check_claims(claims_of(tmp_path, claim), {"table1": run, "twin": run})
    assert found.problem == ""


def test_a_rival_is_another(run: Run, tmp_path: Path) -> None:
    assert problem(run, tmp_path, **{**RDP, "than": {}}) == "'than' names the same cells"
    assert "claimed lower" in problem(run, tmp_path, **{**RDP, "than": {"defense": "rdp"}})


def test_several_draws_count_as_shares_of_an_image(run: Run, tmp_path: Path) -> None:
    """Ten draws that are all alike are one: neither value nor p changes."""
    record = {**run.record, "axes": {**run.record["axes"], "defense_samples": 10}}
    wrong = {key: errors.astype(np.float64) for key, errors in run.wrong.items()}
    (one,) = checked(run, tmp_path, RDP)
    (ten,) = checked(Run(record, run.cells, run.rows, wrong, run.predicted), tmp_path, RDP)
    assert ten.problem == ""
    assert ten.found.rpartition("p ")[2] == one.found.rpartition("p ")[2]


def test_a_cell_that_is_drawn_once_has_wilsons_interval_in_a_run_of_several_draws(run: Run, tmp_path: Path) -> None:
    """As in results.csv and the tables."""
    record = {**run.record, "axes": {**run.record["axes"], "defense_samples": 10}}
    claim = {"cells": RDP["cells"], "compare": "at most", "value": 100}
    (found,) = checked(replace(run, record=record), tmp_path, claim)
    exact = binomtest(1, 20).proportion_ci(method="wilson")
    assert found.found == f"5.0 % ({100 * exact.low:.1f} to {100 * exact.high:.1f})"


def test_the_lines_of_verify(run: Run, tmp_path: Path) -> None:
    good = checked(run, tmp_path, RDP)
    assert str(ClaimsVerified(good)) == "pass  claims.json: 1 of 1 claims follow from the predictions"
    bad = ClaimsVerified(checked(run, tmp_path, RDP, {"cells": BOTH, "compare": "equal", "value": 1}))
    (line,) = str(bad).splitlines()
    assert line.startswith('FAIL  claims.json: claim 2, "It is so.": claimed equal 1, found 60.0 %')
