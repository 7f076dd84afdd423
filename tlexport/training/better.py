"""Which of two fits is better."""

from __future__ import annotations

from tlexport.reports import EpochReport, TrialReport


def badness(val_loss: float, val_accuracy: float) -> float:
    """The share of wrong answers on the validation part, and among equals the loss.

    The loss alone would choose by how sure the answers are: label smoothing and regularisation
    change that, for better or worse, without a label being another. It counts a thousandth at most.
    A loss that is not a number is worse than any.
    """
    if val_loss != val_loss or val_loss == float("inf"):
        return float("inf")
    return (1 - val_accuracy) + 1e-3 * val_loss / (1 + val_loss)


def right(report: EpochReport | TrialReport) -> float:
    """The accuracy that chooses: with class weights, that of weighed examples.

    A rare class would else be given up for one more right answer of a frequent one.
    """
    return report.val_accuracy if report.val_weighed is None else report.val_weighed
