"""What a training really used, and whether its losses are numbers."""

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from stages.base.errors import InputError
from stages.base.params import flattened


def settings_used(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the settings by their dotted names, as JSON but for texts; without those that are None, which say nothing.

    Of what is no JSON, such as a function, it is the type: equal trainings are to give equal texts.
    """
    kept = {name: value for name, value in flattened(parts).items() if value is not None}
    as_json = partial(json.dumps, default=lambda value: type(value).__name__)
    return {name: value if isinstance(value, str) else as_json(value) for name, value in kept.items()}


def check_finite(losses: Sequence[float], step: int, lr: float, new: int = 1) -> None:
    """Raise InputError if one of the last `new` losses is NaN or infinite; the very last is that of `step`."""
    for at in range(len(losses) - new, len(losses)):
        if not math.isfinite(losses[at]):
            before = ", ".join(f"{loss:.4g}" for loss in losses[max(0, at - 5) : at])
            raise InputError(
                f"the loss is {losses[at]} at step {step - (len(losses) - 1 - at)}, with a learning rate of {lr:.4g};"
                f" the losses before it: {before or 'none'}.\nTry a lower train.optimizer.lr."
            )
