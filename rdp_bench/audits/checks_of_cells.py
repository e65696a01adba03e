"""Checks that follow from the cells of an audit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from rdp_bench.audits.evidence import Cell, Evidence
from rdp_bench.audits.finding import FAIL, PASS, WARN, Finding, Status, missing
from rdp_bench.audits.parts import (
    BLACK_BOX,
    BLIND,
    DOUBLED,
    EPS,
    GREY_BOX,
    LARGE,
    NOISE,
    ONE_DRAW,
    STAND_IN,
    TRANSFER,
    WHITE_BOX,
)
from rdp_bench.audits.tiers import PARTS, THROUGH, cells_of_tier, hardest, tiers
from rdp_bench.metrics import stats
from rdp_bench.specs import UNDEFENDED, plain, show_level
from rdp_bench.terminal import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NONE_RIGHT = "no clean image is right"

POINT = 1.0
"""Points of accuracy that a better attack may still win."""

SQUARE = 0.2
"""Points by which an attack without gradients may be better (fra31/auto-attack)."""

LUCK = 10.0
"""Points that randomness may account for."""

FEW = 10
"""Images below which a row is not compared with another."""

NO_GRADIENT = ("no gradient", "backward pass", "not differentiable")
"""What reasons of failed cells say where the gradient does not pass the defense."""

AT_ZERO = 1.0
"""Percent right that count as none at an eps where anything can be shown."""


def _mean(cells: list[Cell]) -> float:
    return 100 * float(hardest(cells).mean())


def _won(evidence: Evidence, base: list[Cell], more: list[Cell]) -> NDArray[np.float64]:
    """Of each image, what further attacks win, `[n]`: how much lower its share of right draws is.

    Of a deterministic defense nothing is lost by more attacks. Of a random one, attacks are compared as they are.
    """
    won: NDArray[np.float64] = hardest(base) - hardest(more if evidence.random else [*base, *more])
    return won


def _severity(evidence: Evidence, won: NDArray[np.float64]) -> Status:
    """What it means that other attacks win `won` `[n]`.

    Of a deterministic defense, one image may be an accident. Of a random one, the draws must not explain it.
    """
    if not evidence.random:
        return FAIL if won.sum() > 1.5 else WARN
    return FAIL if _lasts(won) else WARN if 100 * won.mean() > LUCK else PASS


def _lasts(won: NDArray[np.float64]) -> bool:
    """Whether the images do not explain that a mean is above 0."""
    low, _ = stats.mean_interval(won, -1)
    return bool(low > 0)


def _none_right(evidence: Evidence) -> bool:
    """Whether there is nothing to attack."""
    clean = evidence.clean()
    return clean is not None and clean.accuracy <= AT_ZERO


def _points(value: float) -> str:
    return f"{value:.1f} point{'s' if abs(round(value, 1)) != 1 else ''}"


def _more(gap: float) -> str:
    return f"{_points(abs(gap))} {'more' if gap >= 0 else 'less'}"


def undefended(evidence: Evidence) -> Finding:
    """C1: the rows without the defense, and that the defense is no worse."""
    title = "against no defense"
    ours, none = (evidence.attacked(TRANSFER, defense=each) for each in (evidence.subject.defense, UNDEFENDED))
    clean = evidence.clean(UNDEFENDED)
    if not (ours and none and clean):
        return missing("C1", title, "the undefended rows were not measured")
    a, b = hardest(ours), hardest(none)
    gain = 100 * float((a - b).mean())
    said = f"transfer attacks leave {_mean(ours):.1f} % right with the defense, {_mean(none):.1f} % without"
    low, high = stats.mean_interval(a - b, -1) if len(a) >= FEW else (-1.0, 1.0)
    if evidence.subject.defense == UNDEFENDED:
        return missing("C1", title, f"{said}; the subject is no defense")
    if high < 0:
        return Finding(
            "C1", title, FAIL, said, f"the defense costs {_points(-gain)}", "do not use it against such attacks"
        )
    if low <= 0:
        meaning = "on these images the defense is not shown to be better than nothing"
        return Finding("C1", title, WARN, said, meaning, "use more images, or a smaller eps")
    return Finding("C1", title, PASS, said)


def attacks_ran(evidence: Evidence) -> Finding:
    """C4.a: all attacks run: those through the defense have a gradient, and none of another tier is lost."""
    title = "attacks run"
    failed = sorted(evidence.failed, key=lambda cell: cell.part in (TRANSFER, BLIND, GREY_BOX, NOISE))
    ours = [cell for cell in failed if cell.defense in (evidence.subject.defense, evidence.subject.fixed)]
    if failed and not ours:
        said = (
            f"{counted(len(failed), 'row')} without the defense {'has' if len(failed) == 1 else 'have'} no number; "
            f"{failed[0].where}: {failed[0].reason}"
        )
        return Finding("C4.a", title, WARN, said, "the defense is compared with less", "repair it")
    if failed:
        first, count = ours[0], f"{len(failed)} of {len(evidence.cells)} cells have no number"
        said = f"{count}; {first.where}: {first.reason}"
        return Finding("C4.a", title, FAIL, said, *_of_failures(ours))
    if not evidence.attacked(WHITE_BOX):
        return missing("C4.a", title, "no white-box attack was run")
    return Finding("C4.a", title, PASS, f"all {len(evidence.cells)} cells have a number")


def _of_failures(ours: list[Cell]) -> tuple[str, str]:
    """What it means that attacks on the defense have no number, and what to do."""
    reasons = [cell.reason for cell in ours]
    if any(text in reason for reason in reasons for text in NO_GRADIENT):
        advice = "give the defense a backward pass: backward = 'identity' or a stand_in"
        return "the gradient does not pass the defense", advice
    if any("NaN" in reason for reason in reasons):
        return "the gradient through the defense is no number", "look for a root, a logarithm or a division at 0"
    if not any(cell.part in parts for cell in ours for parts in PARTS.values()):
        return "a check has less to go by; the tiers are whole", "repair it"
    return "the number of a tier may be too high", "repair it"


def gradient_free(evidence: Evidence) -> Finding:
    """C3.e: an attack without gradients is no better than those with them."""
    title = "gradients beat no gradients"
    white, black = evidence.attacked(*THROUGH), evidence.attacked(BLACK_BOX)
    if not (white and black):
        return missing("C3.e", title, "needs a white-box and a gradient-free attack")
    if _none_right(evidence):
        return missing("C3.e", title, NONE_RIGHT)
    won = _won(evidence, white, black)
    gap = 100 * float(won.mean())
    said = f"the gradient-free attack breaks {_more(gap)} than all with gradients"
    status = _severity(evidence, won) if gap > SQUARE else PASS
    if status != PASS:
        meaning = "the gradient through the defense is masked"
        return Finding("C3.e", title, status, said, meaning, "attack with a stand-in gradient or more draws (EOT)")
    return Finding("C3.e", title, PASS, said)


def converged(evidence: Evidence) -> Finding:
    """C6: doubled steps, EOT and restarts win nothing."""
    title = "steps, EOT and restarts suffice"
    base = evidence.find(
        part=WHITE_BOX, attack=evidence.subject.settings.gradient[-1], defense=evidence.subject.defense
    )
    more = evidence.attacked(DOUBLED)
    if not (base and more):
        lacking = "attack that it is compared with" if more else "attack with doubled steps"
        return missing("C6", title, f"the {lacking} has no number")
    if _none_right(evidence):
        return missing("C6", title, NONE_RIGHT)
    won = _won(evidence, base, more)
    gap = 100 * float(won.mean())
    doubled = "twice the steps and draws, and restarts," if evidence.random else "twice the steps, and restarts,"
    said = f"{doubled} break {_more(gap)}"
    # Each on its own: the worst of several would hide it.
    weakest = max(more, key=lambda cell: cell.accuracy)
    if (lost := weakest.accuracy - _mean(base)) > LUCK:
        status = FAIL if _lasts(hardest([weakest]) - hardest(base)) else WARN
        meaning = "an attack that grows weaker with more steps or draws is broken: its gradient misleads"
        said = f"{weakest.attack} leaves {_points(lost)} more right than {base[0].attack}"
        return Finding("C6", title, status, said, meaning, "look at the gradient: C3, C5 and C11")
    status = PASS if gap < POINT else _severity(evidence, won)
    if status == PASS:
        return Finding("C6", title, PASS, said)
    meaning = "the attack has not converged: the white-box number is too high"
    return Finding("C6", title, status, said, meaning, "use --budget full, or attacks with more steps and draws")


def stand_in(evidence: Evidence) -> Finding:
    """C5.b: an attack through a closer stand-in of what has no gradient is no stronger."""
    title = "a closer stand-in breaks no more"
    attack, ours = evidence.subject.settings.gradient[-1], evidence.subject.defense
    base = evidence.find(part=WHITE_BOX, attack=attack, defense=ours)
    near = evidence.find(part=STAND_IN, attack=attack, defense=ours)
    if not near:
        return missing("C5.b", title, "no stand-in is known that is closer than the gradient in use, or it was not run")
    if not base:
        return missing("C5.b", title, "the attack through the usual stand-in was not run")
    gap = 100 * float(_won(evidence, base, near).mean())
    said = (
        f"{attack} through the usual stand-in leaves {_mean(base):.1f} % right, through the closer one "
        f"{_mean(near):.1f} %; the white-box tier takes the worst of both"
    )
    if gap > LUCK:
        meaning = "numbers that were measured through the usual stand-in alone are too high"
        return Finding("C5.b", title, WARN, said, meaning, f"attack {ours} with smooth(...) as a source, too")
    return Finding("C5.b", title, PASS, said)


def one_draw(evidence: Evidence) -> Finding:
    """C6.b: what an attack with one draw per gradient would have claimed."""
    title = "an attack with one draw per gradient agrees"
    if not evidence.random:
        return missing("C6.b", title, "the defense is deterministic")
    attack = evidence.subject.settings.gradient[-1]
    one = evidence.find(part=ONE_DRAW, attack=attack)
    more = evidence.find(part=WHITE_BOX, attack=attack, defense=evidence.subject.defense)
    if not (one and more):
        return missing("C6.b", title, "it was not run")
    gap = _mean(one) - _mean(more)
    said = f"one draw leaves {_mean(one):.1f} % right, {evidence.subject.settings.eot} draws {_mean(more):.1f} %"
    if gap > LUCK:
        status = FAIL if _lasts(hardest(one) - hardest(more)) else WARN
        meaning = "the defense resists only attacks that do not average over its noise"
        advice = "report no number of it that was measured without EOT"
        return Finding("C6.b", title, status, said, meaning, advice)
    return Finding("C6.b", title, PASS, said)


def order_of_attackers(evidence: Evidence) -> Finding:
    """C8.a: who knows more breaks more."""
    title = "white-box is no weaker than transfer"
    white, transfer = evidence.attacked(*THROUGH), evidence.attacked(TRANSFER, BLIND, GREY_BOX)
    if not (white and transfer):
        return missing("C8.a", title, "needs a white-box and a transfer attack")
    if _none_right(evidence):
        return missing("C8.a", title, NONE_RIGHT)
    won = _won(evidence, white, transfer)
    said = (
        f"white-box attacks leave {_mean(white):.1f} % right, transfer, blind and grey-box attacks "
        f"{_mean(transfer):.1f} %"
    )
    if not evidence.random and won.any():
        said += f", both together {_mean([*white, *transfer]):.1f} %"
    status = _severity(evidence, won) if 100 * won.mean() > POINT else PASS
    if status != PASS:
        broken = _mean(transfer) < _mean(white)
        meaning = "the white-box attack is broken" if broken else "the white-box attack misses images that others break"
        return Finding("C8.a", title, status, said, meaning, "look at the gradient: C3 and C5")
    return Finding("C8.a", title, PASS, said)


def sweep(evidence: Evidence) -> Finding:
    """C8.b: accuracy falls with eps and reaches 0."""
    title = "accuracy falls with eps and reaches 0"
    attack = evidence.subject.settings.gradient[-1]
    cells = evidence.find(attack=attack, defense=evidence.subject.defense)
    cells = [cell for cell in cells if cell.part in (WHITE_BOX, STAND_IN, EPS)]
    levels = sorted({cell.eps for cell in cells})
    if not levels or (len(levels) < 2 and levels[0] < LARGE):
        return missing("C8.b", title, "needs two eps")
    by_eps = {eps: _mean([cell for cell in cells if cell.eps == eps]) for eps in levels}
    said = ", ".join(f"{by_eps[eps]:.1f} % at {show_level(eps)}" for eps in levels)
    least = min(by_eps.values())
    if _none_right(evidence):
        return missing("C8.b", title, NONE_RIGHT)
    if levels[-1] < LARGE:
        return missing("C8.b", title, f"needs an eps of at least {LARGE:g}; {said}")
    if by_eps[levels[-1]] > AT_ZERO and _constant(evidence):
        meaning = f"the defense is constant around these images ({CONSTANT}), and may be so at this eps"
        return Finding("C8.b", title, WARN, said, meaning, "test on images with more than two levels")
    if by_eps[levels[-1]] > AT_ZERO:
        meaning = "images remain right where the attacker may show anything: the attack does not work"
        return Finding("C8.b", title, FAIL, said, meaning, "look at the gradient, or for a leak of the label")
    rises = [b for a, b in pairwise(levels) if by_eps[b] > by_eps[a] + 5]
    if rises:
        return Finding("C8.b", title, WARN, said, f"accuracy rises at eps {rises[0]:g}", "use more steps")
    return Finding("C8.b", title, PASS, said + (f"; least {least:.1f} %" if least else ""))


def noise_control(evidence: Evidence) -> Finding:
    """C8.c: the attacks are better than random signs."""
    title = "attacks beat random signs"
    noise, white = evidence.attacked(NOISE), evidence.attacked(*THROUGH)
    if not (noise and white):
        return missing("C8.c", title, "needs the random signs and a white-box attack")
    if _none_right(evidence):
        return missing("C8.c", title, NONE_RIGHT)
    said = f"random signs leave {_mean(noise):.1f} % right, white-box attacks {_mean(white):.1f} %"
    if _mean(white) < _mean(noise) or _mean(white) <= AT_ZERO:
        return Finding("C8.c", title, PASS, said)
    if sweep(evidence).status == PASS and _severity(evidence, hardest(white) - hardest(noise)) != FAIL:
        return missing("C8.c", title, f"{said}: equal, within chance, at this eps; a larger one breaks all (C8.b)")
    if _constant(evidence):
        return missing("C8.c", title, f"{said}: {CONSTANT}")
    return Finding("C8.c", title, FAIL, said, "the attack is no better than noise", "look at the gradient")


CONSTANT = "noise of 8/255 moves no purified test image"


def _constant(evidence: Evidence) -> bool:
    """Whether the defense gives back the same for all images nearby, and is no stored answer (C13.b)."""
    probe = evidence.probes.get("elsewhere", {})
    return not probe.get("ratios", True) and probe.get("strangers", 0) > 0


def random_defense(evidence: Evidence) -> Finding:
    """C9: what of a random defense is luck."""
    title = "randomness"
    if not evidence.random:
        return missing("C9", title, "the defense is deterministic")
    found = {tier.name: tier for tier in tiers(evidence)}
    if "clean" not in found or "white-box" not in found:
        return missing("C9", title, "needs clean images and a white-box attack")
    clean, white, fixed = found["clean"], found["white-box"], found.get("fixed")
    draws = evidence.subject.settings.draws
    said = (
        f"of {draws} draws under attack {white.accuracy:.1f} % right on average, {white.worst:.1f} % always, "
        f"{white.vote:.1f} % by vote; clean {clean.accuracy:.1f} %, {clean.worst:.1f} % always"
    )
    if fixed is not None:
        said += f"; noise fixed {fixed.accuracy:.1f} %"
        apart = hardest(cells_of_tier(evidence, "white-box")) - hardest(cells_of_tier(evidence, "fixed"))
        if white.accuracy - fixed.accuracy > LUCK and white.accuracy > 1.5 * fixed.accuracy and _lasts(apart):
            meaning = "most survivors owe it to the noise of one draw: an attacker who repeats the request breaks them"
            return Finding("C9", title, FAIL, said, meaning, "report the number with fixed noise, and the worst of N")
        if fixed.accuracy - white.accuracy > LUCK and _lasts(-apart):
            meaning = (
                "an attacker who knows the noise breaks less than one who does not: the attack on fixed noise is broken"
            )
            return Finding("C9", title, WARN, said, meaning, "look at the gradient of a single draw: C3 and C5")
    if clean.accuracy - clean.worst > LUCK:
        meaning = "the noise alone makes clean images wrong at times; the worst of N counts that as attack"
        return Finding("C9", title, WARN, said, meaning, "compare with clean images under the same N")
    return Finding("C9", title, PASS, said)


def all_tiers(evidence: Evidence) -> Finding:
    """C10: an attacker of every kind was tried."""
    title = "every tier was measured"
    there = {tier.name: tier for tier in tiers(evidence)}
    wanted = [
        "clean",
        "transfer",
        "blind",
        "grey-box",
        "white-box",
        "black-box",
        *(["fixed"] if evidence.random else []),
    ]
    if plain(evidence.subject.defense) == UNDEFENDED:
        wanted.remove("blind")
    lacking = [name for name in wanted if name not in there]
    partly = [f"{len(tier.failed)} attacks of {tier.name}" for tier in there.values() if tier.failed]
    if partly and not lacking:
        said = f"without a number: {', '.join(partly)}"
        return Finding(
            "C10", title, WARN, said, "a tier is the worst of fewer attacks", "see the reasons of failed cells"
        )
    if lacking:
        meaning = "the number of the worst tier may be too high"
        return Finding("C10", title, FAIL, f"missing: {', '.join(lacking)}", meaning, "see the reasons of failed cells")
    return Finding("C10", title, PASS, ", ".join(wanted))


def statistics(evidence: Evidence) -> Finding:
    """C12: enough images."""
    title = "enough images"
    found = [tier for tier in tiers(evidence) if tier.name != "clean"]
    if not found:
        return missing("C12", title, "nothing was measured")
    arms = {tier.name: (tier.accuracy - tier.low, tier.high - tier.accuracy) for tier in found}
    name, (below, above) = max(arms.items(), key=lambda each: max(each[1]))
    said = f"{counted(found[0].n, 'image')}: the longest interval is {name}'s, "
    said += f"{below:.1f} points below and {above:.1f} above"
    if max(below, above) > 10:
        return Finding("C12", title, WARN, said, "differences of less are chance", "use more images (--limit)")
    return Finding("C12", title, PASS, said)


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    undefended, gradient_free, attacks_ran, stand_in, converged, one_draw, order_of_attackers, sweep, noise_control,
    random_defense, all_tiers, statistics,
)  # fmt: skip
