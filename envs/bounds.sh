#!/usr/bin/env bash
# Test the oldest and the newest packages that pyproject.toml allows, in throw-away environments:
#   envs/bounds.sh            the losses, metrics and theory, with nothing of the workflow installed
#   envs/bounds.sh workflow   the stages, figures and configurations too; builds FFCV
# The downloads are 3 to 5 GB for each environment. Run `make setup` first: it brings uv and FFCV's system libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=tests

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
    uv pip freeze | grep -iE "^($(uv pip compile --quiet --no-deps --no-header --no-annotate ${1:+--extra "$1"} pyproject.toml | sed -E 's/[=; ].*//' | paste -sd '|'))=="
    for part in losses metrics theory; do # one by one, so that the workflow's tests/conftest.py is not read
        "$environment/bin/python" -m pytest "tests/$part" --confcutdir "tests/$part" --durations=0 --durations-min=30 \
            ${1:---ignore=tests/theory/test_verification.py}
    done
    if [[ ${1:-} == workflow ]]; then
        "$environment/bin/python" -m pytest tests/data tests/paper_figures tests/test_[a-eo-rs]*.py
    fi
done
