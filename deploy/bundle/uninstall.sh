#!/usr/bin/env bash
# Removes @NAME@: programs and service units. State and settings only with --purge.
set -euo pipefail
export LC_ALL=C
ROLE="@ROLE@" ROOT="" PURGE=no USERS=yes

say() { printf 'uninstall: %s\n' "$*"; }
fail() { printf 'uninstall: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case "$1" in
    --root) [ $# -ge 2 ] || fail "--root: expected a folder, found none"; ROOT="${2%/}"; shift 2 ;;
    --purge) PURGE=yes; shift ;;
    --no-users) USERS=no; shift ;;
    *) fail "usage: uninstall.sh [--purge] [--no-users] [--root DIR]" ;;
  esac
done

OPT="$ROOT/opt/fedward" ETC="$ROOT/etc/fedward" STATE="$ROOT/var/lib/fedward"
UNITS="$ROOT/etc/systemd/system"
RUN="$ROOT/run/fedward"

if [ -e "$OPT/role" ] && [ "$(cat "$OPT/role")" != "$ROLE" ]; then
  fail "expected a $ROLE in $OPT, found a $(cat "$OPT/role"). Use that one's uninstall.sh"
fi
live=no
if [ -z "$ROOT" ] && [ -d /run/systemd/system ]; then live=yes; fi

for unit in "$UNITS"/fedward-*.service "$UNITS"/fedward-*.target; do
  [ -e "$unit" ] || continue
  if [ "$live" = yes ]; then systemctl disable --now --quiet "${unit##*/}" || true; fi
  rm -f "$unit"
done
if [ "$live" = yes ]; then systemctl daemon-reload; fi
rm -rf "$OPT" "$RUN"
say "removed programs and service units"

for folder in "$STATE" "$ETC"; do
  [ -e "$folder" ] || continue
  if [ "$PURGE" = yes ]; then
    rm -rf "$folder"
    say "deleted $folder"
  else
    say "kept $folder ($(du -sh "$folder" | cut -f 1)): keys, privacy ledger, journal or settings. --purge deletes it"
  fi
done
if [ "$PURGE" = yes ] && [ "$USERS" = yes ] && [ -z "$ROOT" ] && [ "$(id -u)" -eq 0 ]; then
  for user in fedward-guard fedward-gateway fedward-node fedward-worker fedward-coordinator; do
    if getent passwd "$user" > /dev/null; then userdel "$user"; fi
  done
  if getent group fedward > /dev/null; then groupdel fedward; fi
  say "deleted the service users"
fi
for folder in "$UNITS" "$ROOT/etc/systemd" "$ROOT/opt" "$ROOT/etc" "$ROOT/var/lib" "$ROOT/var"; do
  if [ -n "$ROOT" ] && [ -d "$folder" ]; then rmdir --ignore-fail-on-non-empty "$folder"; fi
done
