# Everything runs in one environment, .venv in this folder; the first command that needs it makes it.
# PYTHON=python3.12 picks another Python (3.10 or newer); ARGS=... goes to the command; JOBS=1 runs tests one by one; TORCH_PIP=... to pip when it fetches torch.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ARGS ?=
JOBS ?= auto
TORCH_PIP ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the stamp's name holds what the environment was made from, so a changed pin or a moved folder installs again
STAMP := .venv/.installed-$(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | cut -d' ' -f1)

.PHONY: help install demo test lessons lab docs bench pretrain export check clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv and install everything into it (the other commands do so by themselves)
	@echo ".venv is ready: $$($(BIN)/python -V), torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON) here. Install Python 3.10 or newer, or name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), and 3.10 or newer is needed. Name another: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@grep -qsF '$(CURDIR)/.venv' .venv/bin/activate && $(PIP) --version >/dev/null 2>&1 || { echo "Making .venv with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear .venv; }
	@echo "Installing PyTorch into .venv (once; a minute or more)"
	@$(PIP) install -qq -c constraints.txt $(TORCH_PIP) torch torchvision
	@echo "Installing fastai, spaCy, Jupyter, the test and docs tools, and this package"
	@$(PIP) install -qq -c constraints.txt -e '.[dev,docs]'
	@rm -f .venv/.installed*
	@touch $@

demo: $(STAMP) ## fine-tune the bundled model into a classifier, test, save, reload and predict (CPU, minutes)
	@$(BIN)/ulmfit_t5 demo $(ARGS)

test: $(STAMP) ## run all tests (tutorials shortened)
	@$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 $(ARGS)

lessons: $(STAMP) ## run every tutorial whole
	@ULMFIT_T5_LESSON=full $(BIN)/python -m pytest tests/test_tutorials.py -v --durations=0 $(ARGS)

lab: $(STAMP) ## open JupyterLab on the tutorials
	@$(BIN)/jupyter lab nbs/tutorials $(ARGS)

docs: $(STAMP) ## build the documentation into docs/_build/html; warnings are errors
	@$(BIN)/python tools/docs_src.py docs/_src
	@$(BIN)/python -m sphinx -q -W --keep-going docs/_src docs/_build/html $(ARGS)
	@echo "Open docs/_build/html/index.html"

bench: $(STAMP) ## measure against the peers; each script prints ours, the peer and the ratio
	@for f in $(filter-out %/common.py,$(wildcard benchmarks/*.py)); do echo "== $$f"; $(BIN)/python "$$f" $(ARGS); done

pretrain: $(STAMP) ## train a language model like the bundled ones (hours; ARGS=--help says how)
	@$(BIN)/ulmfit_t5 pretrain $(ARGS)

export: $(STAMP) ## write the package, settings.ini and README.md from the notebooks and pyproject.toml
	@$(BIN)/nbdev-clean
	@$(BIN)/nbdev-export
	@$(BIN)/python tools/settings_ini.py .
	@$(BIN)/python tools/readme.py .

check: $(STAMP) ## the quick checks: style, layers, and whether all that is generated is fresh
	@$(BIN)/python -m pytest -q tests/test_style.py tests/test_layers.py tests/test_settings.py tests/test_readme.py tests/test_notebooks.py -k "not runs" $(ARGS)

clean: ## remove what builds and tests leave behind (.venv stays)
	@rm -rf _proc docs/_src docs/_build build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	@find nbs tests tools ulmfit_t5 benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
