#!/usr/bin/env bash
# bash benchmarks/gpu/run.sh OUT [WHEELS]: the session on a machine without a network; README.md beside this file.
set -eu
out=$(realpath -m "$1")
wheels=$(realpath -m "${2:-wheels}")
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
python3 -m pip install --quiet --no-deps --no-index --target "$site" "$wheels"/*.whl
PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1 python3 -m benchmarks.gpu --out "$out"
