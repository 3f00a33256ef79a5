#!/usr/bin/env bash
# The server of a federation: a SuperLink that only known nodes may use, and one run on it.
#
#   launch/federation/server.sh --keys DIR --clients N [--host 127.0.0.1] [--port P] [--patience-s S] [--ready FILE]
#       [--python PATH] [--dry-run]
#
#   --keys DIR      ca.crt, server/ and client-*/node.pub, as lowcomm federation keys writes them
#   --clients N     how many clients take part
#   --host H        address to listen on (default: 127.0.0.1); never a public one
#   --ready FILE    write this file once the clients' keys are known
#   --patience-s S  how long to wait until all clients are connected (default: 600)
#
# Flower serves the clients and those who start runs and register nodes on one port, and asks the latter for nothing:
# let clients in through a proxy that passes /v1/fleet/ only (docs/pages/security.md).
set -euo pipefail
# shellcheck source=launch/federation/flower.sh
source "$(dirname "${BASH_SOURCE[0]}")/flower.sh"

keys='' clients='' ready='' host=127.0.0.1 port=9092 patience_s=600
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry_run=true ;;
    --patience-s) need_value "$1" $# && patience_s=$2 && shift ;;
    --keys | --clients | --ready | --host | --port | --python)
      need_value "$1" $#
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) refuse OPTION "$1" "one of those that $0 --help lists" "leave it out; recipes are named by the clients" ;;
  esac
  shift
done
need_integer --clients "$clients" 1 1024 "3 to try it on one machine"
need_integer --port "$port" 1024 65535 "9092 is usual"
need_integer --patience-s "$patience_s" 1 999999 "600 is ten minutes"
need_private --host "$host"
[ -n "$keys" ] || refuse --keys "" "a directory" "lowcomm federation keys --directory DIR"

settings "$keys/server/flower"
link=(env "${environment[@]}" flower-superlink --host "$host" --port "$port" --enable-supernode-auth
  --ssl-ca-certfile "$keys/ca.crt" --ssl-certfile "$keys/server/server.crt" --ssl-keyfile "$keys/server/server.key"
  --disable-runtime-dependency-installation)
lowcomm=(env "${environment[@]}" "$python" -m lowcomm.cli federation)
server=(--superlink "$host:$port" --ca "$keys/ca.crt")
known=()
for ((k = 0; k < clients; k++)); do known+=("$keys/client-$k/node.pub"); done

if $dry_run; then
  shown "${link[@]}"
  shown "${lowcomm[@]}" register "${server[@]}" --wait-s 60 "${known[@]}"
  shown "${lowcomm[@]}" run "${server[@]}" --clients "$clients" --patience-s "$patience_s"
  exit 0
fi
need_flower
for file in "$keys/ca.crt" "$keys/server/server.crt" "$keys/server/server.key" "${known[@]}"; do
  need_file --keys "$file" "lowcomm federation keys --directory $keys --clients $clients --host $host"
done
need_free_port --port "$port" "$host"
"${stopped_with_us[@]}" "${link[@]}" >"$keys/server/superlink.log" 2>&1 &
pids=($!)
trap 'stop "${pids[@]}"' EXIT
trap 'exit 143' TERM HUP USR1 USR2
trap 'exit 130' INT
"${lowcomm[@]}" register "${server[@]}" --wait-s 60 "${known[@]}"
[ -z "$ready" ] || touch "$ready"
"${stopped_with_us[@]}" "${lowcomm[@]}" run "${server[@]}" --clients "$clients" --patience-s "$patience_s" &
pids=("$!" "${pids[@]}")
code=0
wait "${pids[0]}" || code=$?
exit "$code"
