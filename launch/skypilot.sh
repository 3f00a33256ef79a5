#!/usr/bin/env bash
# Spot nodes in several regions with SkyPilot: one cluster per region, one island each.
#
#   launch/skypilot.sh --regions R1,R2,... [OPTIONS] RECIPE [FLAGS of lowcomm train ...]
#
#   --regions R1,R2         CLOUD/REGION, one island each; the first has the rendezvous
#   --nodes-per-island M    (default: 1)
#   --gpus KIND:N           of each node (default: A100:8)
#   --run NAME              of clusters and run directory (default: lowcomm)
#   --secret FILE           by which the nodes know each other, mode 0600; made where it is missing, and kept, as clusters
#                           that are there have it already (default: ~/.lowcomm/NAME.secret)
#   --master ADDRESS        private address of the first island's first node; left out: asked of the first cluster
#   --dry-run               load the recipe and print what would run, run nothing
#
# The regions need one private network between them: a VPC that spans regions, peered VPCs, or launch/sites.
# A node that was taken away: run the same again; clusters that are there stay, and the run resumes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

regions="" nodes_per_island=1 gpus=A100:8 run=lowcomm secret="" master="" dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry=1 ;;
    --regions | --nodes-per-island | --gpus | --run | --secret | --master)
      need_value "$1" $#
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift
      ;;
    --nodes) refuse OPTION "$1" "--nodes-per-island M, as --nodes counts those of all islands elsewhere" "pass it" ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done
need_recipe $#
need_match --regions "$regions" '^[a-z0-9]+/[a-z0-9-]+(,[a-z0-9]+/[a-z0-9-]+)*$' "CLOUD/REGION, separated by commas" \
  "pass --regions gcp/us-central1,gcp/europe-west4"
need_integer --nodes-per-island "$nodes_per_island" 1 1000 "nodes of each island"
need_match --gpus "$gpus" '^[A-Za-z0-9-]+:[1-9][0-9]*$' "KIND:NUMBER" "A100:8 is usual"
need_match --run "$run" '^[a-z]([a-z0-9-]*[a-z0-9])?$' "lower-case letters, digits and dashes" "lowcomm is usual"
[ -z "$master" ] || need_private --master "$master"
IFS=, read -ra places <<<"$regions"
islands=${#places[@]}
recipe=$1
shift

launch_command() { # ISLAND MASTER
  local place=${places[$1]}
  one_line sky launch --yes --detach-run --retry-until-up --cluster "$run-$1" --infra "$place" --num-nodes "$nodes_per_island" \
    --gpus "$gpus" --workdir "$(dirname "$here")" --env "ISLAND=$1" --env "ISLANDS=$islands" --env "MASTER=$2" --env "RUN=$run" \
    --secret LOWCOMM_SECRET --env "RECIPE=$recipe" --env "FLAGS=$([ $# -lt 3 ] || quoted "${@:3}")" "$here/skypilot.yaml"
}
# The cluster's own word for its first node; island 0 waits for the others, up to half an hour.
address_command() {
  echo "sky exec $run-0 --num-nodes 1 'echo address \$SKYPILOT_NODE_IPS' | grep -oE 'address [0-9.]+' | cut -d' ' -f2"
}

if [ -n "$dry" ]; then
  island_size=$((nodes_per_island * ${gpus##*:}))
  need_loadable python3 "$recipe" --islands "$islands" --island.size "$island_size" "$@"
  echo "# $(totals "$islands" "$island_size" $((islands * nodes_per_island)))"
  launch_command 0 "$master" "$@"
  [ -n "$master" ] || { [ "$islands" -eq 1 ] || echo "MASTER=\$($(address_command))"; }
  for ((k = 1; k < islands; k++)); do
    # shellcheck disable=SC2016  # for the shell that runs what is printed
    launch_command "$k" "${master:-FOUND}" "$@" | sed 's/MASTER=FOUND/"MASTER=$MASTER"/'
  done
  exit 0
fi
command -v sky >/dev/null || refuse sky "" "a command that is installed" "pip install skypilot"
secret=${secret:-$HOME/.lowcomm/$run.secret}
if [ ! -e "$secret" ]; then (umask 077 && mkdir -p "$(dirname "$secret")" && new_secret >"$secret"); fi
need_secret_file --secret "$secret"
LOWCOMM_SECRET=$(head -n 1 -- "$secret")
export LOWCOMM_SECRET # sky reads it there
eval "$(launch_command 0 "$master" "$@")"
if [ -z "$master" ] && [ "$islands" -gt 1 ]; then
  master=$(eval "$(address_command)" | head -n 1)
  need_private "address of $run-0" "$master"
fi
for ((k = 1; k < islands; k++)); do eval "$(launch_command "$k" "$master" "$@")"; done
