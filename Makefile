# Everything a newcomer needs: `make reproduce-table` and `make test` set up their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# reproduce-table, ablations and choices take these, where they say something of them: make reproduce-table PROFILE=small
# TASKS=ptbxl SEEDS="0 1" JOBS=2 DATA=folder OPTIONS="--trainer.devices 2". What they are is in configs/experiments.
PROFILE ?= quick
TASKS ?=
SEEDS ?=
JOBS ?=
DATA ?=
OPTIONS ?=
RESULTS ?= results/$(PROFILE)
GIVEN = $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(DATA),--data.root $(DATA)) $(OPTIONS)
# Of the rows of another profile than quick.
OF = $(if $(filter-out quick,$(PROFILE)),--of $(PROFILE))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-gpu lint reproduce-table choices ablations listops-report publish bench dashboard soak fuzz audit docs lock clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo "  reproduce-table, ablations and choices take PROFILE=quick|medium|small|paper, TASKS=\"listops ptbxl\", SEEDS=\"0 1 2\","
	@echo "  JOBS=runs at a time, DATA=folder of real data, OPTIONS=\"--trainer.devices 2\" for msssm fit; msssm experiment --help"

install: $(READY) ## Create .venv with msssm and its development tools

# Also when the kernels change: what a pull brings must be built.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard msssm/scan/csrc/*.cpp msssm/scan/csrc/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "msssm needs Python 3.11 or newer, $(PYTHON) is older; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 6 GB, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest

test-gpu: $(READY) ## Run the tests of the Triton kernels on a GPU
	$(BIN)/python -m pytest -n 0 tests/msssm/scan/test_scan_gpu.py

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce-table: $(READY) ## Train every row that is not complete, and print the table
	@$(BIN)/msssm experiment $(PROFILE) --tasks $(or $(TASKS),listops) --results $(RESULTS) $(GIVEN)

ablations: $(READY) ## The paper's ablations at reduced scale, and the sweeps that it leaves open
	@$(BIN)/msssm experiment ablations $(if $(TASKS),--tasks $(TASKS)) $(OF) $(GIVEN)

choices: $(READY) ## Measure the defaults (docs/choices.md): one option changed at a time, three seeds
	@$(BIN)/msssm experiment choices $(OF) $(GIVEN)

# Operators and image models on all cores, streaming with one thread of torch.
bench: $(READY) ## Speed and memory beside peers and the floors of this machine; OPTIONS="--quick --device cuda"
	OMP_NUM_THREADS=$(shell getconf _NPROCESSORS_ONLN) $(BIN)/python -m benchmarks $(OPTIONS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.streaming
	OMP_NUM_THREADS=$(shell getconf _NPROCESSORS_ONLN) $(BIN)/python -m benchmarks.images

MINUTES ?= 120
soak: $(READY) ## Kill, starve and corrupt a small run for MINUTES=120, and compare its ends; writes results/soak
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.soak --minutes $(MINUTES)

# Each in an environment of its own, so that nothing of ours depends on what they bring.
TOOLS := .tools
$(TOOLS)/%:
	@$(PYTHON) -m venv $@ && $@/bin/python -m pip install --quiet --disable-pip-version-check $*

FUZZ_MINUTES ?= 10
fuzz: $(READY) ## Search for files that a reader does not survive, by atheris, for FUZZ_MINUTES=10
	@test -d $(TOOLS)/atheris || $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(TOOLS)/atheris atheris
	PYTHONPATH=$(TOOLS)/atheris $(BIN)/python -m tests.robustness.fuzz --minutes $(FUZZ_MINUTES)

audit: $(TOOLS)/pip-audit ## Look the locked packages up in the published advisories
	-@$(TOOLS)/pip-audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip \
		--format json --output $(TOOLS)/audit.json >/dev/null 2>&1
	@$(PYTHON) .ci/audit.py $(TOOLS)/audit.json

docs: $(TOOLS)/docs/.ready ## Build the documentation into site/; a broken link or an undocumented public name fails
	@NO_MKDOCS_2_WARNING=1 $(TOOLS)/docs/bin/mkdocs build

$(TOOLS)/docs/.ready: docs/requirements.txt
	@$(PYTHON) -m venv $(TOOLS)/docs
	@$(TOOLS)/docs/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

lock: $(TOOLS)/pip-tools ## Write requirements.lock: the versions of constraints.txt and the digests of their files
	@$(TOOLS)/pip-tools/bin/pip-compile --quiet --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-options --no-strip-extras --allow-unsafe --constraint constraints.txt --extra dev \
		--output-file requirements.lock pyproject.toml

listops-report: $(READY) ## ListOps rows on 20,000 fresh expressions, by operator, depth, length; then in table.html
	$(BIN)/msssm listops-report --results $(RESULTS) $(OPTIONS)
	@$(BIN)/msssm table $(RESULTS) > /dev/null

# The one target that writes results where git tracks them.
publish: ## Copy tables, plots and recipes of results/PROFILE (or RESULTS=results/bench) to docs/results, to be committed
	@test -d $(RESULTS) || { echo "there is no $(RESULTS); make it first" >&2; exit 1; }
	@mkdir -p docs/$(RESULTS)
	@tar -c --exclude ./runs --exclude '*.html' -C $(RESULTS) . | tar -x -C docs/$(RESULTS)

dashboard: $(READY) ## TensorBoard on all runs
	$(BIN)/tensorboard --logdir_spec runs:runs,results:results

clean: ## Remove caches and build products; keeps .venv, data and results
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find msssm datamodules tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
