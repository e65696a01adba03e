"""Tiers and checks on evidence made by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from rdp_bench import plugins, registry
from rdp_bench.audits import checks_of_cells as cells
from rdp_bench.audits import checks_of_probes as probes
from rdp_bench.audits import probes as probing
from rdp_bench.audits.card import card_of, verdict
from rdp_bench.audits.evidence import Cell, Evidence, from_predictions
from rdp_bench.audits.finding import FAIL, NA, PASS, WARN, Finding
from rdp_bench.audits.parts import Subject, grids, least_parts
from rdp_bench.audits.run import parts_of
from rdp_bench.audits.tiers import headline, tiers
from rdp_bench.errors import UsageError
from rdp_bench.metrics import stats
from rdp_bench.models.defended import AttackedDefense, DefendedClassifier
from tests.helpers import toy

SUBJECT = Subject("jpeg", "effnet-lite2")
BASE = SUBJECT.settings.gradient[-1]


def cell(part: str, attack: str, right: str, defense: str = "jpeg", eps: float = 4.0) -> Cell:
    """A cell of a deterministic defense: "1101" says which images are right."""
    label = np.zeros(len(right), np.int32)
    return from_predictions(part, "-", attack, eps, defense, 1 - np.array([*map(int, right)], np.int32), label)


PLANTED = {"images": 16, "n": 16, "found": 16, "fixed": 0, "random": 0.0, "inner": 50, "steps": 20}
LISTED: dict[str, Any] = {"files": [{"name": "mine.safetensors", "n": 9, "ids": [], "but": ""}], "images": 20}


def evidence(*found: Cell, random: bool = False, **probed: Any) -> Evidence:
    return Evidence(SUBJECT, random, found, probed)


CLEAN = cell("transfer", "clean", "1" * 20, eps=0.0)


def test_a_tier_is_the_worst_attack_of_each_image() -> None:
    found = evidence(
        CLEAN,
        cell("white-box", "pgd", "0" * 4 + "1" * 16),
        cell("white-box", BASE, "1" * 4 + "0" * 5 + "1" * 11),
        cell("white-box", "pgd", "0" * 20, defense="none"),
        cell("transfer", "mi-fgsm", "0" + "1" * 19),
    )
    clean, transfer, white = tiers(found)
    assert [each.accuracy for each in (clean, transfer, white)] == pytest.approx([100, 95, 55])
    low, high = stats.wilson(11, 20)
    assert (white.low, white.high) == pytest.approx((100 * low, 100 * high))
    assert (white.undefended, transfer.undefended) == (0, None)
    worst = headline([clean, transfer, white])
    assert worst is white


def test_mean_worst_and_vote_over_draws() -> None:
    """Images: always right; right in 3 of 4 draws; in 1 of 4; never."""
    predicted = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [2, 1, 2, 2]], np.int32)
    drawn = from_predictions("white-box", "-", "pgd", 4.0, "jpeg", predicted, np.zeros(4, np.int32))
    (tier,) = tiers(evidence(drawn, random=True))
    assert (tier.accuracy, tier.worst, tier.vote) == (50, 25, 50)


def test_an_attacker_may_leave_an_image_as_it_is() -> None:
    wrong = cell("transfer", "clean", "0" + "1" * 19, eps=0.0)
    _, white = tiers(evidence(wrong, cell("white-box", "pgd", "1" * 20)))
    assert white.accuracy == 95


def test_undefended_rows() -> None:
    none = cell("transfer", "clean", "1" * 20, "none", 0.0)

    def status(ours: int, others: int) -> str:
        made = [
            cell("transfer", "fgsm", "1" * n + "0" * (20 - n), name) for n, name in ((ours, "jpeg"), (others, "none"))
        ]
        return cells.undefended(evidence(CLEAN, none, *made)).status

    assert [status(18, 2), status(10, 10), status(2, 18)] == [PASS, WARN, FAIL]
    assert cells.undefended(evidence(CLEAN)).status == NA


def test_square_may_not_beat_the_gradient() -> None:
    white = cell("white-box", BASE, "0" * 10 + "1" * 10)
    for right, status in (("0" * 5 + "1" * 15, PASS), ("1" * 19 + "0", WARN), ("1" * 18 + "00", FAIL)):
        assert cells.gradient_free(evidence(white, cell("black-box", "square", right))).status == status


def test_doubled_steps_may_not_win_a_point() -> None:
    base = cell("white-box", BASE, "1" * 10 + "0" * 10)
    steps = {
        "1" * 10 + "0" * 10: PASS,
        "1" * 9 + "0" * 11: WARN,
        "1" * 7 + "0" * 13: FAIL,
        "1" * 13 + "0" * 7: WARN,
        "1" * 15 + "0" * 5: FAIL,
    }
    for right, status in steps.items():
        assert cells.converged(evidence(base, cell("doubled", "x", right))).status == status


def test_restarts_do_not_hide_that_more_steps_are_weaker() -> None:
    base = cell("white-box", BASE, "1" * 10 + "0" * 10)
    found = cells.converged(
        evidence(base, cell("doubled", "twice", "1" * 18 + "0" * 2), cell("doubled", "restarts", "1" * 10 + "0" * 10))
    )
    assert (found.status, found.evidence) == (FAIL, f"twice leaves 40.0 points more right than {BASE}")


def test_a_closer_stand_in_may_not_break_much_more() -> None:
    base = cell("white-box", BASE, "1" * 10 + "0" * 10)
    for right, status in (
        ("1" * 10 + "0" * 10, PASS),
        ("1" * 8 + "0" * 12, PASS),
        ("1" * 7 + "0" * 13, WARN),
        ("1" * 20, PASS),
    ):
        near = cell("stand-in", BASE, right)
        assert cells.stand_in(evidence(base, near)).status == status
        assert tiers(evidence(base, near))[0].accuracy == min(50, 5 * right.count("1"))  # the worst of both
    assert cells.stand_in(evidence(base)).status == NA
    assert cells.stand_in(evidence(cell("stand-in", BASE, "1"))).status == NA


def test_a_grey_box_is_a_tier_and_may_not_beat_the_white_box() -> None:
    white, grey = cell("white-box", BASE, "1" * 10 + "0" * 10), cell("grey-box", "mi-fgsm", "1" * 4 + "0" * 16)
    assert [(tier.name, tier.accuracy) for tier in tiers(evidence(CLEAN, white, grey))] == [
        ("clean", 100), ("grey-box", 20), ("white-box", 20),  # who knows more can do that, too
    ]  # fmt: skip
    transfer = cell("transfer", "fgsm", "1" * 20)
    assert cells.order_of_attackers(evidence(white, transfer, grey)).status == FAIL
    assert card_of(evidence(CLEAN, grey)).verdict.startswith(
        "At eps 4 an attacker who knows the target and guesses at the defense leaves"
    )


def test_the_undefended_attacker_may_leave_an_image_as_it_is_too() -> None:
    none = cell("transfer", "clean", "0" * 5 + "1" * 15, "none", 0.0)
    attacked = cell("transfer", "fgsm", "1" * 10 + "0" * 10, "none")
    found = tiers(evidence(CLEAN, none, attacked, cell("transfer", "fgsm", "1" * 20)))
    assert [tier.undefended for tier in found] == [75, 25]


def test_a_tier_that_lost_attacks_says_so_in_the_headline() -> None:
    lost = [Cell("transfer", "a", name, 4.0, "jpeg", reason="out of memory") for name in ("dim", "fgsm")]
    white = [cell("white-box", BASE, "1" * 10 + "0" * 10), cell("black-box", "square", "1" * 20)]
    others = [cell(part, "mi-fgsm", "1" * 20) for part in ("grey-box", "blind")]
    found = evidence(CLEAN, cell("transfer", "mi-fgsm", "1" * 20), *white, *others, *lost)
    (tier,) = [tier for tier in tiers(found) if tier.name == "transfer"]
    assert tier.failed == ("dim by a", "fgsm by a")
    assert ". Planned attacks have no number: 2 of the transfer tier" in card_of(found).verdict
    assert cells.all_tiers(found).status == WARN
    assert cells.all_tiers(found).evidence == "without a number: 2 attacks of transfer"
    assert "no number" not in card_of(evidence(CLEAN, *white)).verdict


@pytest.mark.parametrize("part", ["transfer", "blind", "grey-box", "noise", "white-box", "eps", "one-draw"])
def test_no_part_may_lose_an_attack(part: str) -> None:
    white = cell("white-box", BASE, "1" * 20)
    found = cells.attacks_ran(evidence(CLEAN, white, Cell(part, "a", "b", 4.0, "jpeg", reason="boom")))
    eps = ", eps 4" if part == "eps" else ""
    assert (found.status, found.evidence) == (FAIL, f"1 of 3 cells have no number; {part}: b by a{eps}: boom")
    assert found.meaning.startswith("a check has less" if part in ("noise", "eps", "one-draw") else "the number of a")
    assert cells.attacks_ran(evidence(CLEAN, white)).status == PASS


def test_the_sweep_always_reaches_an_eps_where_anything_can_be_shown() -> None:
    for budget in ("quick", "standard", "full"):
        for eps in (0.5, 1.0, 2.0, 4.0, 16.0, 64.0):
            levels = Subject("jpeg", "t", eps=eps, budget=budget).sweep
            assert max((*levels, eps)) >= 32
            assert eps not in levels
    assert Subject("jpeg", "t", eps=1.0).sweep == (16.0, 64.0)


@pytest.mark.parametrize(
    ("defense", "purifier"),
    [("jpeg", "nrp"), ("nrp", "rdp"), ("jpeg >> nrp(dynamic=true)", "rdp"), ("nrp >> rdp", "hgd"), ("mine/nrp", "nrp")],
)
def test_the_grey_box_attacker_has_another_purifier(defense: str, purifier: str) -> None:
    subject = Subject(defense, "effnet-lite2", budget="standard")
    assert subject.own_purifier == purifier
    assert subject.grey_sources == (f"adaptive({purifier}, effnet-lite2)", f"adaptive({purifier}, effnet-lite0)")


def test_who_knows_more_breaks_more_and_everything_breaks_at_a_large_eps() -> None:
    white = cell("white-box", BASE, "1" * 10 + "0" * 10)
    assert cells.order_of_attackers(evidence(white, cell("transfer", "fgsm", "1" * 15 + "0" * 5))).status == PASS
    assert cells.order_of_attackers(evidence(white, cell("transfer", "fgsm", "1" * 5 + "0" * 15))).status == FAIL
    for right, status in (("0" * 20, PASS), ("1" + "0" * 19, FAIL)):
        assert cells.sweep(evidence(white, cell("eps", BASE, right, eps=64.0))).status == status
    assert cells.sweep(evidence(white, cell("eps", BASE, "0" * 20, eps=8.0))).status == NA  # 64 failed
    both = [cell("eps", BASE, right, eps=64.0) for right in ("0" * 20, "1" * 20)]
    assert cells.sweep(evidence(white, *both)).status == PASS  # by the closer stand-in
    assert cells.noise_control(evidence(CLEAN, white, cell("noise", "noise", "1" * 20))).status == PASS
    assert cells.noise_control(evidence(CLEAN, white, cell("noise", "noise", "1" * 10 + "0" * 10))).status == FAIL


def drawn(part: str, attack: str, *shares: float, defense: str = "jpeg", eps: float = 4.0) -> Cell:
    """A cell of a random defense: of each image the share of ten draws that are right."""
    predicted = np.array([[0] * round(10 * share) + [1] * (10 - round(10 * share)) for share in shares], np.int32)
    return from_predictions(part, "-", attack, eps, defense, predicted, np.zeros(len(shares), np.int32))


def test_of_a_random_defense_luck_is_told_from_robustness() -> None:
    clean = drawn("transfer", "clean", *[1.0] * 10, eps=0.0)
    white = drawn("white-box", BASE, *[0.5] * 10)
    steady, lucky = (drawn("fixed", BASE, *[share] * 10, defense="fixed(jpeg)") for share in (0.5, 0.1))
    assert cells.random_defense(evidence(clean, white, steady, random=True)).status == PASS
    assert cells.random_defense(evidence(clean, white, lucky, random=True)).status == FAIL
    shaky = drawn("transfer", "clean", *[0.9] * 10, eps=0.0)
    assert cells.random_defense(evidence(shaky, white, steady, random=True)).status == WARN
    assert cells.random_defense(evidence(clean, white)).status == NA
    assert [tier.name for tier in tiers(evidence(clean, white, lucky, random=True))] == ["clean", "white-box", "fixed"]


def test_one_draw_per_gradient_may_not_look_much_weaker() -> None:
    white = drawn("white-box", BASE, *[0.5] * 10)
    for shares, status in (([0.5] * 10, PASS), ([0.7, 0.8] * 5, FAIL), ([1.0, 0.3] * 5, WARN)):  # the last by chance
        one = drawn("one-draw", BASE, *shares)
        assert cells.one_draw(evidence(white, one, random=True)).status == status
    assert cells.one_draw(evidence(white)).status == NA


def test_attacks_on_a_random_defense_are_compared_as_they_are() -> None:
    """Each is right in half of the draws of every image, in other draws by chance: the minimum would be lower."""
    white, black = drawn("white-box", BASE, *[0.4, 0.6] * 5), drawn("black-box", "square", *[0.6, 0.4] * 5)
    assert cells.gradient_free(evidence(white, black, random=True)).status == PASS


def by_chance(part: str, attack: str, rate: float, seed: int) -> Cell:
    """400 images; each of ten draws is right with probability `rate`."""
    wrong = np.random.default_rng(seed).random((400, 10)) >= rate
    return from_predictions(part, "-", attack, 4.0, "jpeg", wrong.astype(np.int32), np.zeros(400, np.int32))


def test_the_worst_of_equal_attacks_on_a_random_defense_is_no_lower_than_each() -> None:
    """The least of five shares of ten draws at .1 would be near 0: a third of such shares are 0."""
    white = [by_chance("white-box", f"a{seed}", 0.1, seed) for seed in range(5)]
    (tier,) = tiers(evidence(*white, random=True))
    assert tier.low < 10 < tier.high
    assert np.min([each.shares for each in white], axis=0).mean() < 0.02


def test_weaker_attacks_raise_no_tier() -> None:
    """A strong attack leaves 30 % of draws, five weak ones 50 %: chosen for each image by five draws, a weak one often
    looks best."""
    strong, weak = (
        by_chance("white-box", BASE, 0.3, 1),
        [by_chance("white-box", f"w{k}", 0.5, 50 + k) for k in range(5)],
    )
    black = by_chance("black-box", "square", 0.36, 2)
    found = tiers(evidence(strong, *weak, black, random=True))
    assert {tier.name: tier.accuracy for tier in found} == pytest.approx({"black-box": 36, "white-box": 30}, abs=2)
    assert cells.gradient_free(evidence(strong, *weak, black, random=True)).status == PASS


def test_always_and_vote_have_the_draws_of_one_attack() -> None:
    """No attack has an effect, and each of ten draws is right with probability .9: always in .9^10 of the images."""
    cells_ = [by_chance("white-box", f"a{seed}", 0.9, seed) for seed in range(5)]
    (tier,) = tiers(evidence(*cells_, random=True))
    assert tier.worst == pytest.approx(100 * 0.9**10, abs=7)  # of fifty draws: .5 %
    assert tier.vote == pytest.approx(100, abs=1)
    assert tiers(evidence(cell("white-box", "a", "0111"), cell("white-box", "b", "1101")))[0].worst == 50


def test_who_knows_the_defense_can_do_what_others_can() -> None:
    """The white-box attacks break one half, transfer attacks the other; without the former there is no such tier."""
    white, transfer = cell("white-box", BASE, "1" * 10 + "0" * 10), cell("transfer", "fgsm", "0" * 10 + "1" * 10)
    found = evidence(CLEAN, white, transfer)
    assert [(tier.name, tier.accuracy) for tier in tiers(found)] == [("clean", 100), ("transfer", 50), ("white-box", 0)]
    said = cells.order_of_attackers(found)
    assert (said.status, said.meaning) == (FAIL, "the white-box attack misses images that others break")
    assert "both together 0.0 %" in said.evidence
    assert [tier.name for tier in tiers(evidence(CLEAN, transfer))] == ["clean", "transfer"]
    few = cell("transfer", "fgsm", "0" + "1" * 19)
    assert cells.order_of_attackers(evidence(CLEAN, white, few)).status == WARN  # one image may be an accident


def test_of_attacks_that_differ_the_worst_for_each_image_counts() -> None:
    """One breaks the first two images, one the last two, each in every draw."""
    first, second = drawn("white-box", "a", 0, 0, 1, 1), drawn("white-box", "b", 1, 1, 0, 0)
    assert tiers(evidence(first, second, random=True))[0].accuracy == 0
    assert tiers(evidence(first, random=True))[0].accuracy == 50


def test_equal_attacks_on_a_random_defense_fail_no_check() -> None:
    """Fourteen equal transfer attacks, two white-box ones and two doubled ones: no more is broken by any."""
    clean, none = cell("transfer", "clean", "1" * 400, eps=0.0), cell("transfer", "clean", "1" * 400, "none", 0.0)
    white = [by_chance("white-box", name, 0.6, seed) for seed, name in enumerate(("pgd", BASE))]
    doubled = [by_chance("doubled", f"twice{seed}", 0.6, 10 + seed) for seed in range(2)]
    transfer = [by_chance("transfer", f"t{seed}", 0.6, 20 + seed) for seed in range(14)]
    bare = cell("transfer", "t0", "1" * 200 + "0" * 200, "none")
    found = evidence(clean, none, bare, *white, *doubled, *transfer, random=True)
    assert cells.undefended(found).status == PASS  # 60 % against 50 %
    assert cells.converged(found).status == PASS
    assert cells.order_of_attackers(found).status == PASS
    assert cells.converged(evidence(clean, *white, by_chance("doubled", "x", 0.4, 30), random=True)).status == FAIL
    better = evidence(clean, *white, by_chance("transfer", "x", 0.4, 31), random=True)
    assert cells.order_of_attackers(better).status == FAIL


def test_a_difference_that_the_images_of_a_random_defense_explain_is_no_failure() -> None:
    """Five points that other images would turn round, fifteen that they might, and twenty-five that they would not."""
    pairs = ((0.9, 0.2), (0.2, 0.8), PASS), ((0.9, 0.3), (0.2, 0.7), WARN), ((0.5, 0.6), (0.3, 0.3), FAIL)
    for white, transfer, status in pairs:
        found = drawn("white-box", BASE, *white * 10), drawn("transfer", "t", *transfer * 10)
        assert cells.order_of_attackers(evidence(*found, random=True)).status == status


def test_one_lucky_draw_does_not_narrow_an_interval() -> None:
    """Nineteen images are never right, one is in one draw of ten: as wide as 0 of 20, not a tenth of it."""
    (tier,) = tiers(evidence(drawn("white-box", BASE, *[0.0] * 19, 0.1), random=True))
    assert (tier.low, tier.high) == pytest.approx((0, 100 * stats.wilson(0, 20)[1]))


def test_random_signs_are_no_control_where_nothing_breaks_at_this_eps() -> None:
    white, noise = cell("white-box", BASE, "1" * 20), cell("noise", "noise", "1" * 20)
    at_most, never = cell("eps", BASE, "0" * 20, eps=64), cell("eps", BASE, "1" * 20, eps=64)
    assert cells.noise_control(evidence(CLEAN, white, noise, at_most)).status == NA
    assert cells.noise_control(evidence(CLEAN, white, noise, never)).status == FAIL
    one, same = cell("white-box", BASE, "0" + "1" * 19), cell("noise", "noise", "1" * 19 + "0")
    assert cells.noise_control(evidence(CLEAN, one, same, at_most)).status == NA  # equal, and a larger eps breaks all
    fewer = cell("noise", "noise", "1" * 14 + "0" * 6)
    assert cells.noise_control(evidence(CLEAN, one, fewer, at_most)).status == FAIL
    for rate, status in ((0.815, NA), (0.60, FAIL)):  # of draws that noise leaves; the attack leaves .82
        drawn_ = by_chance("white-box", BASE, 0.82, 1), by_chance("noise", "noise", rate, 2)
        zero = drawn("eps", BASE, *[0.0] * 400, eps=64)
        assert cells.noise_control(evidence(*drawn_, zero, random=True)).status == status


def test_nothing_is_said_of_attacks_where_no_clean_image_is_right() -> None:
    clean, white = cell("transfer", "clean", "0" * 20, eps=0.0), cell("white-box", BASE, "0" * 20)
    others = [cell(part, "a", "0" * 20) for part in ("transfer", "black-box", "doubled", "noise")]
    found = evidence(clean, white, *others, cell("eps", BASE, "0" * 20, eps=64))
    for check in (cells.gradient_free, cells.converged, cells.order_of_attackers, cells.sweep, cells.noise_control):
        assert check(found).status == NA
    assert "No clean image is right either" in card_of(found).verdict


def test_of_equal_tiers_the_best_informed_attacker_is_named() -> None:
    found = evidence(CLEAN, cell("transfer", "a", "1" * 20), cell("white-box", BASE, "1" * 20))
    assert card_of(found).verdict.startswith("At eps 4 an attacker who knows jpeg leaves 84 to 100 %")


@pytest.mark.parametrize(
    ("failing", "right", "doubted"), [("C1", 5, False), ("C9", 5, False), ("C5", 5, True), ("C5", 0, False)]
)
def test_only_a_failure_that_concerns_the_number_puts_it_in_doubt(failing: str, right: int, doubted: bool) -> None:
    """And nothing is lower than 0 %."""
    found = evidence(CLEAN, cell("white-box", BASE, "0" * (20 - right) + "1" * right))
    text = verdict(found, tiers(found), [Finding(failing, "title", FAIL, "said")], {})
    assert text.endswith(f"1 check fails ({failing} title).")
    assert ("The true number is lower or unknown" in text) == doubted


def test_rows_without_the_defense_that_fail_are_a_warning() -> None:
    lost = Cell("transfer", "a", "fgsm", 4.0, "none", reason="out of memory")
    assert cells.attacks_ran(evidence(CLEAN, cell("white-box", BASE, "1" * 20), lost)).status == WARN


def test_autoattack_that_failed_is_not_said_to_be_absent() -> None:
    lost = Cell("white-box", "white-box", "autoattack", 4.0, "jpeg", reason="out of memory")
    assert probes.autoattack(evidence(lost)).evidence == "it has no number: out of memory"
    assert probes.autoattack(evidence(cell("white-box", "autoattack", "1"))).status == PASS
    assert probes.autoattack(evidence(CLEAN)).status == NA


def test_the_target_is_no_source_of_its_transfer_attacks() -> None:
    assert Subject("jpeg", "a", sources=("b", "a")).surrogates == ("b",)
    for knows in ("white-box", "white-box(4)", "bpda(jpeg, b)", "adaptive(jpeg, a)", "a+b"):
        with pytest.raises(UsageError, match="transfer attacks know neither the defense nor the target a"):
            Subject("jpeg", "a", sources=("b", knows)).surrogates  # noqa: B018 - a property that refuses
    with pytest.raises(UsageError, match="need a source that is another model, found --source a"):
        Subject("jpeg", "a", sources=("a",)).surrogates  # noqa: B018 - a property that refuses


def test_attacks_without_gradients_ask_a_random_defense_for_means() -> None:
    """One draw's luck would keep a square that is never measured again; the passes are as many."""
    plugins.load()
    for budget, asked, attacks in (("quick", 4, ("square(queries=25)",)), ("standard", 10, ("square(queries=100)",))):
        for defense, source, wanted in (("r&p", f"white-box({asked})", attacks), ("jpeg", "white-box", None)):
            subject = Subject(defense, "effnet-lite2", budget=budget)
            axes = dict(grids(subject))["black-box"].axes
            assert tuple(axes.sources) == (source,)
            assert tuple(axes.attacks) == (wanted or subject.settings.black_box)
    full = Subject("r&p", "effnet-lite2", budget="full"), Subject("jpeg", "effnet-lite2", budget="full")
    assert [[each for each in one.gradient if "auto" in each] for one in full] == [["autoattack-rand"], ["autoattack"]]


