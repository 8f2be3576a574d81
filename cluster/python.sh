# shellcheck shell=bash
# The Python environment of one host: made once, made again when something else is wanted.
: "${code:?the folder of the code}" "${venv:?the environment}" "${python:?its interpreter}"

wanted() { cat "$code/requirements.txt" ${constraints:+"$constraints"} <(echo "$jax") | sha256sum; }

# Succeed when the environment has what is needed, and in the versions that are wanted now.
ready() {
  [ -x "$python" ] || return 1
  if [ -f "$venv/.llama-nb" ] && [ "$(wanted)" != "$(cat "$venv/.llama-nb")" ]; then return 1; fi
  "$python" -c 'from importlib.metadata import version as v; [v(p) for p in ("jax", "flax", "ipyparallel")]' 2>/dev/null
}

make_venv() {
  local candidate
  for candidate in python3.13 python3.12 python3.11; do
    if "$candidate" -m venv "$venv" 2>/dev/null; then return; fi
  done
  # Older systems (Ubuntu 22.04, which TPU hosts run, has 3.10): uv brings a Python of its own.
  python3 -m pip install --quiet --user uv || fail "This host has no Python 3.11 or later, and uv could not be installed."
  "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 "$venv"
}

setup() {
  local jax='jax' constraints=''
  while [ $# -gt 0 ]; do
    case $1 in
      --jax) jax=${2:?} && shift 2 ;;
      --constraints) constraints=$code/${2:?} && shift 2 ;;
      *) die "setup does not know '$1'." ;;
    esac
  done
  [ -z "$constraints" ] || [ -f "$constraints" ] || die "There is no file $constraints."
  if ready; then
    echo "Python: ready at $venv"
    return
  fi
  [ -x "$python" ] || make_venv
  "$python" -m pip install --quiet ${constraints:+--constraint "$constraints"} \
    -r "$code/requirements.txt" "$jax" 'ipyparallel>=8.8' jupyterlab || fail "pip could not install what the engines need."
  wanted >"$venv/.llama-nb"
  echo "Python: made at $venv"
}
