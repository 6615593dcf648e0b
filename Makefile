# `make demo` shows what salf does, `make test` runs the daily checks. Each sets up its own virtual environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
COVERAGE ?= 90

.PHONY: demo test test-all check format lint types imports tests coverage slow clean

demo: $(VENV)/.installed
	$(BIN)/salf compare digits --methods fedavg,salf,drop --seeds 3 --out demo --resume

test: $(VENV)/.installed-dev
	$(MAKE) check

# The daily checks, and the slow tests: browsers, Ray, real deployments, processes killed again and again.
test-all: test slow

check: format lint types imports tests

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

tests:
	$(BIN)/pytest -n $(JOBS)

# Measuring takes longer than the tests themselves, so it is not part of `make test`.
coverage:
	$(BIN)/pytest -n $(JOBS) --cov=salf --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE)

slow: $(VENV)/.installed-slow
	$(BIN)/pytest -n $(JOBS) -m slow

# constraints.txt pins what was tested.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Libraries that salf works inside of; the daily checks do not need them.
$(VENV)/.installed-slow: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,neighbours]'
	touch $@

clean:
	rm -rf $(VENV) demo build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
