#!/usr/bin/env bash
# Writes the locks anew from pyproject.toml; needs uv.
#   bash launch/lock.sh [--upgrade | --upgrade-package NAME]
# One lock for every supported Python: where a newer release has dropped an older
# Python, the file has two lines, with markers. Apache Beam holds other packages back and
# has a lock of its own. The extras bench, gpu and tpu are left out: their builds depend
# on the machine; s3 and gs, which follow the pin of fsspec. So is torch, which the extra
# `reference` pins itself: with it would come all of CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

partial=requirements.lock.partial
trap 'rm -f "$partial"' EXIT

lock() { # file, extras, more for uv...
  local file=$1 extras=$2 extra options=()
  shift 2
  for extra in ${extras//,/ }; do options+=(--extra "$extra"); done
  if [ -e "$file" ]; then cp "$file" "$partial"; fi # pins stay
  uv pip compile pyproject.toml "${options[@]}" \
    --override <(echo "torch ; python_version < '3'") \
    --universal --python-version 3.11 --fork-strategy requires-python \
    --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
    --quiet --output-file "$partial" "$@"
  {
    echo "# What launch/environment.sh installs, for Python 3.11 and newer: a constraints file."
    echo "# By hand: pip install -c $file -e '.[$extras]'"
    echo "# Written by: bash launch/lock.sh"
    cat "$partial"
  } >"$file"
}

lock requirements.lock dev,data,eval,web,reference "$@"
lock requirements-beam.lock dev,beam "$@"
