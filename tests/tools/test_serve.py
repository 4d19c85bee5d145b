"""The model over HTTP, from MLflow's own server: the same classes as evaluate wrote down."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd

from tests.conftest import Project, free_port, served


def test_images_as_json_give_evaluate_s_classes(compared: Project, digits: Path) -> None:
    port = free_port()
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    predictions = pd.read_csv(compared.root / "seed-1/plots/predictions.csv")
    images = np.load(digits / "images.npy")[predictions["index"]]
    with served(compared, "python", "-m", "tools.serve", "seed-1", "--port", str(port), port=port) as server:
        for batch in (images, images[:1]):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                data=json.dumps({"inputs": batch.tolist()}).encode(),
                headers={"Content-Type": "application/json"},
            )
            scores = np.array(json.loads(urllib.request.urlopen(request, timeout=60).read())["predictions"])
            assert [classes[i] for i in scores.argmax(1)] == predictions["predicted"].tolist()[: len(batch)]
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening

        busy = compared("python", "-m", "tools.serve", "--port", str(port), fails=True)
        assert f"error: port {port} of 127.0.0.1 is taken" in busy
    assert server.returncode is not None


def test_what_there_is_not(compared: Project) -> None:
    output = compared("python", "-m", "tools.serve", "none", "--port", str(free_port()), fails=True)
    assert "error: no evaluated run is called 'none'" in output
    output = compared("python", "-m", "tools.serve", "digits@nobody", "--port", str(free_port()), fails=True)
    assert "has no model digits@nobody" in output
    assert "Traceback" not in output
