# Everything a developer or a user types. Needs git, make and Python 3.11 or later; the browser tests also Chromium.
PYTHON ?= python3
PORT ?= 8000
HOST ?= 127.0.0.1
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
BENCHMARKS := decide overhead start turns writes

.DEFAULT_GOAL := help
.PHONY: help setup serve test soak clients lint types arch bench constraints

help: ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with everything pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Baton needs Python 3.11 or later; '$(PYTHON)' is older. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on -c constraints.txt -e '.[local,dev]'
	@touch $@

serve: setup ## start the server and print the page's address
	$(BIN)/baton serve --host $(HOST) --port $(PORT)

test: lint types arch ## every check and every test that ends within minutes
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not soak'

soak: setup ## what takes long
	$(BIN)/pytest -m soak --timeout 2400

clients: setup ## foreign clients against the server, each in an environment of its own (CLIENTS= names some)
	PYTHONPATH=.:tests $(BIN)/python -m clients.run $(CLIENTS)

lint: setup ## style, format, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types: setup ## mypy, strict
	$(BIN)/mypy

arch: setup ## the layers
	$(BIN)/lint-imports

bench: setup ## every benchmark, quickly
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

constraints: setup ## write the versions that are installed now into constraints.txt
	$(BIN)/pip freeze --all --exclude pip --exclude-editable | grep -v '^-e' | sed 's/+cpu$$//' > constraints.txt
