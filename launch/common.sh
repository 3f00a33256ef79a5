# shellcheck shell=bash
# What the launchers share: refusals on one line, checks of values, --help, quoting. Sourced, never run.

# shellcheck disable=SC2034  # for those who source this
DEFAULT_PORT=29500

refuse() { # FIELD VALUE LEGAL FIX: one line whatever is in them, exit code 2
  local line="$1 = '$2' is not allowed: $3. Fix: $4."
  printf 'launch: error: %s\n' "${line//[[:cntrl:]]/ }" >&2
  exit 2
}

show_help() { # FILE: the comment at its head
  local line
  while IFS= read -r line; do
    case $line in
      '#!'* | '# shellcheck '*) ;;
      '#SBATCH'* | [!#]* | '') break ;;
      *) line=${line#\#} && printf '%s\n' "${line# }" ;;
    esac
  done <"$1"
  exit 0
}

need_value() { # OPTION COUNT: COUNT arguments are left, the option's own among them
  [ "$2" -ge 2 ] || refuse "$1" "" "a value after it" "see $0 --help"
}

need_integer() { # FIELD VALUE LOWEST HIGHEST FIX
  local legal="a whole number from $3 to $4"
  [[ $2 =~ ^[0-9]{1,9}$ ]] || refuse "$1" "$2" "$legal" "$5"
  ((10#$2 >= $3 && 10#$2 <= $4)) || refuse "$1" "$2" "$legal" "$5"
}

need_free_port() { # FIELD PORT [ADDRESS]: nothing answers there yet
  local connection
  if { exec {connection}<>"/dev/tcp/${3:-127.0.0.1}/$2"; } 2>/dev/null; then
    exec {connection}>&-
    refuse "$1" "$2" "a port that no other program uses" "end that program (ss -ltnp), or choose another port"
  fi
}

need_match() { # FIELD VALUE REGEX LEGAL FIX
  [[ $2 =~ $3 ]] || refuse "$1" "$2" "$4" "$5"
}

need_file() { # FIELD VALUE FIX
  [ -r "$2" ] || refuse "$1" "$2" "a file that can be read" "$3"
}

need_recipe() { # COUNT: arguments that are left
  [ "$1" -ge 1 ] || refuse RECIPE "" "FILE.py:FUNCTION, then flags for lowcomm train" "give one; lowcomm recipes lists them"
}

is_ipv4() {
  local part parts
  [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] || return 1
  IFS=. read -ra parts <<<"$1"
  for part in "${parts[@]}"; do ((10#$part <= 255)) || return 1; done
}

# Private, carrier-grade, loopback and link-local addresses: those that the internet does not route.
is_private() {
  case $1 in
    10.* | 127.* | 192.168.* | 169.254.*) return 0 ;;
    192.0.2.* | 198.51.100.* | 203.0.113.* | 198.1[89].*) return 0 ;; # reserved for examples and tests
    172.1[6-9].* | 172.2[0-9].* | 172.3[01].*) return 0 ;;
    100.6[4-9].* | 100.[7-9][0-9].* | 100.1[01][0-9].* | 100.12[0-7].*) return 0 ;;
    ::1 | f[cd]*:* | fe[89ab]*:*) return 0 ;;
  esac
  return 1
}

need_private() { # FIELD VALUE: what gloo and NCCL send is neither encrypted nor authenticated
  is_ipv4 "$2" || refuse "$1" "$2" "an IPv4 address such as 10.0.0.1" "give the address that the other nodes reach"
  is_private "$2" || refuse "$1" "$2" "a private address, as nothing on these ports is encrypted or authenticated" \
    "use the private or the tunnel's address (launch/sites)"
}

