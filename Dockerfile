# The pipeline in a container, on the CPU. How to use it: docs/platforms.md.

# Its Python is the 3.11 that constraints.txt is made with. --build-arg BASE=… names a mirror's or another Debian.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# git: the pipeline asks it which commit runs.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*

# Nothing that is installed from here on, and nothing that runs, needs the rights of root.
RUN useradd --create-home repronet && install --directory --owner=repronet --group=repronet /repronet
USER repronet
WORKDIR /repronet
ENV PATH=/repronet/.venv/bin:$PATH MLFLOW_DISABLE_TELEMETRY=true

# The packages before the code: they are installed anew only where one of these three files is another. uv knows where
# torch's build without CUDA is, gigabytes less; --build-arg UV_TORCH_BACKEND= takes the one that make setup takes. An
# empty one is an error to uv. A cache would stay in the layer.
ARG UV_TORCH_BACKEND=cpu
COPY --chown=repronet Makefile pyproject.toml constraints.txt ./
RUN test -n "$UV_TORCH_BACKEND" || unset UV_TORCH_BACKEND; UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 make setup

# The code and its history, as .dockerignore says. The three files above are here once more, newer than the environment
# that was made of them: make would make it again. DVC commits experiments, so git needs to know somebody.
COPY --chown=repronet . .
RUN touch .venv/installed && \
    git config --global user.name repronet && git config --global user.email repronet@localhost

CMD ["make", "repro"]
