# vlmkit: set up, run, test. `make` alone lists the targets.

PYTHON  ?= python3
EXTRAS  ?=
ARGS    ?=
WORKERS ?= 2
MARKERS ?= not slow

VENV := .venv
BIN  := $(VENV)/bin
UV   := $(BIN)/python -m uv
# Compiled once: else every process compiles what it imports where PYTHONDONTWRITEBYTECODE is set.
INSTALL := $(UV) pip install --compile-bytecode --python $(BIN)/python
comma := ,

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup quickstart test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=python3.12   interpreter for the virtual environment (default: python3)"
	@echo "  EXTRAS=dev$(comma)wandb    extras of pyproject.toml that 'make setup' installs (default: none)"
	@echo "  ARGS=\"...\"          overrides for the quickstart, further options for pytest"
	@echo "  MARKERS=slow        which tests 'make test' runs (default: not slow)"

setup: $(VENV)/.installed$(if $(EXTRAS),-$(EXTRAS)) ## make .venv and install vlmkit, editable

quickstart: $(VENV)/.installed ## set up, then train the small default model on the CPU
	$(BIN)/python -m vlmkit.train $(ARGS)

# One thread per worker: two workers with a thread per core each would fight over the cores.
test: $(VENV)/.installed-test ## set up, then run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE= \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(MARKERS)" $(ARGS)

lint: $(VENV)/.installed-lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint ## format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv, caches and build products; runs are kept
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files say what is installed; they depend on pyproject.toml, so nothing is installed twice.

$(VENV)/.uv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "'$(PYTHON)' is not there. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vlmkit needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "If another one is installed, name it: make PYTHON=python3.12 ..."; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its ensurepip module is missing."; \
	  echo "On Debian and Ubuntu: sudo apt-get install python3-venv"; \
	  echo "(for an interpreter other than the default one: python3.12-venv or alike)"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.5'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.uv
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.uv
	$(INSTALL) --editable '.[$*]'
	@touch $(VENV)/.installed $@
