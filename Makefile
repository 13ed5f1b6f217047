# Kairos. `make demo` and `make test` are all a fresh machine with Python 3.11+ and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check lint types imports bench feast rivals simulate prove faults lock

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Kairos needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Say which with: make PYTHON=python3.12 setup"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

setup: $(STAMP)  ## Make .venv and install what the lock file pins

demo: setup  ## The whole loop once, on simulated people, in ./var/demo
	$(BIN)/kairos demo --home var/demo

serve: setup  ## API and worker on http://127.0.0.1:8000, on the demo's home if there is one
	@if [ -d var/demo ]; then KAIROS_HOME=var/demo $(BIN)/kairos serve; else $(BIN)/kairos serve; fi

test: setup  ## The tests (SQLite; PostgreSQL too where initdb is found)
	$(PYTEST) -n auto --dist worksteal -m "not slow and not faults"

prove: setup  ## The long proofs that `make test` runs in short
	$(PYTEST) -m slow

faults: setup  ## The long fault runs: kill -9, SIGSTOP, restarts, full disks; a checker compares what arrived
	$(PYTEST) -s -m faults tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

check: lint types imports test  ## What CI runs: lint, types, import order, tests

bench: setup  ## Benchmarks as one JSON object on stdout; BENCH=--all: the long ones too, BENCH="sweep online": these
	@$(BIN)/python -m tests.benchmarks $(BENCH)

feast: setup  ## An environment for Feast, the rival that `bench online` measures beside us
	test -x .venv-feast/bin/python || $(PYTHON) -m venv .venv-feast
	.venv-feast/bin/python -m pip install -q --disable-pip-version-check "feast==0.67.*"

rivals: setup  ## An environment for MABWiser and Vowpal Wabbit, which `bench bandits` measures beside us
	test -x .venv-rivals/bin/python || $(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install -q --disable-pip-version-check "mabwiser==2.7.*" "vowpalwabbit==9.11.*" numpy

simulate: setup  ## Long learning proofs: policies and reports in worlds whose truth is known
	$(BIN)/kairos simulate responses --seeds 100 --runs 200
	$(BIN)/kairos simulate reports --runs 1000

lock: setup  ## Pin again what pyproject.toml asks for
	uv pip compile pyproject.toml --extra dev --extra postgres --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements.lock
