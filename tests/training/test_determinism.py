"""What makes equal inputs give equal bits, and what is said of what cannot."""

import pytest
import torch

from stages.base.errors import InputError
from stages.training import determinism


def test_operations_that_cannot_repeat_their_bits_are_refused() -> None:
    determinism.set_up("cpu", 1, "portable")
    message = r"a net cannot be trained with equal bits on this device; train\.device: cpu"
    with pytest.raises(InputError, match=message), determinism.required("a net"):
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), determinism.required("a net"):
        raise RuntimeError("another")


def test_float32_is_not_rounded_on_the_way() -> None:
    determinism.set_up("cpu", 1, "portable")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
