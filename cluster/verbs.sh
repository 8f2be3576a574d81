# shellcheck shell=bash
# What one does with a cluster, the same on TPU pods and on plain hosts.
#
# tpu.sh and hosts.sh say how a worker is reached; they define
#   on WORKER COMMAND...      run a command on a worker
#   put WORKER FILE PATH      copy a file to a worker;  get WORKER PATH FILE  and from it
#   find_workers              set `addresses`, the workers' private addresses
#   acquainted                succeed when workers may be reached all at once;  acquaint  note that they may
#   forward PORT              hold an ssh tunnel to worker 0 open;  sshfs_source FOLDER  names it for sshfs
# Paths on workers are relative to the home folder, where ssh begins.

: "${PARALLEL:=32}" "${TIMEOUT:=15}" "${JAX:=jax}"
code=(llama_nb cluster constraints pyproject.toml requirements.txt README.md LICENSE)
workers=() addresses=()
exec 3>&1

# Run a question and hand back its answer; in a dry run print it and take the prepared answer.
ask() { # ANSWER COMMAND...
  local answer=$1
  shift
  if [ -n "$DRY_RUN" ]; then
    quote "$@" >&3
    printf '%s\n' "$answer"
  else
    "$@"
  fi
}

# Fill `workers` with those that --worker names.
choose() {
  local line list
  find_workers
  list=$(expand_workers "$WORKER" "${#addresses[@]}") || exit
  workers=()
  while read -r line; do workers+=("$line"); done <<<"$list"
}

# Run `FUNCTION WORKER ARGUMENTS...` for every chosen worker at once; lines come with their worker.
# The first time the first worker goes alone.
everywhere() {
  local worker i code batch=() pids=() failed='' size=$PARALLEL
  if [ -n "$DRY_RUN" ]; then
    for worker in "${workers[@]}"; do "$1" "$worker" "${@:2}"; done
    return
  fi
  acquainted || size=1
  for worker in "${workers[@]}" end; do
    if [ "$worker" = end ] || [ "${#batch[@]}" -eq "$size" ]; then
      for ((i = 0; i < ${#batch[@]}; i++)); do
        code=0
        wait "${pids[i]}" || code=$?
        case $code in
          0) ;;
          255) failed="$failed${failed:+, }${batch[i]} (not reached over ssh)" ;;
          *) failed="$failed${failed:+, }${batch[i]} (exit code $code)" ;;
        esac
      done
      [ "$size" = "$PARALLEL" ] || [ -n "$failed" ] || acquaint || :
      batch=() pids=() size=$PARALLEL
    fi
    [ "$worker" != end ] || break
    ("$1" "$worker" "${@:2}" 2>&1 | awk -v worker="$worker" '{ print "[" worker "] " $0; fflush() }') &
    batch+=("$worker") pids+=($!)
  done
  [ -z "$failed" ] || fail "Failed on worker $failed."
}

# The same for one worker, whichever were chosen.
only() { # WORKER FUNCTION ARGUMENTS...
  local workers=("$1")
  everywhere "${@:2}"
}

host() { # WORKER COMMAND...
  on "$1" bash llama-nb/cluster/host.sh --name "$NAME" ${VENV:+--venv "$VENV"} "${@:2}"
}

store() { # WORKER COMMAND...
  on "$1" bash llama-nb/cluster/store.sh "${@:2}"
}

