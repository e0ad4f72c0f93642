# A thin front for people in a hurry; the interface is snakemake, see README.md.
environment := $(if $(filter dhel-kcl,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),$(CURDIR)/.venv)
export PATH := $(environment)/bin:$(PATH)

.PHONY: setup quickstart figures test lint docs benchmark lock

setup:
	@envs/setup.sh

quickstart: setup
	@snakemake --cores all $(if $(MAKE_TERMOUT),--logger rich) --configfile config/quickstart.yaml
	@dhel-kcl show results/quickstart

figures: setup # from the released tables alone: no images, no training
	@dhel-kcl redraw docs/results/*/

test: setup
	@pytest --numprocesses auto --dist loadgroup

lint: setup
	ruff check && ruff format --check
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/quickstart.yaml

docs: setup
	properdocs build --strict

benchmark: setup
	@echo "installing the peers of envs/benchmark-lock.txt"
	@python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r envs/benchmark-lock.txt
	python benchmarks/losses.py
	python benchmarks/metrics.py
	python benchmarks/report.py
	python benchmarks/loading.py
	python benchmarks/loading_report.py
	python benchmarks/training.py

lock: # works while the lock is stale, so it does not ask for setup
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra workflow --extra dev --extra docs pyproject.toml --output-file envs/lock.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra benchmark --constraint envs/lock.txt pyproject.toml --output-file envs/benchmark-lock.txt
