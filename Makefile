# Everything a newcomer needs: `make reproduce-table` and `make test` set up their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PROFILE ?= quick
TASKS ?= listops
SEEDS ?= 0
# The reduced models are too small for two threads to pay: one thread each, as many runs at a time as there are cores.
JOBS ?= $(if $(filter paper,$(PROFILE)),1,$(shell getconf _NPROCESSORS_ONLN))
export OMP_NUM_THREADS ?= $(if $(filter paper,$(PROFILE)),$(shell getconf _NPROCESSORS_ONLN),1)

RESULTS := results/$(PROFILE)
ROWS := $(foreach task,$(TASKS),$(patsubst configs/$(PROFILE)/%.yaml,%,$(wildcard configs/$(PROFILE)/$(task)/*.yaml)))
RUNS := $(foreach seed,$(SEEDS),$(foreach row,$(ROWS),$(RESULTS)/runs/$(row)/seed$(seed)/metrics.json))
# An outer `make -j` hands down its job server; a plain `make` gets JOBS.
PARALLEL = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(JOBS))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-gpu lint reproduce-table runs choices ablations listops-report publish bench dashboard soak fuzz audit lock clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo "  reproduce-table takes PROFILE=quick|medium|paper, TASKS=\"listops digits ptbxl copying counting\", SEEDS=\"0 1 2\", JOBS=runs at a time,"
	@echo "  OPTIONS=\"--trainer.devices 2\" for msssm fit"

install: $(READY) ## Create .venv with msssm and its development tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "msssm needs Python 3.11 or newer, $(PYTHON) is older; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 6 GB, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest

test-gpu: $(READY) ## Run the tests of the Triton kernels on a GPU
	$(BIN)/python -m pytest -n 0 tests/scan/test_scan_gpu.py

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce-table: $(READY) ## Train every row that is not complete, and print the table
	@: $(if $(ROWS),,$(error no recipe configs/$(PROFILE)/{$(TASKS)}/*.yaml; PROFILE is quick (TASKS of listops digits ptbxl copying counting), medium (listops) or paper (listops scifar ptbxl)))
	-@$(MAKE) --no-print-directory --keep-going $(PARALLEL) runs
	@$(BIN)/msssm table $(RESULTS)
	@for run in $(RUNS); do test -f $$run || exit 1; done

runs: $(RUNS)

# <task>/<row>/seed<k> -> its recipe and its seed. A complete run (metrics.json) is never repeated, an interrupted one
# goes on from its last checkpoint; the exit code is not trusted, since a terminated training may exit with 0.
recipe = configs/$(PROFILE)/$(patsubst %/,%,$(dir $1)).yaml
seed = $(patsubst seed%,%,$(notdir $*))
define train
@mkdir -p $(@D)
@$(BIN)/msssm fit --config $1 --run_dir $(@D) --seed_everything $(seed) $2 $(OPTIONS) \
	--trainer.callbacks+=tasks.callbacks.dashboard.EpochLines --trainer.callbacks.name=$* 2>> $(@D)/log.txt; \
test -f $@ || { echo "$* stopped; the end of $(@D)/log.txt:" >&2; tail -n 5 $(@D)/log.txt >&2; false; }
endef

$(RESULTS)/runs/%/metrics.json: | $(READY)
	$(call train,$(call recipe,$*))

# One option changed at a time against the MS-SSM(S6) row of a profile: the measurements in docs/choices.md (quick, three
# seeds) and docs/results.md (PROFILE=medium CHOICE_SEEDS=0).
LAYER := --model.backbone.layer
choice-base :=
choice-mamba-init := $(LAYER).initialization mamba
choice-euler := $(LAYER).discretization euler
choice-mixer-zero := $(LAYER).mixer_init 0
choice-delta-long := $(LAYER).dt_min 0.0001 $(LAYER).dt_max 0.01
choice-delta-short := $(LAYER).dt_min 0.01 $(LAYER).dt_max 1
choice-prenorm := --model.backbone.prenorm true
choice-batch-norm := --model.backbone.norm batch
choice-slow-ssm := --model.ssm_lr 0.001
choice-levels-5 := $(LAYER).levels 5
choice-shared-filters := $(LAYER).shared_filters true
choice-mixer-8-heads := $(LAYER).mixer_heads 8
choice-long-warmup := --model.warmup_epochs 0.3
choice-averaged-weights := --trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay=0.999
both-directions = $(LAYER) '{class_path: msssm.Bidirectional, init_args: {mix: sum, layer: \
	{class_path: msssm.MultiScaleSSM, init_args: {levels: 3, kernel_size: 4, state_size: 4}}}}'
choice-bidirectional := $(both-directions)
choice-bidirectional-batch-norm := $(both-directions) --model.backbone.norm batch
CHOICES ?= $(patsubst choice-%,%,$(filter choice-%,$(.VARIABLES)))
CHOICE_SEEDS ?= 0 1 2
CHOICE_RESULTS := results/$(if $(filter quick,$(PROFILE)),,$(PROFILE)-)choices

choices: $(READY) ## Measure the defaults (docs/choices.md): one option changed at a time, three seeds
	-@$(MAKE) --no-print-directory --keep-going $(PARALLEL) \
		$(foreach k,$(CHOICE_SEEDS),$(foreach c,$(CHOICES),$(CHOICE_RESULTS)/runs/listops/$(c)/seed$(k)/metrics.json))
	@$(BIN)/msssm table $(CHOICE_RESULTS)

$(CHOICE_RESULTS)/runs/listops/%/metrics.json: | $(READY)
	$(call train,configs/$(PROFILE)/listops/msssm_s6.yaml,$(choice-$(patsubst %/,%,$(dir $*))))

# The paper's ablations and the sweeps that it leaves open, each an override of the MS-SSM(S6) recipe of a task: in the
# quick profile at three quarters of its training on ListOps and half of it on the generated ECGs, 43 rows on one
# thread each, about 17 minutes on two cores. PROFILE=paper trains the full-scale recipes whole.
ABLATION_TASKS ?= listops ptbxl
ABLATION_SEEDS ?= 0
ABLATION_RESULTS := results/$(if $(filter quick,$(PROFILE)),,$(PROFILE)-)ablations
short-quick-listops := --trainer.max_steps 1200
short-quick-ptbxl := --trainer.max_epochs 8
ablation-full :=
ablation-s4 := $(LAYER).ssm s4
ablation-no-ssm := $(LAYER).ssm none
ablation-conv1d := $(LAYER).decomposition conv
ablation-gates-of-band := $(LAYER).selective_input band
ablation-drive-of-input-gates-of-band := $(LAYER).selective_input band $(LAYER).ssm_input input
ablation-drive-of-input := $(LAYER).ssm_input input
ablation-mixer-fixed := $(LAYER).mixer fixed
ablation-mixer-softmax := $(LAYER).mixer softmax
ablation-mixer-sum := $(LAYER).mixer sum
ablation-mixer-per-channel = $(LAYER).mixer_heads $(shell sed -n 's/^ *d_model: //p' $(ablated-recipe))
ablation-mamba-init := $(LAYER).initialization mamba
$(foreach s,0 1 2 4 5 6,$(eval ablation-levels-$s := $(LAYER).levels $s))
$(foreach k,2 8,$(eval ablation-kernel-$k := $(LAYER).kernel_size $k))
$(foreach n,1 16,$(eval ablation-state-$n := $(LAYER).state_size $n))
$(foreach d,0.001 0.01 0.1,$(eval ablation-delta-$d := $(LAYER).dt_init $d))
ablation-euler := $(LAYER).discretization euler
ablation-prenorm := --model.backbone.prenorm true
ablation-skip := $(LAYER).skip true
ABLATIONS := $(patsubst ablation-%,%,$(filter ablation-%,$(.VARIABLES)))
# On the ECG those of the paper, and its question how many levels.
ablated-listops := $(ABLATIONS)
ablated-ptbxl := full s4 no-ssm conv1d gates-of-band drive-of-input-gates-of-band drive-of-input mixer-fixed \
	mixer-softmax mamba-init $(foreach s,0 1 2 4 5,levels-$s)
ABLATION_RUNS := $(foreach k,$(ABLATION_SEEDS),$(foreach task,$(ABLATION_TASKS),$(foreach a,$(ablated-$(task)),\
	$(ABLATION_RESULTS)/runs/$(task)/$(a)/seed$(k)/metrics.json)))

ablations: $(READY) ## The paper's ablations at reduced scale (ABLATION_TASKS="listops ptbxl" ABLATION_SEEDS="0 1 2")
	-@$(MAKE) --no-print-directory --keep-going $(PARALLEL) $(ABLATION_RUNS)
	@$(BIN)/msssm table $(ABLATION_RESULTS)

# <task>/<ablation>/seed<k>
ablated-task = $(word 1,$(subst /, ,$*))
ablated-recipe = configs/$(PROFILE)/$(ablated-task)/msssm_s6.yaml
$(ABLATION_RESULTS)/runs/%/metrics.json: | $(READY)
	$(call train,$(ablated-recipe),$(short-$(PROFILE)-$(ablated-task)) $(ablation-$(word 2,$(subst /, ,$*))))

# Operators and image models on all cores; data, streaming and diagnostics with one thread of torch.
bench: $(READY) ## Speed and memory beside peers and the floors of this machine; OPTIONS="--quick --device cuda"
	OMP_NUM_THREADS=$(shell getconf _NPROCESSORS_ONLN) $(BIN)/python -m benchmarks $(OPTIONS)
	for part in listops_generator ptbxl_data image_loaders streaming diagnostics; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$part || exit 1; done
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

lock: $(TOOLS)/pip-tools ## Write requirements.lock: the versions of constraints.txt and the digests of their files
	@$(TOOLS)/pip-tools/bin/pip-compile --quiet --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		--no-emit-options --no-strip-extras --allow-unsafe --constraint constraints.txt --extra dev \
		--output-file requirements.lock pyproject.toml

listops-report: $(READY) ## ListOps rows on 20,000 fresh expressions, by operator, depth, length; then in table.html
	$(BIN)/msssm listops-report --results $(RESULTS) $(OPTIONS)
	@$(BIN)/msssm table $(RESULTS) > /dev/null

# The one target that writes results where git tracks them.
publish: ## Copy tables, plots and models of results/PROFILE (or RESULTS=results/bench) to docs/results, to be committed
	@test -d $(RESULTS) || { echo "there is no $(RESULTS); make it first" >&2; exit 1; }
	@mkdir -p docs/$(RESULTS)
	@tar -c --exclude ./runs -C $(RESULTS) . | tar -x -C docs/$(RESULTS)

dashboard: $(READY) ## TensorBoard on all runs
	$(BIN)/tensorboard --logdir_spec runs:runs,results:results

clean: ## Remove caches and build products; keeps .venv, data and results
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find msssm datamodules tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
