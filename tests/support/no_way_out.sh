#!/usr/bin/env bash
# Runs a command in a network namespace of its own whose only way out is a counted, dead link.
# Usage: no_way_out.sh COUNT_FILE COMMAND...   (the number of packets sent outwards goes to the file)
# Loopback works. Every packet for any other address, name look-ups included, crosses the link.
set -euo pipefail
count_file=$1
shift
ip link set lo up
ip link add out type veth peer name sink
for key in net.ipv6.conf.out.disable_ipv6 net.ipv6.conf.sink.disable_ipv6; do
  sysctl -qw "$key=1" 2>/dev/null || true
done
ip addr add 198.51.100.1/24 dev out
ip link set sink up
ip link set out up
for address in 198.51.100.2 198.51.100.53; do
  ip neigh add "$address" lladdr 02:00:00:00:00:01 dev out
done
ip route add default via 198.51.100.2 dev out
resolver=$(mktemp)
echo "nameserver 198.51.100.53" >"$resolver"
mount --bind "$resolver" /etc/resolv.conf
sent() { awk '$1 == "out:" {print $11}' /proc/net/dev; }
before=$(sent)
code=0
"$@" || code=$?
echo $(($(sent) - before)) >"$count_file"
umount /etc/resolv.conf
rm -f "$resolver"
exit "$code"
