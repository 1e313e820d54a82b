# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-output

.PHONY: help install demo test lint clean

help:  ## Say what there is.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# All that is installed is compiled here, on all cores (pip takes one), and for where PYTHONDONTWRITEBYTECODE is set, as it is in many containers:
# each command and each worker would compile it again there, 5 seconds every time. A file of a newer Python's syntax is none of ours.
install: .venv/installed  ## Create .venv with pinned versions.

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("wordmask needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

demo: install  ## Segment 24 synthetic scenes end to end and draw what came out.
	@rm -rf $(DEMO)
	$(BIN)/wordmask scenes $(DEMO)/scenes.parquet --count 24 --seed 7
	$(BIN)/wordmask run $(DEMO)/scenes.parquet $(DEMO)/masks
	$(BIN)/wordmask evaluate $(DEMO)/masks $(DEMO)/scenes.parquet
	$(BIN)/wordmask sheet $(DEMO)/masks $(DEMO)/sheet.png
	@echo "Masks: $(DEMO)/masks/masks   Look at: $(DEMO)/sheet.png"

# Two at a time with a thread each: most tests wait for processes that they start.
test: install  ## Run every test.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20

lint: install  ## Format, lint, types and import directions.
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove what make made.
	rm -rf .venv $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