public_addresses() { # INTERFACES, as gloo or NCCL take them: those of them that are up; nothing where ip is missing
  local name address names=",${1//=/},"
  command -v ip >/dev/null || return 0
  while read -r name address; do
    address=${address%%/*}
    [[ $names == *^* || $names == *,"$name",* ]] || continue # "^" takes all but those that are named
    is_private "$address" || printf '%s ' "$address"
  done < <(ip -o addr show up | awk '{print $2, $4}')
}

need_secret_file() { # FIELD FILE
  need_file "$1" "$2" "(umask 077; head -c 32 /dev/urandom | base64 > FILE), and copy it to every node"
  [[ $(stat -Lc %a "$2") == *00 ]] || refuse "$1" "$2" "a file that only its owner can read" "chmod 600 $2"
}

new_secret() { # for all nodes of one run. Keep it out of command lines, which all users of a machine can read
  head -c 32 /dev/urandom | base64
}

# The arguments as words that any POSIX shell, as ssh finds on another machine, reads back as they are. A word with a
# line break keeps it.
quoted() {
  local out="" word
  for word in "$@"; do out+=" $(quoted_word "$word")"; done
  printf '%s\n' "${out# }"
}

quoted_word() {
  if [[ $1 =~ ^[A-Za-z0-9_@%+:,./-][A-Za-z0-9_@%+=:,./-]*$ ]]; then printf %s "$1"; else printf "'%s'" "${1//\'/\'\\\'\'}"; fi
}

one_line() { # as quoted, but for bash, and on one line also where a word has a line break
  local out="" word
  for word in "$@"; do
    if [[ $word == *[[:cntrl:]]* ]]; then printf -v word %q "$word" && out+=" $word"; else out+=" $(quoted_word "$word")"; fi
  done
  printf '%s\n' "${out# }"
}

totals() { # ISLANDS ISLAND_SIZE NODES: what all launchers call these, and the ranks of the whole run
  echo "launch: islands: $1, ranks of each: $2, ranks in all: $(($1 * $2)), nodes: $3"
}

# For dry runs: the recipe is loaded and its flags are read, as the run itself would do it. Where the python has no
# lowcomm (a login node, a laptop), at least its file must be there.
need_loadable() { # PYTHON RECIPE [FLAGS of lowcomm train ...]
  local launch root code=0 said
  launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  root=$(dirname "$launch")
  said=$(PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 \
    "$1" -m lowcomm.cli recipes check "${@:2}" 2>&1 >/dev/null) || code=$?
  if [ "$code" -eq 2 ] && [[ $said == *"lowcomm: error: "* ]]; then
    said="lowcomm: error: ${said##*lowcomm: error: }"
    printf '%s\n' "${said//[[:cntrl:]]/ }" >&2
    exit 2
  fi
  [ "$code" -ne 0 ] || return 0
  need_recipe_file "$2"
  echo "launch: note: the recipe was not loaded, as $1 here can't import lowcomm: only its file was looked for" >&2
}

need_recipe_file() { # RECIPE: here, or one of the package's
  local file=${1%:*} root
  root=$(dirname "${BASH_SOURCE[0]}")/..
  case $file in
    recipes/* | [!/]*) [ -f "$file" ] || [ -f "$root/recipes/${file#recipes/}" ] ;;
    *) [ -f "$file" ] ;;
  esac || refuse RECIPE "$1" "a file that is here or among the package's recipes" "lowcomm recipes lists them"
}

need_recipe_there() { # PYTHON WHERE RECIPE [FLAGS ...]: as need_loadable, but an absolute path may be only WHERE it runs
  local file=${3%:*}
  if [[ $file == /* && ! -e $file ]]; then
    echo "launch: note: $file is not on this machine, so that the recipe was not loaded: it has to be $2" >&2
  else
    need_loadable "$1" "${@:3}"
  fi
}

# Put before a command, this has the kernel tell it to stop when this script is gone, however it went (kill -9 too).
# shellcheck disable=SC2034  # for those who source this
stopped_with_us=()
if setpriv --pdeathsig TERM true 2>/dev/null; then stopped_with_us=(setpriv --pdeathsig TERM); fi
