# `make demo` and `make test` do all set-up from a bare clone: Python 3.11 or newer and pip are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALLED := $(VENV)/installed
WORKERS ?= auto

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install demo test lint gpu clean

help:
	@echo "make demo     environment, demo data, preprocess, train, evaluate; ends by naming the report"
	@echo "make test     environment, linters, all tests"
	@echo "make install  environment only"
	@echo "make lint     linters and types only"
	@echo "make gpu      all measurements that need a GPU, into results/gpu (no GPU: it says so and stops)"
	@echo "make clean    remove what the demo made"

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(INSTALLED)
	@printf '\n%s\n' '1/5  Small parts: a SigLIP, a CLIP, a Qwen3 and a Qwen3-VL in the formats that a hub would give you'
	$(PY) tools/train_tiny_models.py --steps 0
	@printf '\n%s\n' '2/5  Data: drawn scenes with questions, conversations and captions, in the raw formats of COCO, VQA v2 and AI Challenger'
	$(PY) tools/make_synthetic_data.py
	@printf '\n%s\n' '3/5  Preprocess: merge the sources, check every picture, make the splits'
	$(PY) tools/preprocess.py
	@printf '\n%s\n' '4/5  Train: first the projector alone, then projector and LoRA; SigLIP and the weights of Qwen3 stay as they are'
	ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --config_file configs/accelerate/cpus.yaml train.py --resume auto
	@printf '\n%s\n' '5/5  Evaluate: the same questions to our checkpoint, to a 4-bit Qwen3-VL and to two controls; CLIP reranks the candidates'
	$(PY) tools/eval_rerank.py
	@cat docs/after_the_demo.txt

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

test: lint
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup

gpu: $(INSTALLED)
	$(PY) tools/benchmark.py gpu

clean:
	rm -rf data/tiny data/scenes results/tiny checkpoints/tiny/checkpoint-*
