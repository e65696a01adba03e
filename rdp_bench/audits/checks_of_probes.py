"""Checks that read the numbers of probes (`audit/probes.py`)."""

from __future__ import annotations

from collections.abc import Callable

from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.finding import FAIL, PASS, WARN, Finding, missing

DIFFERENT = 1e-4
"""L2 distance of normalised logits of two calls that counts as random (fra31/auto-attack)."""


HALF_A_POINT = 0.5
"""Points by which a known network may be off."""

UNSTABLE = 0.5
"""Mean relative change of the margin under noise."""

LATE = 0.05
"""Share of the gain that the last steps may make (pralab/IndicatorsOfAttackFailure)."""

FAR_LESS = 0.2
"""Of how far noise moves outputs elsewhere, what is suspicious on the test images."""


UNREPEATABLE = "calls with equal streams differ (C3.a)"


NONE_RIGHT = "none of the images is classified right"


def _repeatable(evidence: Evidence) -> bool:
    """Whether two outputs may be compared at all."""
    return bool(evidence.probes.get("repeat", {}).get("difference", 0) <= DIFFERENT)


def deterministic(evidence: Evidence) -> Finding:
    """C3.a: a defense that says it is deterministic is."""
    title = "deterministic as it says"
    probe = evidence.probes.get("repeat")
    if probe is None:
        return missing("C3.a", title, "it was not measured")
    said = f"normalised logits of {probe['passes']} calls with equal streams differ by up to {probe['difference']:.2g}"
    if probe["difference"] > DIFFERENT:
        meaning = "it draws random numbers that are not its stream's, or keeps state between calls"
        return Finding("C3.a", title, FAIL, said, meaning, "draw from `rng` only, and say random = True")
    return Finding("C3.a", title, PASS, said)


def logits(evidence: Evidence) -> Finding:
    """C3.b: outputs are logits."""
    title = "outputs are logits"
    probe = evidence.probes.get("outputs")
    if probe is None:
        return missing("C3.b", title, "it was not measured")
    said = f"outputs are {probe['low']:.3g} to {probe['high']:.3g}"
    if probe["probabilities"]:
        return Finding("C3.b", title, WARN, said, "they are probabilities: their gradients vanish", "return logits")
    return Finding("C3.b", title, PASS, said)


def gradients(evidence: Evidence) -> Finding:
    """C3.c: the logits of every image have a gradient."""
    title = "no zero gradients"
    probe = evidence.probes.get("gradient")
    if probe is None:
        return missing("C3.c", title, "it was not measured")
    if probe.get("error"):
        return missing("C3.c", title, f"there is no gradient at all: {probe['error']}")
    if not probe["n"]:
        return missing("C3.c", title, NONE_RIGHT)
    said = f"the logits of {probe['zero']} of {probe['n']} right images have a zero gradient"
    if probe["zero"]:
        meaning = "an attack along the gradient cannot move these images"
        return Finding("C3.c", title, FAIL, said, meaning, "attack through a stand-in (bpda), or without gradients")
    return Finding("C3.c", title, PASS, said)


def saturation(evidence: Evidence) -> Finding:
    """C3.d: the cross-entropy has a gradient where the logits have one."""
    title = "the loss does not saturate"
    probe = evidence.probes.get("gradient")
    if probe is None or probe.get("error"):
        return missing("C3.d", title, "it was not measured")
    if not probe["n"]:
        return missing("C3.d", title, NONE_RIGHT)
    said = f"the cross-entropy of {probe['saturated']} of {probe['n']} right images is flat where their logits are not"
    if probe["saturated"]:
        meaning = "the scale of the logits saturates the softmax"
        return Finding(
            "C3.d", title, FAIL, said, meaning, "attack the margin or DLR: apgd-dlr, pgd(loss_function=margin)"
        )
    return Finding("C3.d", title, PASS, said)


def state(evidence: Evidence) -> Finding:
    """C3.f: an output depends on the image alone, not on what was seen before."""
    title = "no memory of earlier images"
    probe = evidence.probes.get("state")
    if probe is None:
        return missing("C3.f", title, "it was not measured")
    if not _repeatable(evidence):
        return missing("C3.f", title, UNREPEATABLE)
    said = f"having seen an image changes the outputs for a similar one by {100 * probe['difference']:.2g} %"
    if probe["difference"] > DIFFERENT:
        meaning = "the defense keeps what it sees, such as the clean image of an adversarial one"
        return Finding("C3.f", title, FAIL, said, meaning, "keep no state between calls")
    return Finding("C3.f", title, PASS, said)


