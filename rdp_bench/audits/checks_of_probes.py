"""Checks that read the numbers of probes (`audit/probes.py`)."""

from __future__ import annotations

from collections.abc import Callable

from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.finding import FAIL, PASS, WARN, Finding, missing

DIFFERENT = 1e-4
"""L2 distance of normalised logits of two calls that counts as random (fra31/auto-attack)."""


FAR_LESS = 0.2
"""Of how far noise moves outputs elsewhere, what is suspicious on the test images."""


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
    if evidence.probes.get("repeat", {}).get("difference", 0) > DIFFERENT:
        return missing("C3.f", title, "calls with equal streams differ (C3.a)")
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


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    deterministic, logits, gradients, saturation, state, direction, elsewhere,
)  # fmt: skip
