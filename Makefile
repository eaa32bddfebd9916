# `make repro` and `make test` need python3 with venv, git and make; they install everything else into this folder.
.DEFAULT_GOAL := help
.PHONY: help setup repro test test-slow faults fuzz check audit format ui bench

UV := $(shell command -v uv 2>/dev/null || echo .cache/uv/bin/uv)
UV_VERSION := 0.13.9
RUN := $(UV) run --quiet --frozen
SEED ?= 0

help:                ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.ready  ## install everything into .venv

$(UV):
	@{ python3 -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv==$(UV_VERSION); } \
	  || { echo "error: uv could not be installed; install python3-venv, or uv itself"; exit 1; }

.venv/.ready: uv.lock pyproject.toml | $(UV)
	$(UV) sync --quiet --frozen --compile-bytecode
	@touch $@

repro: setup         ## run the ablation: fetch the sample, run every stage that changed
	@$(RUN) dvc pull --quiet data.dvc
	$(RUN) dvc repro

test: setup          ## run the default test suite
	$(RUN) pytest -m "not slow" --numprocesses auto --maxprocesses 4

test-slow: setup     ## run the long tests: servers, browsers, real data
	$(RUN) --group test-s3 pytest -m slow

faults: setup        ## kill the ablation at random moments and check that nothing is lost
	$(RUN) python -m tests.faults

fuzz: setup          ## run the fuzzers on random and damaged input (SEED=0)
	$(RUN) python -m tests.fuzz --seed $(SEED)

check: setup audit   ## lint, types, import contracts, known vulnerabilities
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) bandit --quiet --recursive --configfile pyproject.toml src benchmarks

# uv exits with 1 if a package has a known vulnerability, and with another code if the database does not answer.
audit: setup         ## look up known vulnerabilities of the locked packages
	@UV_HTTP_RETRIES=0 $(UV) audit --quiet --frozen $(AUDIT) \
	  || { [ $$? -ne 1 ] && echo "warning: packages were not audited: the vulnerability database does not answer"; }

format: setup        ## format the code
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

ui: setup            ## open this project's MLflow store
	$(RUN) satclr ui

bench: setup         ## measure against the paper's code and lightly; writes benchmarks/results
	$(RUN) --group bench python benchmarks/run.py
