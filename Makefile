# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-output

.PHONY: help install demo test test-fast lint format shape clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# Everything installed is compiled here, on all cores (pip uses one). Where PYTHONDONTWRITEBYTECODE is
# set, as in many containers, each command and each worker would otherwise compile it again: 5 seconds
# every time. A package may hold a file of a newer Python's syntax: that one is left alone.
install: .venv/installed  ## Create .venv with pinned versions.

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("wordmask needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

demo: install  ## Segment 24 synthetic scenes end to end and draw the masks.
	@rm -rf $(DEMO)
	$(BIN)/wordmask scenes $(DEMO)/scenes.parquet --count 24 --seed 7
	$(BIN)/wordmask run $(DEMO)/scenes.parquet $(DEMO)/masks
	$(BIN)/wordmask evaluate $(DEMO)/masks $(DEMO)/scenes.parquet
	$(BIN)/wordmask sheet $(DEMO)/masks $(DEMO)/sheet.png
	@echo "Masks: $(DEMO)/masks/masks   Look at: $(DEMO)/sheet.png"

# Two processes with a thread each: most tests wait for processes that they start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install  ## Run every test.
	$(PYTEST) --durations 20

test-fast: install  ## Run the tests that take under 3 minutes together, on two cores.
	$(PYTEST) --fast

lint: install  ## Check format, lint, types and import directions; change nothing.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shape: install  ## Print how dense, long and crowded the code is, beside the limits.
	$(BIN)/python -m tests.shape

clean:  ## Remove what make made.
	rm -rf .venv $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
