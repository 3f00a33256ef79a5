#!/usr/bin/env bash
# Several islands on this machine; everything stays on 127.0.0.1.
#
#   launch/local.sh [OPTIONS] RECIPE [FLAGS of lowcomm train ...]
#
#   --islands N        replicas that train alone and merge (default: 2)
#   --island-size R    ranks of each island: processes, one per GPU (default: 1)
#   --python PATH      default: python3
#   --behind-firewall  start although this machine has a public address
#   --dry-run          load the recipe and print the environment and the command, run nothing
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

islands=2 island_size=1 python=python3 passed=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run | --behind-firewall) passed+=("$1") ;;
    --islands | --island-size | --python)
      need_value "$1" $#
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift
      ;;
    --ranks) refuse OPTION "$1" "--islands N and --island-size R, as ranks are counted per node elsewhere" "pass --island-size" ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done
need_recipe $#
need_integer --islands "$islands" 1 1024 "2 is enough to see a sync"
need_integer --island-size "$island_size" 1 1024 "one per GPU of an island, 1 on a CPU"
need_integer "islands * island-size" $((islands * island_size)) 1 1024 "fewer of one of them"

exec bash "$here/node.sh" --ranks $((islands * island_size)) --python "$python" --islands "$islands" \
  --island-size "$island_size" "${passed[@]}" "$@"
