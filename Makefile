# Two commands matter: `make train` and `make test`. Each sets up what it needs.
# PYTHON picks the interpreter (3.11 to 3.13); PIP_ARGS is passed to every pip install, e.g.
#   make train PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON   ?= $(shell for p in python3.11 python3.12 python3.13; do $$p -c '' 2>/dev/null && echo $$p && exit; done; echo python3)
PIP_ARGS ?=
VENV     := .venv
BIN      := $(VENV)/bin
REPORT   ?= runs/demo/report

.PHONY: train finetune test install lint types layers unit docs protos bench audit fuzz clean

train: $(VENV)/.worker data/shakespeare/SOURCE.txt  ## train the demo job over four shaped cities, on this machine
	$(BIN)/deploy local jobs/demo.yaml --workers 4 --links four_cities --state-dir runs/demo --fresh --report $(REPORT)

finetune: $(VENV)/.worker $(VENV)/.hub data/smollm2-135m/config.json data/shakespeare/SOURCE.txt  ## fine-tune SmolLM2-135M over four workers
	$(BIN)/deploy local jobs/finetune-smollm2.yaml --workers 4 --links four_cities --state-dir runs/finetune --fresh --report runs/finetune/report --export runs/finetune/model

test: $(VENV)/.dev $(VENV)/.protoc lint types layers unit  ## everything that must pass

install: $(VENV)/.worker  ## the common set-up alone

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

unit: $(VENV)/.dev $(VENV)/.protoc
	$(BIN)/pytest -n auto --dist loadgroup

docs: $(VENV)/.docs  ## the documentation's site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

protos: $(VENV)/.protoc  ## regenerate the stubs after a change of protos/*.proto
	$(VENV)/protoc/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/orchestrator.proto

bench: $(VENV)/.dev  ## every benchmark in its short form, some minutes in all
	for f in step transport engine scheduler codec end_to_end quality layers abilities links peers emulate papers joint_codecs beyond dashboard loading joining faults chaos shards; do $(BIN)/python -m tests.benchmarks.$$f --quick || exit 1; done

audit: $(VENV)/.audit  ## the tested versions against the known vulnerabilities of their packages
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

FUZZ_S ?= 60
fuzz: $(VENV)/.dev  ## every fuzz target for FUZZ_S seconds
	for t in command event frame inbound job job_json layer manifest plan_json token trace; do $(BIN)/python -m tests.fuzz $$t --seconds $(FUZZ_S) || exit 1; done

data/shakespeare/SOURCE.txt: | $(VENV)/.worker
	$(BIN)/python -m deploy.fetch_data

data/smollm2-135m/config.json: | $(VENV)/.hub
	$(BIN)/python -m deploy.fetch_model

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"found Python {v[0]}.{v[1]}; Isthmus needs 3.11, 3.12 or 3.13: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

# torch first and by its exact version: a looser requirement would take another build.
$(VENV)/.worker: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[worker]'
	@touch $@

$(VENV)/.hub: $(VENV)/.worker
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[worker,hub]'
	@touch $@

$(VENV)/.dev: $(VENV)/.worker
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.worker
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[worker,deploy,docs]'
	@touch $@

# The stubs' generator wants an older protobuf than the rest, so it lives apart.
$(VENV)/.protoc: $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/protoc
	$(VENV)/protoc/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) 'grpcio-tools==1.71.2' 'setuptools<81'
	@touch $@

# The auditor brings many packages that Isthmus does not want, so it lives apart.
$(VENV)/.audit: $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install -q --disable-pip-version-check $(PIP_ARGS) 'pip-audit==2.10.1'
	@touch $@

clean:  ## forget the environment and the caches, keep data and runs
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
