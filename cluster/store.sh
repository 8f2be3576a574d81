#!/usr/bin/env bash
# The part that runs on a host for files: a folder shared over NFS, a bucket shown as a folder.
set -euo pipefail
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=cluster/lib.sh
source "$code/cluster/lib.sh"

usage() {
  cat <<'EOF'
usage: store.sh COMMAND

  serve FOLDER ADDRESS...       share the folder with these addresses, and no others
  mount ADDRESS FOLDER          mount the folder that ADDRESS serves, at the same path
  unserve FOLDER                end the sharing; the files stay
  unmount FOLDER                unmount it, if it is one of ours
  bucket NAME FOLDER [--write]  show a Google Cloud Storage bucket as a folder, read-only
EOF
}

exports=${EXPORTS:-/etc/exports.d/llama-nb.exports} # a file of our own: removing it ends the sharing

absolute() {
  case ${1:-} in
    *[!A-Za-z0-9_./-]*) die "The folder is '$1'; letters, digits and . _ - / only." ;;
    /*) ;;
    *) die "The folder is '${1:-}'; say it from the root, as in /srv/llama-nb." ;;
  esac
}

# Print the type of what is mounted at a folder; nothing where nothing is.
mounted() { findmnt --noheadings --output FSTYPE --mountpoint "$1" || true; }

provide() { # PROGRAM PACKAGE
  if ! command -v "$1" >/dev/null; then
    sudo apt-get update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2"
  fi
}

serve() {
  absolute "${1:-}"
  local folder=$1 address line="$1"
  shift
  [ $# -gt 0 ] || die "serve needs the addresses it shares with."
  for address in "$@"; do
    is_private "$address" || die "$address is a public address; the folder is shared with private ones only."
    line="$line $address(rw,sync,no_subtree_check,root_squash)"
  done
  provide exportfs nfs-kernel-server
  [ -d "$folder" ] || sudo install -d -o "$(id -un)" -m 700 "$folder"
  if [ "$(cat "$exports" 2>/dev/null)" = "$line" ]; then
    echo "nfs: $folder is shared already"
    return
  fi
  sudo mkdir -p "${exports%/*}"
  printf '%s\n' "$line" | sudo tee "$exports" >/dev/null
  sudo exportfs -ra
  echo "nfs: $folder is shared with $# hosts"
}

mount_folder() {
  local address=${1:-} folder=${2:-} type
  absolute "$folder"
  is_private "$address" || die "$address is not a private address."
  type=$(mounted "$folder")
  case $type in
    nfs*) echo "nfs: $folder is mounted already" && return ;;
    ?*) die "$folder is a mount point of type $type already." ;;
  esac
  provide mount.nfs nfs-common
  sudo mkdir -p "$folder"
  # Hard mounts, the default: a write waits for a server that went away, and is never half done.
  sudo mount -t nfs -o nosuid,nodev "$address:$folder" "$folder"
  echo "nfs: $folder is mounted from $address"
}

unserve() {
  absolute "${1:-}"
  if [ ! -f "$exports" ]; then
    echo "nfs: nothing is shared"
    return
  fi
  sudo rm -f "$exports"
  sudo exportfs -ra
  echo "nfs: $1 is no longer shared"
}

unmount() {
  absolute "${1:-}"
  local type
  type=$(mounted "$1")
  case $type in
    nfs*) sudo umount "$1" ;;
    fuse.gcsfuse) fusermount -u "$1" ;;
    '') echo "$1: nothing is mounted" && return ;;
    *) die "$1 is mounted with type $type, which is not one of ours: left alone." ;;
  esac
  echo "$1: unmounted"
}

install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  provide gcsfuse gcsfuse
}

bucket() {
  local bucket=${1:-} folder=${2:-} mode=(-o ro)
  case $bucket in '' | *[!a-z0-9._-]*) die "The bucket is '$bucket'; say its name, without gs://." ;; esac
  absolute "$folder"
  if [ "${3:-}" = --write ]; then mode=(); fi
  case $(mounted "$folder") in
    fuse.gcsfuse) echo "bucket: $folder is mounted already" && return ;;
    ?*) die "$folder is a mount point already." ;;
  esac
  install_gcsfuse
  [ -d "$folder" ] || sudo install -d -o "$(id -un)" -m 700 "$folder"
  # Folders exist only as parts of names in a bucket: implicit-dirs shows them.
  gcsfuse --implicit-dirs ${mode[@]+"${mode[@]}"} "$bucket" "$folder"
  echo "bucket: $bucket is mounted at $folder"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
  serve) serve "$@" ;;
  mount) mount_folder "$@" ;;
  unserve) unserve "$@" ;;
  unmount) unmount "$@" ;;
  bucket) bucket "$@" ;;
  help | --help | -h) usage ;;
  *) die "There is no command '$command'; --help lists them." ;;
esac
