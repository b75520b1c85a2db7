# Everything a user or a developer runs. A fresh machine needs Python 3.11+, make and a
# C compiler; each target installs what it needs, and no more, into .venv.

PYTHON ?= python3
# Worker processes of pytest (pytest-xdist): one for each core; 0 runs the tests in this
# one. Threads that each of them computes with. What torch reads from the environment
# reaches it: `ATEN_CPU_CAPABILITY=default make test` uses plain instructions.
WORKERS ?= auto
THREADS ?= 1
# Examples of hypothesis: the same everywhere, or `make test EXAMPLES=random`.
EXAMPLES ?= fixed
# Extra arguments, as in `make test ARGS="-k entropy"`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
DOCS_OUTPUT := docs/_build/html

# Small tensor operations on several threads are slow whenever another process runs, so
# tests and documentation use one thread. The demonstration and the benchmarks do not.
# Threads that wait do so asleep: spinning ones are 10 times slower on a busy machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
SOME_THREADS := OTFLOW_TEST_EXAMPLES=$(EXAMPLES) OTFLOW_TEST_THREADS=$(THREADS) \
  OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) \
  OMP_WAIT_POLICY=passive
HEADLESS := MPLBACKEND=Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo figures test test-slow test-all test-lowest coverage campaign mutants \
        doctest lint package layers docstrings types docs bench format clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' \
	  $(firstword $(MAKEFILE_LIST))

# ---- environment ---------------------------------------------------------------------
# One stamp per extra, in one virtual environment. pip compiles what it installs to
# bytecode, without which every import of torch takes about twice as long.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "otflow needs Python 3.11 or later; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

# The lowest versions have an environment of their own.
$(LOWEST)/.installed: pyproject.toml constraints-min.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-min.txt \
	  --editable '.[test]'
	@touch $@

# ---- use -----------------------------------------------------------------------------

# The threads of OpenBLAS always spin, and its matrices here are small: it gets one.
SOME_PATIENCE := OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1
demo: $(VENV)/.installed-demo ## run the demonstration; results in demo-output/
	$(SOME_PATIENCE) $(HEADLESS) $(BIN)/python -m demo --output demo-output $(ARGS)

figures: $(VENV)/.installed-demo ## run the demonstration into the figures of README.md
	$(SOME_PATIENCE) $(HEADLESS) $(BIN)/python -m demo --output docs/_static/demo

bench: $(VENV)/.installed-demo ## time otflow beside POT, GeomLoss and torch
	$(HEADLESS) $(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.seconds --rst > docs/seconds.new
	mv docs/seconds.new docs/seconds.inc

# ---- tests ---------------------------------------------------------------------------

PYTEST_IN = $(SOME_THREADS) $(HEADLESS) $(1)/python -m pytest
PYTEST := $(call PYTEST_IN,$(BIN))
ALL_TESTS := -m "slow or not slow"
# Where matplotlib, NumPy, SciPy, numba, POT, geomloss, scikit-learn and their like are
# called: a fraction of the tests.
CALLS_OTHERS := tests/test_plotting.py tests/numerics tests/measures/grid/test_walls.py \
  tests/metrics/test_wasserstein.py tests/metrics/test_steps_exact.py \
  tests/metrics/test_sinkhorn.py tests/metrics/test_semidiscrete.py \
  tests/metrics/test_maps.py tests/proximal/grid/test_finite_volume.py \
  tests/proximal/grid/test_c_transform.py tests/estimators tests/test_campaign.py \
  tests/meanfield/norms \
  "tests/test_tutorials.py::test_tutorial_runs[plot_2_network_flow]" \
  "tests/test_tutorials.py::test_tutorial_runs[plot_6_crowd]"

test: $(VENV)/.installed-test ## run the tests that are not slow
	$(PYTEST) --numprocesses $(WORKERS) $(ARGS)

test-slow: $(VENV)/.installed-test ## run the slow tests
	$(PYTEST) --numprocesses $(WORKERS) -m slow $(ARGS)

test-all: $(VENV)/.installed-test ## run every test
	$(PYTEST) --numprocesses $(WORKERS) $(ALL_TESTS) $(ARGS)

test-lowest: $(LOWEST)/.installed ## run tests under the lowest versions
	$(LOWEST)/bin/python -c "from demo.digits import Digits; Digits.load()"
	$(call PYTEST_IN,$(LOWEST)/bin) --numprocesses $(WORKERS) \
	  $(if $(ARGS),$(ARGS),$(CALLS_OTHERS))

coverage: $(VENV)/.installed-test ## run every test and report branch coverage
	$(PYTEST) --numprocesses $(WORKERS) $(ALL_TESTS) --cov --cov-report=term $(ARGS)

campaign: $(VENV)/.installed-test ## random problems against independent references
	$(ONE_THREAD) $(BIN)/python -m tools.campaign $(ARGS)

mutants: $(VENV)/.installed-mutants ## how many changed lines the tests notice; by hand
	$(ONE_THREAD) $(HEADLESS) $(BIN)/python -m tools.mutants $(ARGS)

doctest: $(VENV)/.installed-test ## run the examples of the docstrings
	$(PYTEST) -p tests.doctests --doctest-modules otflow $(ARGS)

# ---- checks --------------------------------------------------------------------------

lint: $(VENV)/.installed-lint ## check style, formatting and project metadata
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/sp-repo-review .
	$(BIN)/pre-commit validate-config

# Of the 10 points of pyroma two are for addresses: an author's and a home page.
package: $(VENV)/.installed-lint ## build what would be published, and check it
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist
	$(BIN)/pyroma --min=8 dist/*.tar.gz

layers: $(VENV)/.installed-test ## check the layers of imports
	$(PYTEST) -q tests/test_layers.py

docstrings: $(VENV)/.installed-lint ## check that every public object is documented
	$(BIN)/python tools/check_docstrings.py

# The tests are checked too, so that what they import must be there.
types: $(VENV)/.installed-test ## check the types (mypy)
	$(BIN)/mypy

format: $(VENV)/.installed-lint ## format the sources and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ---- documentation -------------------------------------------------------------------

docs: $(VENV)/.installed-docs ## build the documentation, with every tutorial executed
	$(ONE_THREAD) $(HEADLESS) $(BIN)/python -m sphinx \
	  --builder html --fail-on-warning --keep-going --nitpicky docs $(DOCS_OUTPUT)
	@echo "Open $(DOCS_OUTPUT)/index.html"

# ---- cleaning ------------------------------------------------------------------------

clean: ## remove what the targets made, but keep the environment
	rm -rf build dist demo-output bench-output htmlcov .coverage .coverage.* \
	  .hypothesis .mypy_cache .pytest_cache .ruff_cache \
	  docs/_build docs/api/generated docs/api/backreferences docs/tutorials \
	  docs/sg_execution_times.rst
	find otflow tests tutorials benchmarks docs tools -name __pycache__ -type d \
	  -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove the environment as well
	rm -rf $(VENV) $(LOWEST)
