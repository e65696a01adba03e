"""The bench of defenses whose truth is known (tests/plugin/faults.py): the audit names each fault, and raises no other.

python -m tests.audit.test_confusion      # prints the table: faults x checks
"""

import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rdp_bench.audits.card import Card
from rdp_bench.audits.finding import Finding
from tests.helpers import audits

TRUTH = {
    "fault/staircase": {"C3.c", "C11"},
    "fault/resize": {"C9"},
    "fault/noise": {"C6.b"},
    "fault/stream": {"C3.a"},
    "fault/root": {"C3.c", "C4.a"},
    "fault/sign": {"C5", "C11"},
    "fault/detach": {"C4.a"},
    "fault/leak": {"C3.f"},
    "fault/shared": {"C3.f"},
    "fault/trace": {"C3.f"},
    "fault/caller": {"C3.f"},
    "fault/memory": {"C13.b"},
    "fault/few": {"C13.b"},
    "fault/label": {"C13.b"},
    "fault/album": {"C13.b"},
    "fault/checker": {"C5.c"},
    "fault/undeclared": {"C3.a"},
    "fault/batch": {"C3.a"},
    "fault/secret": {"C3.a"},
    "fault/saturated": {"C3.d"},
}
"""The checks that name the fault of each."""

ROBUST = "effnet-lite2-ens"
"""The adversarially fine-tuned target, without a defense."""

TURNED = "fault/turned"
"""A defense with a bad and a good stand-in."""

HONEST = ("fault/identity", "honest/average", "honest/half", "honest/rounded")

ROOTS = frozenset().union(*TRUTH.values()) - {"C6", "C11"}
"""Checks that name one fault: none of them fails for another. C6 is about the size of the budget, too, and C11 about
whatever weakens the attack."""


def audited(folder: Path, name: str) -> Card:
    """The card of one of them; the saturated softmax is a target."""
    return audits.card(folder, "none", name) if name == "fault/saturated" else audits.card(folder, name)


def failing(card: Card) -> set[str]:
    return {finding.id for finding in card.findings if finding.status == "FAIL"}


def check(card: Card, name: str) -> Finding:
    (found,) = [finding for finding in card.findings if finding.id == name]
    return found


@pytest.mark.parametrize("name", TRUTH)
def test_the_fault_of_each_is_named(name: str, tmp_path: Path) -> None:
    card = audited(tmp_path, name)
    found = failing(card)
    assert found >= TRUTH[name]
    if name == "fault/resize":  # shifts hide the planted point, so their noise is fixed, and the attack finds it
        assert check(card, "C11").status in ("PASS", "WARN")  # WARN: four of five
        assert check(card, "C11").evidence.endswith("with the noise of the defense fixed")
    # A defense that gives back whole stored images has no gradient either.
    consequences = {"C3.c"} if name in ("fault/leak", "fault/shared", "fault/memory", "fault/few") else set()
    if name in (
        "fault/leak",
        "fault/shared",
        "fault/caller",
    ):  # what they give back is what they have seen, whatever comes
        consequences |= {"C13.b"}
    if name in ("fault/resize", "fault/noise"):  # both are luck, and few draws
        consequences = {"C6.b", "C9"}
    if name in ("fault/noise", "fault/sign"):  # no draw has the gradient of what it does
        consequences |= {"C5.c"}
    if name == "fault/stream":  # attacks know one draw, and predictions have others
        consequences = {"C8.b", "C9"}
    assert not found & ROOTS - TRUTH[name] - consequences


def test_a_closer_stand_in_takes_the_place_of_a_bad_one(tmp_path: Path) -> None:
    """The tier, the sweep and the binarisation test take the worst of both; C5.b says that they differ."""
    card = audited(tmp_path, TURNED)
    assert check(card, "C5.b").status == "WARN"
    assert [check(card, each).status for each in ("C8.b", "C11")] == ["PASS", "PASS"]
    assert not failing(card)
    assert check(card, "C5").status == "WARN"  # of the usual one
    (white,) = [tier for tier in card.tiers if tier.name == "white-box"]
    assert any("smooth(fault/turned, fault/one)" in attack for attack in white.attacks)


@pytest.mark.parametrize("name", HONEST)
def test_nothing_is_raised_on_honest_ones(name: str, tmp_path: Path) -> None:
    card = audited(tmp_path, name)
    assert not failing(card)
    assert check(card, "C11").status == "PASS"


@pytest.mark.parametrize("name", ["none", "honest/average"])
def test_a_target_that_is_sure_of_the_images_does_not_make_the_defense_know_them(name: str, tmp_path: Path) -> None:
    """Noise moves its outputs for these images a thousand times less than for mirrored ones."""
    assert check(audits.card(tmp_path, name, "fault/sure"), "C13.b").status == ("n/a" if name == "none" else "PASS")


def test_the_images_that_break_the_bare_target_are_tried_on_a_defense_with_half_a_gradient(tmp_path: Path) -> None:
    """Nothing but the gradient differs from the identity: the tiers must not, either."""
    half, whole = ({tier.name: tier.accuracy for tier in audits.card(tmp_path / name, f"fault/{name}").tiers}
                   for name in ("checker", "identity"))  # fmt: skip
    assert half["white-box"] == half["blind"] == whole["white-box"]


def test_nothing_is_raised_on_an_adversarially_trained_network(tmp_path: Path) -> None:
    card = audits.robust_card(tmp_path)
    assert not failing(card)
    assert check(card, "C11").status == "PASS"


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    for name in (*TRUTH, TURNED, *HONEST, ROBUST):
        with TemporaryDirectory() as folder:
            card = audits.robust_card(Path(folder)) if name == ROBUST else audited(Path(folder), name)
        tiers = ", ".join(f"{tier.name} {tier.accuracy:.0f}" for tier in card.tiers)
        warned = sorted(finding.id for finding in card.findings if finding.status == "WARN")
        sys.stdout.write(f"{name:18} FAIL {sorted(failing(card))} WARN {warned} ({tiers})\n")


if __name__ == "__main__":
    main()
