# make demo    set up .venv, train CAM and CALM_EM on painted birds, measure and picture both (FULL=1: longer trainings)
# make test    set up .venv, run all tests
# make soak    set up .venv, try faults by the hundred: a table of what survived (some minutes)
# make lint    set up .venv, check style, imports, sizes and types
# make setup   set up .venv
# make bench   set up .venv, measure how fast everything is beside the plain ways (some minutes)
# make docs    set up .venv, build the pages of docs/ as a site in site/
# make clean   remove .venv and what tools left
PYTHON ?= python3
BIN := .venv/bin
# Where bytecode is forbidden, every process compiles torch and torchvision again, for 7 and 18 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test soak lint bench docs setup setup-test clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: setup
	@$(BIN)/python -m research.demo $(if $(FULL),--full)

test: setup-test
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

soak: setup-test
	@$(BIN)/python tests/soak.py

lint: setup-test
	@$(BIN)/python -m ruff check .
	@$(BIN)/python tests/house.py
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

bench: setup-test
	@$(BIN)/python -m research.bench --json=save/bench.json

docs: .venv/.installed-docs
	@$(BIN)/python -m mkdocs build --quiet

setup: .venv/.installed
setup-test: .venv/.installed-test

# A stamp is written when an installation is complete. So a broken installation is repeated.
.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "error: Python 3.10 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try make PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up .venv with $$($(PYTHON) -V): downloads torch and the rest of requirements.txt once, some minutes"
	@$(PYTHON) -m venv --clear .venv \
	    || { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.installed-test: requirements-test.txt .venv/.installed
	@echo "adding requirements-test.txt to .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

.venv/.installed-docs: requirements-docs.txt .venv/.installed
	@echo "adding requirements-docs.txt to .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis
