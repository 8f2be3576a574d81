# shellcheck shell=bash
# Services of one host: started once, found again, and stopped without touching anything else.
#
# A pid alone proves nothing: numbers are used again. So SERVICE.pid keeps the pid, when that process
# started (ticks since boot) and where that counts (the boot, the container), and the command line must
# hold a mark as well.
# Each service leads a session of its own, so whatever it started itself carries its number.
: "${dir:?the folder of the pid files}"

# Print what makes a pid mean something: the boot, and the namespace that numbers processes.
here() { printf '%s/%s\n' "$(cat /proc/sys/kernel/random/boot_id)" "$(readlink /proc/self/ns/pid)"; }

# Print when a process started, in ticks since boot; fail when there is none, or only a zombie.
started() { # PID
  local line fields
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -r -a fields <<<"${line##*) }" # what follows the name, which may hold spaces itself
  [ "${fields[0]}" != Z ] && printf '%s\n' "${fields[19]}"
}

# Print the processes of one session.
members() { # SESSION
  local file line fields pid
  for file in /proc/[0-9]*/stat; do
    line=$(cat "$file" 2>/dev/null) || continue
    read -r -a fields <<<"${line##*) }"
    pid=${file#/proc/} pid=${pid%/stat}
    if [ "${fields[3]}" = "$1" ] && [ "${fields[0]}" != Z ]; then printf '%s\n' "$pid"; fi
  done
}

# Set `pid`, and the words `ticks` and `place`, from a service's file.
recorded() { # SERVICE
  pid='' ticks='' place=''
  [ -f "$dir/$1.pid" ] && read -r pid ticks place <"$dir/$1.pid"
  case $pid in '' | *[!0-9]*) return 1 ;; esac
}

# Set `pid` and succeed when the service that was started here still runs.
running() { # SERVICE MARK
  local line
  recorded "$1" || return 1
  [ "$place" = "$(here)" ] || return 1
  [ "$(started "$pid")" = "$ticks" ] || return 1
  line=$(tr '\0' ' ' <"/proc/$pid/cmdline") && [[ $line == *"$2"* ]]
}

# Start a service in the background, and write down which process it is.
launch() { # SERVICE COMMAND...
  local service=$1
  if recorded "$service"; then halt "$service" "$(mark "$service")" >/dev/null; fi # what an earlier one left
  shift
  : >"$dir/$service.log"
  # 9 is the lock of this script, which must not live on in what it starts.
  setsid "$@" >>"$dir/$service.log" 2>&1 </dev/null 9>&- &
  pid=$!
  ticks=$(started "$pid") || ended_early "$service"
  printf '%s %s %s\n' "$pid" "$ticks" "$(here)" >"$dir/$service.pid"
}

# Wait until a condition holds, as long as the service lives.
await() { # SERVICE SECONDS CONDITION...
  local service=$1 deadline=$((SECONDS + $2))
  shift 2
  until "$@"; do
    started "$pid" >/dev/null || ended_early "$service"
    if [ "$SECONDS" -ge "$deadline" ]; then
      fail "The $service did not get ready in time; its log: $dir/$service.log."
    fi
    sleep 0.2
  done
}

ended_early() { # SERVICE
  rm -f "$dir/$1.pid"
  fail "The $1 ended as it started: $(grep -v '^$' "$dir/$1.log" | tail -n 1) (its log: $dir/$1.log)"
}

# Stop a service: asked first, and after GRACE seconds no longer asked. Nothing else is ever signalled.
halt() { # SERVICE MARK
  local service=$1 deadline=$((SECONDS + ${GRACE:-10})) member left
  if ! recorded "$service"; then
    echo "$service: not running"
    return
  fi
  if running "$service" "$2"; then
    kill -TERM "$pid" 2>/dev/null || true
  else
    # Of an earlier boot, or the number is another's now: the file is all there is to remove.
    if [ "$place" != "$(here)" ] || [ -d "/proc/$pid" ]; then
      rm -f "$dir/$service.pid"
      echo "$service: not running (process $pid is not ours and was left alone)"
      return
    fi
    # Its leader gone, the session's number stays taken as long as a member lives: still ours.
    for member in $(members "$pid"); do kill -TERM "$member" 2>/dev/null || true; done
  fi
  while left=$(members "$pid") && [ -n "$left" ]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      for member in $left; do kill -KILL "$member" 2>/dev/null || true; done
      deadline=$((SECONDS + 5))
    fi
    sleep 0.1
  done
  rm -f "$dir/$service.pid"
  echo "$service: stopped"
}
