"""The rule that picks: the best epoch of a training, the best of several trainings, and when no better one comes."""


def rank(valid_accuracy: float, valid_loss: float) -> tuple[float, float]:
    """Return what the best is the largest of: validation accuracy, and of equal ones the lower validation loss."""
    return valid_accuracy, -valid_loss


def should_stop(epoch: int, best: int, patience: int | None) -> bool:
    """Return whether `patience` epochs have passed since the best one; None: never."""
    return patience is not None and epoch - best >= patience
