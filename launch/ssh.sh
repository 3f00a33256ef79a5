#!/usr/bin/env bash
# A run on several machines: copies the code, starts the ranks everywhere, shows all logs, stops all on Ctrl-C.
#
#   launch/ssh.sh --hosts FILE [OPTIONS] RECIPE [FLAGS of lowcomm train ...]
#
#   --hosts FILE        one line per machine, see hosts.example: NAME ADDRESS GPUS ISLAND [INTERFACE]
#   --dir DIR           where the code goes, below the home directory there (default: lowcomm-launch)
#   --wheel FILE        install this wheel there instead of the code of this checkout
#   --no-copy           what is there stays as it is
#   --tar               copy with tar, as where rsync is missing, here or there
#   --python PATH       an interpreter there that has the dependencies, seen from DIR (default: python3)
#   --port P            of the rendezvous on the first machine (default: 29500)
#   --ssh-config FILE   as of ssh -F
#   --behind-firewall   start also on machines that have a public address
#   --dry-run           print what would run, run nothing
#
# The machines meet under a secret that is made for the run and goes to each through ssh's standard input.
# Ctrl-C: every island saves and leaves; a second one ends the connections, and the machines stop by themselves.
# Exit codes are those of lowcomm: 0 done, 1 failed, 2 bad input, 3 stopped by a signal with everything saved.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=launch/common.sh
source "$here/common.sh"

hosts="" dir=lowcomm-launch wheel="" python=python3 port=$DEFAULT_PORT ssh_config="" copy=1 tar="" firewalled="" dry=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help "$0" ;;
    --dry-run) dry=1 ;;
    --no-copy) copy="" ;;
    --tar) tar=1 ;;
    --behind-firewall) firewalled=1 ;;
    --hosts | --dir | --wheel | --python | --port | --ssh-config)
      need_value "$1" $#
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift
      ;;
    -*) refuse OPTION "$1" "one of those that $0 --help lists" "put the flags of lowcomm train behind the recipe" ;;
    *) break ;;
  esac
  shift
