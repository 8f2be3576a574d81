#!/usr/bin/env bash
# TPU pods on Google Cloud: from asking for one to giving it back.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=cluster/lib.sh
source cluster/lib.sh
NAME=${NAME:-} JAX=${JAX:-jax[tpu]} CONSTRAINTS=${CONSTRAINTS-constraints/newest.txt}
# shellcheck source=cluster/verbs.sh
source cluster/verbs.sh
# shellcheck source=cluster/files.sh
source cluster/files.sh

usage() {
  cat <<'EOF'
usage: tpu.sh [--dry-run] [--worker LIST] [--yes] COMMAND

  enable                      let the project use TPUs
  create                      make the pod now
  queue                       put a request for it into the queue
  wait [MINUTES]              until the request is granted
  list                        pods and requests in this zone
  delete                      give back the pod, and its request
EOF
  common_usage
  cat <<'EOF'

Variables: PROJECT, ZONE, NAME (always); TYPE, such as v5litepod-16, and VERSION, such as
v2-alpha-tpuv5-lite (create, queue). SPOT=1: cheaper, and may be taken away. INTERNAL=1: the
pod has no public addresses. UNTIL=6h: a request not granted by then expires. Also PORTS=FIRST-LAST
(the controller's), ENGINE_ENV="A=1 B=2", VENV, JAX, CONSTRAINTS, PARALLEL, TIMEOUT
(seconds for ssh to connect), PORT (the notebook's).
EOF
}

check_setting() {
  local missing=(PROJECT ZONE)
  case $verb in enable | list) ;; *) missing+=(NAME) ;; esac
  case $verb in create | queue) missing+=(TYPE VERSION) ;; esac
  need "${missing[@]}"
  check_command gcloud "see https://cloud.google.com/sdk/docs/install"
  place=("--project=$PROJECT" "--zone=$ZONE")
  # Without --quiet gcloud may stop at a question that nobody sees.
  ssh_flags=("${place[@]}" --quiet ${INTERNAL:+--internal-ip})
}

tpu() { run gcloud compute tpus "$@"; }

on() {
  tpu tpu-vm ssh "$NAME" "--worker=$1" "${ssh_flags[@]}" "--ssh-flag=-oConnectTimeout=$TIMEOUT" \
    "--command=$(quote "${@:2}")" </dev/null
}

put() { tpu tpu-vm scp "$2" "$NAME:$3" "--worker=$1" "${ssh_flags[@]}" --scp-flag=-p </dev/null; }
get() { tpu tpu-vm scp "$NAME:$2" "$3" "--worker=$1" "${ssh_flags[@]}" --scp-flag=-p </dev/null; }

# gcloud makes your key at its first connection, and gives it to the pod at the first to each pod.
# Two that do so at once are in each other's way.
acquainted() {
  [ -f "$HOME/.ssh/google_compute_engine" ] &&
    [ "$(cat "$local_folder/acquainted" 2>/dev/null)" = "$PROJECT $ZONE ${addresses[*]}" ]
}

acquaint() {
  (umask 077 && mkdir -p "$local_folder") # other secrets come here, too
  printf '%s\n' "$PROJECT $ZONE ${addresses[*]}" >"$local_folder/acquainted"
}

# Another pod may get the same name and the same addresses.
forget() { [ -n "$DRY_RUN" ] || rm -f "$local_folder/acquainted"; }

forward() {
  tpu tpu-vm ssh "$NAME" --worker=0 "${ssh_flags[@]}" -- \
    -N -o ExitOnForwardFailure=yes -L "127.0.0.1:$1:127.0.0.1:${PORT:-8888}"
}

# Ask for one thing of the pod, for all its workers.
endpoints() { # FIELD ANSWER
  ask "$2" gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" '--format=value[delimiter=" "]'"(networkEndpoints.$1)"
}

