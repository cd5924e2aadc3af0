# `make demo` and `make test` are all a newcomer needs; each makes .venv by itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench clean

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; give a Python 3.11 or 3.12: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python jobs/demo.py --config jobs/configs/shapes/demo.yaml

test: lint
	$(BIN)/python -m pytest --ignore=tests/batch --ignore=tests/train --ignore=tests/sweep
	@# In a process of their own, as they share one Ray: after other clusters, and Serve, actors of Ray Train and
	@# Ray Tune never start.
	$(BIN)/python -m pytest tests/batch tests/train tests/sweep

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python benchmarks/extract.py

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
