# A new clone needs only Python 3.11 to 3.13 and make; the rest comes from PyPI into .venv.
PYTHON ?= python3
BIN := .venv/bin

export UV_COMPILE_BYTECODE := 1
export TF_CPP_MIN_LOG_LEVEL := 2
# Passed in the environment and unexpanded: make and the shell would interpret characters that a path may contain.
override DATA := $(value DATA)
override EPOCHS := $(value EPOCHS)
export DATA EPOCHS
.DEFAULT_GOAL := help
.PHONY: help run test test-cluster soak cluster cluster-down lint docs compile bootstrap teardown bench bench-cluster lock refresh clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

run: .venv/ready ## Train, judge, convert, verify and publish a model here  [DATA='TABLE=URI …' EPOCHS=]
	@$(BIN)/jukebox run $${DATA:+--data="$$DATA"} $${EPOCHS:+--epochs="$$EPOCHS"}

test: .venv/ready ## Run the tests on all cores  [ARGS='-k store']
	@$(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

test-cluster: .venv/ready ## Run the tests on a real Kubernetes node (root, Go, Linux) or on KUBECONFIG=  [ARGS= PLATFORM=kubeflow]
	@PLATFORM=$(PLATFORM) $(BIN)/pytest $(if $(findstring tests/,$(ARGS)),,tests/cluster$(if $(PLATFORM),/test_$(PLATFORM).py)) $(ARGS)

soak: .venv/ready ## Send that cluster ten times the forged requests and bursts that test-cluster does  [ARGS=]
	@$(BIN)/pytest tests/cluster/test_hostile.py tests/cluster/test_burst.py --soak $(ARGS)

cluster: .venv/ready ## Start a Kubernetes node with everything that a project needs, and leave it running
	@$(BIN)/python -m tests.cluster up

cluster-down: .venv/ready ## Stop and remove that node
	@$(BIN)/python -m tests.cluster down

lint: .venv/ready ## Check style, types and the Containerfile
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/hadolint Containerfile

docs: .venv/ready ## Build the documentation into build/site, and check its links
	@$(BIN)/zensical build --strict --config-file mkdocs.yml

compile: .venv/ready ## Write Pipeline and PipelineVersion to build/pipeline.yaml
	@$(BIN)/jukebox compile

# The node of `make cluster`, if it runs and KUBECONFIG is not set.
ON_NODE := if [ -z "$$KUBECONFIG" ] && [ -f build/cluster/env ]; then . ./build/cluster/env; fi;

bootstrap: .venv/ready ## Give the project to the Argo CD of the kubeconfig's cluster  [YES=1 ARGS='--part tenant']
	@$(ON_NODE) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jukebox bootstrap $(if $(YES),--yes) $(ARGS)

teardown: .venv/ready ## Remove the project from the cluster; its data stays  [YES=1 ARGS=]
	@$(ON_NODE) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jukebox teardown $(if $(YES),--yes) $(ARGS)

bench: .venv/ready ## Measure the pipeline and each step at growing sizes  [ROWS='1130000 100000000']
	@$(BIN)/python -m tests.models.jukebox.bench $(ROWS)

bench-cluster: .venv/ready ## Measure each task of a push on that node
	@$(BIN)/python -m tests.cluster pushes

lock: .venv/ready ## Resolve requirements.lock again from pyproject.toml
	@.venv/uv/bin/uv pip compile --quiet $(UPGRADE) --universal --generate-hashes --no-header --no-emit-index-url --no-annotate \
	  --python-version 3.11 --group dev pyproject.toml -o requirements.lock

refresh: .venv/ready ## Pin the newest base image by digest (needs skopeo), and lock the newest packages that pyproject.toml allows
	@image=$$(sed -n 's/^ARG BASE_IMAGE=\([^@]*\).*/\1/p' Containerfile) && \
	  digest=$$(skopeo inspect --format '{{.Digest}}' "docker://$$image") && \
	  sed -i "s|^ARG BASE_IMAGE=.*|ARG BASE_IMAGE=$$image@$$digest|" Containerfile
	@$(MAKE) --silent --no-print-directory lock UPGRADE=--upgrade

clean: ## Remove what was built (not .venv)
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

# One at a time: two commands in a new clone would otherwise install into the same folder.
LOCKED := $(PYTHON) -c 'import fcntl, subprocess, sys; lock = open(".venv/lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX); \
	  sys.exit(subprocess.call(sys.argv[1:]))'

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and \
	  f"{sys.executable} is Python {v[0]}.{v[1]}; expected 3.11 to 3.13: name one, as in make run PYTHON=python3.12")'
	@mkdir -p .venv
	@$(LOCKED) $(MAKE) --silent --no-print-directory .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@echo "Installing the tools into .venv (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "Python's venv is missing; on Debian: apt install python3-venv"; exit 1; }
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >.venv/uv.txt
	@test -x .venv/uv/bin/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --prefix .venv/uv \
	  --require-hashes --only-binary=:all: --requirement .venv/uv.txt
	@.venv/uv/bin/uv pip sync --quiet --python $(BIN)/python requirements.lock
	@.venv/uv/bin/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@ .venv/ready
