# Everything runs in .venv, made by the system's Python (3.11 or newer) under the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo check test lint bench docs site clean

demo: .venv/installed
	$(BIN)/lumina sample "a red car left of a blue ball" --model nano --out pictures

# The quick loop while working: lint, types and the fast tests.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto

# Fast tests in parallel, then the slow ones one at a time: some of them measure memory, or kill processes.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/lumina bench attention
	$(BIN)/lumina eval geneval --model nano --out runs/geneval

docs: .venv/dev
	$(BIN)/python docs/make_reference

site: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lumina needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

clean:
	rm -rf .venv build dist site
