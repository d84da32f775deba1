PYTHON ?= python3
VENV ?= .venv
# The versions that the tests ran with; `make install CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml $(wildcard constraints.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; say which with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Create .venv and install everything into it

demo: install  ## Train a small CLIP on emoji from scratch, about 2 minutes on 2 cores
	$(RUN) -m workbench fit --config experiments/quickstart.yaml

test: install  ## Run the tests
	$(RUN) -m pytest -n auto -m 'not slow and not gpu and not network'

test-all: install  ## Run the tests and those that train for minutes
	$(RUN) -m pytest -m 'not network'

lint: install  ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install  ## Mend style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## Remove the environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
