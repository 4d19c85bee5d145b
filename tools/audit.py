"""Find labels that are likely wrong, and images that are nearly the same, among the prepared ones.

    python -m tools.audit best --out data/audit.csv

MODEL is a run by id, by name (DVC's), or as `best`, the best by validation; a model of the registry, repronet@champion,
which stands for its run; or a weights file. It says how probable each class is of the images of validation and test,
which it was not trained on, and cleanlab which of their labels are likely wrong: Northcutt et al., "Confident
Learning", JAIR 2021. Another prepare.seed puts other images there. Images of any split are nearly the same where their
perceptual hashes differ in few bits; of each such image the earlier one that is nearest is named.

A row of the table is a finding: kind (label or same), the image's file (source), split and label; of a label the class
that it seems to be (suggested) and how probable the given one is (score), of two images the other one and its split,
and in how many of 64 bits they differ (bits). Look at them, delete the rows that are wrong, and prepare.exclude leaves
out what remains. To leave out of the test what a model gets wrong flatters it: correct such labels instead.
Needs the extra audit: pip install -c constraints.txt -e '.[audit]'.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import replacing, write_csv
from stages.base.text import say, warn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stages.batches.prepared import Prepared
    from tools.model import Model

UNSEEN = ("valid", "test")
HASH_BITS = 64
ALIKE = 2_000  # images that share part of a hash, beyond which they are not compared: of plain ones there may be many
COLUMNS = ["kind", "source", "split", "label", "suggested", "score", "other", "other_split", "bits"]


def main() -> None:
    parser = cli.parser("tools.audit", __doc__)
    names = "run id, run name, MODEL@ALIAS, a weights file, or best, the default"
    parser.add_argument("model", nargs="?", default="best", metavar="MODEL", help=names)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write, .csv")
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"), help="default data/prepared")
    parser.add_argument("--bits", type=int, default=4, help="in which near images differ at most, default 4")
    arguments = parser.parse_args()
    if not 0 <= arguments.bits < 16:
        parser.error(f"--bits: {arguments.bits}, should be from 0 to 15")
    for name in ("cleanlab", "imagehash"):
        if find_spec(name) is None:
            raise InputError(f"tools.audit needs {name}: pip install -c constraints.txt -e '.[audit]'")

    import pandas as pd

    from stages.base.params import load_params
    from stages.batches.prepared import Prepared
    from tools.model import Model, weights_of

    data = Prepared(arguments.prepared)
    with TemporaryDirectory() as folder:
        weights, called, remark = weights_of(arguments.model, Path(folder))
        model = Model(weights, load_params().train, called)
    if remark:
        say(remark)
    if model.classes != data.classes:
        raise InputError(f"{called} knows the classes {model.classes}, {arguments.prepared} has {data.classes}")
    found = pd.DataFrame([*wrong_labels(model, data), *near_images(data, arguments.bits)], columns=COLUMNS)
    with replacing(arguments.out) as partial:
        write_csv(partial, found)
    n_labels = int((found["kind"] == "label").sum())
    across = int((found["split"] != found["other_split"])[n_labels:].sum())
    unseen = sum(data.sizes[name] for name in UNSEEN)
    say(
        f"{arguments.out}: {n_labels:,} labels of {unseen:,} images of validation and test are likely wrong;"
        f" {len(found) - n_labels:,} images are nearly the same as another, {across:,} of them in another split"
    )


def wrong_labels(model: "Model", data: "Prepared") -> Iterator[dict[str, Any]]:
    """Yield a row for each image of validation and test whose label is likely wrong, the least probable first."""
    import numpy as np
    import torch
    from cleanlab.filter import find_label_issues

    splits = {name: data.split(name, torch.device("cpu")) for name in UNSEEN}
    labels = torch.cat([split.labels for split in splits.values()]).numpy()
    scores = [
        model.scores(split.read(slice(at, at + ALIKE)).numpy())
        for split in splits.values()
        for at in range(0, len(split.labels), ALIKE)
    ]
    shares = model.probabilities(torch.cat(scores)).double().numpy()
    files = [(name, source) for name in UNSEEN for source in data.sources(name)]
    ranked = find_label_issues(labels, shares, return_indices_ranked_by="self_confidence", n_jobs=1)
    for place in np.asarray(ranked).tolist():
        split, source = files[place]
        yield {
            "kind": "label",
            "source": source,
            "split": split,
            "label": data.classes[labels[place]],
            "suggested": data.classes[shares[place].argmax()],
            "score": shares[place, labels[place]],
        }


def near_images(data: "Prepared", bits: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each image that differs from an earlier one in so many bits at most: the nearest of them."""
    import numpy as np
    import torch

    from stages.sources.splits import SPLITS

    splits = {name: data.split(name, torch.device("cpu")) for name in SPLITS}
    files = [(name, source) for name in SPLITS for source in data.sources(name)]
    labels = torch.cat([splits[name].labels for name in SPLITS]).tolist()
    hashes = np.concatenate([hashed(split) for split in splits.values()])
    nearest: dict[int, tuple[int, int]] = {}
    for one, other in candidates(hashes, bits):
        differing = int(hashes[one] ^ hashes[other]).bit_count()
        if differing <= bits:
            nearest[other] = min(nearest.get(other, (HASH_BITS, other)), (differing, one))
    for place, (differing, other) in sorted(nearest.items(), key=lambda item: (item[1][0], item[0])):
        (split, source), (other_split, other_source) = files[place], files[other]
        yield {
            "kind": "same",
            "source": source,
            "split": split,
            "label": data.classes[labels[place]],
            "other": other_source,
            "other_split": other_split,
            "bits": differing,
        }


def hashed(split: Any) -> "npt.NDArray[np.uint64]":
    """Return the perceptual hash of each image of a split, uint64 (n,)."""
    import imagehash
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    found = np.zeros(len(split.rows), np.uint64)
    for place in tqdm(range(len(found)), unit=" images", desc="hashing", disable=None, leave=False):
        pixels = split.read(slice(place, place + 1))[0].numpy()
        image = Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0))
        found[place] = np.packbits(imagehash.phash(image).hash.flatten()).view(">u8")[0]
    return found


def candidates(hashes: "npt.NDArray[np.uint64]", bits: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of places, the earlier first, that may differ in `bits` bits at most; some more than once.

    Of bits + 1 parts of a hash such two have one in common.
    """
    import numpy as np

    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for start, end in pairwise(edges):
        part = (hashes >> np.uint64(start)) & np.uint64((1 << int(end - start)) - 1)
        order = part.argsort(kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(group) > ALIKE:
                warn(
                    f"warning: {len(group):,} images have a part of their hash in common: these are not compared by it"
                )
            else:
                yield from combinations(group.tolist(), 2)


if __name__ == "__main__":
    cli.run(main)
