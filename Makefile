# Every target makes .venv first if it is missing or setup.py changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/quickstart.py
# Script workers and XLA share the machine; one thread each in the libraries.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Files of tests side by side, in order of their names, which has the long ones early;
# PYTEST_JOBS= runs them one after the other.
PYTEST_JOBS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile \
  --no-loadscope-reorder

.PHONY: quickstart test test-slow lint bench bubblewrap clean help

help:
	@echo "make quickstart  the whole method on this machine (15 to 30 minutes)"
	@echo "make test        all tests but the slow ones; make test-slow runs those"
	@echo "make lint        ruff and pyright"
	@echo "make bench       against transformers and Tunix on the same work"

$(VENV)/.run: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Real isolation for scripts that a model wrote. Without it the run goes on with
# weaker process isolation and stamps every result "not isolated".
bubblewrap:
	@command -v bwrap >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "installing bubblewrap"; \
	    { apt-get install -y -qq bubblewrap || { apt-get update -qq && \
	      apt-get install -y -qq bubblewrap; }; } >/dev/null 2>&1 || true; fi; \
	  command -v bwrap >/dev/null 2>&1 || \
	    echo "WARNING: bubblewrap is missing (apt-get install bubblewrap):" \
	         "scripts run NOT ISOLATED"; }

quickstart: $(VENV)/.run bubblewrap
	$(BIN)/python -m launch.pipeline --config=$(CONFIG)

test: $(VENV)/.dev bubblewrap
	$(BIN)/python -m pytest $(PYTEST_JOBS) -m "not slow and not tpu"

test-slow: $(VENV)/.dev bubblewrap
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Tunix and what it pulls in have an environment of their own.
$(VENV)/.bench: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/bench
	$(VENV)/bench/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench bubblewrap
	$(BIN)/python -m launch.bench --tunix_python=$(VENV)/bench/bin/python

clean:
	rm -rf $(VENV) runs build *.egg-info
