# Prepares the shell that starts lmx: a Python, its packages, its environment. Source it
# from a bash script; every launcher does. It changes nothing outside the repository's
# .venv and the caches under ~/.cache.
#
#   LMX_PYTHON     the Python to use (a path, a command or a version such as 3.12)
#   LMX_VENV       where the packages go; .venv in the repository
#   LMX_EXTRAS     extras of pyproject.toml to install as well: beam, bench, data, dev, eval, gpu, gs, harness, hub, reference, s3, tpu, web (commas)
#   LMX_INSTALLER  uv or pip; uv where it is found
#   LMX_CACHE      compiled programs and prepared data; ~/.cache/lmx
#   LD_PRELOAD     set it, to nothing if you like, and jemalloc is not looked for
#
# shellcheck shell=bash

LMX_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
LMX_VENV=${LMX_VENV:-$LMX_ROOT/.venv}
case $LMX_VENV in /*) ;; *) LMX_VENV=$PWD/$LMX_VENV ;; esac
LMX_CACHE_ROOT=${LMX_CACHE:-$HOME/.cache/lmx}

# Newest first of those that this repository was run on; 3.14 has every wheel of the
# lock but was not tried, so it comes last.
LMX_PYTHONS="3.13 3.12 3.11 3.14"

lmx_say() { printf 'lmx: %s\n' "$*" >&2; }

lmx_installer() {
  if [ -n "${LMX_INSTALLER:-}" ]; then
    printf '%s\n' "$LMX_INSTALLER"
  elif command -v uv >/dev/null 2>&1; then
    echo uv
  else
    echo pip
  fi
}

# Prints the version (3.12) of the Python $1 if it runs and can hold the packages. A
# name on the PATH proves nothing: pyenv has shims for Pythons that are switched off,
# and Debian splits venv from Python.
lmx_probe() {
  local modules="bz2, ctypes, lzma, ssl, venv, zlib"
  if [ "$(lmx_installer)" = pip ]; then modules="$modules, ensurepip"; fi
  "$1" -ISc "
import sys, $modules
assert sys.implementation.name == 'cpython' and sys.maxsize > 2**32
print('%d.%d' % sys.version_info[:2])" 2>/dev/null </dev/null
}

# Prints every place where a Python $1 (3.12) may be, one a line.
lmx_places() {
  local folder
  type -aP "python$1" || true
  for folder in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin \
    "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}/cpython-$1".*/bin; do
    if [ -x "$folder/python$1" ]; then printf '%s\n' "$folder/python$1"; fi
  done
  type -aP python3 python || true
}

# Prints the Python to use, or says what is missing and fails.
lmx_find_python() {
  local wanted=$LMX_PYTHONS version place
  case ${LMX_PYTHON:-} in
    '') ;;
    3.1[1-4]) wanted=$LMX_PYTHON ;;
    *)
      version=$(lmx_probe "$LMX_PYTHON") || version=none
      case " $LMX_PYTHONS " in
        *" $version "*) command -v "$LMX_PYTHON" && return ;;
      esac
      lmx_say "LMX_PYTHON=$LMX_PYTHON is not a complete Python of the versions" \
        "$LMX_PYTHONS; unset it or name another"
      return 2
      ;;
  esac
  for version in $wanted; do
    while IFS= read -r place; do
      if [ "$(lmx_probe "$place")" = "$version" ]; then
        printf '%s\n' "$place"
        return
      fi
    done < <(lmx_places "$version")
  done
  lmx_say "found no complete Python of version ${wanted// /, }; install one (on" \
    "Debian: apt install python3 python3-venv) or set LMX_PYTHON to its path"
  return 2
}

# What the installed packages follow from: when this changes, they are brought up to date.
lmx_key() {
  { printf '%s\n' "$LMX_ROOT" && cat "$LMX_ROOT"/{pyproject.toml,requirements*.lock}; } | cksum
}

# Succeeds if the packages are there: LMX_VENV/.lmx-installed holds the key and extras.
lmx_is_ready() {
  local key extras extra
  [ -x "$LMX_VENV/bin/python" ] && [ -r "$LMX_VENV/.lmx-installed" ] || return 1
  { read -r key && read -r extras; } <"$LMX_VENV/.lmx-installed" || return 1
  [ "$key" = "$(lmx_key)" ] || return 1
  extra=${LMX_EXTRAS:-}
  for extra in ${extra//,/ }; do
    case ",$extras," in *",$extra,"*) ;; *) return 1 ;; esac
  done
  # The Python under it may be gone, or another one asked for.
  lmx_suits "$LMX_VENV/bin/python"
}

# Succeeds if the Python $1 runs and has the version that LMX_PYTHON asks for, if any.
lmx_suits() {
  local version
  version=$(lmx_probe "$1") || return 1
  case ${LMX_PYTHON:-} in
    '' | "$version") ;;
    3.*) return 1 ;;
    *) [ "$version" = "$(lmx_probe "$LMX_PYTHON")" ] ;;
  esac
}

# Removes LMX_VENV if it is of no use: left half-made, or its Python gone or unwanted.
lmx_clear() {
  [ -d "$LMX_VENV" ] || return 0
  if [ -e "$LMX_VENV/.lmx-installing" ]; then
    lmx_say "an earlier installation did not finish; starting afresh"
  elif [ ! -e "$LMX_VENV/pyvenv.cfg" ]; then
    [ -z "$(ls -A "$LMX_VENV")" ] && return 0
    lmx_say "$LMX_VENV is not a virtual environment; set LMX_VENV to another folder"
    return 2
  elif lmx_suits "$LMX_VENV/bin/python"; then
    return 0 # a newer Python elsewhere is no reason to download everything again
  fi
  # The mark goes last, so that this too can be interrupted.
  : >"$LMX_VENV/.lmx-installing"
  find "$LMX_VENV" -mindepth 1 -maxdepth 1 ! -name .lmx-installing -exec rm -rf {} +
}

