# shellcheck shell=bash
# What the launchers share: refusals on one line, checks of values, quoting for --dry-run. Sourced, never run.

# shellcheck disable=SC2034  # for those who source this
DEFAULT_PORT=29500

refuse() { # FIELD VALUE LEGAL FIX: one line, exit code 2
  printf "launch: error: %s = '%s' is not allowed: %s. Fix: %s.\n" "$1" "$2" "$3" "$4" >&2
  exit 2
}

need_value() { # OPTION COUNT: COUNT arguments are left, the option's own among them
  [ "$2" -ge 2 ] || refuse "$1" "" "a value after it" "see the head of $0"
}

need_integer() { # FIELD VALUE LOWEST HIGHEST FIX
  local legal="a whole number from $3 to $4"
  [[ $2 =~ ^[0-9]{1,9}$ ]] || refuse "$1" "$2" "$legal" "$5"
  ((10#$2 >= $3 && 10#$2 <= $4)) || refuse "$1" "$2" "$legal" "$5"
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

need_private() { # FIELD VALUE: gloo, NCCL and the rendezvous are neither encrypted nor authenticated
  is_ipv4 "$2" || refuse "$1" "$2" "an IPv4 address such as 10.0.0.1" "give the address that the other nodes reach"
  is_private "$2" || refuse "$1" "$2" "a private address, as nothing on these ports is encrypted or authenticated" \
    "use the private or the tunnel's address (launch/sites)"
}

public_addresses() { # those of interfaces that are up; nothing where ip is missing
  local line address
  command -v ip >/dev/null || return 0
  while read -r line; do
    address=${line%%/*}
    is_private "$address" || printf '%s ' "$address"
  done < <(ip -o addr show up | awk '{print $4}')
}

quoted() { # the arguments as one line that a shell reads back as they are
  local out="" word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then out+=" $word"; else out+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s\n' "${out# }"
}

has_checkpoint() { # RUN_DIR
  compgen -G "$1/checkpoints/*/island-*" >/dev/null
}
