#!/usr/bin/env bash
# The part that runs on a host: its Python, the controller, the engine, the notebook server.
set -euo pipefail
umask 077 # logs and connection files are nobody else's
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=cluster/lib.sh
source "$code/cluster/lib.sh"

usage() {
  cat <<'EOF'
usage: host.sh [--name NAME] [--venv FOLDER] COMMAND

  setup [--jax SPEC] [--constraints FILE]
                              make the Python environment, unless it has what is needed
  start controller --address ADDRESS [--ports FIRST-LAST]
  start engine --id N [--env VARIABLE=VALUE]...
  start notebook [--port PORT]
  run engine ...              the same engine in the foreground, for Slurm and Kubernetes
  stop [SERVICE]...           what was started here, nothing else (all three if none is named)
  status [SERVICE]...         fails when one of them does not run
  logs [SERVICE]...           the last lines that each wrote
  wait COUNT [SECONDS]        until so many engines have registered (on the controller's host)
  prepare                     make the folder for the connection file

Files are kept in ~/.llama-nb/NAME (mode 0700), the environment in ~/.llama-nb/venv.
EOF
}

# The mark of a service in its command line.
mark() {
  case $1 in
    controller) echo "ipyparallel.controller --profile-dir=$dir/controller" ;;
    engine) echo "ipyparallel.engine --profile-dir=$dir/engine" ;;
    notebook) echo "jupyterlab --ServerApp.root_dir=$code" ;;
    *) die "There is no service '$1'; there are controller, engine and notebook." ;;
  esac
}

known() {
  local service
  for service in "$@"; do mark "$service" >/dev/null; done
}

need_python() {
  [ -x "$python" ] || die "There is no Python at $python; run setup first, or name its environment with --venv."
}

# --- controller --------------------------------------------------------------------------------

