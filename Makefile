# The vocabulary of the project. `make demo` and `make test` set up whatever they need first.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PAGE := browser_client
# Where the machine has no Node, the environment has one.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PAGE_SOURCES := $(shell find $(PAGE)/src $(PAGE)/plugins $(PAGE)/public $(PAGE)/index.html $(PAGE)/vite.config.ts $(PAGE)/tsconfig.json -type f 2>/dev/null)

.PHONY: help setup setup-dev demo wheel test test-large lint format docs page-tests pytest bench chaos fuzz load containers clean

help:           ## Say what can be made.
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 20

setup: $(VENV)/installed $(PAGE)/dist/index.html  ## Install what running fedbus needs and build the page.

setup-dev: setup $(VENV)/installed-dev  ## Install what tests and building artifacts need too (torch).

demo:           ## Run one federated run of 100 users in two headless browsers, and write its report.
	@PYTHON=$(PYTHON) sh .ci/needs.sh demo "$(ARGS)"
	@if sh .ci/needs.sh browser; then $(MAKE) --no-print-directory setup; else $(MAKE) --no-print-directory $(VENV)/installed; fi
	@$(VENV)/bin/fedbus demo $(ARGS)

wheel: setup-dev  ## Build a wheel with page, sample and base model inside: build/wheel/fedbus-*.whl.
	@rm -rf build/wheel
	@$(PY) -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	@ls build/wheel/*.whl

test: setup-dev lint page-tests pytest  ## Pass all tests: ruff, mypy, layers, tsc, Vitest, pytest with real broker and browser.

test-large: setup-dev  ## Pass the full-size cases as well (ViT-base, 346 MB); takes long.
	@$(PY) -m pytest -m large

lint: setup-dev  ## Check style, types and layers.
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo >/dev/null || $(VENV)/bin/lint-imports --no-logo
	@cd $(PAGE) && npm run --silent check

docs: setup-dev  ## Write docs/architecture.md, docs/protocol.md and docs/asyncapi.json anew from the code.
	@$(PY) docs/draw_architecture.py
	@$(PY) docs/write_protocol.py
	@$(PY) docs/list_decisions.py
	@$(PY) -m agents.words

format: setup-dev  ## Format the Python sources.
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

page-tests: setup
	@cd $(PAGE) && npm test --silent

# Most tests wait for processes rather than compute. A file is one worker's: its tests share brokers and browsers.
WORKERS ?= 4
pytest: setup-dev
	@$(PY) -m pytest -m "not large and not chaos" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: setup-dev  ## Measure, as ratios; prints tables and writes benchmarks/out/.
	@$(PY) -m benchmarks $(ARGS)

chaos: setup-dev  ## Kill, stop and cut off every part at every crash point; prints what was survived.
	@$(PY) -m pytest tests/chaos tests/broker/cluster tests/commands/test_cluster.py $(ARGS)

fuzz: $(VENV)/installed-fuzz  ## Give every parser of foreign input its share of a million inputs; non-zero if one breaks.
	@$(PY) -m tests.fuzz $(ARGS)
	@$(PY) -m pytest tests/property tests/unit -q --hypothesis-profile=explore

load: setup-dev ## 500 clients at once for ten minutes, then 10,000 users in one round; nothing may be lost.
	@$(PY) -m benchmarks.load --clients 500 --minutes 10 $(ARGS)
	@$(PY) -m benchmarks.load --clients 100 --users 10000 --minutes 0

containers: setup-dev  ## Build the images with buildah, run the services of compose.yaml from them, see that they stop.
	@$(PY) docker/check.py $(ARGS)

clean:          ## Remove what was built (not runs/).
	rm -rf $(VENV) $(PAGE)/node_modules $(PAGE)/dist

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "fedbus needs Python 3.11: apt-get install -y python3.11 python3.11-venv (or: make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11, which onnxruntime-training needs" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: apt-get install -y python3.11-venv" >&2; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Python packages into $(VENV) ..."
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing test tools and torch into $(VENV) ..."
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,export]'
	@touch $@

$(VENV)/installed-fuzz: $(VENV)/installed-dev
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@touch $@

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package.json $(PAGE)/package-lock.json | $(VENV)/bin/python
	@sh .ci/needs.sh node
	@echo "Installing the page's packages ..."
	@cd $(PAGE) && npm ci --silent --no-audit --no-fund
	@touch $@

$(PAGE)/dist/index.html: $(PAGE)/node_modules/.package-lock.json $(PAGE_SOURCES)
	@echo "Building the page ..."
	@cd $(PAGE) && npm run --silent build
	@touch $@
