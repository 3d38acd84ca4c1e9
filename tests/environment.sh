#!/usr/bin/env bash
# An environment with another torch than the pinned one: tests/environment.sh FOLDER PYTHON [VERSION of torch; none: the newest supported]
# With INDEX_ONLY=1 packages come from the index alone, whose wheels of torch for Linux are built for CUDA.
set -euo pipefail
folder=$1 python=$2 torch=${3:-}
if [ -n "${INDEX_ONLY:-}" ]; then export PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS=; fi
"$python" -m venv "$folder"
# torch of another version brings its own Triton and asks for its own setuptools
pin=$([ -n "$torch" ] && echo "s/^torch==.*/torch==$torch/" || echo "/^torch==/d")
sed -E "/^setuptools==/d; $pin" constraints.txt > "$folder/constraints.txt"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c "$folder/constraints.txt"
"$folder/bin/python" -c 'import torch; print("torch", torch.__version__)'
touch "$folder/.installed"
