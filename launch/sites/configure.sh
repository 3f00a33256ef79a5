#!/usr/bin/env bash
# Two or more clusters, one rendezvous: WireGuard between their gateways. See README.md beside this file.
#
#   launch/sites/configure.sh key [--directory DIR]
#       on each gateway: make its key if there is none, print the public half. The private half stays in DIR/lowcomm.key
#       (default: /etc/wireguard), readable by root alone
#   launch/sites/configure.sh write --sites FILE --out DIR [--dry-run]
#       anywhere: the configuration of every gateway, DIR/SITE/, from what is public; --dry-run prints it
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/../common.sh"

make_key() {
  local directory=/etc/wireguard
  while [ $# -gt 0 ]; do
    case $1 in
      --directory) need_value "$1" $# && directory=$2 && shift ;;
      *) refuse OPTION "$1" "--directory DIR" "leave it out" ;;
    esac
    shift
  done
  command -v wg >/dev/null || refuse wg "" "a command that is installed" "install wireguard-tools"
  if [ ! -e "$directory/lowcomm.key" ]; then
    (umask 077 && mkdir -p "$directory" && set -o noclobber && wg genkey >"$directory/lowcomm.key")
  fi
  wg pubkey <"$directory/lowcomm.key"
}

names=() endpoints=() tunnels=() networks=() keys=()
read_sites() { # FILE
  local file=$1 line=0 name endpoint tunnel network key rest where
  while read -r name endpoint tunnel network key rest || [ -n "$name" ]; do
    line=$((line + 1))
    [[ -n $name && $name != \#* ]] || continue
    where="$file line $line"
    [[ -n $key && -z $rest ]] || refuse "$where" "$name ..." "SITE ENDPOINT TUNNEL NETWORK PUBLIC_KEY" "see sites.example"
    need_match "$where, site" "$name" '^[a-z0-9][a-z0-9-]*$' "lower-case letters, digits and dashes" "correct it"
    need_match "$where, endpoint" "$endpoint" '^(-|[A-Za-z0-9.-]+:[0-9]{1,5})$' "HOST:PORT, or - behind NAT" "correct it"
    need_private "$where, tunnel" "$tunnel"
    if [ "$network" != - ]; then
      need_match "$where, network" "$network" '^[0-9.]+/([89]|[12][0-9]|3[0-2])$' "a network such as 10.87.1.0/24, or -" "correct it"
      need_private "$where, network" "${network%/*}"
    fi
    need_match "$where, key" "$key" '^[A-Za-z0-9+/]{43}=$' "a public key" "configure.sh key prints it on that gateway"
    [[ " ${names[*]} " != *" $name "* ]] || refuse "$where, site" "$name" "different from those before" "one line per site"
    [[ " ${tunnels[*]} " != *" $tunnel "* ]] || refuse "$where, tunnel" "$tunnel" "different from those before" "one each"
    [[ $network == - || " ${networks[*]} " != *" $network "* ]] || refuse "$where, network" "$network" "different from those before" "renumber one"
    [[ " ${keys[*]} " != *" $key "* ]] || refuse "$where, key" "$key" "different from those before" "each gateway has its own"
    names+=("$name") endpoints+=("$endpoint") tunnels+=("$tunnel") networks+=("$network") keys+=("$key")
  done <"$file"
  [ "${#names[@]}" -ge 2 ] || refuse "$file" "${#names[@]} sites" "two sites or more" "see sites.example"
  for ((i = 0; i < ${#names[@]}; i++)); do
    for ((j = i + 1; j < ${#names[@]}; j++)); do
      [[ ${endpoints[i]} != - || ${endpoints[j]} != - ]] || refuse "$file, endpoint of ${names[j]}" - \
        "HOST:PORT, as ${names[i]} has none either" "one of two sites must be reachable"
    done
  done
}

allowed() { # NUMBER: what the tunnel carries to and from that site
  local list="${tunnels[$1]}/32"
  [ "${networks[$1]}" = - ] || list+=", ${networks[$1]}"
  echo "$list"
}

interface_file() { # NUMBER: lowcomm0.conf of that site
  local i=$1 j port=51820
  [ "${endpoints[i]}" = - ] || port=${endpoints[i]##*:}
  echo "# ${names[i]}: to /etc/wireguard/lowcomm0.conf of its gateway, then: systemctl enable --now wg-quick@lowcomm0"
  echo "[Interface]"
  echo "Address = ${tunnels[i]}/32"
  echo "ListenPort = $port"
  echo "MTU = 1420"
  echo "# the private key was made on this host and stays there"
  echo "PostUp = wg set %i private-key /etc/wireguard/lowcomm.key"
  echo "PostUp = nft -f /etc/wireguard/lowcomm.nft"
  [ "${networks[i]}" = - ] || echo "PostUp = sysctl -q -w net.ipv4.ip_forward=1"
  echo "PostDown = nft delete table inet lowcomm"
  for j in "${!names[@]}"; do
    [ "$j" -ne "$i" ] || continue
    echo
    echo "[Peer]"
    echo "# ${names[j]}"
    echo "PublicKey = ${keys[j]}"
    [ "${endpoints[j]}" = - ] || echo "Endpoint = ${endpoints[j]}"
    echo "AllowedIPs = $(allowed "$j")"
    # a round may be an hour away: NAT and firewalls forget a silent flow in minutes
    echo "PersistentKeepalive = 25"
  done
}

firewall_file() { # NUMBER: lowcomm.nft of that site
  local i=$1 j others=""
  for j in "${!names[@]}"; do
    [ "$j" -eq "$i" ] || others+="${others:+, }$(allowed "$j" | sed 's|/32||')"
  done
  echo "# ${names[i]}: to /etc/wireguard/lowcomm.nft. gloo and NCCL listen above port 1023 without"
  echo "# encryption or passwords: only private networks and the tunnel may reach them."
  echo "table inet lowcomm {"
  echo "  chain input {"
  echo "    type filter hook input priority -10; policy accept;"
  echo "    ct state established,related accept"
  echo "    iifname { \"lo\", \"lowcomm0\" } accept"
  echo "    ip saddr { 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 } accept"
  echo "    ip6 saddr { fc00::/7, fe80::/10 } accept"
  echo "    tcp dport 1024-65535 drop"
  echo "  }"
  echo "  chain forward {"
  echo "    type filter hook forward priority -10; policy accept;"
  echo "    iifname \"lowcomm0\" ip saddr != { $others } drop"
  if [ "${networks[i]}" = - ]; then
    echo "    iifname \"lowcomm0\" drop"
  else
    echo "    iifname \"lowcomm0\" ip daddr != ${networks[i]} drop"
  fi
  echo "  }"
  echo "}"
}

routes_file() { # NUMBER: what the other nodes of that site need
  local i=$1 j
  echo "# ${names[i]}: on every node behind the gateway, with the gateway's address in the site's own network"
  for j in "${!names[@]}"; do
    [ "$j" -ne "$i" ] || continue
    echo "ip route replace ${tunnels[j]}/32 via \"\$GATEWAY\" mtu 1420"
    [ "${networks[j]}" = - ] || echo "ip route replace ${networks[j]} via \"\$GATEWAY\" mtu 1420"
  done
}

write_all() {
  local sites="" out="" dry="" i kind
  while [ $# -gt 0 ]; do
    case $1 in
      --sites) need_value "$1" $# && sites=$2 && shift ;;
      --out) need_value "$1" $# && out=$2 && shift ;;
      --dry-run) dry=1 ;;
      *) refuse OPTION "$1" "--sites, --out or --dry-run" "see $0 --help" ;;
    esac
    shift
  done
  [ -n "$sites" ] || refuse --sites "" "a file with one site per line" "copy launch/sites/sites.example"
  need_file --sites "$sites" "copy launch/sites/sites.example"
  [[ -n $out || -n $dry ]] || refuse --out "" "a directory" "pass --out DIR, or --dry-run"
  read_sites "$sites"
  for i in "${!names[@]}"; do
    if [ -n "$dry" ]; then
      for kind in interface firewall routes; do "${kind}_file" "$i" && echo; done
      continue
    fi
    mkdir -p "$out/${names[i]}"
    interface_file "$i" >"$out/${names[i]}/lowcomm0.conf"
    firewall_file "$i" >"$out/${names[i]}/lowcomm.nft"
    [ "${networks[i]}" = - ] || routes_file "$i" >"$out/${names[i]}/routes.sh"
    echo "wrote $out/${names[i]}"
  done
}

case ${1:-} in
  --help | -h) show_help "$0" ;;
  key) make_key "${@:2}" ;;
  write) write_all "${@:2}" ;;
  *) refuse COMMAND "${1:-}" "key or write" "see $0 --help" ;;
esac
