# shellcheck shell=bash
# What both sbatch scripts share: one srun over all nodes, a node's part on each. Sourced, never run.
# shellcheck source=launch/common.sh
source "$here/common.sh"

first_node() { # the name of the first node of the job
  local list=${SLURM_JOB_NODELIST_HET_GROUP_0:-${SLURM_JOB_NODELIST:-}}
  if [ -z "$list" ]; then echo first-node; else scontrol show hostnames "$list" | head -n 1; fi
}

# DRY NODES RANKS ISLANDS ISLAND_SIZE SRUN_OPTION RECIPE [FLAGS]; RANKS: a number, or "R0 R1 N0": R0 on the first N0 nodes
run_step() {
  local dry=$1 nodes=$2 ranks=$3 islands=$4 island_size=$5 option=$6 words script name
  shift 6
  need_integer PORT "${PORT:-$DEFAULT_PORT}" 1024 65535 "29500 is usual"
  need_match PYTHON "${PYTHON:-python3}" '^[A-Za-z0-9_./-]+$' "a path without spaces" "python3 is usual"
  words=(--nodes "$nodes" --master "$(first_node)" --port "${PORT:-$DEFAULT_PORT}" --python "${PYTHON:-python3}")
  words+=(--islands "$islands" --island-size "$island_size")
  [ -z "${ACROSS:-}" ] || words+=(--across "$ACROSS")
  [ -z "${INSIDE:-}" ] || words+=(--inside "$INSIDE")
  [ -z "${RUN_DIR:-}" ] || words+=(--run-dir "$RUN_DIR")
  [ -z "${BEHIND_FIREWALL:-}" ] || words+=(--behind-firewall)

  # SLURM_PROCID counts the nodes through all kinds: one task each.
  script='rank=$SLURM_PROCID ranks="$1"; shift; '
  script+='read -r r0 r1 n0 <<<"$ranks"; [ -z "$r1" ] || { [ "$rank" -lt "$n0" ] || r0=$r1; }; '
  if [ -z "${ACROSS:-}" ]; then # the address by which the cluster knows this node
    script+='set -- --address "$(getent ahostsv4 "$SLURMD_NODENAME" | awk "{print \$1; exit}")" "$@"; '
  fi
  script+='exec bash "$0" --node-rank "$rank" --ranks "$r0" "$@"'
  local command=(srun --kill-on-bad-exit=1 --label)
  [ -z "$option" ] || command+=("$option")
  command+=(bash -c "$script" "$here/node.sh" "$ranks" "${words[@]}" "$@")

  if [ -n "$dry" ]; then
    quoted "${command[@]}"
    read -r r0 r1 n0 <<<"$ranks"
    for ((rank = 0; rank < nodes; rank++)); do
      [[ -z $r1 || $rank -lt $n0 ]] || r0=$r1
      echo "# and on node $rank, with the interface of its address:"
      bash "$here/node.sh" --dry-run --across "${ACROSS:-INTERFACE}" --node-rank "$rank" --ranks "$r0" "${words[@]}" "$@" |
        sed 's/^/  /'
    done
    return
  fi
  export PYTHONPATH="$here/..:$here/../kernels${PYTHONPATH:+:$PYTHONPATH}"
  cd "$here/.."
  "${command[@]}"
}
