# `make repro` and `make test` need python3, git and make; all else is installed here.
.DEFAULT_GOAL := help
.PHONY: help setup repro test test-slow faults fuzz check audit format ui bench

UV := $(shell command -v uv 2>/dev/null || echo .cache/uv/bin/uv)
UV_VERSION := 0.13.9
RUN := $(UV) run --quiet --frozen
SEED ?= 0

help:                ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.ready  ## install everything into .venv

.venv/.ready: uv.lock pyproject.toml
	@test -x "$(UV)" || { python3 -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv==$(UV_VERSION); } \
	  || { echo "error: uv could not be installed; install python3-venv, or uv itself"; exit 1; }
	$(UV) sync --quiet --frozen
	@touch $@

repro: setup         ## the whole ablation: fetch the sample, run what changed
	@$(RUN) dvc pull --quiet data.dvc
	@$(RUN) satclr mend >/dev/null
	$(RUN) dvc repro

test: setup          ## the default test suite
	$(RUN) pytest -m "not slow"

test-slow: setup     ## the long tests: real servers, browsers, real data
	$(RUN) --group test-s3 pytest -m slow

faults: setup        ## kill the ablation at random moments and see that nothing is lost
	@$(RUN) dvc pull --quiet data.dvc
	$(RUN) python -m tests.faults

fuzz: setup          ## made-up and damaged input, a table of outcomes (SEED=0)
	$(RUN) python -m tests.fuzz --seed $(SEED)

check: setup audit   ## lint, types, import contracts, known weaknesses of code and packages
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) bandit --quiet --recursive --configfile pyproject.toml src benchmarks

# uv ends with 1 where a package has a known vulnerability, with another code where the database does not answer.
audit: setup         ## known vulnerabilities of the locked packages (asks a public database)
	@UV_HTTP_RETRIES=0 $(UV) audit --quiet --frozen $(AUDIT) \
	  || { [ $$? -ne 1 ] && echo "warning: packages were not audited: the vulnerability database does not answer"; }

format: setup        ## format the code
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

ui: setup            ## MLflow on this project's store
	$(RUN) satclr ui

bench: setup         ## measure against the paper's way and lightly's; writes benchmarks/results.json
	$(RUN) --group bench python benchmarks/run.py