def elsewhere(evidence: Evidence) -> Finding:
    """C13.b: the defense treats the test images as it treats others."""
    title = "test images are like others"
    probe = evidence.probes.get("elsewhere")
    if probe is None or not probe["mirrored"]:
        return missing("C13.b", title, "it was not measured")
    if not _repeatable(evidence):
        return missing("C13.b", title, UNREPEATABLE)
    said = f"noise moves the outputs of the test images {probe['ratio']:.2g} times as far as those of mirrored ones"
    if probe["ratio"] < FAR_LESS:
        meaning = "the defense knows the test images"
        return Finding("C13.b", title, FAIL, said, meaning, "train it on other images, and test it on new ones")
    return Finding("C13.b", title, PASS, said)


def direction(evidence: Evidence) -> Finding:
    """C5: the gradient that attacks use points uphill."""
    title = "the gradient points uphill"
    probe = evidence.probes.get("cosine")
    if probe is None:
        return missing("C5", title, "it was not measured")
    if not _repeatable(evidence):
        return missing("C5", title, UNREPEATABLE)
    said = (
        f"a step of {probe['step']:.2g}/255 along its sign raises the loss on {probe['up']} of {probe['n']} images "
        f"and lowers it on {probe['down']}"
    )
    if probe["down"] > probe["up"]:
        return Finding(
            "C5", title, FAIL, said, "the gradient is wrong, perhaps by a sign", "compare it with finite differences"
        )
    if probe["up"] < 0.75 * probe["n"]:
        meaning = "the gradient says little of the loss nearby"
        return Finding("C5", title, WARN, said, meaning, "use a better stand-in, or more draws (EOT)")
    return Finding("C5", title, PASS, said)


def known_accuracies(evidence: Evidence) -> Finding:
    """C2: the networks are the ones of their cards."""
    title = "networks have their published accuracy"
    probe = evidence.probes.get("models")
    if not probe:
        return missing("C2", title, "no card has an accuracy on these images")
    off = {label: each for label, each in probe.items() if abs(each["measured"] - each["known"]) > HALF_A_POINT}
    said = ", ".join(f"{label} {each['measured']:.1f} % (card {each['known']:.1f} %)" for label, each in probe.items())
    if off:
        meaning = "wrong weights, preprocessing or labels"
        return Finding("C2", title, FAIL, said, meaning, "trust no number made with them")
    return Finding("C2", title, PASS, said)


def stable(evidence: Evidence) -> Finding:
    """C4.b: the loss changes smoothly."""
    title = "the loss is stable"
    probe = evidence.probes.get("stability")
    if probe is None:
        return missing("C4.b", title, "it was not measured")
    said = (
        f"noise of 4/255 moves the margin by {100 * probe['change']:.0f} % of its size (mean of {probe['draws']} draws)"
    )
    if probe["change"] > UNSTABLE:
        meaning = "gradients say little of the loss a step away"
        return Finding("C4.b", title, WARN, said, meaning, "average over more draws, or smooth the loss with noise")
    return Finding("C4.b", title, PASS, said)


def finished(evidence: Evidence) -> Finding:
    """C4.c: attacks end when nothing more is to be gained."""
    title = "attacks end"
    probe = evidence.probes.get("progress")
    if probe is None:
        return missing("C4.c", title, "it was not measured")
    said = f"the last {probe['last']} of {probe['steps']} steps make up to {100 * probe['late']:.0f} % of the gain"
    said += f" on the {probe['n']} traced images that survive"
    if probe["late"] > LATE:
        return Finding("C4.c", title, WARN, said, "more steps would gain more", "look at C6, or use a larger budget")
    return Finding("C4.c", title, PASS, said)


def autoattack(evidence: Evidence) -> Finding:
    """C7: a deterministic defense faced the standard attack."""
    title = "AutoAttack was run"
    if evidence.random:
        return missing("C7", title, "the defense is random")
    if evidence.find(attack="autoattack", defense=evidence.subject.defense):
        return Finding("C7", title, PASS, "the standard version, at the audit's eps")
    return missing("C7", title, "this budget has none; use --budget full for a claim of robustness")


def binarisation(evidence: Evidence) -> Finding:  # noqa: ARG001 - it reads nothing yet
    """C11: the attack finds a planted point."""
    return missing("C11", "the attack passes the binarisation test", "this version has no such probe")


def training_images(evidence: Evidence) -> Finding:  # noqa: ARG001 - it reads nothing yet
    """C13.a: no test image was trained on."""
    what = "weight files hold one hash over all photographs, not one each; see C13.b"
    return missing("C13.a", "test images are not among the training images", what)


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    known_accuracies, deterministic, logits, gradients, saturation, state, stable, finished, direction, autoattack,
    binarisation, training_images, elsewhere,
)  # fmt: skip
