# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPECS := setup.cfg runtime/setup.cfg constraints.txt pyproject.toml runtime/pyproject.toml

.PHONY: setup demo test slow runtimes oracles emulated bench docs clean help

help:
	@echo "make setup   create .venv with edgeml and edgeml-agent"
	@echo "make demo    the whole loop on this machine, under two minutes"
	@echo "make test    linters, types and every test (installs the tensorflow and mlflow extras)"
	@echo "make slow    the tests that take minutes"
	@echo "make runtimes   does what edgeml writes load on the oldest onnxruntime (in a throwaway environment)"
	@echo "make oracles    every gradient rule beside torch and onnx-ad (in a throwaway environment)"
	@echo "make emulated   the agent on arm64 Debian, as three Raspberry Pis under qemu-user (makes and caches the system)"
	@echo "make docs    write docs/cli.md from the commands"
	@echo "make bench   every script of benchmarks/, results in benchmarks/results"

setup: $(VENV)/.core

demo: setup
	$(BIN)/edgeml demo

test: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(VENV)/.tests
	$(BIN)/python -m pytest -n auto -m slow

runtimes: $(VENV)/.tests
	$(BIN)/python -m pytest -m runtimes tests/runtimes

oracles: $(VENV)/.tests
	$(BIN)/python -m pytest -m oracles tests/oracles

emulated: $(VENV)/.tests
	$(BIN)/python -m pytest -m emulated tests/emulated --durations=5

docs: setup
	$(BIN)/python -m edgeml.cli.reference > docs/cli.md

bench: $(VENV)/.tests
	PYTHONPATH=. $(BIN)/python benchmarks/run_all.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("edgeml needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python $(SPECS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable runtime --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable runtime --editable '.[all,test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info runtime/*.egg-info .mypy_cache .ruff_cache
