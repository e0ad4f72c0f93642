#!/usr/bin/env bash
# Make the environment in the clone: FFCV's system libraries, a virtual environment, the locked packages.
# Does nothing when nothing changed. Uses the conda environment of environment.yaml instead when it is active.
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
        echo "[1/3] installing system libraries: $packages"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    else
        echo "[1/3] system libraries: present"
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        echo "[2/3] creating the virtual environment $environment"
        python3 -m venv --clear "$environment"
    fi
fi

echo "[3/3] installing the packages of envs/lock.txt (about 3 GB with PyTorch's CUDA libraries; a few minutes)"
# The lock is complete, and FFCV's own request for opencv-python is met by the headless build: hence --no-deps.
"$python" -m pip install --disable-pip-version-check --no-deps --require-hashes -r envs/lock.txt |
    sed -unE 's/^Collecting ([^ ]+).*/  \1/p; s/^Building wheel for ([^ ]+).*/  building \1/p; s/^Installing collected.*/  unpacking, which takes a minute or two/p'
"$python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
echo "compiling the image kernels"
"$environment/bin/python" -c 'from dhel_kcl.data.decoder import compile_kernels; compile_kernels()'
echo "$wanted" >"$stamp"
echo "environment ready: $environment"
