#!/usr/bin/env bash
# A federation on this machine, to try it: one server and three clients, with certificate and keys made on the spot.
#
#   launch/federation/local.sh [--clients N] [--directory DIR] [--port P] [--python PATH] [--dry-run] RECIPE [FLAGS ...]
#
#   --clients N      how many (default: 3)
#   --directory DIR  where keys, logs and each client's run directory go (default: runs/federation)
#   --port P         of the server on 127.0.0.1; the clients take the ports from P + 2 (default: 9092)
#
# The exit code is the server's, or that of the first client that failed.
set -euo pipefail
# shellcheck source=launch/federation/flower.sh
source "$(dirname "${BASH_SOURCE[0]}")/flower.sh"

clients=3 directory=runs/federation port=9092 passed=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry_run=true passed+=("$1") ;;
    --clients | --directory | --port | --python)
      need_value "$1" $#
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done
need_recipe $#
need_integer --clients "$clients" 1 64 "3 is enough to see it"
need_integer --port "$port" 1024 $((65533 - 10#$clients)) "9092 is usual"

keys=$directory/keys
make=("$python" -m lowcomm.cli federation keys --directory "$keys" --clients "$clients" --host 127.0.0.1)
server=(bash "$here/server.sh" --keys "$keys" --clients "$clients" --port "$port" --ready "$directory/ready"
  --python "$python" "${passed[@]}")
client=()
set_client() { # K RECIPE FLAGS ...
  local k=$1
  shift
  client=(bash "$here/client.sh" --superlink "127.0.0.1:$port" --ca "$keys/ca.crt" --keys "$keys/client-$k" --client "$k"
    --clients "$clients" --port $((port + 2 + k)) --python "$python" "${passed[@]}" "$@" --run-dir "$directory/client-$k")
}

if $dry_run; then
  need_loadable "$python" "$@"
  export LOWCOMM_RECIPE_LOADED=1
  echo "# launch: 1 server and $clients clients, each an island"
  shown "${make[@]}"
  "${server[@]}"
  for ((k = 0; k < clients; k++)); do set_client "$k" "$@" && "${client[@]}"; done
  exit 0
fi
need_flower
[ -e "$keys/ca.crt" ] || "${make[@]}" || exit $?
pids=()
trap 'stop "${pids[@]}"' EXIT
trap 'exit 143' TERM HUP USR1 USR2
trap 'exit 130' INT
rm -f "$directory/ready"
"${stopped_with_us[@]}" "${server[@]}" &
pids+=($!)
until [ -e "$directory/ready" ]; do # a client whose key is not known yet would be refused
  kill -0 "${pids[0]}" 2>/dev/null || { wait "${pids[0]}"; exit $?; }
  sleep 0.1
done
for ((k = 0; k < clients; k++)); do
  set_client "$k" "$@"
  "${stopped_with_us[@]}" "${client[@]}" >"$directory/client-$k.log" 2>&1 &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  failed=0
  wait "$pid" || failed=$?
  [ "$code" -ne 0 ] || code=$failed
done
exit "$code"
