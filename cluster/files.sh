# shellcheck shell=bash
# Verbs for files: worker 0's code in a folder here, a folder that the workers share, a bucket.
# They use what verbs.sh and the script that sources both define.

verb_preview() {
  local words=()
  if [ "${1:-}" = stop ]; then
    [ -n "${2:-}" ] || die "preview stop needs the folder."
    if [ "$(uname)" = Darwin ]; then run umount "$2"; else run fusermount -u "$2"; fi
    return
  fi
  [ -n "${1:-}" ] || die "preview needs an empty folder of this machine, in which worker 0's code is shown."
  check_command sshfs "your system's packages have it (sshfs, or macFUSE on a Mac)"
  if [ -z "$DRY_RUN" ] && [ -n "$(ls -A "$1" 2>/dev/null)" ]; then
    die "$1 is not empty, or shows something already."
  fi
  find_workers
  run mkdir -p "$1"
  sshfs_source llama-nb
  run sshfs -o ro,reconnect ${words[@]+"${words[@]}"} "$1" # looked at, not edited
}

verb_nfs() {
  local folder=${2:-/srv/llama-nb} all i
  find_workers
  all=(${addresses[@]+"${addresses[@]:1}"})
  workers=()
  for ((i = 1; i < ${#addresses[@]}; i++)); do workers+=("$i"); done
  [ "${#workers[@]}" -gt 0 ] || die "There is one host only: nobody to share a folder with."
  case ${1:-} in
    start)
      only 0 store serve "$folder" "${all[@]}"
      everywhere store mount "${addresses[0]}" "$folder"
      ;;
    stop)
      everywhere store unmount "$folder"
      only 0 store unserve "$folder"
      ;;
    *) die "nfs knows start and stop." ;;
  esac
}

verb_bucket() {
  local folder=${3:-/srv/checkpoints}
  case ${1:-} in
    start) [ -n "${2:-}" ] || die "bucket start needs the bucket's name." ;;
    stop) folder=${2:-/srv/checkpoints} ;;
    *) die "bucket knows start and stop." ;;
  esac
  choose
  case $1 in
    start) everywhere store bucket "$2" "$folder" ${WRITE:+--write} ;;
    stop) everywhere store unmount "$folder" ;;
  esac
}
