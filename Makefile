# A thin front for people in a hurry; the interface is snakemake, see README.md.
environment := $(if $(filter dhel-kcl,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),$(CURDIR)/.venv)
export PATH := $(environment)/bin:$(PATH)
compile := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url $(if $(UPGRADE),--upgrade)

.PHONY: setup quickstart figures test acceptance lint docs benchmark lock bounds audit-packages

setup:
	@envs/setup.sh

quickstart: setup
	@snakemake --cores all $(if $(MAKE_TERMOUT),--logger rich) --configfile config/quickstart.yaml
	@dhel-kcl show results/quickstart
	@echo "Digits show that the pipeline works; they say nothing about the paper. Open:"
	@echo "  results/quickstart/report.html             every figure, table and setting"
	@echo "  results/quickstart/explorer.html           every run: accuracy, effective rank, spectrum"
	@echo "  results/quickstart/tables/table_claims.md  the verdict on each claim"

figures: setup # from the released tables alone: no images, no training
	@dhel-kcl redraw docs/results/*/

test: setup
	@pytest --numprocesses auto --dist loadgroup --ignore tests/acceptance

acceptance: setup # what takes minutes each
	@pytest --numprocesses auto --dist loadgroup tests/acceptance

lint: setup
	ruff check && ruff format --check
	mypy
	bandit --quiet --recursive --configfile pyproject.toml src paper_figures benchmarks envs docs
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

lock: # works while the lock is stale, so it does not ask for setup; UPGRADE=1 gives up the versions that it has
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(compile) --extra workflow --extra dev --extra docs pyproject.toml --output-file envs/lock.txt
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(compile) --extra benchmark --constraint envs/lock.txt pyproject.toml --output-file envs/benchmark-lock.txt

bounds: setup # several GB of downloads
	envs/bounds.sh

audit-packages: setup
	python envs/audit_packages.py
