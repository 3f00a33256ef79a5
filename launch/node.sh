#!/usr/bin/env bash
# One node's part of a run: its environment, then a supervisor of its ranks. The other launchers start it on every node.
#
#   launch/node.sh [OPTIONS] RECIPE [FLAGS of lowcomm train ...]
#
#   --nodes N --node-rank K      of all nodes, in the order of the islands (default: 1 and 0)
#   --ranks R                    processes on this node: one per GPU (default: 1)
#   --master ADDRESS --port P    where node 0 waits for the others; a private address, or a name inside a cluster
#   --secret FILE                the run's secret, one line, the same on all nodes, mode 0600; "-": the first line of
#                                standard input (default: the variable LOWCOMM_SECRET)
#   --address ADDRESS            this node's own: gloo and NCCL use the interface that has it
#   --across IF, --inside IF     or name them: gloo between islands, NCCL inside them (default: as --across)
#   --islands N --island-size R  passed on to the recipe: all islands, and the ranks of each if there are several
#   --run-dir DIR                passed on with --resume auto, for nodes that are started again: they go on where DIR has
#                                a checkpoint, else the run starts
#   --python PATH                default: python3
#   --watch-stdin                stop when standard input ends: whoever started this is gone
#   --behind-firewall            start although an interface that is used has a public address
#   --dry-run                    print the environment and the command, run nothing
#
# Exit codes are those of lowcomm: 0 done, 1 failed, 2 bad input, 3 stopped by a signal with everything saved.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

STOP_S=120 # what a save may take after a signal
nodes=1 node_rank=0 ranks=1 master="" port=$DEFAULT_PORT address="" across="" inside="" islands="" island_size="" run_dir=""
secret="" python=python3 watch="" firewalled="" dry=""

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --watch-stdin) watch=1 ;;
    --behind-firewall) firewalled=1 ;;
    --dry-run) dry=1 ;;
    --nodes | --node-rank | --ranks | --master | --port | --address | --across | --inside | --islands | --island-size | \
      --run-dir | --python | --secret)
      need_value "$1" $#
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift
      ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done

need_recipe $#
need_integer --nodes "$nodes" 1 100000 "the number of nodes of the whole run"
need_integer --node-rank "$node_rank" 0 $((nodes - 1)) "count nodes from 0"
need_integer --ranks "$ranks" 1 1024 "one per GPU, 1 on a CPU"
need_integer --port "$port" 1024 65535 "29500 is usual"
[ -z "$islands" ] || need_integer --islands "$islands" 1 100000 "replicas that train alone and merge"
[ -z "$island_size" ] || need_integer --island-size "$island_size" 1 1000000 "ranks per island"
if [ "$nodes" -gt 1 ]; then
  need_match --master "$master" '^[A-Za-z0-9.-]+$' "the address or name of node 0" "pass --master ADDRESS"
  ! is_ipv4 "$master" || need_private --master "$master"
  [ -n "$address$across" ] || refuse --address "" "this node's own address" "pass --address, or --across INTERFACE"
  [ -n "$secret${LOWCOMM_SECRET:-}" ] || refuse --secret "" "a file with the run's secret, the same on all nodes" \
    "(umask 077; head -c 32 /dev/urandom | base64 > FILE), copy it to every node, pass --secret FILE"
fi
[ -z "$address" ] || need_private --address "$address"
for name in across inside; do
  need_match "--$name" "${!name}" '^[A-Za-z0-9_.,@=^-]*$' "an interface such as eth0" "see ip link"
done

# it becomes part of a line that a shell reads
need_match OMP_NUM_THREADS "${OMP_NUM_THREADS:-1}" '^[0-9]+(,[0-9]+)*$' "a number of threads" "unset it"

# A node's environment, as lines that a shell can read.
find_interface="ip -o -4 addr show to $address | awk '{print \$2; exit}'"
lines=()
if [ "$nodes" -eq 1 ]; then
  lines+=("export GLOO_SOCKET_IFNAME=${across:-lo}")
elif [ -n "$across" ]; then
  lines+=("export GLOO_SOCKET_IFNAME=$across")
else
  lines+=("export GLOO_SOCKET_IFNAME=\$($find_interface)")
fi
lines+=(
  "export TP_SOCKET_IFNAME=\$GLOO_SOCKET_IFNAME"
  # "=": NCCL takes prefixes of names otherwise. It has one choice per process, so that all its groups must reach by it
  "export NCCL_SOCKET_IFNAME==${inside:-\$GLOO_SOCKET_IFNAME}"
  # collectives are bounded by --sync.timeout-s; a process that is only slow between two rounds is not to be killed
  "export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=14400"
  # its service for queries listens, and asks nobody for a password
  "export NCCL_RAS_ENABLE=0"
  "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-\$((\$(nproc) / $ranks + (\$(nproc) < $ranks)))}"
)

