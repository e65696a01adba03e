"""Checks that read the numbers of probes (`audit/probes.py`)."""

from __future__ import annotations

from collections.abc import Callable

from rdp_bench.audit.evidence import Evidence
from rdp_bench.audit.finding import FAIL, PASS, WARN, Finding, missing

DIFFERENT = 1e-4
"""L2 distance of normalised logits of two calls that counts as random (fra31/auto-attack)."""


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
    """C3.c: no image has a zero gradient."""
    title = "no zero gradients"
    probe = evidence.probes.get("gradient")
    if probe is None:
        return missing("C3.c", title, "it was not measured")
    if probe.get("error"):
        meaning = "the gradient does not pass the defense"
        return Finding("C3.c", title, FAIL, probe["error"], meaning, "give it a stand_in, and attack through bpda")
    said = f"{probe['zero']} of {probe['n']} right images have a zero gradient"
    if probe["zero"]:
        meaning = "an attack along the gradient cannot move these images"
        return Finding("C3.c", title, FAIL, said, meaning, "attack the logits (DLR, margin), or with a stand-in")
    return Finding("C3.c", title, PASS, said)


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


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (deterministic, logits, gradients, direction)
