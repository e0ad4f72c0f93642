#!/usr/bin/env bash
# Set up the environment in the clone: FFCV's system libraries, a virtual environment and the locked packages.
# Do nothing if nothing has changed. If the conda environment of environment.yaml is active, use it instead.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${CONDA_DEFAULT_ENV:-}" == dhel-kcl ]]; then
    environment=$CONDA_PREFIX
else
    environment=.venv
fi
python=$environment/bin/python
stamp=$environment/.dhel-kcl-lock
wanted=$(cat envs/lock.txt pyproject.toml envs/setup.sh | sha256sum)
if [[ -x $environment/bin/dhel-kcl && -f $stamp && "$(cat "$stamp")" == "$wanted" ]]; then
    exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() { # NAME COMMAND...: print one line with the time taken; print the command's output only if it fails
    local begun=$SECONDS
    printf '%s ... ' "$1"
    if ! "${@:2}" >"$log" 2>&1; then
        echo failed
        cat "$log" >&2
        exit 1
    fi
    echo "$((SECONDS - begun)) s"
}

# FFCV is built from source against OpenCV and libjpeg-turbo; conda environments bring both.
if [[ $environment == .venv ]]; then
    packages="g++ pkg-config libopencv-dev libturbojpeg0-dev"
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: $(python3 --version 2>&1); put Python 3.11 or newer first on the PATH as python3" >&2
        exit 1
    fi
    system_python=$(readlink -f "$(command -v python3)")
    if [[ $system_python == /usr/bin/* ]]; then
        packages="$packages ${system_python##*/}-dev ${system_python##*/}-venv"
    fi
    has_headers='import ensurepip, pathlib, sysconfig; assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()'
    if ! command -v g++ >/dev/null || ! pkg-config --exists opencv4 libturbojpeg || ! python3 -c "$has_headers" 2>/dev/null; then
        if ! command -v apt-get >/dev/null; then
            echo "error: FFCV needs a C++ compiler, pkg-config, OpenCV 4 and libturbojpeg; install them and run make again" >&2
            exit 1
        elif [[ $(id -u) -ne 0 ]]; then
            echo "error: FFCV needs system libraries; run: sudo apt-get update && sudo apt-get install -y --no-install-recommends $packages" >&2
            exit 1
        fi
        step "listing system packages" apt-get update -qq
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086
        step "installing $packages" apt-get install -y -qq --no-install-recommends $packages
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        step "creating the virtual environment $environment" python3 -m venv --clear "$environment"
    fi
fi

# --no-deps, because the lock is complete and its headless OpenCV replaces the opencv-python that FFCV asks for.
step "installing the packages of envs/lock.txt (3 GB of downloads, a few minutes)" \
    "$python" -m pip install --disable-pip-version-check --no-deps --require-hashes -r envs/lock.txt
step "installing dhel-kcl" \
    "$python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
step "compiling the image kernels" \
    "$environment/bin/python" -c 'from dhel_kcl.data.decoder import compile_kernels; compile_kernels()'
echo "$wanted" >"$stamp"
echo "environment ready: $environment"
