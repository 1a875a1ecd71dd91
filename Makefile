# `make demo` and `make test` need nothing but git, make and Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
BUILD := build

.PHONY: demo test test-oldest test-containers bench lint docs clean

demo: $(INSTALLED)
	$(BIN)/dlfd-fleet demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# The unit tests on the oldest versions that pyproject.toml allows.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/unit

# deploy/compose.yaml in containers of podman; tests/containers/test_compose.py names the variables.
test-containers: $(INSTALLED)
	$(BIN)/python -m pytest -x -o log_cli=true -o log_cli_level=INFO tests/containers

bench: $(INSTALLED)
	$(BIN)/dlfd-fleet bench methods --seeds 2 --budget 20m

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The docs site, in build/site; nothing is fetched. (With --quiet, --strict would see no warning.)
docs: $(INSTALLED)
	$(BIN)/python docs/pages.py $(BUILD)/pages
	NO_MKDOCS_2_WARNING=1 PAGES=$(abspath $(BUILD))/pages $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml \
	    --site-dir $(abspath $(BUILD))/site

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

# Made anew: what is there already would count as good enough.
$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
