#!/usr/bin/env bash
# Plain hosts that one reaches over ssh: GPU boxes, or a few old machines.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HOSTS=${HOSTS:-$root/cluster/hosts.txt} NAME=${NAME:-llama}
case $HOSTS in /*) ;; *) HOSTS=$PWD/$HOSTS ;; esac
cd "$root"
# shellcheck source=cluster/lib.sh
source cluster/lib.sh
# shellcheck source=cluster/verbs.sh
source cluster/verbs.sh
# shellcheck source=cluster/files.sh
source cluster/files.sh

usage() {
  cat <<'EOF'
usage: hosts.sh [--dry-run] [--worker LIST] COMMAND

EOF
  common_usage
  cat <<'EOF'

HOSTS names a file (cluster/hosts.txt if unset) with two words a line: how ssh calls the host, and
its private address. The first is worker 0. Variables: NAME, PORTS=FIRST-LAST (the controller's),
JAX=jax[cuda13] (setup), ENGINE_ENV="A=1 B=2", SSH_CONFIG=FILE, VENV, CONSTRAINTS, PARALLEL,
TIMEOUT (seconds for ssh to connect), PORT (the notebook's).
EOF
}

check_setting() {
  local line word number=0
  names=() all=()
  [ -f "$HOSTS" ] || die "There is no hosts file $HOSTS; write one, a line each: ssh name, private address."
  while read -r -a line || [ "${#line[@]}" -gt 0 ]; do
    number=$((number + 1))
    word=${line[0]:-#}
    case $word in '#'*) continue ;; esac
    if [ "${#line[@]}" -ne 2 ] || [[ $word == -* ]]; then
      die "Line $number of $HOSTS is not 'name address'."
    fi
    is_private "${line[1]}" || die "Line $number of $HOSTS: ${line[1]} is not a private address."
    names+=("$word") all+=("${line[1]}")
  done <"$HOSTS"
  [ "${#names[@]}" -gt 0 ] || die "$HOSTS names no host."
  # BatchMode: a host that wants a password is an error, not a prompt that nobody sees.
  ssh_flags=(${SSH_CONFIG:+-F "$SSH_CONFIG"} -o BatchMode=yes -o "ConnectTimeout=$TIMEOUT")
}

find_workers() { addresses=("${all[@]}"); }
acquainted() { :; } # the keys are there
on() { run ssh "${ssh_flags[@]}" "${names[$1]}" "$(quote "${@:2}")" </dev/null; }
put() { run scp -q -p "${ssh_flags[@]}" "$2" "${names[$1]}:$3" </dev/null; }
get() { run scp -q -p "${ssh_flags[@]}" "${names[$1]}:$2" "$3" </dev/null; }

forward() {
  run ssh "${ssh_flags[@]}" -N -o ExitOnForwardFailure=yes -L "127.0.0.1:$1:127.0.0.1:${PORT:-8888}" "${names[0]}"
}

sshfs_source() { words=(${SSH_CONFIG:+-F "$SSH_CONFIG"} "${names[0]}:$1"); }

main "$@"
