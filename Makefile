# Every target sets up what it needs: a fresh machine with Python 3.11+, make and git is enough.
# `make help` explains the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
PROTOS := $(wildcard protos/steering/v1/*.proto)

# For `make vectors` and `make serve` on your own model and data.
MODEL ?= demo
DATASET ?= demo:train
VALIDATION ?= $(if $(filter demo:%,$(DATASET)),demo:validation)
# Not runs/demo: `make demo` has that one for itself.
RUN ?= runs/$(if $(filter demo,$(MODEL)),demo-vectors,$(notdir $(patsubst %/,%,$(MODEL))))
# The demonstration's vectors serve the bundled model as long as it has no others.
VECTORS ?= $(firstword $(wildcard $(RUN)/vectors) $(if $(filter demo,$(MODEL)),$(wildcard runs/demo/vectors)) $(RUN)/vectors)
LIMIT ?= 32
PORT ?= 50051
DISCOVER_OPTIONS ?=
VECTORS_OPTIONS ?=
DPO_OPTIONS ?=
SERVE_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help setup proto proto-breaking model vectors serve demo dpo test lint type bench check clean

help: ## Explain the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(SETUP) ## Create .venv, install everything at the pinned versions, generate the protobuf code.

# torch comes first and alone: with it in place nothing else asks for a build of its own.
$(SETUP): pyproject.toml constraints.txt hatch_build.py $(PROTOS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server,pts,dev]'
	@touch $@

# protoc looks its plugins up on the PATH, where an environment that is not activated is missing.
proto: $(SETUP) ## Generate the protobuf code again.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python hatch_build.py

# Clients in use speak the released protos, so those may only be added to.
proto-breaking: $(SETUP) ## Compare the protos with those of the last release (its tag, v…): additions only.
	@tag=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null) || tag=; \
	if [ -z "$$tag" ]; then \
		echo 'proto-breaking: no release tag (v…) is here, so there is nothing to compare the protos with'; \
	else \
		history=$$(git rev-parse --path-format=absolute --git-common-dir); \
		(cd protos && $(abspath $(BIN))/buf breaking --against "$$history#format=git,tag=$$tag,subdir=protos") && \
		echo "proto-breaking: compatible with $$tag"; \
	fi

model: $(SETUP) ## Train the bundled model from scratch (about ten minutes on two cores).
	$(BIN)/python -m steering_pts.demo.train --out pts/steering_pts/demo

vectors: $(SETUP) ## Discover pivots and make vectors: MODEL=… DATASET=… [VALIDATION=… LIMIT=… RUN=…].
	$(BIN)/pts discover '$(RUN)' --model '$(MODEL)' --dataset '$(DATASET)' --limit $(LIMIT) --shuffle-seed 0 $(DISCOVER_OPTIONS)
	$(BIN)/pts vectors '$(RUN)' $(if $(VALIDATION),--validation '$(VALIDATION)') $(VECTORS_OPTIONS)

serve: $(SETUP) ## Serve a model with its vectors: MODEL=… [VECTORS=… PORT=…].
	@$(if $(filter $(RUN)/vectors,$(VECTORS)),mkdir -p '$(VECTORS)')
	$(BIN)/steering-server --model '$(MODEL)' --vectors '$(VECTORS)' --port $(PORT) $(SERVE_OPTIONS)

demo: $(SETUP) ## The whole way on the bundled model: discover, make vectors, serve, steer, measure.
	$(BIN)/pts demo

dpo: $(SETUP) ## Fine-tune the bundled model on its own pivotal pairs, beside whole completions.
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.dpo $(DPO_OPTIONS)

# A process for each core, each with one thread: small models gain nothing from more. What a file shares stays in one.
# In the order of their names: the files that would come last otherwise are few tests that take long.
test: $(SETUP) lint type ## Lint, check types and run all tests.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(SETUP) proto-breaking ## Check style: ruff for Python, buf for the protos, and what they promise.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

type: $(SETUP) ## Check types with mypy --strict.
	$(BIN)/mypy

bench: $(SETUP) ## Measure the engine, discovery, calibration and the server; writes runs/bench/report.json.
	$(BIN)/python -m tests.bench

check: test demo ## Everything that CI runs, and the demonstration.

clean: ## Remove what the targets made: .venv, runs, caches, generated code.
	rm -rf $(VENV) runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f protos/steering/v1/*_pb2*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
