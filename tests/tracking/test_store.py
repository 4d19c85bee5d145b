"""Where the store is, how many open it at once, and the models in it."""

import io
import json
import multiprocessing
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from stages.base.errors import InputError
from stages.batches.prepared import DatasetInfo
from stages.nets.build import initial_net, net_spec
from stages.nets.weights import Description
from stages.tracking.models import log_model
from stages.tracking.store import Store
from tests.conftest import ROOT, Project, free_port, runs, served
from tests.tracking.conftest import only_run, run_stages


def model_uri(store: Path) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    [output] = only_run(store).outputs.model_outputs
    return f"models:/{output.model_id}"


@pytest.mark.parametrize("load", [mlflow.pytorch.load_model, mlflow.pyfunc.load_model])
def test_the_model_gives_evaluate_s_classes_for_any_batch(
    store: Path, digits: Path, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = load(model_uri(store))
    predictions = pd.read_csv(store / "plots/predictions.csv")
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    images = np.load(digits / "images.npy")[predictions["index"]]
    for batch in (images, images[:1], images[:7]):
        scores = model.predict(batch) if hasattr(model, "predict") else model(torch.tensor(batch)).detach().numpy()
        assert [classes[i] for i in scores.argmax(1)] == predictions["predicted"].tolist()[: len(batch)]


def test_the_model_s_file_holds_tensors_and_json_only(store: Path) -> None:
    path = Path(mlflow.artifacts.download_artifacts(model_uri(store))) / "data/model.pt2"
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".json")]
        [sample] = [name for name in names if "sample_inputs" in name]
        torch.load(io.BytesIO(archive.read(sample)), weights_only=True)
    assert not [name for name in names if name.endswith((".pkl", ".py", ".so"))]


@pytest.mark.parametrize(
    ("environment", "uri"),
    [
        ({"DVC_ROOT": "/main"}, "sqlite:////main/mlflow.db"),
        ({}, f"sqlite:///{ROOT}/mlflow.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": ""}, "sqlite:////main/mlflow.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "sqlite:///my/own.db"}, "sqlite:////main/my/own.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "sqlite:////tmp/own.db"}, "sqlite:////tmp/own.db"),
        ({"DVC_ROOT": "/main", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
    ],
)
def test_where_the_store_is(environment: dict[str, str], uri: str) -> None:
    assert Store.from_environment(environment).uri == uri


def test_a_deleted_experiment_names_what_brings_it_back(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's deleted"
    environment = {"DVC_ROOT": str(folder)}
    client = Store.from_environment(environment).client()
    client.delete_experiment("1")
    for opened in (Store.client, Store.exists):
        with pytest.raises(InputError, match=r"'repronet' in sqlite:///.* was deleted; this brings it back") as error:
            opened(Store.from_environment(environment))
    run_stages(digits, folder, environment, {}, only="train")
    [warning] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warning.endswith(str(error.value))
    Project.at(tmp_path)("bash", "-c", str(error.value).split("with its runs: ")[1])
    assert Store.from_environment(environment).search() == []


def test_telemetry_is_off_from_the_first_import(project: Project) -> None:
    program = (
        "from stages.tracking.store import Store; Store.from_environment().client();"
        "from mlflow.telemetry.client import get_telemetry_client; print('client:', get_telemetry_client())"
    )
    assert project("python", "-c", program).splitlines()[-1] == "client: None"


def test_an_environment_at_any_path(project: Project) -> None:
    folder = project.root / "Tom's C# 100%"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    program = (
        "import mlflow; from stages.tracking.store import Store;"
        "stores = [Store.from_environment() for _ in range(2)]; print([store.exists() for store in stores]);"
        "stores[0].client(); print([store.exists() for store in stores]); print(mlflow.__file__)"
    )
    *said, place = project(str(folder / ".venv/bin/python"), "-c", program).splitlines()
    assert Path(place).is_relative_to(folder)
    assert said == ["[False, False]", "[True, True]"]


def train_first(digits: Path, folder: Path, number: int) -> None:
    """Train for the store in `folder`, with what is printed in a file: the work of one of several processes."""
    with (folder / f"{number}.txt").open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    run_stages(digits, folder / str(number), {"DVC_ROOT": str(folder)}, {"train.threads": 1}, only="train")


def test_eight_first_runs_at_once(digits: Path, tmp_path: Path) -> None:
    # torch and MLflow are imported once, before the processes fork; so they meet at the store in the same moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=train_first, args=(digits, tmp_path, i)) for i in range(8)]
    for process in processes:
        process.start()
    for number, process in enumerate(processes):
        process.join(timeout=300)
        output = (tmp_path / f"{number}.txt").read_text()
        assert process.exitcode == 0, output
        assert "warning" not in output
        assert "kept epoch 2" in output
    logged = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert [run.info.status for run in logged] == ["FINISHED"] * 8
    assert len({run.data.metrics["valid/loss"] for run in logged}) == 1
    assert not list(tmp_path.glob(".mlflow.db.partial*"))


def test_a_server(project: Project, digits: Path, tmp_path: Path) -> None:
    port = free_port()
    uri, backend = f"http://127.0.0.1:{port}", f"sqlite:///{project.root}/server.db"
    command = ["mlflow", "server", "--backend-store-uri", backend, "--host", "127.0.0.1", "--port", str(port)]
    with served(project, *command, "--workers", "1", port=port, MLFLOW_DISABLE_TELEMETRY="true"):
        run_stages(digits, tmp_path, {"MLFLOW_TRACKING_URI": uri}, {})
        [run] = runs(uri)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test/accuracy"] > 0.5
        [output] = run.outputs.model_outputs
        mlflow.set_tracking_uri(uri)
        assert mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(np.zeros((3, 8, 8), np.uint8)).shape == (
            3,
            10,
        )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_the_logged_model_gives_the_same_scores(name: str, colours: Path, tmp_path: Path) -> None:
    """In MLflow it is a graph, for any number of images."""
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "repronet")
    run = store.create_run(f"{name}-0.03: it's", {}, None)
    spec = net_spec(name, {}, 3, 3, 32)
    net, data = initial_net(spec, 0), DatasetInfo(colours)
    description = Description(spec, 0, data.classes, data.mean, data.std, [], 1, 0.9, 0.3)
    classifier = description.classifier(net).eval()
    model_id = log_model(run.info.run_id, description, net, data)
    assert store.client().get_logged_model(model_id).name == f"{name}-0_03_ it_s"
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert loaded.metadata.metadata == {
        "channels": 3,
        "classes": ["red", "label", "blue"],
        "image_size": 32,
        "mean": [0.3] * 3,
        "net": spec,
        "std": [0.25] * 3,
        "transforms": [],
    }
    images = np.load(colours / "images.npy")
    for n in (1, 2, 5):
        with torch.no_grad():
            expected = classifier(torch.tensor(images[:n])).numpy()
        np.testing.assert_allclose(loaded.predict(images[:n]), expected, rtol=1e-5, atol=1e-6)
