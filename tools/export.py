"""Write a model for other programs: as ONNX, or as torch's own exported graph.

    python -m tools.export best --onnx scores/model.onnx
    python -m tools.export seed-1 --pt2 scores/model.pt2

MODEL is a run by id, by name (DVC's), or as `best`, the best by validation; a model of the registry, repronet@champion,
which stands for its run; or a weights file. Either file takes uint8 images as they are prepared, (n, height, width) or
(n, 3, height, width), and gives scores, float32 (n, classes); classes and sizes are in its metadata. Its scores are
compared with the model's, by onnxruntime for ONNX, before it is written. ONNX needs the extra onnx: pip install -e
'.[onnx]'.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.base import cli
from stages.base.errors import InputError
from stages.base.files import replacing
from stages.base.text import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.nets.weights import Description

CLOSE = 1e-4  # of the largest score, by how much one may differ: deep nets sum in another order elsewhere
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def main() -> None:
    parser = cli.parser("tools.export", __doc__)
    names = "run id, run name, MODEL@ALIAS, a weights file, or best, the default"
    parser.add_argument("model", nargs="?", default="best", metavar="MODEL", help=names)
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write ONNX")
    parser.add_argument("--pt2", type=Path, metavar="FILE", help="write torch's exported program")
    arguments = parser.parse_args()
    if not (arguments.onnx or arguments.pt2):
        parser.error("name a file to write: --onnx FILE or --pt2 FILE")
    if arguments.onnx and (missing := [name for name in NEEDED if find_spec(name) is None]):
        raise InputError(f"--onnx needs {missing[0]}: pip install -c constraints.txt -e '.[onnx]'")

    from stages.nets.weights import load_weights
    from tools.model import weights_of

    with TemporaryDirectory() as folder:
        found = weights_of(arguments.model, Path(folder))
        net, description = load_weights(found.file)
    if found.remark:
        say(found.remark)
    classifier = description.classifier(net).eval()
    for file, write in ((arguments.onnx, write_onnx), (arguments.pt2, write_pt2)):
        if file:
            difference = write(file, classifier, description)
            say(f"{file}: {found.called}; its scores differ from the model's by {difference:.1g} at most")


def write_onnx(file: Path, classifier: "nn.Module", description: "Description") -> float:
    """Write the classifier as ONNX. Return the largest difference of scores that onnxruntime gives.

    Raises InputError, and writes nothing, if that is too large.
    """
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    with replacing(file) as partial:
        images = example(description)
        program = torch.onnx.export(
            classifier,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            input_names=["images"],
            output_names=["scores"],
            verbose=False,
        )
        assert program is not None
        program.save(str(partial), external_data=False)
        model = onnx.load(str(partial))
        for name, value in metadata(description).items():
            model.metadata_props.add(key=name, value=value)
        onnx.save(model, str(partial))
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        given = images[torch.arange(5) % 2]  # another number of them
        [scores] = session.run(None, {"images": given.numpy()})
        return compared(file, torch.from_numpy(np.asarray(scores)), classifier, given)


def write_pt2(file: Path, classifier: "nn.Module", description: "Description") -> float:
    """Write the classifier as torch's exported program. Return the largest difference of scores."""
    import torch

    images = example(description)
    program = torch.export.export(classifier, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))
    given = images[torch.arange(5) % 2]
    difference = compared(file, program.module()(given), classifier, given)
    with replacing(file) as partial, partial.open("wb") as opened:
        torch.export.save(program, opened, extra_files=metadata(description))
    return difference


def example(description: "Description") -> "Tensor":
    """Return two images as they are prepared, of noise: uint8 (2, h, w) or (2, 3, h, w)."""
    import torch

    of_net = {"size": description.net["image_size"], "channels": description.net["channels"]}
    if not description.decoding and description.transforms:
        raise InputError("these weights, of code of another time, do not say of which size images are; train it again")
    sizes: dict[str, Any] = description.decoding or of_net
    shape = (sizes["size"], sizes["size"]) if sizes["channels"] == 1 else (3, sizes["size"], sizes["size"])
    return torch.randint(256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def metadata(description: "Description") -> dict[str, str]:
    """Return what the file says of itself: JSON by name."""
    return {
        "classes": json.dumps(description.classes, ensure_ascii=False),
        "decoding": json.dumps(description.decoding),
        "temperature": json.dumps((description.is_calibrated and description.temperature) or 1.0),
    }


def compared(file: Path, scores: "Tensor", classifier: "nn.Module", images: "Tensor") -> float:
    """Return the largest difference between scores and the classifier's. Raises InputError if they are not close."""
    import torch

    with torch.no_grad():
        expected = classifier(images)
    difference = float((scores.detach() - expected).abs().max())
    if not difference <= CLOSE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"{file}: not written, since its scores would differ by {difference:.1g} from the model's."
            " Where train.transforms.eval resizes images, prepare.image_size does it instead."
        )
    return difference


if __name__ == "__main__":
    cli.run(main)