def test_failed_cells_are_named() -> None:
    failed = Cell("white-box", "white-box", "apgd-ce", 4.0, "jpeg", reason="no gradient with respect to the images")
    found = cells.attacks_ran(evidence(failed))
    assert (found.status, found.meaning) == (FAIL, "the gradient does not pass the defense")
    assert (
        cells.all_tiers(evidence(CLEAN, failed)).evidence == "missing: transfer, blind, grey-box, white-box, black-box"
    )
    assert "apgd-ce" in card_of(evidence(CLEAN, failed)).failed[0]


def test_few_images_are_said_to_be_few() -> None:
    assert cells.statistics(evidence(cell("white-box", BASE, "10" * 10))).status == WARN
    assert cells.statistics(evidence(cell("white-box", BASE, "10" * 200))).status == PASS
    none = cells.statistics(evidence(cell("white-box", BASE, "0" * 20)))  # Wilson: 0 to 3.84 / 23.84
    assert (none.status, none.evidence) == (
        WARN, "20 images: the longest interval is white-box's, 0.0 points below and 16.1 above"
    )  # fmt: skip


ELSEWHERE = {"ratios": {"mirrored": 1.1}, "n": 3}
STATE = {"difference": 0.0, "moved": 0.1}


@pytest.mark.parametrize(
    ("check", "probe", "good", "bad"),
    [
        (probes.deterministic, "repeat", {"passes": 5, "difference": 1e-6}, {"passes": 5, "difference": 1e-3}),
        (
            probes.deterministic,
            "repeat",
            {"passes": 5, "difference": 0, "redrawn": True},
            {"passes": 5, "difference": 0, "redrawn": False},
        ),
        (probes.gradients, "gradient", {"n": 9, "zero": 0}, {"n": 9, "zero": 1}),
        (probes.gradients, "gradient", {"n": 9, "zero": 0, "broken": 0}, {"n": 9, "zero": 0, "broken": 1}),
        (probes.saturation, "gradient", {"n": 9, "saturated": 0}, {"n": 9, "saturated": 1}),
        (probes.state, "state", {"difference": 0.0, "moved": 0.1}, {"difference": 0.1, "moved": 0.1}),
        (probes.state, "state", {"difference": 0.0, "moved": 0.1}, {"difference": 0.0, "moved": 0.0}),
        (probes.direction, "cosine", {"step": 1, "n": 8, "up": 8, "down": 0}, {"step": 1, "n": 8, "up": 1, "down": 7}),
        (
            probes.elsewhere,
            "elsewhere",
            {"ratios": {"mirrored": 1.1}},
            {"ratios": {"mirrored": 1.1, "upside down": 0.1}},
        ),
        (probes.elsewhere, "elsewhere", {"ratios": {"mirrored": 1.1}}, {"ratios": {}}),
        *(
            (probes.elsewhere, "elsewhere", ELSEWHERE | {"stored": 0, "changes": [1.1, 1.0, 0.9]}, ELSEWHERE | bad)
            for bad in (
                {"stored": 1, "changes": [1.1, 1.0, 0.9]},
                {"stored": 0, "changes": [1.6, 1.0, 0.9]},
                {"stored": 0, "changes": [1.3, 1.3, 0.9]},
            )
        ),
        (probes.state, "state", STATE | {"imprint": -3.0}, STATE | {"imprint": 7.0}),
        (probes.state, "state", STATE | {"again": 1e-6}, STATE | {"again": 0.1}),
        (
            probes.slopes,
            "slopes",
            {"step": 0.1, "n": 64, "correlation": 0.97},
            {"step": 0.1, "n": 64, "correlation": 0.7},
        ),
        *(
            (probes.deterministic, "repeat", {"passes": 5, "difference": 0, "streams": 0, "alone": 1e-6}, bad)
            for bad in (
                {"passes": 5, "difference": 0, "streams": 0.1, "alone": 0},
                {"passes": 5, "difference": 0, "streams": 0, "alone": 0.1},
            )
        ),
        (probes.binarisation, "planted", PLANTED | {"found": 16}, PLANTED | {"found": 8}),
        (
            probes.training_images,
            "photographs",
            LISTED,
            LISTED | {"files": [{**LISTED["files"][0], "ids": ["a", "b"]}]},
        ),
    ],
)
def test_probes_are_read(check: Any, probe: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert [check(evidence(**each)).status for each in ({probe: good}, {probe: bad}, {})] == [PASS, FAIL, NA]


@pytest.mark.parametrize(
    ("check", "probe", "good", "bad"),
    [
        (probes.stable, "stability", {"draws": 20, "change": 0.1}, {"draws": 20, "change": 0.9}),
        (
            probes.finished, "progress", {"steps": 20, "last": 10, "n": 2, "late": 0.01},
            {"steps": 20, "last": 10, "n": 2, "late": 0.4},
        ),
        (
            probes.logits, "outputs", {"low": -3, "high": 9, "probabilities": False},
            {"low": 0, "high": 1, "probabilities": True},
        ),
        (
            probes.slopes, "slopes", {"step": 0.1, "n": 64, "correlation": 0.97, "rounds": 0.9},
            {"step": 0.1, "n": 64, "correlation": 0.5, "rounds": 0.9},
        ),
    ],
)  # fmt: skip
def test_probes_that_warn(check: Any, probe: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    assert [check(evidence(**each)).status for each in ({probe: good}, {probe: bad}, {})] == [PASS, WARN, NA]


def test_a_defense_that_is_constant_around_its_images_is_not_accused() -> None:
    """One bit of black and white: noise moves nothing, and the largest eps of the sweep reaches no threshold."""
    black_and_white = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    behind = AttackedDefense("bpda", registry.defense.resolve("bit-red(bits=1)"), 1)
    source = toy.source(DefendedClassifier(toy.linear(size=32), behind))
    context = probing.Context(source, black_and_white, torch.zeros(4, dtype=torch.int64), random=False, draws=1)
    numbers = probing.elsewhere(context)
    assert numbers is not None
    assert numbers["ratios"] == {}
    assert numbers["strangers"] > 0
    right = [cell("white-box", BASE, "1" * 20), cell("eps", BASE, "1" * 20, eps=64.0), cell("noise", "noise", "1" * 20)]
    for number, expected in (({}, [NA, FAIL, FAIL]), ({"elsewhere": numbers}, [NA, WARN, NA])):
        found = evidence(CLEAN, *right, **number)
        assert [check(found).status for check in (probes.elsewhere, cells.sweep, cells.noise_control)] == expected


def test_what_the_binarisation_test_may_say() -> None:
    """Passed from 95 % on; failed where even the interval is below, or random points are found as often."""

    def status(n: int, found: int, random: float) -> str:
        return probes.binarisation(evidence(planted=PLANTED | {"n": n, "found": found, "random": random})).status

    assert [status(5, 5, 0.1), status(5, 4, 0.1), status(5, 3, 0.1)] == [PASS, WARN, FAIL]
    assert [status(20, 19, 0.1), status(20, 18, 0.1), status(20, 15, 0.1)] == [PASS, WARN, FAIL]
    assert [status(5, 5, 0.6), status(5, 5, 1.0), status(5, 4, 0.9)] == [NA, NA, FAIL]
    reason = probes.binarisation(evidence(planted={"reason": "the target is an ensemble"}))
    assert (reason.status, reason.evidence) == (NA, "the target is an ensemble")
    assert probes.binarisation(evidence(planted=PLANTED, repeat={"passes": 5, "difference": 1.0})).status == NA


def test_what_is_known_of_photographs() -> None:
    (known,) = LISTED["files"]
    unknown = {"name": "net.pth", "reason": "it holds no hashes of its photographs"}

    def found(*files: dict[str, Any]) -> Any:
        return probes.training_images(evidence(photographs={"files": [*files], "images": 20}))

    assert found(known).evidence == "0 of 20 images are among the 9 photographs of mine.safetensors"
    assert (found(unknown).status, found(known, unknown).status) == (NA, WARN)
    assert found({**known, "but": "it is old"}).status == WARN
    named = found({**known, "ids": [*"abcd"], "but": "it is old"}, unknown)
    assert named.status == FAIL
    assert "4 of 20 images" in named.evidence
    assert named.evidence.endswith("(a, b, c, ...)")


def test_without_a_right_image_nothing_is_shown_of_gradients() -> None:
    found = evidence(gradient={"n": 0, "zero": 0, "saturated": 0})
    assert (probes.gradients(found).status, probes.saturation(found).status) == (NA, NA)


def test_outputs_that_do_not_repeat_are_not_compared() -> None:
    found = evidence(
        repeat={"passes": 5, "difference": 1.0}, state={"difference": 1.0},
        cosine={"step": 1, "n": 8, "up": 2, "down": 6}, elsewhere={"ratios": {"mirrored": 0.1}},
    )  # fmt: skip
    assert [check(found).status for check in (probes.state, probes.direction, probes.elsewhere)] == [NA] * 3
    assert probes.deterministic(found).status == FAIL


def test_networks_of_another_accuracy_are_named() -> None:
    assert probes.known_accuracies(evidence(models={"a": {"measured": 90.0, "known": 90.4}})).status == PASS
    found = probes.known_accuracies(evidence(models={"a": {"measured": 90.0, "known": 91.0}}))
    assert (found.status, found.evidence) == (FAIL, "a 90.0 % (card 91.0 %)")


def test_autoattack_is_asked_for() -> None:
    assert probes.autoattack(evidence(cell("white-box", "autoattack", "10"))).status == PASS
    assert probes.autoattack(evidence(cell("white-box", "pgd", "10"))).status == NA


def test_the_verdict_is_a_sentence_with_the_interval_of_the_worst_tier() -> None:
    found = evidence(CLEAN, cell("white-box", BASE, "0" * 20), cell("transfer", "fgsm", "1" * 20))
    text = card_of(found).verdict
    assert text.startswith("At eps 4 an attacker who knows jpeg leaves 0 to 16 % of images right")
    assert "transfer numbers (100 %) say nothing about its robustness" in text


@pytest.mark.parametrize(("name", "random"), [("jpeg", False), ("r&p", True), ("none", False)])
def test_a_verified_card_has_every_part_but_stand_ins(name: str, random: bool) -> None:
    from rdp_bench import plugins

    plugins.load()
    planned = {part for part, _ in grids(Subject(name, "effnet-lite2"))}
    assert planned - {"stand-in"} == least_parts(name, random=random)


def test_parts_of_a_random_defense() -> None:
    from rdp_bench import plugins

    plugins.load()
    names = [[part for part, _ in grids(Subject(name, "effnet-lite2"))] for name in ("jpeg", "r&p")]
    assert names[0] == [
        "transfer",
        "noise",
        "blind",
        "grey-box",
        "white-box",
        "stand-in",
        "black-box",
        "eps",
        "doubled",
    ]
    assert set(names[1]) - set(names[0]) == {"one-draw", "fixed"}
    by_name = dict(grids(Subject("r&p", "effnet-lite2", eps=2.0, budget="standard")))
    assert by_name["white-box"].axes.sources == ("white-box(20)",)
    assert by_name["doubled"].axes.sources == ("white-box(40)",)
    assert by_name["fixed"].axes.defenses == ("fixed(r&p)",)
    assert by_name["eps"].axes.eps == (1.0, 4.0, 8.0, 32.0)
    for bad in ({"budget": "huge"}, {"eps": 0.0}):
        with pytest.raises(UsageError):
            Subject("r&p", "effnet-lite2", **bad)  # type: ignore[arg-type]


def test_reasons_that_speak_of_a_gradient_are_told_apart() -> None:
    def meaning(reason: str) -> str:
        return cells.attacks_ran(evidence(Cell("white-box", "a", "b", 4.0, "jpeg", reason=reason))).meaning

    assert meaning("source 's': its outputs have no gradient with respect to the images") == (
        "the gradient does not pass the defense"
    )
    assert meaning("the gradient of an attack is NaN or infinite") == "the gradient through the defense is no number"


def test_the_size_of_images_is_part_of_a_cards_name() -> None:
    small = Subject("jpeg", "effnet-lite2", image_size=64)
    assert card_of(Evidence(small, False, (CLEAN,), {})).dataset == "photos20-64px"
    assert {name for _, made in parts_of(small) for name in [made.name]}.isdisjoint(
        {made.name for _, made in parts_of(SUBJECT)}
    )


def test_the_target_alone_is_named_in_its_verdict() -> None:
    found = Evidence(Subject("none", "effnet-lite2"), False, (cell("white-box", BASE, "0" * 20, "none"),), {})
    assert card_of(found).verdict.startswith("At eps 4 an attacker who knows the target leaves 0 to 16 %")
