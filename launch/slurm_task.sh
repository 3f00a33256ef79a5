#!/usr/bin/env bash
# One task of the srun of slurm_step.sh, one per node: RANKS ADDRESS_OF OPTIONS..., the options being those of node.sh.
# RANKS is a number, or "R0 R1 N0": R0 processes on the first N0 nodes and R1 on the others.
# ADDRESS_OF is yes where the node's interface is to be found by the address that the cluster knows it by.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
read -r ranks other first <<<"$1"
# SLURM_PROCID counts the nodes through all kinds of them
if [ -n "$other" ] && [ "$SLURM_PROCID" -ge "$first" ]; then ranks=$other; fi
found=()
if [ "$2" = yes ]; then
  found=(--address "$(getent ahostsv4 "$SLURMD_NODENAME" | awk '{print $1; exit}')")
fi
exec bash "$here/node.sh" --node-rank "$SLURM_PROCID" --ranks "$ranks" "${found[@]}" "${@:3}"
