#!/usr/bin/env bash
# A run on Kubernetes with JobSet: one Job per island, one pod per node.
#
#   launch/kubernetes/apply.sh --image IMAGE [OPTIONS] RECIPE [FLAGS of lowcomm train ...]
#
#   --image IMAGE           has lowcomm installed, with python3, bash and ip; the recipe is in it, or one of the package's
#   --islands N             (default: 2)
#   --nodes-per-island M    pods of each island (default: 1)
#   --gpus G                per pod, one process each; 0: the CPU, one process (default: 8)
#   --run NAME              directory on the volume, where pods that start again resume (default: lowcomm)
#   --namespace NS          (default: that of kubectl's context)
#   --dry-run               load the recipe and print the manifest, apply nothing
#
# The cluster needs JobSet, and a storage class with ReadWriteMany. Pods know each other by the Secret lowcomm-rendezvous,
# which is made here where there is none. Another overlay: kubectl kustomize of your own directory with ../base in it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/../common.sh"

image="" islands=2 nodes_per_island=1 gpus=8 run=lowcomm namespace="" dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry=1 ;;
    --image | --islands | --nodes-per-island | --gpus | --run | --namespace)
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
need_match --image "$image" '^[a-z0-9][A-Za-z0-9._:/@-]*$' "an image such as registry/lowcomm:0.1.0" "pass --image"
need_integer --islands "$islands" 1 1000 "2 is usual"
need_integer --nodes-per-island "$nodes_per_island" 1 10000 "pods of each island"
need_integer --gpus "$gpus" 0 64 "GPUs of each pod, 0 for the CPU"
need_match --run "$run" '^[A-Za-z0-9_][A-Za-z0-9_.-]*$' "a file name" "lowcomm is usual"
need_match --namespace "$namespace" '^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$' "a name of a namespace" "leave it out"

json() { # STRING as JSON, which is YAML too
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}
  s=${s//$'\n'/"\n"} s=${s//$'\t'/"\t"}
  # of two dollars the cluster makes one, and what follows one dollar in parentheses it fills in
  printf '"%s"' "${s//\$/\$\$}"
}

for word in "$@"; do
  other=${word//[$'\n\t']/}
  [[ $other != *[[:cntrl:]]* ]] || refuse "RECIPE and FLAGS" "$word" "without control characters but line breaks" "remove them"
done
island_size=$((nodes_per_island * (gpus > 0 ? gpus : 1)))
[ -z "$dry" ] || need_recipe_there python3 "in the image" "$1" --islands "$islands" --island.size "$island_size" "${@:2}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here/base" "$work/base"
cp "$here/../node.sh" "$here/../common.sh" "$work/"
job=/spec/replicatedJobs/0
pod=$job/template/spec/template/spec/containers/0
{
  echo "apiVersion: kustomize.config.k8s.io/v1beta1"
  echo "kind: Kustomization"
  [ -z "$namespace" ] || echo "namespace: $namespace"
  echo "resources: [base]"
  echo "generatorOptions: {disableNameSuffixHash: true}"
  echo "configMapGenerator:"
  echo "  - {name: lowcomm-launch, files: [node.sh, common.sh]}"
  echo "patches:"
  echo "  - target: {kind: JobSet}"
  echo "    patch: |-"
  change() { printf '      - {op: %s, path: %s, value: %s}\n' "$@"; }
  change replace "$job/replicas" "$islands"
  change replace "$job/template/spec/completions" "$nodes_per_island"
  change replace "$job/template/spec/parallelism" "$nodes_per_island"
  change replace "$pod/image" "$(json "$image")"
  change replace "$pod/args/1" "$(json "$1")"
  for flag in "${@:2}"; do change add "$pod/args/-" "$(json "$flag")"; done
  change replace "$pod/env/0/value" "\"$islands\""
  change replace "$pod/env/1/value" "\"$nodes_per_island\""
  change replace "$pod/env/2/value" "\"$((gpus > 0 ? gpus : 1))\""
  change replace "$pod/env/3/value" "$(json "$run")"
  [ "$gpus" -eq 0 ] || change add "$pod/resources" "{limits: {nvidia.com/gpu: $gpus}}"
} >"$work/kustomization.yaml"

command -v kubectl >/dev/null || refuse kubectl "" "a command that is installed" "install it"
kubectl kustomize "$work" >"$work/manifest.yaml"
if [ -n "$dry" ]; then
  echo "# $(totals "$islands" "$island_size" $((islands * nodes_per_island)))"
  cat "$work/manifest.yaml"
  echo "# and, where there is no Secret lowcomm-rendezvous: kubectl create secret generic lowcomm-rendezvous --from-file=secret=FILE"
else
  within=()
  [ -z "$namespace" ] || within=(--namespace "$namespace")
  if [ -z "$(kubectl get secret lowcomm-rendezvous "${within[@]}" --ignore-not-found --output name)" ]; then
    new_secret | kubectl create secret generic lowcomm-rendezvous "${within[@]}" --from-file=secret=/dev/stdin
  fi
  kubectl apply -f "$work/manifest.yaml"
fi