start_controller() {
  local address='' ports='' port curve='' how='signed, not encrypted' words
  while [ $# -gt 0 ]; do
    case $1 in
      --address) address=${2:?} && shift 2 ;;
      --ports) ports=${2:?} && shift 2 ;;
      *) die "start controller does not know '$1'." ;;
    esac
  done
  [ -n "$address" ] || die "start controller needs --address, the private address of this host."
  is_private "$address" || die "$address is a public address; the controller listens on private ones only."
  case " $(hostname -I 2>/dev/null) 127.0.0.1 " in
    *" $address "*) ;;
    *) die "$address is not an address of this host, which has: $(hostname -I)." ;;
  esac
  if running controller "$(mark controller)"; then
    echo "controller: running already (process $pid)"
    return
  fi
  if [ -n "$ports" ]; then
    check_port '--ports' "${ports%%-*}" && check_port '--ports' "${ports##*-}"
    for ((port = ${ports%%-*}; port <= ${ports##*-}; port++)); do
      ! answers "$address" "$port" || die "Port $port of $address is in use; choose other --ports."
    done
  fi
  # Encrypted where the library can: it is not by default.
  if "$python" -c 'import sys, zmq; from ipyparallel.controller.app import IPController as c
sys.exit(not (zmq.has("curve") and hasattr(c, "enable_curve")))'; then
    curve=--IPController.enable_curve=True how='encrypted with CurveZMQ'
  else
    say "This ipyparallel or zmq has no CurveZMQ: messages are signed, but anyone on the network can read them."
  fi
  mkdir -p "$dir/controller"
  rm -f "$dir"/controller/security/*.json # those of a controller that is gone
  words=("--profile-dir=$dir/controller" "--ip=$address" "--location=$address")
  launch controller "$python" -m ipyparallel.controller "${words[@]}" ${curve:+"$curve"} ${ports:+"--ports=$ports"}
  await controller 60 test -s "$dir/controller/security/ipcontroller-client.json" \
    -a -s "$dir/controller/security/ipcontroller-engine.json"
  chmod 700 "$dir/controller/security" && chmod 600 "$dir"/controller/security/*.json
  echo "controller: started at $address, $how (process $pid)"
}

# --- engine ------------------------------------------------------------------------------------

# Print address and port at which engines register, as the connection file has them.
registration() {
  "$python" -c 'import json, sys
file = json.load(open(sys.argv[1]))
print(file["interface"].rpartition("/")[2], file["registration"])' "$1" 2>/dev/null ||
    die "$1 is not a connection file; run start again."
}

engine_command() { # sets `words` and `file`
  local id='' address port
  local -a extra=()
  while [ $# -gt 0 ]; do
    case $1 in
      --id) id=${2:?} && shift 2 ;;
      --env) extra+=("${2:?}") && shift 2 ;;
      *) die "start engine does not know '$1'." ;;
    esac
  done
  check_number --id "$id"
  file=$dir/engine.json
  [ -f "$file" ] || die "There is no connection file $file; start sends it from the controller's host."
  chmod 600 "$file"
  read -r address port <<<"$(registration "$file")"
  [ -n "$port" ] || exit 2
  answers "$address" "$port" || die "The connection file names a controller at $address:$port, which does not answer: the file is stale (run start again), or a firewall is between."
  words=(env "PYTHONPATH=$code" "LLAMA_NB_RANK=$id" ${extra[@]+"${extra[@]}"} "$python" -m ipyparallel.engine
    "--profile-dir=$dir/engine" "--file=$file" "--IPEngine.id=$id" --timeout=60)
  mkdir -p "$dir/engine"
}

start_engine() {
  local file words
  if running engine "$(mark engine)" && cmp -s "$dir/engine.json" "$dir/engine.started.json"; then
    echo "engine: running already (process $pid)"
    return
  fi
  engine_command "$@"
  # One that still runs belongs to a controller that is gone.
  if running engine "$(mark engine)"; then halt engine "$(mark engine)"; fi
  cp "$file" "$dir/engine.started.json"
  launch engine "${words[@]}"
  await engine 60 grep -q 'Completed registration' "$dir/engine.log"
  echo "engine: started (process $pid)"
}

# --- the rest ----------------------------------------------------------------------------------

start_notebook() {
  local port=8888
  if [ "${1:-}" = --port ]; then port=${2:-} && shift 2; fi
  check_port --port "$port"
  if ! running notebook "$(mark notebook)"; then
    ! answers 127.0.0.1 "$port" || die "Port $port is in use on this host; choose another with --port."
    launch notebook env "PYTHONPATH=$code" "$python" -m jupyterlab "--ServerApp.root_dir=$code" \
      --no-browser --ip=127.0.0.1 "--port=$port" --ServerApp.port_retries=0
    await notebook 60 grep -q 'token=' "$dir/notebook.log"
  fi
  echo "notebook: $(grep -o 'http://127.0.0.1:[^ ]*' "$dir/notebook.log" | tail -n 1)"
}

# Start or look at nothing while another does: two starts at once would start two.
lock() {
  exec 9>"$dir/lock"
  flock -w 120 9 || fail "Another start or stop on this host has not ended for two minutes."
}

status() {
  local service missing=0
  for service in "$@"; do
    if running "$service" "$(mark "$service")"; then
      echo "$service: running (process $pid)"
    else
      echo "$service: not running"
      missing=1
    fi
  done
  return "$missing"
}

wait_for() {
  local count=${1:-} seconds=${2:-60} file=$dir/controller/security/ipcontroller-client.json
  check_number wait "$count" && check_number wait "$seconds"
  [ -f "$file" ] || die "There is no connection file $file; start the controller first."
  running controller "$(mark controller)" || die "The connection file $file is stale: its controller does not run; start it again."
  "$python" "$code/cluster/engines.py" "$file" "$count" "$seconds"
}

name=llama venv=$HOME/.llama-nb/venv
while [ $# -gt 0 ]; do
  case $1 in
    --name) name=${2:?} && shift 2 ;;
    --venv) venv=${2:?} && shift 2 ;;
    --help | -h) usage && exit ;;
    *) break ;;
  esac
done
check_name "$name"
case $venv in /*) ;; *) venv=$HOME/$venv ;; esac
dir=$HOME/.llama-nb/$name python=$venv/bin/python
command=${1:-}
[ $# -eq 0 ] || shift
mkdir -p "$dir" && chmod 700 "$HOME/.llama-nb" "$dir"
# shellcheck source=cluster/services.sh
source "$code/cluster/services.sh"
# shellcheck source=cluster/python.sh
source "$code/cluster/python.sh"

case $command in
  setup) lock && setup "$@" ;;
  prepare) ;;
  start)
    need_python && lock
    case ${1:-} in
      controller) shift && start_controller "$@" ;;
      engine) shift && start_engine "$@" ;;
      notebook) shift && start_notebook "$@" ;;
      *) known "${1:-}" ;;
    esac
    ;;
  run)
    [ "${1:-}" = engine ] || die "run knows one service: engine."
    shift && need_python && engine_command "$@"
    exec "${words[@]}"
    ;;
  stop)
    lock
    if [ $# -eq 0 ]; then set -- notebook engine controller; fi
    known "$@"
    for service in "$@"; do
      halt "$service" "$(mark "$service")"
      case $service in # what would only be stale
        controller) rm -f "$dir"/controller/security/*.json ;;
        engine) rm -f "$dir/engine.json" "$dir/engine.started.json" ;;
      esac
    done
    ;;
  status)
    if [ $# -eq 0 ]; then set -- controller engine; fi
    known "$@"
    status "$@"
    ;;
  logs)
    if [ $# -eq 0 ]; then set -- controller engine; fi
    known "$@"
    for service in "$@"; do
      if [ -f "$dir/$service.log" ]; then echo "== $service" && tail -n 20 "$dir/$service.log"; fi
    done
    ;;
  wait) need_python && wait_for "$@" ;;
  '' | help) usage ;;
  *) die "There is no command '$command'; --help lists them." ;;
esac