if [ "$nodes" -gt 1 ]; then
  case $secret in
    "") ;;
    -) lines+=("IFS= read -r LOWCOMM_SECRET || true; export LOWCOMM_SECRET") ;;
    *) lines+=("export LOWCOMM_SECRET=\$(head -n 1 -- $(one_line "$secret"))") ;;
  esac
fi

recipe_and_flags=("$1")
[ -z "$islands" ] || recipe_and_flags+=(--islands "$islands")
[ "${island_size:-1}" -eq 1 ] || recipe_and_flags+=(--island.size "$island_size")
recipe_and_flags+=("${@:2}")
[ -z "$run_dir" ] || recipe_and_flags+=(--run-dir "$run_dir" --resume auto)
if [ "$nodes" -eq 1 ]; then
  # no rendezvous: its ports would be open to all users of this machine
  command=("$python" -m lowcomm.run.ranks "$ranks")
else
  # ranks follow --node-rank: islands are neighbours; a late node is waited for
  command=("$python" -m lowcomm.run.node --nodes "$nodes" --node-rank "$node_rank" --ranks "$ranks")
  command+=(--master "$master" --port "$port")
  [ -z "$address" ] || command+=(--address "$address")
  command+=(--)
fi
command+=(train "${recipe_and_flags[@]}")

said=""
[ -z "$islands" ] || said=$(totals "$islands" "${island_size:-$((nodes * ranks / islands))}" "$nodes")
if [ -n "$dry" ]; then
  # who starts the nodes has loaded the recipe once for all of them
  if [ -z "${LOWCOMM_RECIPE_LOADED:-}" ]; then
    need_loadable "$python" "${recipe_and_flags[@]}"
    [ -z "$said" ] || echo "# $said"
  fi
  printf '%s\n' "${lines[@]}"
  one_line "${command[@]}"
  exit 0
fi

[[ -z $secret || $secret == - ]] || need_secret_file --secret "$secret"
for line in "${lines[@]}"; do eval "$line"; done
[ -n "$GLOO_SOCKET_IFNAME" ] || refuse --address "$address" "an address of this node" "see ip addr, or pass --across"
if [ -z "$firewalled" ]; then
  public=$(public_addresses "$GLOO_SOCKET_IFNAME,$NCCL_SOCKET_IFNAME")
  [ -z "$public" ] || refuse "this node" "${public% }" \
    "private addresses of the interfaces that gloo and NCCL use, as what they send is neither encrypted nor authenticated" \
    "close their ports to the outside (launch/sites writes the rules), then pass --behind-firewall"
fi

[ -z "$said" ] || [ "$node_rank" -ne 0 ] || echo "$said" >&2
mark="LOWCOMM_LAUNCH=$$-$(cat /proc/sys/kernel/random/uuid)"
scratch=$(mktemp -d)
mkfifo "$scratch/errors" "$scratch/clock"
trap 'rm -rf "$scratch"' EXIT
exec 3<&0

marked() { # this run's processes on this node
  local entry
  for entry in /proc/[0-9]*; do
    if grep -qsFz -- "$mark" "$entry/environ"; then printf '%s ' "${entry#/proc/}"; fi
  done
}

# The ranks save, leave with 3, and the supervisor says so; itself it is asked only while there are none. Once: a rank that
# has saved and is on its way out would die of a second signal.
stop() {
  mkdir "$scratch/stopping" 2>/dev/null || return 0
  local pid found=""
  for pid in $(marked); do
    if [ "$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null)" = "$agent" ]; then
      kill -TERM "$pid" 2>/dev/null && found=1
    fi
  done
  [ -n "$found" ] || kill -TERM "$agent" 2>/dev/null || true
}

# What is left when the supervisor has ended, or did not end in time, goes for good.
sweep() {
  local pid
  for pid in $(marked); do kill -KILL "$pid" 2>/dev/null || true; done
}

# what all ranks say is said once
awk '/^lowcomm: error: / && seen[$0]++ {next} {print; fflush()}' <"$scratch/errors" >&2 3<&- &
errors=$!
"${stopped_with_us[@]}" env "$mark" setsid "${command[@]}" </dev/null 2>"$scratch/errors" 3<&- &
agent=$!
signalled=""
trap 'signalled=1; stop' TERM INT HUP USR1 USR2
if [ -n "$watch" ]; then
  {
    trap - EXIT TERM
    trap '' HUP INT USR1 USR2
    exec >/dev/null 2>&1 4<>"$scratch/clock"
    while read -r _ <&3; do :; done
    stop
    for ((i = 0; i < STOP_S + 30; i++)); do
      kill -0 "$agent" || exit 0
      read -rt 1 -u 4 || true # a second, without a process that would outlive this one
    done
    sweep
  } &
  watcher=$!
fi
exec 3<&-

while :; do
  code=0
  wait "$agent" || code=$?
  [[ -n $signalled && $code -gt 128 ]] || break # else a signal ended the wait, not the agent
  signalled=""
done
sweep
if [ -n "$watch" ]; then
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" || true
fi
wait "$errors" || true
exit "$code"
