#!/usr/bin/env bash
# Checks the whole repository: lint, format, types, import contract, tests.
#   bash launch/test.sh                      everything
#   bash launch/test.sh tests/models -k rope only pytest, with these arguments
# LMX_TEST_WORKERS: pytest processes, 2 unless given.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=launch/environment.sh disable=SC1091
source "$here/environment.sh"
cd "$LMX_ROOT"

export LMX_EXTRAS=dev,data,eval,web,reference${LMX_EXTRAS:+,$LMX_EXTRAS}
lmx_prepare
# Compiled programs of tests are kept apart from those of real runs.
lmx_default JAX_COMPILATION_CACHE_DIR "$LMX_CACHE_ROOT/test-xla"
lmx_export
export PATH=$LMX_VENV/bin:$PATH

summary=""
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

stage() { # name, command...
  local name=$1 started=$SECONDS verdict=ok
  shift
  printf '\n== %s\n' "$name"
  if ! "$@"; then verdict=FAILED failed=1; fi
  summary+=$(printf '%-8s %-6s %4d s' "$name" "$verdict" $((SECONDS - started)))$'\n'
}

# shellcheck disable=SC2329  # called by name, through stage
tests() {
  local color=no
  if [ -t 1 ]; then color=yes; fi
  python -m pytest -n "${LMX_TEST_WORKERS:-2}" --color="$color" "$@" | tee "$log"
}

if [ $# -eq 0 ]; then
  stage lint ruff check .
  stage format ruff format --check .
  stage types mypy
  stage layers lint-imports --no-logo
fi
stage tests tests "$@"

printf '\n%s' "$summary"
tail -n 1 "$log" # how many passed, failed and were skipped
exit "$failed"
