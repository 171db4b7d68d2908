# Everything starts here: `make` checks and tests, `make demo` runs the main job.
# The environment is made on first use; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# PG=15 runs the tests on Debian's server of that version instead of the wheel's.
ifdef PG
export GEN_DURABLE_PG_BIN := /usr/lib/postgresql/$(PG)/bin
endif

.DEFAULT_GOAL := all
.PHONY: all demo check fmt test crash bench docs clean

all: check test

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[embedded,fast,demo]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m examples.checkout $(ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

fmt: $(VENV)/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(VENV)/.ready
	$(BIN)/pytest --numprocesses 2 $(ARGS)

crash: $(VENV)/.ready
	$(BIN)/pytest tests/crash $(ARGS)

bench: $(VENV)/.ready
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .gen_durable .bench dist
