# Everything a fresh machine needs besides Python 3.11 to 3.13 and make is set up by the first target used.
#   TORCH_BACKEND=cpu make demo    without the CUDA libraries (needs uv's download of CPU wheels)
#   PYTHON=python3.12 make demo    another Python
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: help venv demo test quick book lint format clean

help:
	@echo "make demo    train a small model on synthetic mammograms and look at what it sees (5 minutes)"
	@echo "make test    all tests"
	@echo "make quick   the tests that take seconds"
	@echo "make lint    ruff"
	@echo "make book    build the book (not written yet)"
	@echo "make venv    only set up $(VENV)"

venv: $(VENV)/.ready

# uv where it can be had, pip otherwise; the versions are those of constraints.txt either way. Debian's Python
# may come without ensurepip, hence the second try.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13))' || \
	  { echo "mammomil needs Python 3.11 to 3.13; $(PYTHON) is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || uv venv --seed --python $(PYTHON) $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "no uv here; pip will do"
	@if [ -x $(BIN)/uv ]; then \
	  VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --compile-bytecode $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) \
	    --constraint constraints.txt --editable ".[$(EXTRAS)]"; \
	else \
	  $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"; \
	fi
	@touch $@

demo: venv
	$(BIN)/mammomil demo --out demo_output

test: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: venv
	$(BIN)/python -m pytest -m "not slow and not book" $(PYTEST_ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

book:
	@echo "The book is not written yet; the library it will teach is here. See CHANGELOG.md."; exit 1

clean:
	rm -rf $(VENV) demo_output
