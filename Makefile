# make demo    set up .venv, train CAM and CALM_EM on painted birds, measure and picture both
# make test    set up .venv, run all tests
# make soak    set up .venv, try faults by the hundred: a table of what survived (5 minutes)
# make lint    set up .venv, run the linter
# make setup   set up .venv
# make bench   set up .venv, measure how fast everything is beside the plain ways: 15 minutes
# make docs    set up .venv, build the pages of docs/ as a site in site/
# make clean   remove .venv and what tools left
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test soak lint bench docs setup setup-test clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: setup
	@$(BIN)/python -m research.demo

test: setup-test
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

soak: setup-test
	@$(BIN)/python tests/soak.py

lint: setup-test
	@$(BIN)/python -m ruff check .

bench: setup-test
	@TQDM_DISABLE=1 KINETO_LOG_LEVEL=9 $(BIN)/python -m research.bench --json=save/bench.json --plot=save/bench.png

docs: .venv/.installed-docs
	@$(BIN)/python -m mkdocs build --quiet

setup: .venv/.installed
setup-test: .venv/.installed-test

# --no-compile: most of what is installed is never imported, and what is compiles then.
# A stamp is written when an installation is complete, so a broken one is repeated.
.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "error: Python 3.10 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try make PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up .venv with $$($(PYTHON) -V): downloads torch and the rest of requirements.txt once, some minutes"
	@$(PYTHON) -m venv --clear .venv \
	    || { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@touch $@

.venv/.installed-test: requirements-test.txt .venv/.installed
	@echo "adding requirements-test.txt to .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-test.txt
	@touch $@

.venv/.installed-docs: requirements-docs.txt .venv/.installed
	@echo "adding requirements-docs.txt to .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-docs.txt
	@touch $@

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis
