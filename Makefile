# `make demo` and `make test` set up everything from a fresh clone; they need Python 3.11 or newer and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALLED := $(VENV)/installed
WORKERS ?= auto
# Not in requirements.lock: the build of torch, and with it the CUDA packages, differ from machine to machine.
TORCH_VERSION := torch==2.13.0
TORCH ?= $(TORCH_VERSION)
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install demo test test-all lint gpu lock clean

help:
	@echo "make demo     environment, demo data, preprocess, train, evaluate; prints the path of the report"
	@echo "make test     environment, linters, tests"
	@echo "make test-all the same with slow tests: several launches, long runs, all experiment trackers"
	@echo "make install  environment only"
	@echo "make lint     linters and types only"
	@echo "make gpu      all benchmarks that need a GPU, into results/gpu (without a GPU: an error)"
	@echo "make lock     write requirements.lock again after a change of pyproject.toml (needs uv; versions stay where they can)"
	@echo "make clean    remove the files of the demo"

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PIP) $(TORCH)
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(INSTALLED)
	@printf '\n%s\n' '1/5  Tiny models: a SigLIP, a CLIP, a Qwen3 and a Qwen3-VL in the file formats of the Hugging Face hub'
	$(PY) tools/train_tiny_models.py --steps 0
	@printf '\n%s\n' '2/5  Data: synthetic scenes with questions, conversations and captions, in the formats of COCO, VQA v2 and AI Challenger'
	$(PY) tools/make_synthetic_data.py
	@printf '\n%s\n' '3/5  Preprocess: merge the sources, validate every image, split into train, validation and test'
	$(PY) tools/preprocess.py
	@printf '\n%s\n' '4/5  Train: first the connector alone, then connector and LoRA; SigLIP and the weights of Qwen3 are frozen'
	ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --config_file configs/accelerate/cpus.yaml train.py --resume auto
	@printf '\n%s\n' '5/5  Evaluate: the same questions for our checkpoint, a small 4-bit model of the Qwen3-VL architecture and two controls; CLIP reranks the candidates'
	$(PY) tools/eval_rerank.py
	@cat docs/after_the_demo.txt

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

test: lint
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m "not slow" --durations=40

# The trackers each in a folder of its own: their requirements contradict each other and requirements.lock.
TRACKERS := swanlab mlflow-skinny trackio
test-all: lint $(TRACKERS:%=$(VENV)/trackers/%)
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup
	@for tracker in $(TRACKERS); do \
		PYTHONPATH=$(VENV)/trackers/$$tracker $(PY) -m pytest tests/training/monitoring/test_trackers.py -k "$${tracker%-skinny}" || exit 1; \
	done

$(VENV)/trackers/%: $(INSTALLED)
	@echo "installing $* into $@ ..."
	@$(PIP) --target $@ $*

gpu: $(INSTALLED)
	$(PY) tools/benchmark.py gpu

# What comes with torch, and is left out of requirements.lock with it.
WITH_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit \
	$(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
		cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
lock:
	@echo '$(TORCH_VERSION)' | uv pip compile pyproject.toml --constraints - $(foreach extra,endpoint search serve demo dev,--extra $(extra)) \
		--universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
		--custom-compile-command "make lock" $(WITH_TORCH:%=--no-emit-package %) --output-file requirements.lock

clean:
	rm -rf data/tiny data/scenes results/tiny checkpoints/tiny/checkpoint-*
