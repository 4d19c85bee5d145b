"""Serve a model over HTTP, on this machine only.

    python -m tools.serve best --port 5001
    curl -F image=@cat.jpg -F image=@dog.png 127.0.0.1:5001/predict
    curl 127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{"inputs": [[[0, ...], ...]]}'

MODEL is a run by id, by name (DVC's), or as `best`, the best by validation; a model of the registry, repronet@champion,
which stands for its run; or a weights file. Of a run only its weights are loaded, which hold no code.

http://127.0.0.1:5001 is a page that takes pictures and shows what the model says. /predict takes image files as forms
send them, and answers with the class and the probabilities of each, as tools.predict has them. /invocations speaks as
MLflow's servers do: uint8 images (n, height, width) as JSON, scores (n, classes) in return; the largest is the class.
"""

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say, warn
from tools.serve import HOST, check_port


def main() -> None:
    parser = cli.parser("tools.serve", __doc__)
    names = "run id, run name, MODEL@ALIAS, a weights file, or best, the default"
    parser.add_argument("model", nargs="?", default="best", metavar="MODEL", help=names)
    parser.add_argument("--port", type=int, default=5001, help="default 5001")
    arguments = parser.parse_args()
    check_port(arguments.port, "--port 5002")

    import uvicorn

    from tools.model import opened
    from tools.serve.application import application

    model = opened(arguments.model)
    try:
        _ = model.spec
    except InputError as error:
        warn(f"warning: no image files, only arrays at /invocations: {error}")
    say(f"serving {model.called} on http://{HOST}:{arguments.port}")
    # Some requests at once, and no more: each may be large.
    uvicorn.run(
        application(model),
        host=HOST,
        port=arguments.port,
        lifespan="off",
        ws="none",
        limit_concurrency=16,
        log_level="warning",
        server_header=False,
    )


if __name__ == "__main__":
    cli.run(main)
