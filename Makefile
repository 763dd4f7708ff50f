# make demo        the digits race from nothing: environment, training, comparison
# make test        the quick tests (ARGS="-k schedules" passes options on to pytest)
# make test-slow   the trainings that take minutes
# make lint        ruff and mypy
# make clean       removes the environment and the caches; runs/ stays

PYTHON ?= python3
ARGS ?=

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
LOG := .venv/install.log

# Two stamps: nothing is installed again unless pyproject.toml or constraints.txt changed.
define install
	@echo "Installing trilemma into .venv (torch is large: one to five minutes; details in $(LOG))"
	@set -o pipefail; $(BIN)/python -m pip install --no-input -c constraints.txt -e '$(1)' 2>$(LOG).err | tee $(LOG) | awk \
		'/^Collecting|^  Downloading .*[0-9][0-9][0-9]\.[0-9] MB/ { print "  " tolower($$1), $$2; fflush() } \
		/^Installing collected/ { print "  unpacking everything (a minute or two)"; fflush() }' \
		|| { tail -n 20 $(LOG).err >&2; echo "The installation failed; the lines above say why. Mend that and run make again." >&2; exit 1; }
endef

.PHONY: demo test test-slow lint clean

demo: $(STAMP)
	$(BIN)/trilemma race digits --out runs/digits-demo --resume

# One thread a process: pytest runs the files side by side, and threads on top would only get in each other's way.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
		"trilemma needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1); name another with make PYTHON=python3.11" >&2; exit 1; }
	@echo "Making the environment .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $@ $(STAMP)
