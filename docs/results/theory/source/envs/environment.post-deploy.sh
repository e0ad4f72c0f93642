#!/usr/bin/env bash
# Snakemake runs this inside an environment that it has just created from environment.yaml.
set -euo pipefail
python -m pip install --no-deps --require-hashes -r envs/lock.txt
python -m pip install --no-deps --no-build-isolation --editable .
