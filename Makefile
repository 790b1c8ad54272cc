# Everything needs only make and Python >= 3.11; what is installed goes into .venv and .venv-3.9 here.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
VENV_39 := .venv-3.9
BIN_39 := $(VENV_39)/bin
VENV_LOW := .venv-lowest
BIN_LOW := $(VENV_LOW)/bin
VENV_TOOLS := .venv-tools
BIN_TOOLS := $(VENV_TOOLS)/bin
PIP_FLAGS := --quiet --quiet --disable-pip-version-check
REAL := real-models
REAL_NAMES := smollm2-135m gemma3-270m

# Code that was compiled once is kept, also where the environment says otherwise: each of a dozen processes would take 15 s.
export PYTHONDONTWRITEBYTECODE :=

# One torch thread per process: test workers share the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup report real-models report-real gallery test test-real test-ray test-lab test-full trust numerics mutants contract contract-3.9 families \
    lint format \
    notebooks notebooks-stored notebooks-sync docs bench test-lowest release sbom audit clean

help: ## this list
	@grep -hE '^[a-z0-9.-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-17s %s\n", $$1, $$2 }'

# torch goes first, alone: then the build that pip finds for this machine stays, whatever the rest asks for.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing mechrep into $(VENV); the first time this takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[evals,gguf]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools of development into $(VENV)."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[dev,notebooks,docs]"
	@touch $@

$(VENV)/.installed-lab: $(VENV)/.installed-dev
	@echo "Installing JupyterLab into $(VENV)."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[lab]"
	@touch $@

$(VENV_39)/.installed: pyproject.toml constraints-3.9.txt
	@echo "Installing mechrep with TransformerLens 3.9 into $(VENV_39)."
	@test -x $(BIN_39)/python || $(PYTHON) -m venv $(VENV_39)
	@$(BIN_39)/python -m pip install $(PIP_FLAGS) -c constraints-3.9.txt torch
	@$(BIN_39)/python -m pip install $(PIP_FLAGS) -c constraints-3.9.txt \
	    -e . "transformer-lens<4" beartype hypothesis pytest pytest-xdist
	@touch $@

$(VENV_LOW)/.installed: pyproject.toml .ci/lowest.py
	@echo "Installing mechrep with the lowest versions that pyproject.toml allows into $(VENV_LOW)."
	@test -x $(BIN_LOW)/python || $(PYTHON) -m venv $(VENV_LOW)
	@$(PYTHON) .ci/lowest.py > $(VENV_LOW)/constraints.txt
	@$(BIN_LOW)/python -m pip install $(PIP_FLAGS) -c $(VENV_LOW)/constraints.txt -e . beartype hypothesis pytest pytest-xdist
	@touch $@

$(VENV_TOOLS)/.installed:
	@test -x $(BIN_TOOLS)/python || $(PYTHON) -m venv $(VENV_TOOLS)
	@$(BIN_TOOLS)/python -m pip install $(PIP_FLAGS) cyclonedx-bom pip-audit
	@touch $@

setup: $(VENV)/.installed-dev ## everything for development, in .venv

report: $(VENV)/.installed ## the first thing to try: a report on the embedded model
	@$(BIN)/mechrep report mechrep-tiny --effort quick --out report
	@echo "$(CURDIR)/report/report.html"

real-models: $(VENV)/.installed ## two pretrained models, SmolLM2-135M and Gemma 3 270M (Gemma's terms), into real-models/
	@$(BIN)/python .ci/real_models.py --out $(REAL)

# A report that is there is not made again unless the code has changed; one that was stopped goes on.
SOURCES := $(shell find mechrep -name '*.py')
report-real/mechrep-tiny/.done: $(SOURCES) | $(VENV)/.installed
	@$(BIN)/mechrep report mechrep-tiny --effort quick --out $(@D)
	@touch $@

report-real/%/.done: $(SOURCES) | real-models
	@$(BIN)/mechrep report $(REAL)/$* --effort quick --out $(@D)
	@touch $@

report-real: $(addprefix report-real/,$(addsuffix /.done,$(REAL_NAMES))) ## a report on each of the two, at effort quick, into report-real/

gallery: report-real report-real/mechrep-tiny/.done ## tables and figures of docs/real-models.md anew, from these reports and one on mechrep-tiny
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt kaleido
	@$(BIN)/python docs/make_gallery.py

test: $(VENV)/.installed-dev ## the fast tests and the examples in the docstrings
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# One process with all cores: the model is loaded once.
test-real: $(VENV)/.installed-dev ## independent checks on SmolLM2-135M; skipped where real-models/ has it not
	OMP_NUM_THREADS=$(WORKERS) MKL_NUM_THREADS=$(WORKERS) $(BIN)/python -m pytest -q -m "real and not slow" tests/real