done
need_recipe $#
recipe=$1 original=("$@")
shift
[ -n "$hosts" ] || refuse --hosts "" "a file with one machine per line" "copy launch/hosts.example"
need_file --hosts "$hosts" "copy launch/hosts.example"
need_match --dir "$dir" '^[A-Za-z0-9_][A-Za-z0-9_./-]*$' "a path below the home directory" "lowcomm-launch is usual"
[[ /$dir/ != */../* ]] || refuse --dir "$dir" "a path below the home directory" "lowcomm-launch is usual"
need_match --python "$python" '^[A-Za-z0-9_./-]+$' "a path without spaces" "python3 is usual"
need_integer --port "$port" 1024 65535 "29500 is usual"
[ -z "$wheel" ] || { need_file --wheel "$wheel" "python -m build --wheel makes one" && need_match --wheel "$wheel" '\.whl$' "a wheel" "python -m build --wheel makes one"; }
[ -z "$ssh_config" ] || need_file --ssh-config "$ssh_config" "leave it out"

names=() addresses=() gpus=() islands=() interfaces=()
read_hosts() {
  local line=0 name address count island interface rest
  while read -r name address count island interface rest || [ -n "$name" ]; do
    line=$((line + 1))
    [[ -n $name && $name != \#* ]] || continue
    local where="$hosts line $line"
    [ -n "$island" ] || refuse "$where" "$name $address $count" "NAME ADDRESS GPUS ISLAND [INTERFACE]" "see launch/hosts.example"
    [ -z "$rest" ] || refuse "$where" "$rest" "at most five columns" "remove it"
    need_match "$where, name" "$name" '^[A-Za-z0-9_][A-Za-z0-9_.@-]*$' "what ssh takes: HOST or USER@HOST" "correct it"
    need_private "$where, address" "$address"
    need_integer "$where, gpus" "$count" 0 64 "GPUs to use there, 0 for the CPU"
    need_integer "$where, island" "$island" 0 100000 "islands count from 0"
    need_match "$where, interface" "$interface" '^[A-Za-z0-9_.,@-]*$' "an interface such as eth0" "leave it out: it follows from the address"
    [[ " ${addresses[*]} " != *" $address "* ]] || refuse "$where, address" "$address" "different from those before" "one line per machine"
    names+=("$name") addresses+=("$address") gpus+=("$count") islands+=("$island") interfaces+=("$interface")
  done <"$hosts"
  [ "${#names[@]}" -ge 1 ] || refuse "$hosts" "" "at least one machine" "see launch/hosts.example"
}

ranks_of() { echo $((gpus[$1] > 0 ? gpus[$1] : 1)); } # of the host with this number

# Ranks count through the file, and an island is a row of them: islands must come in order and be of one size.
island_size="" island_count=0
check_islands() {
  local i size=0 last=${#names[@]}
  for ((i = 0; i < last; i++)); do
    if [ "${islands[i]}" -ne "$island_count" ]; then
      refuse "$hosts, island of ${names[i]}" "${islands[i]}" "islands in order from 0, each one's machines in a row" "it would be $island_count here: sort the lines"
    fi
    size=$((size + $(ranks_of "$i")))
    if [ $((i + 1)) -eq "$last" ] || [ "${islands[i + 1]}" -ne "$island_count" ]; then
      [ "${island_size:-$size}" -eq "$size" ] || refuse "$hosts, GPUs of island $island_count" "$size" "$island_size, as in the islands before: all have one size" "use as many in each"
      island_size=$size island_count=$((island_count + 1)) size=0
    fi
  done
}

read_hosts
check_islands

left_out=(.git .venv runs build dist '*.egg-info' __pycache__ .pytest_cache .ruff_cache .hypothesis '*.partial')
is_left_out() { # FILE, seen from the checkout
  local part pattern parts
  IFS=/ read -rd '' -a parts <<<"$1" || true
  for part in "${parts[@]}"; do
    # shellcheck disable=SC2053  # it is a pattern
    for pattern in "${left_out[@]}"; do [[ ${part%$'\n'} != $pattern ]] || return 0; done
  done
  return 1
}

# A recipe inside this checkout is copied with it; any other file goes along by itself.
file=${recipe%:*} extra=""
function=${recipe#"$file"}
if [ -f "$file" ]; then
  [[ $file == /* ]] || file=$PWD/$file
  if [[ $file == "$root"/* && $file != */../* && -z $wheel ]] && ! is_left_out "${file#"$root"/}"; then
    recipe=${file#"$root"/}$function
  else
    extra=$file
    recipe=launched/${file##*/}$function
  fi
fi

connect=(ssh -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=8)
[ -z "$ssh_config" ] || connect+=(-F "$ssh_config")
paths="$dir:$dir/kernels" only=""
# python -m looks into the working directory first: a checkout that lies there from before would run instead of the wheel
[ -z "$wheel" ] || paths="$dir/site" only="PYTHONSAFEPATH=1 "

node_command() { # NUMBER [OPTION]: what runs on a machine
  local i=$1 address=${addresses[$1]} words
  words=(--nodes "${#names[@]}" --node-rank "$i" --ranks "$(ranks_of "$i")" --master "${addresses[0]}" --port "$port")
  words+=(--address "$address" --islands "$island_count" --island-size "$island_size" --python "$python")
  [ -z "${interfaces[i]}" ] || words+=(--across "${interfaces[i]}")
  [ -z "$firewalled" ] || words+=(--behind-firewall)
  quoted "${words[@]}" "${@:2}" "$recipe" "${flags[@]}"
}
flags=("$@")

start_command() { # NUMBER: DIR is seen from the home directory, where ssh starts
  local gpu_free=""
  [ "${gpus[$1]}" -gt 0 ] || gpu_free="CUDA_VISIBLE_DEVICES= "
  # the directory is given whole: lowcomm's own working directory is the copied one
  echo "cd $dir && PYTHONPATH=\$HOME/${paths//:/:\$HOME/} ${only}${gpu_free}exec bash launch/node.sh $(node_command "$1" --watch-stdin --secret -)"
}

rsync_words() { # as rsync -e reads them: it knows quotes, which double inside themselves, and no backslashes
  local out="" word
  for word in "$@"; do
    if [[ $word == *[\ \'\"]* ]]; then out+=" '${word//\'/\'\'}'"; else out+=" $word"; fi
  done
  printf '%s\n' "${out# }"
}

# One line each, run here by bash. What a line sends to a machine is quoted for the shell there, then for bash.
copy_commands() { # NUMBER
  local name=${names[$1]} to excludes=() pattern by_tar by_rsync file install
  to=$(one_line "${connect[@]}" "$name")
  for pattern in "${left_out[@]}"; do excludes+=("--exclude=$pattern"); done
  # with tar, what was removed here stays there
  by_tar="tar -C $(one_line "$root") $(one_line "${excludes[@]}") -czf - . | $to $(one_line "mkdir -p $dir && tar -C $dir -xzf -")"
  by_rsync="rsync -az --delete $(one_line "${excludes[@]}") --exclude=launched -e $(one_line "$(rsync_words "${connect[@]}")") $(one_line "$root/" "$name:$dir/")"
  if [ -n "$wheel" ]; then
    file=./${wheel##*/}
    install="rm -rf site && $python -m pip install --quiet --no-deps --no-index --target site $(quoted "$file")"
    echo "tar -C $(one_line "$root") -cf - launch | $to $(one_line "mkdir -p $dir && tar -C $dir -xf -")"
    echo "$to $(one_line "cd $dir && cat > $(quoted "$file") && $install") < $(one_line "$wheel")"
  elif [ -n "$use_rsync" ]; then
    echo "case \$($to 'command -v rsync || echo none') in none) echo launch: no rsync there, so tar copies; $by_tar ;; *) $by_rsync ;; esac"
  else
    echo "$by_tar"
  fi
  if [ -n "$extra" ]; then
    echo "$to $(one_line "mkdir -p $dir/launched && cat > $(quoted "$dir/launched/${extra##*/}")") < $(one_line "$extra")"
  fi
}

use_rsync=1
[ -z "$tar" ] && command -v rsync >/dev/null || use_rsync=""

if [ -n "$dry" ]; then
  need_recipe_there python3 "on every machine" "${original[@]}" --islands "$island_count" --island.size "$island_size"
  echo "# $(totals "$island_count" "$island_size" "${#names[@]}")"
  for i in "${!names[@]}"; do
    echo "# ${names[i]}: machine $i of ${#names[@]}, island ${islands[i]} of $island_count"
    [ -z "$copy" ] || copy_commands "$i"
    echo "$(one_line "${connect[@]}" "${names[i]}" "$(start_command "$i")") < hold.$i"
    echo "# which stays connected, has the run's secret in its first line, and there runs:"
    eval "LOWCOMM_RECIPE_LOADED=1 bash $(quoted "$here/node.sh") --dry-run $(node_command "$i" --secret -)" | sed 's/^/  /'
  done
  exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

prefix() { # NAME
  exec sed -u "s/^/[$1] /"
}

copy_to() { # NUMBER
  local line
  while IFS= read -r line; do
    bash -o pipefail -c "$line" </dev/null || { echo "launch: error: the copy to ${names[$1]} failed" && return 1; }
  done < <(copy_commands "$1")
}

if [ -n "$copy" ]; then
  copies=()
  for i in "${!names[@]}"; do
    copy_to "$i" </dev/null 2>&1 | prefix "${names[i]}" &
    copies+=($!)
  done
  failed=""
  for child in "${copies[@]}"; do wait "$child" || failed=1; done
  [ -z "$failed" ] || exit 1
fi

# Each machine runs as long as its pipe stays open, however this script ends. First it reads the run's secret there.
secret=$(new_secret)
holds=()
for i in "${!names[@]}"; do
  mkfifo "$scratch/hold.$i"
  exec {hold}<>"$scratch/hold.$i"
  printf '%s\n' "$secret" >&"$hold"
  holds+=("$hold")
done

let_go() {
  for hold in "${holds[@]}"; do exec {hold}>&-; done
}

stopped="" children=()

stop_all() { # let go: every machine sees the end of its input
  if [ -n "$stopped" ]; then
    cat "$scratch"/*.pid | xargs -r kill 2>/dev/null || true
  else
    let_go
  fi
  stopped=1
}

for i in "${!names[@]}"; do
  (
    trap "" INT HUP # of the terminal: ssh is to stay until its machine has saved
    exec {input}<"$scratch/hold.$i" # while this script still holds it open for writing
    let_go
    (
      echo "$BASHPID" >"$scratch/$i.pid"
      exec "${connect[@]}" "${names[i]}" "$(start_command "$i")"
    ) <&"$input" {input}<&- 2>&1 | prefix "${names[i]}" {input}<&-
  ) &
  children+=($!)
done
trap 'echo "launch: stopping: every island saves and leaves" >&2; stop_all' INT TERM HUP USR1 USR2

codes=() waiting=${#children[@]}
while [ "$waiting" -gt 0 ]; do
  code=0 ended=""
  wait -n -p ended "${children[@]}" || code=$?
  [ -n "${ended:-}" ] || continue # a signal ended the wait
  codes+=("$code")
  waiting=$((waiting - 1))
  for i in "${!children[@]}"; do
    [ "${children[i]}" != "$ended" ] || unset "children[i]"
  done
  children=("${children[@]}")
  if [ "$code" -ne 0 ] && [ -z "$stopped" ]; then stop_all; fi
done

worst=0
for code in "${codes[@]}"; do
  case $code in
    0) ;;
    3) [ "$worst" -ne 0 ] || worst=3 ;;
    2) [[ $worst -eq 1 ]] || worst=2 ;;
    *) worst=1 ;;
  esac
done
exit "$worst"
