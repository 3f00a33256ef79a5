#!/usr/bin/env bash
# One task of the srun of slurm_step.sh, one per node: RANKS ADDRESS_OF OPTIONS..., the options being those of node.sh.
# RANKS is a number, or "R0 R1 N0": R0 processes on the first N0 nodes and R1 on the others.
# ADDRESS_OF is yes where the node's interface is to be found by the address that the cluster knows it by.
set -euo pipefail
BAD_INPUT_S=10
stopped="" node=""
trap 'stopped=1; [ -z "$node" ] || kill -TERM "$node" 2>/dev/null || true' TERM INT HUP USR1 USR2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read -r ranks other first <<<"$1"
# SLURM_PROCID counts the nodes through all kinds of them
if [ -n "$other" ] && [ "$SLURM_PROCID" -ge "$first" ]; then ranks=$other; fi
found=()
if [ "$2" = yes ]; then
  found=(--address "$(getent ahostsv4 "$SLURMD_NODENAME" | awk '{print $1; exit}')")
fi
[ -z "$stopped" ] || exit 1
"${stopped_with_us[@]}" bash "$here/node.sh" --node-rank "$SLURM_PROCID" --ranks "$ranks" "${found[@]}" "${@:3}" &
node=$!
while :; do
  stopped="" code=0
  wait "$node" || code=$?
  [[ -n $stopped && $code -gt 128 ]] || break # else a signal ended the wait, not the node
done
if [ "$code" -eq 2 ]; then
  # Every node reads the same bad input and says so: srun, which ends the others when one has failed, waits for them.
  for ((i = 0; i < BAD_INPUT_S && !${#stopped}; i++)); do sleep 1 || true; done
fi
if [ "$code" -gt 128 ]; then code=1; fi # the job's code is the largest of its tasks', and 1, 2 and 3 mean something
exit "$code"
