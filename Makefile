# `make demo` and `make test` do all of their own set-up in .venv; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := collapse-losses grokking-edge mono-forward liger-kernel
# Tests and docs look for data sets here first; nothing is downloaded by them.
export ASSAY_DATA
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types docs bench evidence new generate clean

help:  ## Show this list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

setup: $(VENV)/.installed-dev  ## Install Assay with everything that developing it needs, in .venv.

demo: $(STAMP)  ## Put four claims to the test with data that needs no download; builds report/index.html (under three minutes).
	$(BIN)/assay run $(DEMO) --scale smoke --seeds 6 --report report

test: setup  ## Run the whole test suite (no network).
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not cluster"
	$(BIN)/python -m pytest -q -m cluster
	$(BIN)/python -m pytest -q --doctest-modules src/assay

check: setup  ## Fast checks: format, lint, types, import contracts and tests; PAPER=id checks what that paper touches.
ifdef PAPER
	$(BIN)/python tools/check_paper.py $(PAPER)
else
	$(MAKE) lint types
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not cluster and not browser and not slow"
endif

lint: setup  ## Check format, lint rules and import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup  ## Check types.
	$(BIN)/mypy

generate: setup  ## Regenerate stubs, counts and docs pages from cards and evidence.
	$(BIN)/python tools/generate.py

docs: setup  ## Build the documentation in site/, strictly.
	$(BIN)/python tools/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup  ## Measure side by side with peers; BENCH="name ..." picks some.
	$(BIN)/assay bench $(or $(BENCH),$(shell $(BIN)/assay bench))

evidence: setup  ## Rerun desk studies and record their evidence; PAPER=id picks one.
	$(BIN)/assay run $(or $(PAPER),$(DEMO)) --scale desk --record

new: setup  ## Scaffold a paper with failing tests: make new PAPER=id SEAM=losses.
	$(BIN)/python tools/new_paper.py "$(PAPER)" "$(SEAM)"

clean:  ## Remove the environment and everything that was built.
	rm -rf $(VENV) build dist site report src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
