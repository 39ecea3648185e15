# `make demo` and `make test` set everything up by themselves; see README.md for the plain pip commands.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo

# a second `make demo` continues where the first one stopped
train = $(BIN)/gcpo-bench train --model scenes-8 --method $(1) --name $(1) --runs-dir $(DEMO)/runs $$(test ! -d $(DEMO)/runs/$(1) || echo --resume)

.PHONY: demo gate test lint clean help

help:
	@echo "make demo    install, train GRPO and GCPO on the embedded world, evaluate both, write $(DEMO)/report/report.html"
	@echo "make gate    hold the demo's runs against baselines/main.json"
	@echo "make test    install what tests need and run them"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove $(VENV) and $(DEMO)"

demo: $(VENV)/.installed
	$(call train,grpo)
	$(call train,gcpo)
	$(BIN)/gcpo-bench evaluate grpo gcpo --runs-dir $(DEMO)/runs
	$(BIN)/gcpo-bench report --runs-dir $(DEMO)/runs --out $(DEMO)/report

# another processor rounds differently, which is like another seed: only a proven loss of over 5 points fails
gate: $(VENV)/.installed
	$(BIN)/gcpo-bench gate --baseline baselines/main.json --runs-dir $(DEMO)/runs --margin scenes=5pt \
	  --inconclusive pass --junit $(DEMO)/gate.xml

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11"; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test,dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

clean:
	rm -rf $(VENV) $(DEMO)
