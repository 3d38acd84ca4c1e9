#!/usr/bin/env bash
# Collect what a GPU machine without a network lacks: benchmarks/gpu/carry.sh [FOLDER], there: pip install --no-index --no-deps FOLDER/*.whl
# The machine brings torch with CUDA and Triton; nothing that depends on its version is carried.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-out/wheels}
python=${PYTHON:-.venv/bin/python}
version=${TARGET_PYTHON:-3.12}
pinned() { grep -E "^$1==" constraints.txt; }
mkdir -p "$folder"
for name in diffusers huggingface_hub safetensors jaxtyping typer rich pydantic pydantic_core psutil accelerate peft cache-dit; do
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --dest "$folder" "$(pinned "$name")"
done
ls -l "$folder"
