# Everything happens in .venv. Needed: make, and Python 3.11, 3.12 or 3.13 (make PYTHON=python3.12 names another one).
PYTHON ?= python3
SEED ?= 0
DEMO = data/demo-$(SEED)
AUDIO ?= data/voices/woman.m4a
RUN = .venv/bin/python
# make GPU=1 installs what an NVIDIA GPU needs as well.
LOCK = requirements$(if $(GPU),-gpu).txt
INSTALLED = .venv/installed$(if $(GPU),-gpu)
.DEFAULT_GOAL := $(if $(GPU),install,help)

.PHONY: help install hear demo test lint mutants lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## install everything into .venv (4.1 GB); with GPU=1 also NVIDIA's libraries

hear: $(INSTALLED)  ## a face from a recording: make hear AUDIO=me.m4a
	$(RUN) hear.py "$(AUDIO)"

demo: $(INSTALLED)  ## from scratch to tables and pictures, on synthetic people (about 8 minutes)
	$(RUN) data/make_demo.py --out $(DEMO) --seed $(SEED)
	$(RUN) preprocess.py --csv $(DEMO)/avspeech_demo.csv --data $(DEMO) --face-model dlib
	rm -rf checkpoints/demo checkpoints/demo-speaker checkpoints/demo-decoder
	$(RUN) train.py decoder --data $(DEMO) --run demo-decoder --seed $(SEED)
	$(RUN) train.py --data $(DEMO) --run demo-speaker --encoder speaker --seed $(SEED)
	$(RUN) evaluate.py --run demo-speaker --decoder demo-decoder --k 1 5 10
	$(RUN) train.py --data $(DEMO) --run demo --width 0.125 --seconds 3 --batch-size 4 --epochs 20 --seed $(SEED)
	$(RUN) evaluate.py --run demo --decoder demo-decoder --k 1 5 10

test: $(INSTALLED) lint  ## style and all tests (20 to 30 minutes on 2 cores)
	$(RUN) -m pytest

lint: $(INSTALLED)  ## style only
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

mutants: $(INSTALLED)  ## plant the bugs of tests/mutants.toml one by one, and name those that no test notices
	$(RUN) tests/mutants.py

# The locks, for all Pythons and systems. `make lock UPGRADE=--upgrade` moves every pin to the newest release.
lock: $(INSTALLED)  ## compile requirements.in to requirements.txt, and requirements-gpu.in likewise
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" $(UPGRADE) \
	    requirements.in --output-file requirements.txt
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" $(UPGRADE) \
	    --constraint requirements.txt requirements-gpu.in --output-file requirements-gpu.txt

$(INSTALLED): $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; (3, 11) <= sys.version_info < (3, 14) or sys.exit(f"error: expected Python 3.11 to 3.13, found {v}; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv, a minute or two"
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r $(LOCK)
	@touch .venv/installed $@

clean:  ## remove .venv, the demo and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis checkpoints/demo checkpoints/demo-speaker checkpoints/demo-decoder data/demo-*
