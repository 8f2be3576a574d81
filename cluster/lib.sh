# shellcheck shell=bash
# What every script here shares: saying, quoting, checking. Works in bash 3.2, which macOS has.

# Print to standard error, where it does not mix with what commands answer.
say() {
  printf '%s\n' "$*" >&2
}

# End with one sentence. 2: what was asked is wrong; `fail` ends with 1: the world did not play along.
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Print words so that a shell reads the same words again; plain ones stay as they are.
quote() {
  local word option line='' apostrophe="'\\''"
  for word in "$@"; do
    option=''
    if [[ $word =~ ^--[a-z-]+= ]]; then # --option='its value' reads better than '--option=its value'
      option=${BASH_REMATCH[0]} word=${word#"${BASH_REMATCH[0]}"}
    fi
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$apostrophe}'" ;;
    esac
    line="$line${line:+ }$option$word"
  done
  printf '%s\n' "$line"
}

# Run a command, or only print it.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    quote "$@"
  else
    "$@"
  fi
}

# Say under what condition the next command runs; only a dry run needs telling.
note() {
  if [ -n "${DRY_RUN:-}" ]; then printf '# %s\n' "$*"; fi
}

# Name the variables that are not set, in one sentence.
need() {
  local name missing=''
  for name in "$@"; do
    if [ -z "${!name:-}" ]; then missing="$missing${missing:+, }$name"; fi
  done
  [ -z "$missing" ] || die "Not set: $missing; export what is missing first, as in: export ${missing%%,*}=..."
}

# A name becomes part of paths and commands, so it is a plain one.
check_name() {
  case $1 in
    [a-z]*) ;;
    *) die "NAME is '$1', and must start with a small letter." ;;
  esac
  case $1 in
    *[!a-z0-9-]*) die "NAME is '$1'; it may hold small letters, digits and dashes only." ;;
  esac
}

check_number() { # WHAT VALUE
  case $2 in
    '' | *[!0-9]*) die "$1 is '$2', and must be a whole number." ;;
  esac
}

check_port() { # WHAT VALUE
  check_number "$1" "$2"
  if [ "$2" -lt 1024 ] || [ "$2" -gt 65535 ]; then die "$1 is $2, and must lie between 1024 and 65535."; fi
}

check_command() { # PROGRAM WHERE-IT-COMES-FROM
  [ -n "${DRY_RUN:-}" ] || command -v "$1" >/dev/null || die "$1 is not installed on this machine; $2."
}

# The address belongs to a network that is not routed over the internet (RFC 1918, 6598; loopback).
is_private() {
  case $1 in
    10.* | 127.* | 192.168.* | 172.1[6-9].* | 172.2[0-9].* | 172.3[01].*) return 0 ;;
    100.6[4-9].* | 100.[7-9][0-9].* | 100.1[01][0-9].* | 100.12[0-7].*) return 0 ;;
  esac
  return 1
}

# Something listens there. `timeout` is for hosts that swallow what they do not like.
answers() { # ADDRESS PORT
  # shellcheck disable=SC2016  # the inner shell expands them
  if command -v timeout >/dev/null; then
    timeout 5 bash -c '</dev/tcp/"$0"/"$1"' "$1" "$2" 2>/dev/null
  else
    bash -c '</dev/tcp/"$0"/"$1"' "$1" "$2" 2>/dev/null
  fi
}

# Print the workers that a list such as 0-3,7 names, one a line, each once. Dies on one there is not.
expand_workers() { # LIST COUNT
  local list=$1 count=$2 part first last seen=,
  if [ "$list" = all ]; then list=0-$((count - 1)); fi
  case $list in
    '' | *[!0-9,-]* | ,* | *, | *,,*) die "--worker is '$list'; say all, or numbers and ranges such as 0-3,7." ;;
  esac
  while [ -n "$list" ]; do
    part=${list%%,*}
    if [ "$part" = "$list" ]; then list=''; else list=${list#*,}; fi
    first=${part%%-*} last=${part#*-}
    case $first-$last in
      -* | *- | *-*-*) die "--worker has '$part' in it; say numbers and ranges such as 0-3,7." ;;
    esac
    first=$((10#$first)) last=$((10#$last))
    [ "$first" -le "$last" ] || die "--worker has '$part' in it, which runs backwards."
    [ "$last" -lt "$count" ] || die "There is no worker $last; there are $count, counted from 0."
    while [ "$first" -le "$last" ]; do
      case $seen in *,"$first",*) ;; *) printf '%s\n' "$first" && seen="$seen$first," ;; esac
      first=$((first + 1))
    done
  done
}
