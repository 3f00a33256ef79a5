#!/usr/bin/env bash
# Keeps one island of a run over a store alive on this machine: joins, and joins again whatever ended it.
#
#   launch/spot.sh [OPTIONS] URL [FLAGS of lowcomm join ...]
#
#   --name NAME      label of the island (default: the host's name)
#   --least-s S      seconds before the first restart; twice as many before each next one (default: 5)
#   --most-s S       seconds between two restarts, at most (default: 300)
#   --python PATH    default: python3
#   --dry-run        print the command, run nothing
#
# It ends when the run is done (0), when a signal stops it (3), or when the first start is refused (2): a wrong address
# does not mend itself, but a store that was there and is down does. Put it into a unit of systemd, a container's
# entry point or the start script of a spot machine; credentials come from the environment or the machine's role.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

name="" least_s=5 most_s=300 python=python3 dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry=1 ;;
    --name | --least-s | --most-s | --python)
      need_value "$1" $#
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm join behind the address" ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 1 ] || refuse URL "" "the address of a run, then flags for lowcomm join" "give the directory, s3://, gs:// or az://"
[ -z "$name" ] || need_match --name "$name" '^[a-z0-9-]{1,40}$' "1 to 40 of a-z 0-9 and -" "pass --name spot-1"
need_integer --least-s "$least_s" 1 3600 "5 is usual"
need_integer --most-s "$most_s" "$least_s" 86400 "300 is usual"

root=$(dirname "$here")
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
command=("$python" -u -m lowcomm.cli join "$1")
[ -z "$name" ] || command+=(--name "$name")
command+=("${@:2}")
if [ -n "$dry" ]; then
  one_line "${command[@]}"
  exit 0
fi

child="" stopped=""
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT HUP USR1 USR2

delay_s=$least_s started=""
while true; do
  begun=$SECONDS code=0
  "${command[@]}" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the waiting, not the island
    code=0
    wait "$child" || code=$?
  done
  child=""
  [ "$code" -ne 0 ] || exit 0
  [ -z "$stopped" ] || exit 3
  [ "$code" -ne 2 ] || [ -n "$started" ] || exit 2
  started=1
  [ $((SECONDS - begun)) -lt 120 ] || delay_s=$least_s
  echo "launch: the island ended with code $code: it joins again in $delay_s s, as somebody new" >&2
  sleep "$delay_s" &
  child=$!
  wait "$child" || true
  child=""
  [ -z "$stopped" ] || exit 3
  delay_s=$((delay_s * 2 < most_s ? delay_s * 2 : most_s))
done
