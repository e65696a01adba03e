"""Checks that read the numbers of probes (`audits/probes.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from rdp_bench.audits.evidence import Evidence
from rdp_bench.audits.finding import FAIL, NA, PASS, WARN, Finding, Status, missing
from rdp_bench.audits.parts import STANDARD, WHITE_BOX
from rdp_bench.metrics import stats

DIFFERENT = 1e-4
"""L2 distance of normalised logits of two calls that counts as random (fra31/auto-attack)."""

BATCHED = 0.01
"""The same of an image alone and in a batch: sums in another order differ by less."""

SAME = 1e-7
"""Relative distance of the outputs for two images that counts as none."""

CHANCE = 0.05
"""Probability up to which a count is not explained by tossing a coin."""

HALF_A_POINT = 0.5
"""Points by which a known network may be off."""

UNSTABLE = 0.5
"""Mean relative change of the margin under noise."""

LATE = 0.05
"""Share of the gain that the last steps may make (pralab/IndicatorsOfAttackFailure)."""

ALIKE, UNLIKE = 0.93, 0.85
"""Correlations of predicted and measured changes: below the first the gradient is in doubt, below the second it is
wrong. Half of the pixels without a gradient leave .7 of it (the square root of a half)."""

BY_CHANCE = 6.0
"""Standard deviations up to which a correlation is chance: one in 500 million."""

MARKED, MOST_MARKED = 1.5, 1.2
"""How much further than others a defense may change a test image, and half of them. Built-in defenses: 1.11, 1.01."""

ROUNDED = 0.25
"""Share of values that stay where the image changes by a small step, from which a defense rounds."""

FAR_LESS = 0.2
"""Of how far noise moves outputs elsewhere, what is suspicious on the test images, and on one of them."""

FOUND = 0.95
"""Share of planted points that an attack must find (Zimmermann et al. 2022)."""

EASY = 0.5
"""Share of random points above which finding a planted one shows nothing."""

UNMEASURED = "it was not measured"
UNREPEATABLE = "calls with equal streams differ (C3.a)"
NONE_RIGHT = "none of the images is classified right"

Numbers = Mapping[str, Any]
"""What a probe measured."""

Said = tuple[Status, str] | tuple[Status, str, str, str]
"""Of a finding: its status and evidence, and where something is wrong its meaning and advice."""


def _repeatable(evidence: Evidence) -> bool:
    """Whether two outputs may be compared at all."""
    return bool(evidence.probes.get("repeat", {}).get("difference", 0) <= DIFFERENT)


def of_probe(
    id_: str, title: str, name: str, *, compares: bool = False, without: str = UNMEASURED
) -> Callable[[Callable[[Numbers], Said]], Callable[[Evidence], Finding]]:
    """A check of the numbers of one probe.

    Args:
        id_: of the check.
        title: of the check.
        name: of the probe.
        compares: the probe compares two outputs, which says nothing where equal calls differ.
        without: what is missing where the probe was not run.
    """

    def check(read: Callable[[Numbers], Said]) -> Callable[[Evidence], Finding]:
        @wraps(read)
        def found(evidence: Evidence) -> Finding:
            probe = evidence.probes.get(name)
            if not probe:
                return missing(id_, title, without)
            if compares and not _repeatable(evidence):
                return missing(id_, title, UNREPEATABLE)
            return Finding(id_, title, *read(probe))

        return found

    return check


@of_probe("C3.a", "deterministic as it says", "repeat")
def deterministic(probe: Numbers) -> Said:
    """C3.a: a defense that says it is deterministic is."""
    said = f"normalised logits of {probe['passes']} calls with equal streams differ by up to {probe['difference']:.2g}"
    if probe["difference"] > DIFFERENT:
        meaning = "it draws random numbers that are not its stream's, or keeps state between calls"
        return FAIL, said, meaning, "draw from `rng` only, and say random = True"
    if (streams := probe.get("streams", 0)) > DIFFERENT:
        said += f", and of calls with different streams by {streams:.2g}"
        meaning = "it draws from its stream, and says that it is deterministic: attacks average over no draws (EOT)"
        return FAIL, said, meaning, "say random = True"
    if (alone := probe.get("alone", 0)) > BATCHED:
        said += f"; the outputs of an image that comes alone differ by {alone:.2g} from those in a batch"
        meaning = (
            "an output depends on the other images of the batch, so that attacks and predictions see another defense"
        )
        return FAIL, said, meaning, "treat each image by itself, and draw for each from its own stream"
    if not probe.get("redrawn", True):
        said += "; two draws of one stream are equal, and the defense says that it is random"
        meaning = "every draw of an attack has the same noise, and a prediction has another: EOT has no effect"
        return FAIL, said, meaning, "draw from `rng` itself, or from `rng.spawn(...)`, not from `rng.fork(...)` alone"
    return PASS, said


@of_probe("C3.b", "outputs are logits", "outputs")
def logits(probe: Numbers) -> Said:
    """C3.b: outputs are logits."""
    said = f"outputs are {probe['low']:.3g} to {probe['high']:.3g}"
    if probe["probabilities"]:
        return WARN, said, "they are probabilities: their gradients vanish", "return logits"
    return PASS, said


@of_probe("C3.c", "no zero gradients", "gradient")
def gradients(probe: Numbers) -> Said:
    """C3.c: the logits of every image have a gradient."""
    if probe.get("error"):
        return NA, f"there is no gradient at all: {probe['error']}"
    if not probe["n"]:
        return NA, NONE_RIGHT
    if broken := probe.get("broken", 0):
        said = f"the gradients of {broken} of {probe['n']} right images are NaN or infinite"
        return FAIL, said, "no attack can follow them", "look for a root, a logarithm or a division at 0"
    said = f"the logits of {probe['zero']} of {probe['n']} right images have a zero gradient"
    if probe["zero"]:
        meaning = "an attack along the gradient cannot move these images"
        return FAIL, said, meaning, "attack through a stand-in (bpda), or without gradients"
    return PASS, said


@of_probe("C3.d", "the loss does not saturate", "gradient")
def saturation(probe: Numbers) -> Said:
    """C3.d: the cross-entropy has a gradient where the logits have one."""
    if probe.get("error"):
        return NA, UNMEASURED
    if probe.get("broken"):
        return NA, "gradients are NaN or infinite (C3.c)"
    if not probe["n"]:
        return NA, NONE_RIGHT
    said = f"the cross-entropy of {probe['saturated']} of {probe['n']} right images is flat where their logits are not"
    if probe["saturated"]:
        meaning = "the scale of the logits saturates the softmax"
        return FAIL, said, meaning, "attack the margin or DLR: apgd-dlr, pgd(loss_function=margin)"
    return PASS, said


@of_probe("C3.f", "no memory of earlier images", "state", compares=True)
def state(probe: Numbers) -> Said:
    """C3.f: an output depends on the image alone, not on what was seen before."""
    said = f"having seen an image changes the outputs for a similar one by {100 * probe['difference']:.2g} %"
    same = probe["moved"] <= SAME < probe.get("unrelated", 1)
    if same:
        said = "having seen an image, the defense gives the same output for a similar one"
    imprint = probe.get("imprint", 0)
    if marked := abs(imprint) > BY_CHANCE:
        said += f"; what it gives back for it contains the noise of the first ({imprint:.1f} standard deviations)"
    if changed := (again := probe.get("again", 0)) > DIFFERENT:
        said += f"; the outputs for an image that comes a second time differ by {100 * again:.2g} %"
    if same or marked or changed or probe["difference"] > DIFFERENT:
        meaning = "the defense keeps what it sees, such as the clean image of an adversarial one"
        return FAIL, said, meaning, "keep no state between calls"
    return PASS, said


@of_probe("C13.b", "test images are like others", "elsewhere", compares=True)
def elsewhere(probe: Numbers) -> Said:
    """C13.b: the defense treats the test images as it treats others."""
    ratios = probe["ratios"]
    if not ratios and probe.get("strangers", 0) > 0:
        return (
            NA,
            "noise of 8/255 moves neither the purified test images nor others of their pixels, and it moves noise",
        )
    if not ratios:
        said = "noise moves no image that the defense gives back: neither the test images nor others made of them"
        meaning = "it gives back what it has stored, or nothing of the image: no attack can be judged"
        return FAIL, said, meaning, "look at what it gives back for noise"
    least = min(ratios, key=lambda kind: float(ratios[kind]))
    said = f"noise moves the purified test images {ratios[least]:.2g} times as far as the same images {least}"
    meaning, advice = "the defense knows the test images", "train it on other images, and test it on new ones"
    if ratios[least] < FAR_LESS:
        return FAIL, said, meaning, advice
    if stored := probe.get("stored", 0):
        said += f"; {stored} of {probe['n']} move less than a fifth as far as others made of them"
        return FAIL, said, meaning, advice
    changes = probe.get("changes", [1.0])
    middle = changes[len(changes) // 2]
    if changes[0] > MARKED or middle > MOST_MARKED:
        said += (
            f"; it changes a test image up to {changes[0]:.2g} times as far as others made of it (half: {middle:.2g})"
        )
        return FAIL, said, meaning, advice
    return PASS, said


@of_probe("C5", "the gradient points uphill", "cosine", compares=True)
def direction(probe: Numbers) -> Said:
    """C5: the gradient that attacks use points uphill."""
    said = (
        f"a step of {probe['step']:.2g}/255 along its sign raises the loss on {probe['up']} of {probe['n']} images "
        f"and lowers it on {probe['down']}"
    )
    if stats.binomial_tail(probe["down"], probe["up"] + probe["down"], 0.5) <= CHANCE:
        return FAIL, said, "the gradient is wrong, perhaps by a sign", "compare it with finite differences"
    if probe["up"] < 0.75 * probe["n"]:
        meaning = "the gradient says little of the loss nearby"
        return WARN, said, meaning, "use a better stand-in, or more draws (EOT)"
    return PASS, said


@of_probe("C5.c", "the gradient predicts the loss", "slopes", compares=True, without="the gradient is a stand-in's")
def slopes(probe: Numbers) -> Said:
    """C5.c: in random directions, the loss changes as the gradient says; one that lacks parts explains less."""
    if probe["correlation"] is None:
        return NA, "neither the gradient nor the margin changes along random signs"
    said = (
        f"along {probe['n']} random signs of {probe['step']:.2g}/255, the changes of the margin that the gradient "
        f"predicts and those that are measured have a correlation of {probe['correlation']:.2f}"
    )
    if probe["correlation"] < ALIKE and (rounds := probe.get("rounds", 0)) > ROUNDED:
        said += f"; {100 * rounds:.0f} % of what the defense gives back stays as it is along such a step"
        meaning = "the defense rounds its output, which hides how the loss changes within a step"
        return WARN, said, meaning, "compare with SPSA, or audit it in float32"
    if probe["correlation"] < UNLIKE:
        meaning = "parts of the gradient are missing or wrong: white-box attacks are weaker than they could be"
        return FAIL, said, meaning, "look for detached parts, and read the blind and black-box tiers"
    if probe["correlation"] < ALIKE:
        return WARN, said, "the gradient leaves something out, or the loss bends within a step", "compare with SPSA"
    return PASS, said


@of_probe("C2", "networks have their published accuracy", "models", without="no card has an accuracy on these images")
def known_accuracies(probe: Numbers) -> Said:
    """C2: the networks are the ones of their cards."""
    off = {label: each for label, each in probe.items() if abs(each["measured"] - each["known"]) > HALF_A_POINT}
    said = ", ".join(f"{label} {each['measured']:.1f} % (card {each['known']:.1f} %)" for label, each in probe.items())
    if off:
        meaning = "wrong weights, preprocessing or labels"
        return FAIL, said, meaning, "report no number that was made with them"
    return PASS, said


@of_probe("C4.b", "the loss is stable", "stability")
def stable(probe: Numbers) -> Said:
    """C4.b: the loss changes smoothly."""
    said = (
        f"noise of 4/255 moves the margin by {100 * probe['change']:.0f} % of its size (mean of {probe['draws']} draws)"
    )
    if probe["change"] > UNSTABLE:
        meaning = "gradients say little of the loss a step away"
        return WARN, said, meaning, "average over more draws, or smooth the loss with noise"
    return PASS, said


@of_probe("C4.c", "attacks end", "progress")
def finished(probe: Numbers) -> Said:
    """C4.c: attacks end when nothing more is to be gained."""
    if not probe["n"]:
        return NA, "no traced image survives the attack"
    said = f"the last {probe['last']} of {probe['steps']} steps make up to {100 * probe['late']:.0f} % of the gain"
    said += f" on the {probe['n']} traced images that survive"
    if probe["late"] > LATE:
        return WARN, said, "more steps would gain more", "look at C6, or use a larger budget"
    return PASS, said


def autoattack(evidence: Evidence) -> Finding:
    """C7: the defense faced the standard attack, a random one its version for random defenses."""
    title = "AutoAttack was run"
    version = "version for random defenses" if evidence.random else "standard version"
    ours = [
        cell
        for cell in evidence.cells
        if cell.part == WHITE_BOX and cell.attack in STANDARD and cell.defense == evidence.subject.defense
    ]
    if lost := [cell for cell in ours if cell.right is None]:
        meaning = "the attack that others compare with is missing"
        return Finding(
            "C7", title, WARN, f"it has no number: {lost[0].reason}", meaning, "see the reasons of failed cells"
        )
    if ours:
        return Finding("C7", title, PASS, f"the {version}, at the audit's eps")
    return missing("C7", title, "this budget has none; use --budget full for a claim of robustness")


@of_probe("C11", "the attack finds a planted image", "planted", compares=True)
def binarisation(probe: Numbers) -> Said:
    """C11: the attack passes the binarisation test."""
    if probe.get("reason"):
        return NA, probe["reason"]
    n, found, searched = probe["n"], probe["found"], probe["random"]
    low, high = stats.wilson(found, n)
    said = (
        f"APGD finds {found} of {n} adversarial images that exist by construction (95 % interval {100 * low:.0f} to "
        f"{100 * high:.0f} %); {100 * searched:.0f} % of random points are such"
    )
    if probe["fixed"]:
        said += f"; on {probe['fixed']} with the noise of the defense fixed"
    meaning, advice = "the attack is too weak, whatever the defense is", "look at the gradient (C3, C5), or add steps"
    if searched >= FOUND or (found / n >= FOUND and searched > EASY):
        return NA, f"{said}: the construction is too easy to tell anything"
    if high < FOUND or found / n <= searched:
        return FAIL, said, meaning, advice
    if found / n < FOUND:
        return WARN, said, "the attack may be too weak, whatever the defense is", "use more images, or add steps"
    return PASS, said


@of_probe(
    "C13.a", "test images were not trained on", "photographs", without="neither the defense nor its target has weights "
    "that this package trained"
)  # fmt: skip
def training_images(probe: Numbers) -> Said:
    """C13.a: no test image was trained on."""
    listed = [each for each in probe["files"] if "ids" in each]
    unknown = [f"{each['name']}: {each['reason']}" for each in probe["files"] if "ids" not in each]
    said = "; ".join(
        [f"{len(each['ids'])} of {probe['images']} images are among the {each['n']} photographs of {each['name']}"
         for each in listed] + unknown
    )  # fmt: skip
    if ids := list(dict.fromkeys(id_ for each in listed for id_ in each["ids"])):
        shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        return FAIL, f"{said} ({shown})", "it was trained on test images", "test on other images, or train without them"
    if not listed:
        return NA, said
    if doubts := [f"of {each['name']}: {each['but']}" for each in listed if each["but"]]:
        meaning = f"the list may not be complete; {'; '.join(doubts)}"
        return WARN, said, meaning, "train from the beginning with this version, which writes the list into the file"
    if unknown:
        return WARN, said, "nothing is known of the others", "ask their authors"
    return PASS, said


CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    known_accuracies, deterministic, logits, gradients, saturation, state, stable, finished, direction, slopes,
    autoattack, binarisation, training_images, elsewhere,
)  # fmt: skip