find_workers() {
  local answer
  [ -z "$DRY_RUN" ] || need ADDRESSES
  answer=$(endpoints ipAddress "${ADDRESSES:-}") || fail "There is no pod $NAME in $ZONE of $PROJECT that answers; list shows what there is."
  read -r -a addresses <<<"${answer//[,;]/ }"
  [ "${#addresses[@]}" -gt 0 ] || fail "$NAME has no addresses yet; wait until it is ready."
}

# sshfs knows no gcloud: it takes the public address, and the key that gcloud made.
sshfs_source() { # FOLDER
  local field=accessConfig.externalIp answer
  if [ -n "${INTERNAL:-}" ]; then field=ipAddress; fi
  answer=$(endpoints "$field" "${ADDRESSES:-}")
  answer=${answer//[,;]/ }
  words=(-o "IdentityFile=$HOME/.ssh/google_compute_engine" "${USER:-$(id -un)}@${answer%% *}:$1")
}

# Succeed when the pod, or its request, is there.
there() { # KIND
  local names
  names=$(ask "$NAME" gcloud compute tpus "$1" list "${place[@]}" '--format=value(name.basename())') ||
    fail "gcloud could not list what is in $ZONE of $PROJECT."
  grep -Fxq -- "$NAME" <<<"$names"
}

# A dry run goes the way that changes something: there is no such pod before, and one after.
absent() {
  if there "$1"; then [ -n "$DRY_RUN" ]; else [ -z "$DRY_RUN" ]; fi
}

options() { # sets `extra`
  extra=("${place[@]}" "--accelerator-type=$TYPE")
  if [ -n "${SPOT:-}" ]; then extra+=(--spot); fi
  if [ -n "${INTERNAL:-}" ]; then extra+=(--internal-ips); fi
}

verb_enable() {
  run gcloud services enable compute.googleapis.com tpu.googleapis.com "--project=$PROJECT"
}

verb_create() {
  local extra
  options
  absent tpu-vm || { say "$NAME is there already." && return; }
  forget
  note "if it is not there yet"
  tpu tpu-vm create "$NAME" "${extra[@]}" "--version=$VERSION"
}

verb_queue() {
  local extra
  options
  if [ -n "${UNTIL:-}" ]; then extra+=("--valid-until-duration=$UNTIL"); fi
  absent queued-resources || { say "$NAME is in the queue already." && return; }
  forget
  note "if it is not in the queue yet"
  tpu queued-resources create "$NAME" "--node-id=$NAME" "${extra[@]}" "--runtime-version=$VERSION"
}

verb_wait() {
  local minutes=${1:-60} deadline state
  check_number wait "$minutes"
  deadline=$((SECONDS + 60 * minutes))
  while :; do
    state=$(ask ACTIVE gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)') ||
      fail "There is no request $NAME in $ZONE of $PROJECT."
    case $state in
      ACTIVE) [ -n "$DRY_RUN" ] || say "$NAME is yours: it costs from now on until delete." && return ;;
      FAILED | SUSPEND*) fail "The request $NAME is $state; delete it, then ask again." ;;
    esac
    [ "$SECONDS" -lt "$deadline" ] || fail "The request $NAME is still $state after $minutes minutes; wait again, or delete it."
    sleep "${INTERVAL:-20}"
  done
}

verb_list() {
  tpu tpu-vm list "${place[@]}"
  tpu queued-resources list "${place[@]}"
}

verb_delete() {
  local answer='' found=''
  if [ -z "$DRY_RUN" ] && [ -z "$YES" ]; then
    [ -t 0 ] || die "delete asks first; where there is no terminal, say: --yes delete"
    read -r -p "Give back $NAME, with everything on its disks? (yes/no) " answer
    [ "$answer" = yes ] || die "Nothing was deleted."
  fi
  forget
  if there queued-resources; then
    found=1
    note "if its request is there"
    tpu queued-resources delete "$NAME" "${place[@]}" --force --quiet
  fi
  if there tpu-vm; then
    found=1
    note "if the pod is still there"
    tpu tpu-vm delete "$NAME" "${place[@]}" --quiet
  fi
  [ -n "$found" ] || say "There is no $NAME in $ZONE of $PROJECT: nothing to delete."
}

main "$@"
