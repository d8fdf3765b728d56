# make demo: install what the demo needs and run it.   make test: lint, types, all tests.
# make coverage: all tests, and the lines that none of them reached; twice as long.
# make mutants: how many deliberate faults the tests notice; half an hour.
# make bench: every benchmark, and bench.json; benchmarks/gpu.sh is for a GPU.   make dist: wheel and sdist, checked and tried.
# make docs: the guides and the API reference, in build/docs/index.html.
# PYTHON chooses the interpreter that .venv is made with: make test PYTHON=python3.12
# TORCH makes an environment of its own, with this torch and the newest of everything else, and
# runs all tests in it: make test TORCH=2.9.1 PYTHON=python3.12

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
ENV := .venv$(if $(TORCH),-$(TORCH)-$(VERSION))
BIN := $(ENV)/bin
VENV := $(ENV)/made-with-python-$(VERSION)
# The constraints name the exact torch: a bare "torch" may bring gigabytes of CUDA libraries.
VERSIONS := $(if $(TORCH),torch==$(TORCH),--constraint constraints.txt)

.PHONY: bench clean coverage demo dist docs lint mutants test types

demo: $(ENV)/installed-demo
	$(BIN)/python examples/digits.py $(DEMO)

test: $(if $(TORCH),,lint types) $(ENV)/installed-ci
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(PYTEST)

coverage: $(ENV)/installed-ci
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --cov

# One after the other, on a machine with nothing else to do.
bench: $(ENV)/installed-ci
	for name in overhead launches compiled_step second_forward population many_tasks collective; do \
		$(BIN)/python benchmarks/$$name.py --json bench.json $(BENCH) || exit 1; \
	done

mutants: $(ENV)/installed-mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

lint: $(ENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md .github docs mtl_scalarize tests examples benchmarks
	$(BIN)/zizmor --offline --quiet .github

types: $(ENV)/installed-test
	$(BIN)/mypy

docs: $(ENV)/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs build/docs
	@echo "file://$(CURDIR)/build/docs/index.html"

# Build, check, install into an empty environment, and run the README's first example there.
dist: $(ENV)/installed-dist
	rm -rf dist build/empty
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	sed -n '/^```python$$/,/^```$$/{/^```/!p;/^```$$/q}' README.md > build/first_example.py
	cd build && empty/bin/python first_example.py

clean:
	rm -rf .venv* build dist mutants .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.png bench.json gpu.json

# Another PYTHON than last time makes the environment anew.
$(VENV):
	@test -n "$(VERSION)" || { echo "make: PYTHON=$(PYTHON) does not run" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(ENV)
	@touch $@

$(ENV)/installed-%: $(VENV) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(VERSIONS) --editable ".[$*]"
	@touch $@