test-ray: $(VENV)/.installed-dev ## studies on two workers of a Ray cluster that is started here; one of them is killed
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m ray --durations=3 tests/engine

test-lab: $(VENV)/.installed-lab ## two notebooks in a JupyterLab that is started for real, looked at in Chromium
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m slow tests/viewer/test_jupyterlab.py

test-full: $(VENV)/.installed-lab ## all tests, the slow ones and those on pretrained models too
	-@$(BIN)/python .ci/real_models.py --out $(REAL)
	@rm -rf trust-figures
	$(ONE_THREAD) MECHREP_CHECKED_CALLS=all MECHREP_TRUST=$(CURDIR)/trust-figures \
	    $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "" --hypothesis-profile=thorough; \
	    status=$$?; $(BIN)/python .ci/trust.py trust-figures && exit $$status

trust: $(VENV)/.installed-dev ## the tests whose figures stand in docs/trust.md, and that table anew
	@rm -rf trust-figures
	$(ONE_THREAD) HF_HUB_OFFLINE=1 MECHREP_TRUST=$(CURDIR)/trust-figures \
	    $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m trust; \
	    status=$$?; $(BIN)/python .ci/trust.py trust-figures && exit $$status

numerics: $(VENV)/.installed-dev ## the tables of docs/trust.md about float32, bfloat16 and float16, measured anew
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python .ci/numerics.py

mutants: $(VENV)/.installed-dev ## faults made in the measuring code, one at a time: do the fast tests see each?
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m tests.mutants.run

contract: $(VENV)/.installed-dev ## every architecture x every capability, against plain Hugging Face models
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m tests.families.table

families: $(VENV)/.installed-dev ## the same, written to docs/families.md
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python -m tests.families.table --write docs/families.md

contract-3.9: $(VENV_39)/.installed ## the contract tests on TransformerLens 3.9, in .venv-3.9
	$(ONE_THREAD) $(BIN_39)/python -m pytest -q -n $(WORKERS) -m contract tests

lint: $(VENV)/.installed-dev ## formatting, ruff, pyright, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format the code, and repair what ruff can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# Each in a kernel of its own, one per core.
notebooks: $(VENV)/.installed-dev ## are .py and .ipynb the same, is all stored that they show, and do all of them run?
	$(BIN)/python .ci/check_notebooks.py
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python .ci/run_notebooks.py --workers $(WORKERS)

notebooks-stored: $(VENV)/.installed-dev ## run them, and keep what they show in notebooks/*.ipynb (needs Chromium)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN)/python .ci/run_notebooks.py --workers $(WORKERS) --store
	$(BIN)/python .ci/check_notebooks.py

notebooks-sync: $(VENV)/.installed-dev ## write notebooks/*.ipynb anew from notebooks/*.py
	$(BIN)/jupytext --to ipynb --update notebooks/*.py

docs: $(VENV)/.installed-dev ## the documentation, in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "$(CURDIR)/docs/_build/html/index.html"

bench: $(VENV)/.installed-dev ## what it costs: every benchmark, and one table of what was asked and measured
	$(BIN)/python benchmarks/run.py

test-lowest: $(VENV_LOW)/.installed ## the contract tests and a report with the lowest versions of everything, in .venv-lowest
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN_LOW)/python -m pytest -q -n $(WORKERS) -m contract tests
	$(ONE_THREAD) HF_HUB_OFFLINE=1 $(BIN_LOW)/mechrep report mechrep-tiny --effort quick --only first-layer --out $(VENV_LOW)/report

release: ## wheel and sdist in dist/, each installed in an empty environment elsewhere and tried
	$(PYTHON) .ci/release.py --python $(PYTHON)

sbom: $(VENV)/.installed $(VENV_TOOLS)/.installed ## what is installed, as CycloneDX JSON, in dist/sbom.cdx.json
	@mkdir -p dist
	@$(BIN_TOOLS)/cyclonedx-py environment --output-reproducible --of JSON -o dist/sbom.cdx.json $(BIN)/python
	@echo "$(CURDIR)/dist/sbom.cdx.json"

audit: $(VENV)/.installed $(VENV_TOOLS)/.installed ## known vulnerabilities of what is installed, by OSV's database
	@$(BIN_TOOLS)/python .ci/audit.py $(BIN)/python

clean: ## remove what was made here, except virtual environments and real-models/
	rm -rf report report-real trust-figures docs/_build docs/notebooks dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find mechrep tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
