#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml; needs uv.
#   bash launch/lock.sh [--upgrade | --upgrade-package NAME]
# One lock for every supported Python: where a newer release has dropped an older
# Python, the file has two lines, with markers. The extras beam, bench, gpu and tpu are left
# out: their builds depend on the machine; s3 and gs, which follow the pin of fsspec. So is torch, which the extra `reference`
# pins itself: with it would come all of CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

partial=requirements.lock.partial
trap 'rm -f "$partial"' EXIT
if [ -e requirements.lock ]; then cp requirements.lock "$partial"; fi # pins stay
uv pip compile pyproject.toml --extra dev --extra data --extra web --extra reference \
  --override <(echo "torch ; python_version < '3'") \
  --universal --python-version 3.11 --fork-strategy requires-python \
  --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
  --quiet --output-file "$partial" "$@"
{
  echo "# What launch/environment.sh installs, for Python 3.11 and newer: a constraints file."
  echo "# By hand: pip install -c requirements.lock -e '.[dev]'"
  echo "# Written by: bash launch/lock.sh"
  cat "$partial"
} >requirements.lock
