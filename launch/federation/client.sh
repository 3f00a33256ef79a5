#!/usr/bin/env bash
# One client of a federation: a SuperNode that connects to the server, and the trainer that it carries messages for.
#
#   launch/federation/client.sh --superlink HOST:PORT --ca FILE --keys DIR --client K --clients N [--port P]
#       [--wait-s S] [--python PATH] [--dry-run] RECIPE [FLAGS ...]
#
#   --superlink H:P  the server, or the proxy before it; this client opens connections and accepts none; [IPV6]:PORT, too
#   --ca FILE        ca.crt of the server
#   --keys DIR       this client's node.key, node.pub and worker.secret
#   --client K       its number, from 0; every client has another one
#   --clients N      how many take part
#   --wait-s S       how long to wait for a server that does not answer yet (default: 30)
#   --port P         port on 127.0.0.1 between the SuperNode and the trainer (default: 9094 + K)
set -euo pipefail
# shellcheck source=launch/federation/flower.sh
source "$(dirname "${BASH_SOURCE[0]}")/flower.sh"

NODE_S=30 # what a SuperNode may take to connect to a server that answers
STOP_S=20 # what a save may take after a signal; a trainer that waits for others is then cut off from them
superlink='' ca='' keys='' client='' clients='' port='' wait_s=30
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry_run=true ;;
    --wait-s) need_value "$1" $# && wait_s=$2 && shift ;;
    --superlink | --ca | --keys | --client | --clients | --port | --python)
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
need_integer --clients "$clients" 1 1024 "3 to try it on one machine"
need_integer --client "$client" 0 $((10#$clients - 1)) "give each client a number of its own"
need_integer --port "${port:=$((9094 + 10#$client))}" 1024 65535 "9094 is usual"
need_integer --wait-s "$wait_s" 0 999999 "30 is usual"
need_match --superlink "$superlink" '^.+:[0-9]+$' "HOST:PORT" "ask the server's owner"
[ -n "$ca" ] || refuse --ca "" "a file" "get ca.crt from the server's owner"
[ -n "$keys" ] || refuse --keys "" "a directory" "lowcomm federation keys"

settings "$keys/flower"
node=(env "${environment[@]}" flower-supernode --superlink "$superlink" --root-certificates "$ca"
  --auth-supernode-private-key "$keys/node.key" --isolation process --host 127.0.0.1 --port "$port"
  --superexec-auth-secret-file "$keys/worker.secret")
train=(env "${environment[@]}" "$python" -m lowcomm.cli federation client --client "$client" --clients "$clients"
  --node "127.0.0.1:$port" --secret "$keys/worker.secret" "$@")

if $dry_run; then
  [ -n "${LOWCOMM_RECIPE_LOADED:-}" ] || need_loadable "$python" "$@"
  shown "${node[@]}"
  shown "${train[@]}"
  exit 0
fi
need_flower
need_file --ca "$ca" "get ca.crt from the server's owner"
for file in node.key node.pub worker.secret; do need_file --keys "$keys/$file" "lowcomm federation keys"; done
need_free_port --port "$port"
# a SuperNode tries again for minutes without a word
"$python" -m lowcomm.cli federation check --superlink "$superlink" --ca "$ca" --key "$keys/node.pub" --wait-s "$wait_s" > /dev/null ||
  exit $?
log=$keys/supernode.log
: >"$log"
"${stopped_with_us[@]}" "${node[@]}" >"$log" 2>&1 &
pids=($!)
trap 'stop "${pids[@]}"' EXIT
trap 'exit 143' TERM HUP USR1 USR2
trap 'exit 130' INT
until=$((SECONDS + wait_s + NODE_S))
until grep -q 'SuperNode ID' "$log"; do
  if ! kill -0 "${pids[0]}" 2>/dev/null; then
    ! grep -q 'CERTIFICATE_VERIFY_FAILED' "$log" || refuse --ca "$ca" "the certificate that signed the server's" \
      "get ca.crt from the server's owner; lowcomm federation check shows fingerprints"
    ! grep -q 'code: 2004' "$log" || refuse --keys "$keys" "a node that the server knows" \
      "send node.pub to the server's owner, who registers it: lowcomm federation register"
    refuse --superlink "$superlink" "a SuperLink of flwr 1.42 that takes this node" "see $log"
  fi
  [ "$SECONDS" -lt "$until" ] ||
    refuse --superlink "$superlink" "a SuperLink that answers a node within $((wait_s + NODE_S)) s" "see $log"
  sleep 0.1
done
"${stopped_with_us[@]}" "${train[@]}" &
pids=("$!" "${pids[@]}")
# shellcheck disable=SC2329  # by the traps
leave() { # EXIT_CODE: the trainer saves and tells the server, for which it needs the SuperNode
  kill "${pids[0]}" 2>/dev/null || true
  for ((i = 0; i < STOP_S * 10; i++)); do
    kill -0 "${pids[0]}" 2>/dev/null || break
    sleep 0.1
  done
  exit "$1"
}
trap 'leave 143' TERM HUP USR1 USR2
trap 'leave 130' INT
code=0
wait "${pids[0]}" || code=$?
exit "$code"