verb_run() {
  if [ "${1:-}" = -- ]; then shift; fi
  [ $# -gt 0 ] || die "run needs a command, as in: run -- hostname"
  choose
  everywhere on "$@"
}

verb_copy() { # FILE... besides the code
  local file archive=$local_folder/code.tgz
  for file in "$@"; do [ -e "$file" ] || die "There is no '$file' in the repository."; done
  choose
  run mkdir -p -m 700 "$local_folder"
  run env COPYFILE_DISABLE=1 tar -czf "$archive" --exclude=__pycache__ "${code[@]}" "$@"
  everywhere put "$archive" llama-nb.tgz
  # Folders are emptied before they are filled: what was deleted here goes there too.
  everywhere on bash -c 'mkdir -p llama-nb && tar -xzf llama-nb.tgz --recursive-unlink -C llama-nb && rm llama-nb.tgz'
  run rm -f "$archive"
}

verb_setup() {
  verb_copy "$@"
  everywhere host setup --jax "$JAX" ${CONSTRAINTS:+--constraints "$CONSTRAINTS"}
}

engine_up() { # WORKER FILE
  local pair pairs=() words=()
  read -r -a pairs <<<"${ENGINE_ENV:-}"
  for pair in ${pairs[@]+"${pairs[@]}"}; do words+=(--env "$pair"); done
  host "$1" prepare
  put "$1" "$2" ".llama-nb/$NAME/engine.json"
  host "$1" start engine --id "$1" ${words[@]+"${words[@]}"}
}

verb_start() {
  local file=$local_folder/engine.json words=(start controller --address)
  choose
  words+=("${addresses[0]}")
  if [ -n "${PORTS:-}" ]; then words+=(--ports "$PORTS"); fi
  if [ "${workers[0]}" = 0 ]; then only 0 host "${words[@]}"; fi
  run mkdir -p -m 700 "$local_folder"
  # It holds the cluster's key: private here, private there, and gone from here when all have it.
  if [ -z "$DRY_RUN" ]; then trap 'rm -f "$local_folder/engine.json"' EXIT; fi
  only 0 get ".llama-nb/$NAME/controller/security/ipcontroller-engine.json" "$file"
  everywhere engine_up "$file"
  run rm -f "$file"
  if [ "${#workers[@]}" = "${#addresses[@]}" ]; then only 0 host wait "${#addresses[@]}"; fi
}

# Worker 0 has a controller besides its engine.
service() { # WORKER VERB
  if [ "$1" = 0 ]; then host "$1" "$2" engine controller; else host "$1" "$2" engine; fi
}

# New processes, since one that computed with others can't do so with new ones. The controller stays.
verb_restart() {
  choose
  everywhere host stop engine
  verb_start
}

verb_stop() {
  choose
  everywhere service stop
}

verb_status() {
  choose
  everywhere service status
}

verb_logs() {
  choose
  everywhere service logs
}

verb_notebook() {
  find_workers
  case ${1:-start} in
    start) only 0 host start notebook --port "${PORT:-8888}" ;;
    stop | status) only 0 host "$1" notebook ;;
    *) die "notebook knows start, stop and status." ;;
  esac
}

verb_tunnel() {
  local port=${1:-${PORT:-8888}}
  check_port "The tunnel's port" "$port"
  if [ -z "$DRY_RUN" ] && answers 127.0.0.1 "$port"; then
    die "Port $port is in use on this machine; close what uses it, or choose another: tunnel PORT."
  fi
  find_workers
  say "http://127.0.0.1:$port leads to worker 0 as long as this runs (Ctrl-C ends it)."
  forward "$port" || fail "The tunnel to worker 0 ended."
}

common_usage() {
  cat <<'EOF'
  run -- COMMAND...           run a command on the workers
  copy [FILE]...              copy the code, and these files or folders of the repository
  setup [FILE]...             copy, then make the Python environment
  start | status | stop       the controller on worker 0, an engine on each worker
  restart                     new engines, the same controller
  logs                        the last lines that they wrote
  notebook [start|stop|status]   JupyterLab on worker 0, at its 127.0.0.1
  tunnel [PORT]               http://127.0.0.1:PORT on this machine leads to that notebook
  preview FOLDER | preview stop FOLDER           worker 0's code in a folder here, to look at
  nfs start [FOLDER] | nfs stop [FOLDER]         worker 0 shares a folder with the others
  bucket start BUCKET [FOLDER] | bucket stop [FOLDER]   a bucket's checkpoints as a folder, on each

  --worker LIST   all (the default), or numbers and ranges such as 0-3,7
  --dry-run       print what would run, and run nothing; ADDRESSES says what the pod would answer
EOF
}

main() {
  # shellcheck disable=SC2034  # tpu.sh reads YES
  DRY_RUN='' WORKER=all YES=''
  local verb
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=1 && shift ;;
      --worker)
        [ $# -gt 1 ] || die "--worker needs a list, such as 0-3,7."
        WORKER=$2 && shift 2
        ;;
      --worker=*) WORKER=${1#*=} && shift ;;
      --yes)
        # shellcheck disable=SC2034
        YES=1 && shift
        ;;
      --help | -h) usage && exit ;;
      -*) die "There is no option '$1'; --help lists them, and they stand before the command." ;;
      *) break ;;
    esac
  done
  if [ $# -eq 0 ]; then
    usage
    exit 2
  fi
  verb=$1
  shift
  case $verb in *[!a-z]*) die "There is no command '$verb'; --help lists them." ;; esac
  declare -F "verb_$verb" >/dev/null || die "There is no command '$verb'; --help lists them."
  check_number PARALLEL "$PARALLEL" && check_number TIMEOUT "$TIMEOUT"
  check_setting
  if [ -n "$NAME" ]; then check_name "$NAME"; fi
  local_folder=${XDG_STATE_HOME:-$HOME/.local/state}/llama-nb/$NAME
  "verb_$verb" "$@"
}
