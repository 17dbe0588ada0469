# Two commands matter: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Real data is optional: a folder in the layout of docs/data.md lets real-text runs work offline.
ifneq ($(wildcard ../shared/data),)
export PREFERL_DATA ?= $(abspath ../shared/data)
endif
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test mutants instruction-sets check fmt bench docs clean

demo: $(STAMP)  ## the whole pipeline on the embedded world; prints the report's path
	$(BIN)/preferl demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest -n auto --dist worksteal

mutants: $(STAMP)  ## break the package in one place at a time; a test must notice each
	$(BIN)/python tests/mutants.py

instruction-sets: $(STAMP)  ## the numeric tests natively, with AVX2 and with SSE
	$(BIN)/python tests/instruction_sets.py

check: $(STAMP)  ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## speed, as ratios printed side by side
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/reward_speed.py

docs: $(STAMP)  ## the documentation as a site in site/; every link, command, option and path in it exists
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
