# One entry for each chore; `.ci/run` calls the same targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements/all.txt
STAMP := $(VENV)/.limbeck-installed
EXAMPLE := examples/01-image-text
ROWS ?=

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-fast e2e campaign e2e-faults bench bench-operator golden quickstart manifests requirements images testbed testbed-down clean

help: ## Show what can be done
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: $(STAMP) ## Make .venv with limbeck in it, from pinned and hashed requirements

$(STAMP): $(REQUIREMENTS) pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "limbeck needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.txt
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r $(REQUIREMENTS)
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

lint: setup ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup ## All tests that one machine without Kubernetes can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e and not cluster and not campaign and not gpu" $(ARGS)

test-fast: setup ## The tests that need no Ray and no server, in under three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray and not s3 and not slow and not e2e and not controlplane and not cluster and not gpu" $(ARGS)

e2e: setup ## The whole way of a newcomer, from data to report
	$(BIN)/python -m pytest -m e2e $(ARGS)

campaign: setup ## Crash the operator at every write of every life, and lose every watch event once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/operator/campaign/test_lives.py $(ARGS)

e2e-faults: setup ## Kill each process of a real run on the test cluster, and hinder jobs in each way that has a reason
	$(BIN)/python -m pytest -m faults $(ARGS)

bench: setup ## Measure against the named peers: make bench ROWS="P4 P6"
	$(BIN)/python -m benchmarks $(ROWS)

bench-operator: setup ## Measure the operator on a real API server: make bench-operator ROWS=O1
	$(BIN)/python -m benchmarks.operator $(ROWS)

golden: setup ## Write the golden files anew; review the diff
	$(BIN)/python -m pytest --update-golden -m "not ray and not s3 and not slow and not e2e and not controlplane and not cluster and not gpu" $(ARGS)

quickstart: setup ## Prepare real data, train a teacher, compress it, show the report
	$(BIN)/python $(EXAMPLE)/prepare.py
	$(BIN)/limbeck local $(EXAMPLE)/teacher.yaml
	$(BIN)/limbeck local $(EXAMPLE)/job.yaml

PIN := uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--custom-compile-command "make requirements" --quiet

manifests: setup ## Write what is derived from models and chart: CRD, values' schema, manifests/base
	$(BIN)/python charts/generate.py

requirements: ## Pin the requirements anew (needs uv)
	$(PIN) pyproject.toml --extra operator --extra runtime --extra tensorboard --extra examples \
	  --group lint --group test --group bench --group build -o $(REQUIREMENTS)
	$(PIN) --group installer --group build -c $(REQUIREMENTS) -o requirements/installer.txt
	$(PIN) pyproject.toml --extra operator -c $(REQUIREMENTS) -o requirements/operator.txt
	$(PIN) pyproject.toml --extra runtime --extra tensorboard -c $(REQUIREMENTS) -o requirements/runtime.txt

images: setup ## Build the operator's and the runtime's image (root, buildah, debootstrap)
	$(BIN)/python tests/cluster/images.py

testbed: setup ## Start a real Kubernetes with KubeRay, S3 and Prometheus (root, Debian, Go)
	@$(BIN)/python tests/cluster/testbed.py up

testbed-down: setup ## End it; images and logs are kept
	@$(BIN)/python tests/cluster/testbed.py down

clean: ## Remove what make made, but for the virtual environment
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
