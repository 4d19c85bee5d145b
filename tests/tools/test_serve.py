"""The model over HTTP: evaluate's classes by MLflow's protocol, from the weights alone, and for this machine alone."""

import http.client
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import Project, free_port, served
from tests.sources.test_broken_data import chunk, png
from tools.runs import Runs


class Server:
    """A running server, asked as any client would ask it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, body: bytes = b"", path: str = "/invocations", method: str = "POST", **headers: str
    ) -> tuple[int, str]:
        """The status and the text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        with suppress(BrokenPipeError):  # it may have answered before all had been sent
            connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def scores(self, images: npt.NDArray[np.uint8], key: str = "inputs") -> npt.NDArray[np.float64]:
        status, text = self.ask(json.dumps({key: images.tolist()}).encode())
        assert status == 200, text
        return np.array(json.loads(text)["predictions"])

    def predict(self, *files: Path, field: str = "image", **headers: str) -> tuple[int, Any]:
        """The status and the content of what /predict answers to files, sent as curl -F sends them."""
        parts = [
            f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{file.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode()
            + file.read_bytes()
            + b"\r\n"
            for file in files
        ]
        kind = {"content-type": "multipart/form-data; boundary=edge"}
        status, text = self.ask(b"".join([*parts, b"--edge--\r\n"]), "/predict", **kind | headers)
        return status, json.loads(text)


@pytest.fixture(scope="module")
def pictures(compared: Project, digits: Path) -> list[Path]:
    """The first test images as files."""
    images, folder = np.load(digits / "images.npy"), compared.root / "served"
    folder.mkdir()
    rows = pd.read_csv(compared.root / "seed-1/plots/predictions.csv")["index"][:20]
    for row in rows:
        Image.fromarray(images[row]).save(folder / f"{row}.png")
    return [folder / f"{row}.png" for row in rows]


@pytest.fixture(scope="module")
def proof(compared: Project) -> Iterator[Path]:
    """A file that seed-1's model in MLflow makes when it is loaded, by code that its MLmodel names."""
    proof = compared.root / "code-has-run"
    [file] = [path for path in compared.root.glob("mlartifacts/models/*/artifacts/MLmodel") if run_of(path) == "seed-1"]
    clean = file.read_text()
    (file.parent / "code").mkdir()
    (file.parent / "code/attack.py").write_text(
        f"from pathlib import Path\nPath({str(proof)!r}).touch()\ndef _load_pyfunc(*_): raise SystemExit\n"
    )
    file.write_text(clean.replace("loader_module: mlflow.pytorch", "loader_module: attack\n    code: code"))
    yield proof
    file.write_text(clean)


def run_of(file: Path) -> str:
    """The name of the run whose model an MLmodel file is of."""
    [line] = [line for line in file.read_text().splitlines() if line.startswith("run_id: ")]
    client = mlflow.MlflowClient(f"sqlite:///{file.parents[4]}/mlflow.db")
    return str(client.get_run(line.split()[1]).info.run_name)


@pytest.fixture(scope="module")
def server(compared: Project, proof: Path) -> Iterator[Server]:
    assert not proof.exists()
    port = free_port()
    with served(compared, "python", "-m", "tools.serve", "seed-1", "--port", str(port), port=port) as process:
        yield Server(port)
        busy = compared("python", "-m", "tools.serve", "--port", str(port), fails=True)
        assert f"error: port {port} of 127.0.0.1 is taken" in busy
    assert process.returncode is not None


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_images_as_json_give_evaluate_s_classes(server: Server, compared: Project, digits: Path, key: str) -> None:
    classes = json.loads((digits / "dataset.json").read_text())["classes"]
    predictions = pd.read_csv(compared.root / "seed-1/plots/predictions.csv")
    images = np.load(digits / "images.npy")[predictions["index"]]
    for batch in (images, images[:1]):
        scores = server.scores(batch, key)
        assert [classes[i] for i in scores.argmax(1)] == predictions["predicted"].tolist()[: len(batch)]
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{server.port:04X}" in listening
    assert f"00000000:{server.port:04X}" not in listening


def test_image_files_give_evaluate_s_predictions(server: Server, compared: Project, pictures: list[Path]) -> None:
    predictions = pd.read_csv(compared.root / "seed-1/plots/predictions.csv", dtype=str)
    expected = [
        {
            "file": f"{row[0]}.png",
            "class": row[3],
            "probabilities": dict(zip(predictions.columns[4:], row[4:], strict=True)),
        }
        for row in predictions[: len(pictures)].itertuples(index=False)
    ]
    for number in (1, len(pictures)):  # whatever else is sent with it
        status, answer = server.predict(*pictures[:number])
        assert status == 200
        for image in answer["predictions"]:
            assert next(iter(image["probabilities"])) == image["class"]
            image["probabilities"] = {name: f"{share:.6f}" for name, share in image["probabilities"].items()}
        assert answer["predictions"] == expected[:number]


def test_what_is_no_image_is_said_of_each(server: Server, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "many.png").write_bytes(png(10_000, 10_000, chunk(b"IDAT", b"")))
    status, answer = server.predict(tmp_path / "notes.txt", pictures[0], tmp_path / "many.png")
    first, second, third = answer["predictions"]
    assert status == 200
    assert (first["file"], first["error"].split(":")[0]) == ("notes.txt", "not an image")
    assert second["class"]
    assert third == {"file": "many.png", "error": "too many pixels: 100,000,000, and prepare.max_pixels is 50,000,000"}
    assert server.predict(tmp_path / "notes.txt")[0] == 400


def test_forms_that_are_refused(server: Server, pictures: list[Path], tmp_path: Path) -> None:
    sent = 'files in the field "image", as curl -F image=@cat.jpg sends them'
    for refused, found in ((server.predict(pictures[0], field="picture"), "'picture'"), (server.predict(), "nothing")):
        message = f"the body holds {found}; accepted: {sent}"
        assert refused == (400, {"error_code": "BAD_REQUEST", "message": message})
    status, answer = server.predict(*pictures[:1] * 33)
    too_many = "Too many files. Maximum number of files is 32."
    assert (status, answer["message"]) == (400, f"{too_many} Accepted: {sent}, 32 at most")
    assert server.predict(*pictures[:1] * 32)[0] == 200
    status, answer = server.predict(pictures[0], **{"content-type": "multipart/form-data"})
    assert (status, answer["message"]) == (400, f"Missing boundary in multipart. Accepted: {sent}, 32 at most")
    odd = tmp_path / "\\ud800.png"
    shutil.copy(pictures[0], odd)
    escaped = {"content-type": "multipart/form-data; boundary=edge; charset=unicode_escape"}
    assert server.predict(odd, **escaped)[1]["predictions"][0]["file"] == "\\ud800.png"
    assert json.loads(server.ask(b"{}", "/predict")[1])["message"] == f"the body holds nothing; accepted: {sent}"
    assert server.ask(path="/predict", method="GET")[0] == 405


def test_no_page_of_another_site_gets_an_answer(server: Server, pictures: list[Path]) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}", "https://localhost"):
        assert server.predict(pictures[0], origin=origin) == (
            403,
            {"error_code": "PERMISSION_DENIED", "message": "Origin: another page"},
        )
    assert (
        server.predict(pictures[0], host=f"localhost:{server.port}", origin=f"http://localhost:{server.port}")[0] == 200
    )


