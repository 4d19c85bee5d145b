"""What is known of a set of images before any file of the user is decoded."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd


@dataclass(frozen=True)
class Source:
    rows: pd.DataFrame  # one row an image: source, label, split and reason, as stages.folders describes them
    classes: list[str]
    images: npt.NDArray[np.uint8] | None  # (n, h, w), grayscale; None: `source` names the files
