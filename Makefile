# make demo: install what the demo needs and run it.   make test: lint, types, all tests.
# make coverage: all tests, and the lines that none of them reached; twice as long.
# make mutants: how many deliberate faults the tests notice; half an hour.
# make bench: every benchmark, and bench.json.   make dist: wheel and sdist, checked and tried.
# make docs: the guides and the API reference, in build/docs/index.html.
# PYTHON chooses the interpreter that .venv is made with: make test PYTHON=python3.12

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
BIN := .venv/bin
VENV := .venv/made-with-python-$(VERSION)

.PHONY: bench clean coverage demo dist docs lint mutants test types

demo: .venv/installed-demo
	$(BIN)/python examples/digits.py $(DEMO)

test: lint types .venv/installed-ci
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(PYTEST)

coverage: .venv/installed-ci
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --cov

# One after the other, on a machine with nothing else to do.
bench: .venv/installed-ci
	for name in overhead compiled_step second_forward population many_tasks collective; do \
		$(BIN)/python benchmarks/$$name.py --json bench.json $(BENCH) || exit 1; \
	done

mutants: .venv/installed-mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md docs mtl_scalarize tests examples benchmarks

types: .venv/installed-test
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "file://$(CURDIR)/build/docs/index.html"

# Build, check, install into an empty environment, and run the README's first example there.
dist: .venv/installed-dist
	rm -rf dist build/empty
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	sed -n '/^```python$$/,/^```$$/{/^```/!p;/^```$$/q}' README.md > build/first_example.py
	cd build && empty/bin/python first_example.py

clean:
	rm -rf .venv build dist mutants .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.png bench.json

# Another PYTHON than last time makes the environment anew.
$(VENV):
	@test -n "$(VERSION)" || { echo "make: PYTHON=$(PYTHON) does not run" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

# The constraints name the exact torch: a bare "torch" may bring gigabytes of CUDA libraries.
.venv/installed-%: $(VENV) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@