def test_no_code_of_the_logged_model_runs(
    server: Server, compared: Project, proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.ask(path="/ping", method="GET")[0] == 200
    assert not proof.exists()
    monkeypatch.chdir(compared.root)
    with pytest.raises(SystemExit):  # the attack is one: who loads it with MLflow runs it
        mlflow.pyfunc.load_model(Runs().find("seed-1").model)
    assert proof.exists()
    proof.unlink()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:5001", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:5001", 200),
        ("evil.example", 403),
        ("evil.example:5001", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:evil", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(server: Server, host: str, status: int) -> None:
    body = json.dumps({"inputs": np.zeros((1, 8, 8), int).tolist()}).encode()
    assert server.ask(body, host=host)[0] == status
    assert server.ask(path="/health", method="GET", host=host)[0] == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[[1]]", 'the body holds a list; accepted: {\\"inputs\\": [image, ...]}'),
        (b'{"inputs": [], "instances": []}', "the body holds 'inputs', 'instances'"),
        (b'{"dataframe_split": {"columns": ["a"], "data": [[1]]}}', "the body holds 'dataframe_split'"),
        (b'{"inputs": {"a": 1}}', "inputs: an array of shape (), should be (n, h, w)"),
        (b'{"inputs": []}', "inputs: an array of shape (0,)"),
        (b'{"inputs": [[[1], [2, 3]]]}', "inputs: not images of one shape"),
        (b'{"inputs": [[[1, 2]]]}', "images of shape (1, 1, 2); the model takes (n, 8, 8)"),
        (b'{"inputs": [[[[]]]]}', "images of shape (1, 1, 1, 0); the model takes (n, 8, 8)"),
        (b'{"inputs": [[[0.5]]]}', "inputs: pixels are whole numbers from 0 to 255"),
        (b'{"inputs": [[[256]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[-1]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[1e400]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[NaN]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[true]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[["1"]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[1, true]]]}', "pixels are whole numbers"),
        # As an array of texts it would have 4 TB.
        (b'{"inputs": ["' + b"a" * 1_000_000 + b'"' + b', ""' * 1_000_000 + b"]}", "pixels are whole numbers"),
        (b'{"inputs": [[[null]]]}', "pixels are whole numbers"),
        (b'{"inputs": [[[99999999999999999999]]]}', "pixels are whole numbers"),
    ],
)
def test_what_is_no_images_is_refused_as_mlflow_does(server: Server, body: bytes, message: str) -> None:
    status, text = server.ask(body)
    assert (status, json.loads(text)["error_code"]) == (400, "BAD_REQUEST")
    assert message in text


