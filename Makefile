# Everything works on a fresh clone: the first command makes .venv and installs into it, later ones do not install again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
TRIES ?= 100000
PORT ?= 8765
BIN := .venv/bin

# Other versions of torch, each in an environment of its own: the oldest and the newest that is supported, and a build for CUDA (8 GB).
PYTHON312 ?= $(shell python3.12 -c "import sys; print(sys.executable)" 2>/dev/null || ls -d $(HOME)/.pyenv/versions/3.12*/bin/python 2>/dev/null | tail -1)
OLDEST ?= 2.13.0
CUDA ?= 2.13.0
CASES ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-engines demo-serve demo-web test test-oldest test-newest test-cuda lint format fuzz audit bench-smoke clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Guidance by a second call; 8 of 28 steps full with every method. Compiling three methods takes longer than what it saves here.
demo: .venv/.installed  ## draw eight emoji with the shipped model by four methods into out/demo
	$(BIN)/rfc-fx generate --model emoji --steps 28 --negative-prompt "" --call true_cfg_scale=3 --no-compile \
	    --method taylorseer --interval 4 --method rfc --tau 0.28 --method log-snr --nfc 8 --out out/demo \
	    --prompt "an apple, flat style, on light blue" --prompt "a cat, noto style, on yellow" \
	    --prompt "a rocket, twemoji style, on dark blue" --prompt "a sunflower, flat style, on pink" \
	    --prompt "a pizza, noto style, on white" --prompt "a fish, twemoji style, on green" \
	    --prompt "a snowman, flat style, on purple" --prompt "a car, noto style, on orange"

demo-engines: .venv/.installed  ## export the shipped emoji model to AOTInductor and ONNX, check both and draw with them; minutes
	for backend in aoti onnx; do \
	    $(BIN)/rfc-fx export emoji --backend $$backend --tau 0.28 --out out/engines/$$backend --overwrite && \
	    $(BIN)/rfc-fx verify out/engines/$$backend --model emoji && \
	    $(BIN)/rfc-fx run out/engines/$$backend --model emoji --prompt "an apple, flat style, on light blue" --negative-prompt "" \
	        --call true_cfg_scale=3 --steps 28 --out out/engines/drawn-$$backend || exit 1; \
	done

demo-serve: .venv/.installed  ## serve the shipped emoji model with Ray, draw 16 pictures by HTTP into out/demo-serve, stop
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[ray]" -c constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving emoji --requests 16 --clients 4 --replicas 2 --kills 0 --pictures out/demo-serve \
	    --out out/demo-serve/load.json

demo-web: .venv/.installed  ## build the page that draws in a browser into out/web, and serve it on 127.0.0.1:8765 (PORT=); needs npm
	npm ci --prefix export/web --ignore-scripts --no-fund --no-audit
	node export/web/build.js out/web
	$(BIN)/rfc-fx export digits --backend onnx --method log-snr --nfc 14 --steps 50 --batch 1 --out out/web/engines/digits --overwrite
	$(BIN)/rfc-fx export emoji --whole --backend onnx --method log-snr --nfc 8 --steps 28 --out out/web/engines/emoji --overwrite \
	    --prompt "an apple, flat style, on light blue" --negative-prompt "" --call true_cfg_scale=3
	@echo "open http://127.0.0.1:$(PORT) (Ctrl-C ends it)"
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory out/web

# One thread for each worker: two workers with a thread pool each fight over the same cores. A file's tests stay on one worker: what they
# share, engines above all, is made once. Types are checked meanwhile: mypy works on one core.
test: .venv/.installed  ## lint, layers, types, and the tests that need neither a GPU nor minutes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	@$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder; tests=$$?; \
	wait $$types || { echo "mypy: errors, see above" >&2; exit 1; }; exit $$tests

test-oldest: .environments/oldest/.installed  ## the tests on the oldest supported torch with Python 3.12; OLDEST= another version
	$(call tests_in,oldest)

test-newest: .environments/newest/.installed  ## the tests on the newest supported torch that installs
	$(call tests_in,newest)

# What passed is kept in out/cuda: RESUME=1 goes on with what an earlier run left there, after no change of the code.
test-cuda: .environments/cuda/.installed  ## compile every program for a GPU that is not there, an hour; RESUME=1 goes on; CASES=--every-value: minutes
	$(if $(RESUME),,rm -rf out/cuda)
	OMP_NUM_THREADS=1 .environments/cuda/bin/pytest -n $(WORKERS) -m cuda tests/cuda --resume out/cuda --totals out/cuda-totals.json $(CASES)

tests_in = OMP_NUM_THREADS=1 .environments/$(1)/bin/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.environments/oldest/.installed: pyproject.toml constraints.txt
	tests/environment.sh $(@D) "$(or $(PYTHON312),$(PYTHON))" $(OLDEST)

.environments/newest/.installed: pyproject.toml constraints.txt
	tests/environment.sh $(@D) "$(PYTHON)"

.environments/cuda/.installed: pyproject.toml constraints.txt
	INDEX_ONLY=1 tests/environment.sh $(@D) "$(or $(PYTHON312),$(PYTHON))" $(CUDA)

lint: .venv/.installed  ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

fuzz: .venv/.installed  ## read 100,000 hostile files of each kind, half an hour; TRIES=, KINDS="manifest method"
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzzing.py --tries $(TRIES) $(KINDS)
	RFC_FX_FUZZ_OPTIONS=21 OMP_NUM_THREADS=1 $(BIN)/pytest tests/hostile/test_options.py

audit: .venv/.installed  ## look every pinned dependency up in the database of known vulnerabilities
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.9"
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt || { \
	    echo "audit: a dependency has a known vulnerability, or the database cannot be reached from here (see above)" >&2; exit 1; }

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
