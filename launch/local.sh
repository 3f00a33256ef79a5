#!/usr/bin/env bash
# Several islands on this machine; everything stays on 127.0.0.1.
#
#   launch/local.sh [--islands N] [--ranks R] [--python PATH] [--behind-firewall] [--dry-run] RECIPE [FLAGS ...]
#
#   --islands N   replicas that train alone and merge (default: 2)
#   --ranks R     processes of each island, one per GPU (default: 1)
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

islands=2 ranks=1 python=python3 passed=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run | --behind-firewall) passed+=("$1") ;;
    --islands | --ranks | --python)
      need_value "$1" $#
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -*) refuse OPTION "$1" "one of those at the head of $0" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done
need_recipe $#
need_integer --islands "$islands" 1 1024 "2 is enough to see a sync"
need_integer --ranks "$ranks" 1 1024 "one per GPU of an island, 1 on a CPU"
need_integer "islands * ranks" $((islands * ranks)) 1 1024 "fewer of one of them"

exec bash "$here/node.sh" --ranks $((islands * ranks)) --python "$python" --islands "$islands" --island-size "$ranks" "${passed[@]}" "$@"
