# Needs make, Python 3.11 or newer and a package index. Every target creates .venv if needed and uses it again later.
PYTHON ?= python3
# Processes; the tests of one file share a process and its compiled programs
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
FUZZ_ARGS ?= --cases=2000
FAULTS_ARGS ?= --faults=120
SOURCES := bags_jax configs experiments tests tools docs setup.py
TEST_CACHE := $${XDG_CACHE_HOME:-$$HOME/.cache}/bags_jax/xla_tests
PYTEST := .venv/bin/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile

# The rules of the house and the maths: files of tests for every edit. The longest come first.
QUICK := rasterize geometry blur layers tiles metrics proposal_network backends rendering splatting_checks \
  pose_refinement losses optimizer initialize convolution density confidence numerics spherical_harmonics \
  settings configs schedule api package

.PHONY: help demo quick test slow docs check fuzz faults gpu-check tpu-check lint types format clean new-venv

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: .venv/.installed  ## train on a small blurred scene, on a CPU, and write runs/demo
	.venv/bin/python -m experiments.demo --workdir=runs/demo

quick: lint  ## for every edit: format, rules, layers, public API, maths; under 2 minutes on 2 cores
	$(PYTEST) $(PYTEST_ARGS) $(wildcard $(QUICK:%=tests/test_%.py))

test: .venv/.installed-dev  ## all tests but the slow ones, on the CPU as 2 devices (PYTEST_ARGS="-k blur" selects some)
	$(PYTEST) -m "not slow" --durations=10 $(PYTEST_ARGS)

slow: .venv/.installed-dev  ## the slow tests: trainings to the end, whole Pallas kernels, the demo
	$(PYTEST) -m slow --durations=10 $(PYTEST_ARGS)

docs: .venv/.installed-dev  ## build the documentation into build/docs; a warning is an error
	.venv/bin/python -m sphinx -q -W --keep-going -b html docs build/docs

check: lint types test docs  ## everything that .ci/run checks: ruff, pyright, pytest, docs

fuzz: .venv/.installed-dev  ## 2000 damaged captures, runs and checkpoints through all readers, about 4 minutes
	JAX_PLATFORMS=cpu .venv/bin/python tests/fuzz.py $(FUZZ_ARGS)

faults: .venv/.installed-dev  ## 120 kills, signals and full disks while training; the runs must end equal
	.venv/bin/python tests/faults.py $(FAULTS_ARGS)

gpu-check: .venv-gpu/.installed  ## compile the CUDA kernels for an H200 on a machine without one, in its own .venv-gpu
	.venv-gpu/bin/python -m pytest -q -n 0 -rs tests/test_cuda_build.py tests/test_compile_ahead.py

tpu-check: .venv-tpu/.installed  ## compile the training step for a TPU on a machine without one, in its own .venv-tpu
	.venv-tpu/bin/python -m pytest -q -n 0 -rs tests/test_compile_ahead.py

lint: .venv/.installed-dev  ## ruff: format and rules
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/ruff check $(SOURCES)

types: .venv/.installed-dev  ## pyright, basic
	.venv/bin/pyright --pythonpath .venv/bin/python

format: .venv/.installed-dev  ## rewrite the files so that lint passes
	.venv/bin/ruff format $(SOURCES)
	.venv/bin/ruff check --fix $(SOURCES)

clean:  ## remove caches, build outputs and runs/demo; .venv and other runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache runs/demo "$(TEST_CACHE)"
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Fails if .venv is missing or incomplete, or if its Python is too old.
CAN_PIP := 'import pip, sys; sys.exit(sys.version_info < (3, 11))'

.venv/.installed: requirements.txt
	@.venv/bin/python -c $(CAN_PIP) 2>/dev/null || $(MAKE) --no-print-directory new-venv
	@echo "Installing requirements.txt into .venv (the first time: 1 GB on disk, some minutes)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed pyproject.toml setup.py
	@echo "Installing the tools for tests and docs into .venv"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	@touch $@

# XLA's CUDA plugin without the GPU libraries, which only running needs; ptxas and libdevice for XLA, nvdisasm for the counts.
.venv-gpu/.installed: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -m venv --clear .venv-gpu
	@echo "Installing the CUDA compilers into .venv-gpu (the first time: 2 GB on disk, some minutes)"
	@.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@version=$$(.venv-gpu/bin/python -c 'import jax; print(jax.__version__)'); \
	  .venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --no-deps jax-cuda13-plugin==$$version \
	  jax-cuda13-pjrt==$$version nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-nvdisasm
	@touch $@

.venv-tpu/.installed: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -m venv --clear .venv-tpu
	@echo "Installing the TPU compiler into .venv-tpu (the first time: 2 GB on disk, some minutes)"
	@.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,tpu]'
	@touch $@

new-venv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no program '$(PYTHON)': install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old: install 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
