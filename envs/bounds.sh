#!/usr/bin/env bash
# Test the oldest and the newest packages that pyproject.toml allows, in throw-away environments:
#   envs/bounds.sh            the losses, metrics and theory, with nothing of the workflow installed
#   envs/bounds.sh workflow   sources, loader, figures, configurations and weights too; builds FFCV
# The downloads are 3 to 5 GB for each environment. Run `make setup` first: it brings uv and FFCV's system libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=tests

library=yes
if [[ ${1:-} == workflow ]]; then
    library=
elif [[ $# -gt 0 ]]; then
    echo "usage: envs/bounds.sh [workflow]" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for resolution in lowest-direct highest; do
    environment=$folder/$resolution
    uv venv --quiet --python "${PYTHON:-3.11}" "$environment"
    export VIRTUAL_ENV=$environment
    uv pip compile --quiet --resolution "$resolution" --python-version "${PYTHON:-3.11}" --no-header --no-annotate \
        --no-emit-index-url ${1:+--extra "$1"} pyproject.toml --output-file "$environment.txt"
    # The tests' own tools are the newest that go with these versions.
    uv pip install --quiet -r "$environment.txt" hypothesis packaging 'pytest<9.2' scikit-learn ${1:+selenium}
    uv pip install --quiet --no-deps .
    echo "== $resolution: $("$environment/bin/python" --version)"
    uv pip freeze --quiet | grep -E '^(numpy|scipy|torch|torchvision|pandas|snakemake)=='
    for part in losses metrics theory; do # one by one, so that the workflow's tests/conftest.py is not read
        "$environment/bin/python" -m pytest "tests/$part" --confcutdir "tests/$part"
    done
    if [[ -z $library ]]; then
        "$environment/bin/python" -m pytest tests/data tests/paper_figures/test_all_targets.py \
            tests/test_seeding.py tests/experiment/test_config.py \
            tests/training/test_{checkpoints,encoder,log,optimizer}.py tests/evaluation/test_evaluate.py \
            tests/results/test_statistics.py
    fi
    rm -rf "$environment"
done
