# Everything works on a fresh clone: the first command makes .venv and installs into it, later ones do not install again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench-smoke clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/.installed  ## draw digits with the shipped model into out/demo
	$(BIN)/rfc-fx generate --out out/demo

# One thread for each worker: two workers with a thread pool each fight over the same cores.
test: lint  ## lint, types, layers, then the tests that need neither a GPU nor minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

lint: .venv/.installed  ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-smoke: .venv/.installed  ## compare the digits model's ratios and counts with the committed ones, minutes; UPDATE=--update writes them
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.smoke $(UPDATE)

clean:  ## remove caches and build outputs (.venv and out/ stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	$(BIN)/rfc-fx doctor
	@touch $@
