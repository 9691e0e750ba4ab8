# `make demo` and `make test` set up what they need in .venv; only Python 3.11 to 3.13 and make must be installed.
# Another interpreter, before the first make: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# A stamp means that an installation went through: with it make needs no network.
DEMO := $(VENV)/.ready-demo
VISION := $(VENV)/.ready-vision
DEV := $(VENV)/.ready-dev
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-vision test test-next lint format docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## train a small Transformer dense and sparse on 2 CPU cores, and compare them
	OMP_NUM_THREADS=2 $(OFFLINE) $(BIN)/python -m examples.wmt14.demo $(ARGS)

demo-vision: $(VISION) ## train a small ResNet on handwritten digits dense and sparse, and compare them
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m examples.vision.demo

test: $(DEV) ## run the fast tests; the slow ones: make test ARGS="-m slow"
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-next: ## run the fast tests with the newest transformers, accelerate and torch, in .venv-next
	$(PYTHON) -m venv $(VENV)-next
	$(VENV)-next/bin/python -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[dev]"
	OMP_NUM_THREADS=1 $(OFFLINE) $(VENV)-next/bin/python -m pytest -n 2 -m "not slow" $(ARGS)

lint: $(DEV) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV) ## build the documentation's site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

clean: ## remove .venv, builds and caches (runs/ and data/ stay)
	rm -rf $(VENV) $(VENV)-next build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyPI's torch for Linux carries CUDA (gigabytes). Without an NVIDIA driver the small CPU build comes from PyTorch's own
# index, unless pip is configured to look in other places already (PIP_EXTRA_INDEX_URL, pip.conf).
CPU_TORCH = $$(test "$$(uname)" != Linux || command -v nvidia-smi >/dev/null || \
  $(BIN)/python -m pip config list | grep -E 'index-url|find-links' >/dev/null || \
  echo --extra-index-url https://download.pytorch.org/whl/cpu)

$(DEMO): EXTRA := translation
$(VISION): EXTRA := vision
$(DEV): EXTRA := dev
$(DEV): COVERS := $(DEMO) $(VISION)
$(DEMO) $(VISION) $(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $(CPU_TORCH) -c constraints.txt -e ".[$(EXTRA)]"
	@touch $@ $(COVERS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "hf-autosparse needs Python 3.11 to 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
