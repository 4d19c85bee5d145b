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
from itertools import pairwise
from pathlib import Path
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
BLOCK = 2_000  # images that are scored at once
HASH_BITS = 64
ALIKE = 20_000  # hashes with a part in common, beyond which they are not compared: each with each takes minutes
COLUMNS = ["kind", "source", "split", "label", "suggested", "score", "other", "other_split", "other_label", "bits"]


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
    from tools.model import opened

    check_out(arguments.out, Path(load_params().prepare.exclude))
    data, model = Prepared(arguments.prepared), opened(arguments.model)
    if model.classes != data.classes:
        raise InputError(f"{model.called} knows the classes {model.classes}, {arguments.prepared} has {data.classes}")
    check_unseen(model, data)
    near, n_left = near_images(data, arguments.bits)
    found = pd.DataFrame([*wrong_labels(model, data), *near], columns=COLUMNS)
    with replacing(arguments.out) as partial:
        write_csv(partial, found)
    labels, same = (found[found["kind"] == kind] for kind in ("label", "same"))
    across = int((same["split"] != same["other_split"]).sum())
    unseen = sum(data.sizes[name] for name in UNSEEN)
    say(
        f"{arguments.out}: {len(labels):,} labels of {unseen:,} images of validation and test are likely wrong;"
        f" {len(same):,} images are nearly the same as an earlier one, {across:,} of them in another split"
    )
    if n_left:
        warn(
            f"warning: not all images were compared: {n_left:,} times a part of the hash is that of over {ALIKE:,}"
            " images; fewer --bits have longer parts"
        )


def check_out(out: Path, exclude: Path) -> None:
    """Raise InputError if the list that is in force would be replaced by one that lacks what it leaves out."""
    if out.resolve() == exclude.resolve():
        raise InputError(
            f"--out: {str(out)!r} is what prepare.exclude names; write another file, and add its rows to that one"
        )


def check_unseen(model: "Model", data: "Prepared") -> None:
    """Raise InputError if a run was validated or tested on other images: it may have been trained on these.

    Where that cannot be known it is said, and so is a loss that makes no probabilities.
    """
    run = model.run
    if run is None:
        warn(f"warning: nothing says that {model.called} was not trained on images of validation and test")
    elif others := [name for name in UNSEEN if not run.has_images(data, name)]:
        made = ", ".join(
            f"{name}={run.params.get(name)}" for name in ("prepare.source", "prepare.seed", "prepare.exclude")
        )
        raise InputError(
            f"{model.called} has other images in {' and '.join(others)} than {data.folder}, so it may have been trained"
            f" on some of these. Its own were prepared with {made}"
        )
    elif not run.gives_probabilities:
        warn(f"warning: the loss of {model.called} makes no probabilities: what cleanlab says is worth less")


def wrong_labels(model: "Model", data: "Prepared") -> Iterator[dict[str, Any]]:
    """Yield a row for each image of validation and test whose label is likely wrong, the least probable first."""
    import numpy as np
    import torch
    from cleanlab.filter import find_label_issues

    splits = {name: data.split(name, torch.device("cpu")) for name in UNSEEN}
    labels = torch.cat([split.labels for split in splits.values()]).numpy()
    scores = [
        model.scores(split.read(slice(at, at + BLOCK)).numpy())
        for split in splits.values()
        for at in range(0, len(split.labels), BLOCK)
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


def near_images(data: "Prepared", bits: int) -> "tuple[list[dict[str, Any]], int]":
    """Return a row for each image that differs from an earlier one in so many bits at most: the nearest of them.

    Those that prepare would keep of equal ones come first: test, validation, training. Also return how many groups of
    images were too large to be compared.
    """
    import numpy as np
    import torch

    from stages.sources.rejections import KEPT
    from stages.sources.splits import SPLITS

    order = sorted(SPLITS, key=KEPT.__getitem__)
    splits = {name: data.split(name, torch.device("cpu")) for name in order}
    files = [(name, source) for name in order for source in data.sources(name)]
    labels = torch.cat([splits[name].labels for name in order]).tolist()
    hashes = np.concatenate([hashed(split) for split in splits.values()])
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    found = [
        (0, int(place), int(first[which[place]])) for place in np.flatnonzero(first[which] != np.arange(len(which)))
    ]
    own = np.sort(first)
    nearest, n_left = nearest_earlier(hashes[own], bits)
    found += [(differing, int(own[place]), int(own[other])) for place, (differing, other) in nearest.items()]
    return [
        {
            "kind": "same",
            "source": files[place][1],
            "split": files[place][0],
            "label": data.classes[labels[place]],
            "other": files[other][1],
            "other_split": files[other][0],
            "other_label": data.classes[labels[other]],
            "bits": differing,
        }
        for differing, place, other in sorted(found)
    ], n_left


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


def nearest_earlier(hashes: "npt.NDArray[np.uint64]", bits: int) -> tuple[dict[int, tuple[int, int]], int]:
    """Return of each hash with an earlier one within so many bits that one: {place: (bits that differ, its place)}.

    Of bits + 1 parts such two have one in common: hashes that share one are compared, each with each. Also return how
    many of these groups were too large for that.
    """
    import numpy as np

    nearest: dict[int, tuple[int, int]] = {}
    n_left, edges = 0, np.linspace(0, HASH_BITS, bits + 2).astype(int)
    for start, end in pairwise(edges.tolist()):
        part = (hashes >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        order = part.argsort(kind="stable")  # so that places ascend in each group
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(group) > ALIKE:
                n_left += 1
                continue
            for place in range(1, len(group)):
                differing = np.bitwise_count(hashes[group[:place]] ^ hashes[group[place]])
                if (least := int(differing.min())) <= bits:
                    other = int(group[int(differing.argmin())])
                    own = int(group[place])
                    nearest[own] = min(nearest.get(own, (HASH_BITS, own)), (least, other))
    return nearest, n_left


if __name__ == "__main__":
    cli.run(main)