lmx_install() {
  local python installer extras target lock=requirements.lock log started=$SECONDS
  python=$(lmx_find_python) || return
  installer=$(lmx_installer)
  extras=${LMX_EXTRAS:-}
  if [ -r "$LMX_VENV/.lmx-installed" ]; then # extras once installed stay
    extras=$extras,$(sed -n 2p "$LMX_VENV/.lmx-installed")
  fi
  extras=$(printf '%s' "$extras" | tr ',' '\n' | sort -u | grep . | paste -s -d , -) || true
  case ",$extras," in *,beam,*) lock=requirements-beam.lock ;; esac # it holds others back
  lmx_clear || return
  lmx_say "installing into $LMX_VENV ($installer, $python); once, a minute or a few"
  mkdir -p "$LMX_VENV" || return
  rm -f "$LMX_VENV/.lmx-installed"
  : >"$LMX_VENV/.lmx-installing" # stays if this is killed: lmx_clear sees it
  log=$LMX_VENV/install.log
  target=.${extras:+[$extras]}
  if ! "lmx_install_with_$installer" "$python" "$target" "$lock" >"$log" 2>&1; then
    if [ "$installer" = pip ] || [ -n "${LMX_INSTALLER:-}" ]; then
      cat "$log" >&2
      lmx_say "the installation failed, see above; the same command tries again"
      return 74
    fi
    # uv does not read pip's configuration, which may know the only reachable index.
    lmx_say "uv failed: $(grep -v '^ *$' "$log" | head -n 1); trying pip"
    if ! lmx_install_with_pip "$python" "$target" "$lock" >"$log" 2>&1; then
      cat "$log" >&2
      lmx_say "the installation failed, see above; the same command tries again"
      return 74
    fi
  fi
  printf '%s\n%s\n' "$(lmx_key)" "$extras" >"$LMX_VENV/.lmx-installed"
  rm -f "$LMX_VENV/.lmx-installing"
  lmx_say "installed in $((SECONDS - started)) s"
}

# Both compile to bytecode, on all cores and even where PYTHONDONTWRITEBYTECODE is set:
# without it every start of Python compiles JAX again (7 s instead of 3).
lmx_install_with_uv() {
  if [ ! -x "$LMX_VENV/bin/python" ]; then
    uv venv --quiet --allow-existing --python "$1" --prompt lmx "$LMX_VENV" || return
  fi
  (cd "$LMX_ROOT" && uv pip install --quiet --python "$LMX_VENV/bin/python" \
    --compile-bytecode --constraint "$3" --editable "$2")
}

lmx_install_with_pip() {
  if [ ! -x "$LMX_VENV/bin/python" ]; then
    "$1" -m venv --prompt lmx "$LMX_VENV" || return
  elif ! "$LMX_VENV/bin/python" -c 'import pip' 2>/dev/null; then
    "$LMX_VENV/bin/python" -m ensurepip || return
  fi
  (cd "$LMX_ROOT" && "$LMX_VENV/bin/python" -m pip install --quiet --no-input \
    --disable-pip-version-check --no-compile \
    --constraint "$3" --editable "$2") || return
  # Some packages ship templates that are no Python; those lines are no failure.
  "$LMX_VENV/bin/python" -m compileall -q -j 0 "$LMX_VENV/lib" || true
}

lmx_prepare() {
  lmx_is_ready && return
  # One installation at a time, where flock exists.
  exec 9<"$LMX_ROOT/requirements.lock"
  if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
    lmx_say "waiting for another installation to end"
    flock 9
  fi
  lmx_is_ready || lmx_install
  local status=$?
  exec 9<&-
  return "$status"
}

# Sets the variable $1 to $2 unless the user has set it, and exports it.
lmx_default() {
  if [ -z "${!1+set}" ]; then export "$1=$2"; fi
}

lmx_use_jemalloc() {
  local library
  if [ -n "${LD_PRELOAD+set}" ] || ! command -v ldconfig >/dev/null 2>&1; then return; fi
  library=$(ldconfig -p | sed -n 's/.*libjemalloc\.so\.2 .*=> //p' | head -n 1)
  if [ -z "$library" ]; then return; fi
  export LD_PRELOAD=$library
  lmx_default MALLOC_CONF "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
}

lmx_export() {
  # Large buffers that malloc hands back to the system cost 20-40 % of a training step
  # on CPU, because new pages come slowly: keep them, in huge pages. Memory once used is
  # then not returned before the run ends. Only glibc reads this.
  if getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    lmx_default GLIBC_TUNABLES "glibc.malloc.mmap_threshold=68719476736:glibc.malloc.trim_threshold=68719476736:glibc.malloc.hugetlb=1"
  fi
  # jemalloc does the same with no page fault left, and steps stop coming in two speeds
  # (measured: LOG.md). It is used where it is installed (Debian: libjemalloc2).
  lmx_use_jemalloc
  # Compiled programs are kept: a second start skips what took 0.3 s or more to compile.
  lmx_default JAX_COMPILATION_CACHE_DIR "$LMX_CACHE_ROOT/xla"
  lmx_default JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS 0.3
  # Elementwise passes in vectors of 512 bits where the CPU has them (LOG.md); GPU and
  # TPU programs do not read it.
  case ${XLA_FLAGS:-} in
    *xla_cpu_prefer_vector_width*) ;;
    *) export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_prefer_vector_width=512" ;;
  esac
  # Remarks of the C++ below JAX that a user can do nothing about; errors still show.
  lmx_default TF_CPP_MIN_LOG_LEVEL 2
  lmx_default GRPC_VERBOSITY ERROR
}