def test_other_requests(server: Server) -> None:
    status, text = server.ask(b'{"inputs": []}', **{"content-type": "text/plain"})  # as a form of any page can send it
    assert (status, json.loads(text)["message"]) == (415, "Content-Type: 'text/plain'; accepted: application/json")
    form = {"content-type": "multipart/form-data; boundary=edge"}
    start = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="large"\r\n\r\n'
    for status, text in (server.ask(b" " * (65 << 20)), server.ask(start + b" " * (65 << 20), "/predict", **form)):
        assert (status, json.loads(text)["error_code"]) == (413, "REQUEST_LIMIT_EXCEEDED")
    assert server.ask(path="/version", method="GET") == (200, mlflow.__version__)
    assert server.ask(path="/invocations", method="GET")[0] == 405
    assert server.ask(path="/other", method="GET")[0] == 404


def test_a_model_of_the_registry_is_its_run(compared: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compared.root)
    run = Runs().find("seed-0")
    client = mlflow.MlflowClient(f"sqlite:///{compared.root}/mlflow.db")
    client.create_registered_model("served")
    client.create_model_version("served", run.model, run.id)
    client.set_registered_model_alias("served", "champion", "1")
    port = free_port()
    with served(compared, "python", "-m", "tools.serve", "served@champion", "--port", str(port), port=port) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("serving seed-0 (0.9")
        assert Server(port).scores(np.zeros((2, 8, 8), np.uint8)).shape == (2, 10)


def test_what_there_is_not(compared: Project) -> None:
    output = compared("python", "-m", "tools.serve", "none", "--port", str(free_port()), fails=True)
    assert "error: no evaluated run is called 'none'" in output
    output = compared("python", "-m", "tools.serve", "served@nobody", "--port", str(free_port()), fails=True)
    assert "has no model served@nobody" in output
    assert "Traceback" not in output


def test_weights_that_are_missing_or_others(compared: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compared.root)
    [weights] = compared.root.glob(f"mlartifacts/{Runs().find('closed').id}/artifacts/weights/*")
    content = weights.read_bytes()
    command = ["python", "-m", "tools.serve", "closed", "--port", str(free_port())]
    weights.write_bytes(content[:-1])
    assert "error: the run closed has other weights in sqlite" in compared(*command, fails=True)
    weights.unlink()
    assert "was logged without its weights; python -m tools.sync adds them" in compared(*command, fails=True)
    weights.write_bytes(content)
