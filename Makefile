# Everything a fresh machine needs besides Python 3.11 to 3.13 and make is set up by the first target used.
#   TORCH_BACKEND=cpu make demo    without the CUDA libraries (needs uv's download of CPU wheels)
#   PYTHON=python3.12 make demo    another Python
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
STATIC := MAMMOMIL_STATIC=1 TQDM_DISABLE=1
WIDGETS7 := $(VENV)/widgets7
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: help venv demo test quick book book-clean notebooks test-book lint format clean

help:
	@echo "make demo    train a small model on synthetic mammograms and look at what it sees (5 minutes)"
	@echo "make book    build the book: book/_build/html/index.html (runs all chapters once, then what has changed)"
	@echo "make test    all tests, the book built and every notebook run (half an hour on two cores)"
	@echo "make quick   the tests that take seconds"
	@echo "make lint    ruff"
	@echo "make notebooks [CHAPTERS='02 05']   run chapters and store their outputs and times"
	@echo "make book-clean   forget what the book remembers of earlier runs"
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

test: venv $(WIDGETS7)
	$(BIN)/python -m pytest -m "not book" $(PYTEST_ARGS)
	$(MAKE) book test-book

# Every cell of every chapter, the stored outputs of headline cells compared, one thread for each of two
# notebooks at a time; then the pages in a browser.
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=180 --nbval-kernel-startup-timeout=120
test-book: venv
	$(STATIC) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(NBVAL) -n 2 --dist loadfile book/chapters book/instructors
	$(BIN)/python -m pytest -m book -n 2 --dist worksteal tests

# ipywidgets as Colab has it, beside the new one, for the tests of the explorers.
$(WIDGETS7): $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ ipywidgets==7.7.1 ipython-genutils==0.2.0

quick: venv $(WIDGETS7)
	$(BIN)/python -m pytest -m "not slow and not book" $(PYTEST_ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Warnings are errors. Chapters run with MAMMOMIL_STATIC=1: explorers put all their frames into the page,
# and there are no progress bars, which need a kernel. Those that have changed run first, one per core.
book: venv
	$(STATIC) $(BIN)/python book/_tools/execute.py
	$(STATIC) $(BIN)/jupyter-book build book --warningiserror --keep-going
	$(STATIC) $(BIN)/python book/_tools/kit.py

book-clean:
	rm -rf book/_build

notebooks: venv
	$(BIN)/python book/_tools/notebooks.py $(CHAPTERS)

clean:
	rm -rf $(VENV) demo_output
