# `make test` on a fresh machine is all it takes: every target installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help install demo test test-quick lint type bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## create .venv with the project, detectron2 and the development tools

$(INSTALLED): pyproject.toml docker/install.sh docker/install_detectron2.sh
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	docker/install.sh $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install ## search real sample photos: a minute on two cores, nothing to download
	$(BIN)/scan-pipeline demo

test: install ## run every test
	$(BIN)/python -m pytest --durations=10

test-quick: install ## run the tests that are not marked slow (under three minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

lint: install ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## check types
	$(BIN)/mypy

bench: install ## measure speed, each as a ratio to a named alternative
	@for script in tests/benchmarks/[a-z]*.py; do name=$$(basename $$script .py); echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

clean: ## remove the environment and caches
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
