"""How a trained net is logged as a model of MLflow."""

import re
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch

from stages.base.files import reserve
from stages.batches.prepared import DatasetInfo
from stages.nets.weights import Description


def log_model(
    run_id: str, description: Description, net: torch.nn.Module, data: DatasetInfo, model_id: str | None = None
) -> str:
    """Log the classifier under the name of its run and return its id; or the files of the one with this `model_id`.

    It takes uint8 images, (n, h, w) or (n, 3, h, w), normalises them itself, and gives (n, n_classes). It is exported
    as a graph (pt2) that needs no code of ours and loads with pickle forbidden. Its metadata say what it takes and what
    it gives: the classes in the order of the scores.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    image = data.image_shape
    # Signature and requirements are given, since to infer them MLflow would load the model again in a new process.
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *image))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(data.classes)))]),
    )
    with NamedTemporaryFile() as file:  # where there is no room for the graph, torch would end the process
        reserve(Path(file.name), 2 * sum(tensor.nbytes for tensor in net.state_dict().values()) + (4 << 20))
    name = mlflow.MlflowClient().get_run(run_id).info.run_name or "model"
    # With the run active, MLflow would tie to it once more a model that it has.
    with nullcontext() if model_id else mlflow.start_run(run_id=run_id):
        info = mlflow.pytorch.log_model(
            description.classifier(net).cpu().eval(),
            name=re.sub(r"""[/:.%"']""", "_", name),  # of models MLflow refuses these
            model_id=model_id,
            serialization_format="pt2",
            signature=signature,
            pip_requirements=[f"torch=={version('torch').split('+')[0]}", f"numpy=={version('numpy')}"],
            input_example=np.zeros((2, *image), np.uint8),  # of one image, the batch size would be fixed to 1
            metadata={
                "classes": data.classes,
                "channels": data.channels,
                "image_size": data.image_size,
                "mean": description.mean,
                "std": description.std,
                "transforms": description.transforms,
                "net": description.net,
            },
        )
    return str(info.model_id)
