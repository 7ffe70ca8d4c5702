# make demo     installs into .venv and runs the demonstration (ARGS="--data FILE.h5ad --labels-key KEY" for your own data)
# make test     lint, formatting, types, tests          make lint     the first three, changing nothing
# make experiment-smoke    the starting project's grid at its smallest, into isodiff_smoke/ (ARGS="hour" for the next size)
# make tutorials    runs the notebooks again, into the same files (minutes each; ARGS=tutorials/quickstart.ipynb for one)
# make docs     HTML pages in docs/_build/html, warnings as errors
# make clean    removes what these made, but not .venv (make clean-env does)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST_ARGS ?=
# processes that share the tests; 0 runs them in this one
JOBS ?= 2
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: help demo experiment-smoke test lint docs tutorials clean clean-env

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("isodiff needs Python 3.11 to 3.13; %s is %d.%d. Give another: make PYTHON=python3.12 ..." % (sys.executable, *v))'
	$(PYTHON) -m venv $(VENV)

# stamps: what is installed is installed again only after pyproject.toml or constraints.txt changed
$(VENV)/.installed-core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[test,dev]'
	@touch $@ $(VENV)/.installed-core

$(VENV)/.installed-doc: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[doc]'
	@touch $@ $(VENV)/.installed-core

demo: $(VENV)/.installed-core
	$(BIN)/isodiff demo $(ARGS)

experiment-smoke: $(VENV)/.installed-core
	$(BIN)/isodiff experiment $(or $(ARGS),smoke)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# one thread each: threads of several processes would wait for each other
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
# numba, of the first UMAP, gives its number to all of OpenMP, and with it to torch
test: export NUMBA_NUM_THREADS = 1
test: lint
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(PYTEST_ARGS)

docs: $(VENV)/.installed-doc
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.installed-doc
	$(BIN)/python tutorials/execute.py $(ARGS)

clean:
	rm -rf build dist docs/_build docs/generated docs/tutorials isodiff_demo isodiff_smoke .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env:
	rm -rf $(VENV)
