"""Which images are wrong, from predictions: of one draw of a defense, or of several."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rates = NDArray[Any]  # one number per image: flags or shares

AGGREGATIONS = {"worst": "wrong in any draw", "vote": "wrong by majority"}
"""Other aggregations of several draws of a random defense; each has its own metric: error_worst, error_vote."""


def error_flags(predicted: "NDArray[np.int32]", label: "NDArray[np.int32]", aggregation: str = "") -> "Rates":
    """Errors per image, `[n]`: flags for `predicted` `[n]`, shares of wrong draws for `[n, draws]`.

    With one of the `AGGREGATIONS`, flags: `worst` means wrong in any draw, `vote` wrong by majority (see `majority`).
    """
    if predicted.ndim > 1 and aggregation == "vote":
        predicted = majority(predicted)
    misses: Any = label != predicted.T  # [n], or [draws, n]
    if misses.ndim > 1:
        misses = misses.any(0) if aggregation else misses.mean(0)
    rates: Rates = misses
    return rates


def majority(predicted: "NDArray[np.int32]") -> "NDArray[np.int32]":
    """The majority class of the draws, `[n]` of `[n, draws]`; ties go to the class of the earliest draw.

    >>> import numpy as np
    >>> majority(np.array([[7, 3, 3, 7], [1, 2, 2, 5]])).tolist()
    [7, 2]
    """
    votes = (predicted[:, :, None] == predicted[:, None, :]).sum(2)  # of each draw's class
    return predicted[range(len(predicted)), votes.argmax(1)]
