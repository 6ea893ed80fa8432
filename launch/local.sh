#!/usr/bin/env bash
# Runs lmx on this machine, after installing what it needs (once).
set -euo pipefail

help() {
  cat <<'TEXT'
Runs lmx on this machine; the first time it makes .venv and installs into it.

  bash launch/local.sh [--dry-run] VERB [OPTION...]

  bash launch/local.sh train --config=experiments/quickstart.py
  bash launch/local.sh generate --workdir=runs/quickstart --prompt="def "
  bash launch/local.sh train --help         what a verb can do

--dry-run prints the command and its environment, and installs and runs nothing.
A --config that is not found from the current folder is looked for in the repository.
Which Python, which folder, which installer: see launch/environment.sh.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=launch/environment.sh disable=SC1091
source "$here/environment.sh"

# Prints $1, the FILE.py[:argument] of a --config, with the repository before it if the
# file is only there.
resolve_config() {
  local file=${1%%:*}
  if [ ! -e "$file" ] && [ -e "$LMX_ROOT/$file" ]; then
    printf '%s/' "$LMX_ROOT"
  fi
  printf '%s\n' "$1"
}

dry_run=
args=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --config=*) args+=("--config=$(resolve_config "${1#--config=}")") ;;
    --config)
      args+=("$1")
      if [ $# -gt 1 ]; then args+=("$(resolve_config "$2")") && shift; fi
      ;;
    *) args+=("$1") ;;
  esac
  shift
done

case ${args[0]-} in
  '' | -h | --help) help && exit ;;
esac

if [ -n "$dry_run" ]; then
  before=$(env)
  lmx_export
  for name in GLIBC_TUNABLES LD_PRELOAD MALLOC_CONF JAX_COMPILATION_CACHE_DIR \
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS TF_CPP_MIN_LOG_LEVEL GRPC_VERBOSITY XLA_FLAGS; do
    if [ -n "${!name+set}" ] && ! grep -qxF "$name=${!name}" <<<"$before"; then
      printf '%s=%q ' "$name" "${!name}"
    fi
  done
  printf '%q ' "$LMX_VENV/bin/python" -m lmx "${args[@]}"
  echo
  exit
fi

lmx_prepare
lmx_export
# exec: a SIGTERM or Ctrl-C reaches Python, which saves and says how it ended.
exec "$LMX_VENV/bin/python" -m lmx "${args[@]}"
