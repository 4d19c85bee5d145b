# The project's tasks, for people, hooks and CI. `make help` lists them.
PYTHON ?= python3
PORT ?= 5000
BIN := $(CURDIR)/.venv/bin
# Stages call plain `python`, and DVC's workers plain `dvc`: both must be the ones of .venv.
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# uv takes a third of pip's time, and does not read pip's settings. pip is for where uv cannot be had or cannot reach the
# packages; it would not know what UV_TORCH_BACKEND asks for.
INSTALL = "$(BIN)"/python -m pip install --quiet --disable-pip-version-check
UV = "$(BIN)"/uv pip install --quiet --python "$(BIN)"/python --system-certs --compile-bytecode
PINNED := -c constraints.txt -e '.[dev]'

.PHONY: help setup repro smoke test soak torture show serve check format ui bench screenshots lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

setup: .venv/installed ## make .venv with the pinned packages (1 minute, 6.5 GB); UV_TORCH_BACKEND=cpu make setup: without CUDA's

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version), 3.11 or later is needed: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks venv: install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@$(INSTALL) -c constraints.txt uv && $(UV) $(PINNED) || \
		{ test -z "$$UV_TORCH_BACKEND" && echo "uv could not; pip does it, in some minutes" && $(INSTALL) $(PINNED); }
	@touch $@

repro: setup ## prepare, train, evaluate: whatever has changed; ARGS=--force for all
	"$(BIN)"/dvc repro $(ARGS)

smoke: setup ## all stages with a few images, in a directory of its own: does everything work here?
	"$(BIN)"/dvc exp run --temp --force -S prepare.limit=20 -S train.epochs=3 -S train.warmup_epochs=0 $(ARGS)

test: setup ## the tests, but those of soak; TESTS=tests/nets for some of them
	"$(BIN)"/python -m pytest -n 2 --dist loadscope -m "not slow and not torture" $(TESTS)

soak: setup ## the tests that take minutes or drive a browser
	"$(BIN)"/python -m pytest -n 2 --dist loadscope -m slow

torture: setup ## long counts of kills and outages, other CPUs (apt-get install qemu-user), the bench; hours
	"$(BIN)"/python -m pytest -m torture $(TESTS)

check: setup ## format, lint, types, contract
	"$(BIN)"/ruff format --check .
	"$(BIN)"/ruff check .
	"$(BIN)"/mypy
	"$(BIN)"/python -m pytest -q tests/test_contract.py

format: setup ## let ruff mend format and lint
	"$(BIN)"/ruff format .
	"$(BIN)"/ruff check --fix .

ui: setup ## MLflow's pages on 127.0.0.1, with the training runs prepared
	@"$(BIN)"/python -m tools.ui --port $(PORT)

show: setup ## DVC's experiments in a table, the best first: what differs, and what came of it
	@"$(BIN)"/python -m tools.show

serve: setup ## the best model over HTTP on 127.0.0.1:5001; RUN=name serves another
	"$(BIN)"/python -m tools.serve $(RUN)

bench: setup ## the training beside its peers, into docs/performance.md; 3 hours; ARGS="--batch 128 --rounds 1": a part
	$(UV) -c constraints.txt -e '.[bench]'
	"$(BIN)"/python -m bench.training --out docs/performance.md $(ARGS)

screenshots: setup ## the pictures of MLflow in docs/, anew; needs a browser
	REPRONET_SCREENSHOTS=1 "$(BIN)"/python -m pytest -q tests/tools/test_ui.py -k "metrics_come_first or learning_curves"

lock: ## write constraints.txt anew, from the newest packages that pyproject.toml allows
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[bench,dev]'
	"$(BIN)"/python -m pip freeze --exclude-editable > constraints.txt
	@touch .venv/installed

clean: ## remove .venv and caches; data, models and runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
