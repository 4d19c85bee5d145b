"""Each transform of torchvision has its place, or a reason why it has none."""

import pytest
from torch import nn
from torchvision.transforms import v2

from stages.base.errors import InputError
from stages.batches import transform_table, transforms


def test_every_class_of_torchvision_is_placed() -> None:
    classes = {name for name, value in vars(v2).items() if isinstance(value, type) and issubclass(value, nn.Module)}
    tables = [
        transform_table.FIXED,
        transform_table.RANDOM,
        transform_table.OF_BATCHES,
        transform_table.ALIASES,
        transform_table.REFUSED,
    ]
    placed = [name for table in tables for name in table]
    assert len(placed) == len(set(placed))
    assert set(placed) - classes == {"Rescale"}
    assert classes - set(placed) == set()


@pytest.mark.parametrize("name", transform_table.REFUSED)
def test_what_is_refused_is_so_for_a_reason(name: str) -> None:
    for build in (transforms.evaluation, lambda listed: transforms.training(listed, 2)):
        with pytest.raises(InputError, match=f"{name} is not for this: {transform_table.REFUSED[name]}"):
            build([name])


def test_evaluation_refuses_what_draws() -> None:
    for name in [*transform_table.RANDOM, *transform_table.OF_BATCHES]:
        with pytest.raises(InputError, match=rf"transforms\.eval: {name} draws numbers, and scores would differ"):
            transforms.evaluation([name])
