# shellcheck shell=bash
# What both sbatch scripts share: one srun over all nodes, a node's part on each. Sourced, never run; $here is launch/.
# shellcheck source=launch/common.sh disable=SC2154
source "$here/common.sh"

first_node() { # the name of the first node of the job
  local list=${SLURM_JOB_NODELIST_HET_GROUP_0:-${SLURM_JOB_NODELIST:-}}
  if [ -z "$list" ]; then echo first-node; else scontrol show hostnames "$list" | head -n 1; fi
}

# DRY NODES RANKS ISLANDS ISLAND_SIZE SRUN_OPTION RECIPE [FLAGS]; RANKS as slurm_task.sh takes it
run_step() {
  local dry=$1 nodes=$2 ranks=$3 islands=$4 island_size=$5 option=$6 by_address=yes words rank count other first
  shift 6
  need_integer PORT "${PORT:-$DEFAULT_PORT}" 1024 65535 "29500 is usual"
  need_match PYTHON "${PYTHON:-python3}" '^[A-Za-z0-9_./-]+$' "a path without spaces" "python3 is usual"
  words=(--nodes "$nodes" --master "$(first_node)" --port "${PORT:-$DEFAULT_PORT}" --python "${PYTHON:-python3}")
  words+=(--islands "$islands" --island-size "$island_size")
  [ -z "${ACROSS:-}" ] || { words+=(--across "$ACROSS") && by_address=no; }
  [ -z "${INSIDE:-}" ] || words+=(--inside "$INSIDE")
  [ -z "${RUN_DIR:-}" ] || words+=(--run-dir "$RUN_DIR")
  [ -z "${BEHIND_FIREWALL:-}" ] || words+=(--behind-firewall)
  # the tasks get the run's secret by their environment, which SLURM passes on with this option only, if sbatch had another
  local command=(srun --export=ALL --kill-on-bad-exit=1 --label)
  [ -z "$option" ] || command+=("$option")
  command+=(bash "$here/slurm_task.sh" "$ranks" "$by_address" "${words[@]}" "$@")

  if [ -n "$dry" ]; then
    need_loadable "${PYTHON:-python3}" "$1" --islands "$islands" --island.size "$island_size" "${@:2}"
    echo "# $(totals "$islands" "$island_size" "$nodes")"
    one_line "${command[@]}"
    read -r count other first <<<"$ranks"
    for ((rank = 0; rank < nodes; rank++)); do
      if [ -n "$other" ] && [ "$rank" -ge "$first" ]; then count=$other; fi
      echo "# and on node $rank, with the interface of its address:"
      LOWCOMM_SECRET=made-then LOWCOMM_RECIPE_LOADED=1 bash "$here/node.sh" --dry-run --across "${ACROSS:-INTERFACE}" --node-rank "$rank" --ranks "$count" \
        "${words[@]}" "$@" | sed 's/^/  /'
    done
    return
  fi
  export PYTHONPATH="$here/..:$here/../kernels${PYTHONPATH:+:$PYTHONPATH}"
  cd "$here/.." || exit
  LOWCOMM_SECRET=$(new_secret)
  export LOWCOMM_SECRET
  "${command[@]}"
}
