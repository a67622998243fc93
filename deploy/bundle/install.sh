#!/usr/bin/env bash
# Installs @NAME@ @VERSION@ (Python @PYTHON@, @PLATFORM@) from this folder, without a network.
# Nothing of the bundle is run before its signature and every hash are verified.
set -euo pipefail
umask 022
export LC_ALL=C

NAME="@NAME@" VERSION="@VERSION@" ROLE="@ROLE@" SETTINGS="@SETTINGS@"
PYTHON_VERSION="@PYTHON@" PLATFORM="@PLATFORM@"
MINIMUM_FREE_MIB="${FEDWARD_MINIMUM_FREE_MIB:-3072}"

ROOT="" KEY="" PYTHON="" USERS=yes SYSTEMD=yes COMPILE=yes ACTION=install

say() { printf 'install: %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

usage() {
  cat <<USAGE
usage: install.sh --key HEX|FILE [--python PATH] [--root DIR] [--no-users] [--no-systemd]
       install.sh --rollback [--root DIR] [--no-systemd]

  --key         the publisher's public key (64 hexadecimal digits), which came another way than
                this bundle; needed the first time, remembered in /etc/fedward/release-key
  --python      the Python $PYTHON_VERSION to use (default: python$PYTHON_VERSION on PATH)
  --root        install below DIR instead of /
  --no-users    create no users and give nothing to them
  --no-systemd  install no service units
  --no-compile  leave byte-compilation to the first start
  --rollback    make the version before the current one
USAGE
}

while [ $# -gt 0 ]; do
  case "$1" in
    --key|--python|--root)
      [ $# -ge 2 ] || fail "$1: expected a value, found none"
      case "$1" in --key) KEY="$2" ;; --python) PYTHON="$2" ;; --root) ROOT="$2" ;; esac
      shift 2 ;;
    --no-users) USERS=no; shift ;;
    --no-systemd) SYSTEMD=no; shift ;;
    --no-compile) COMPILE=no; shift ;;
    --rollback) ACTION=rollback; shift ;;
    --help|-h) usage; exit 0 ;;
    *) usage >&2; fail "expected one of the options above, found $1" ;;
  esac
done
case "$ROOT" in
  "") ;;
  /*[!A-Za-z0-9._/-]*) fail "--root: expected a path of letters, digits and ._/-, found $ROOT" ;;
  /*) ROOT="${ROOT%/}" ;;
  *) fail "--root: expected an absolute path, found $ROOT" ;;
esac

BUNDLE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
OPT="$ROOT/opt/fedward" ETC="$ROOT/etc/fedward" STATE="$ROOT/var/lib/fedward"
UNITS="$ROOT/etc/systemd/system"
TARGET="$OPT/$VERSION"
STAGE=""
trap 'if [ -n "$STAGE" ]; then rm -rf "$STAGE"; fi' EXIT

systemd_runs() { [ "$SYSTEMD" = yes ] && [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }

# A link is replaced in one step: there is a current version at every moment.
point() { ln -sfn "$1" "$OPT/.$2.new" && mv -Tf "$OPT/.$2.new" "$OPT/$2"; }

rollback() {
  [ -L "$OPT/previous" ] && [ -e "$OPT/previous/.complete" ] \
    || fail "expected a version before the current one in $OPT, found none"
  local now before
  now="$(readlink "$OPT/current")"
  before="$(readlink "$OPT/previous")"
  point "$before" current
  point "$now" previous
  say "current is $before again; $now stays beside it"
  install_units "$OPT/$before"
  say "state in $STATE was not changed: if the newer version migrated it, restore your backup"
}

check_machine() {
  if [ -z "$PYTHON" ]; then PYTHON="$(command -v "python$PYTHON_VERSION" || true)"; fi
  [ -n "$PYTHON" ] || fail "expected Python $PYTHON_VERSION on PATH, found none. Install it, or name it with --python"
  "$PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$PYTHON_VERSION')" \
    || fail "$PYTHON: expected Python $PYTHON_VERSION, which this bundle was built for, found another"
  "$PYTHON" -c 'import venv, hashlib, ssl' \
    || fail "$PYTHON: expected the modules venv, hashlib and ssl, found one missing"
  local found
  found="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_platform())')"
  [ "$found" = "$PLATFORM" ] || fail "expected a machine of $PLATFORM, found $found. Use that platform's bundle"
  if [ "$USERS" = yes ] && [ "$(id -u)" -ne 0 ]; then
    fail "expected root, who creates the service users, found $(id -un). Use sudo, or --no-users with --root"
  fi
}

check_disk() {
  local free
  free="$(df -Pm "$1" | awk 'NR==2 {print $4}')"
  [ "$free" -ge "$MINIMUM_FREE_MIB" ] \
    || fail "expected $MINIMUM_FREE_MIB MiB free for $OPT, found $free. Free some space and start again"
}

release_key() {
  if [ -f "$KEY" ]; then KEY="$(tr -d ' \n' < "$KEY")"; fi
  local known=""
  if [ -f "$ETC/release-key" ]; then known="$(tr -d ' \n' < "$ETC/release-key")"; fi
  if [ -z "$KEY" ]; then KEY="$known"; fi
  [ -n "$KEY" ] || fail "expected --key with the publisher's public key, found none. Ask for it another way than this bundle came"
  if [ -n "$known" ] && [ "$known" != "$KEY" ]; then
    fail "expected the publisher's key in $ETC/release-key, found another with --key. If the publisher announced a new key, remove that file first"
  fi
}

# What is verified is a copy that nobody else can write to, and that copy is installed.
verify() {
  STAGE="$(mktemp -d "$OPT/.stage.XXXXXXXX")"
  cp -RP --no-preserve=ownership "$BUNDLE/." "$STAGE/bundle"
  "$PYTHON" -I -S - "$STAGE/bundle" "$KEY" <<'VERIFIER'
@VERIFIER@
VERIFIER
  say "signature and hashes are right"
}

install_programs() {
  local digest
  digest="$(sha256sum "$STAGE/bundle/SHA256SUMS" | cut -d ' ' -f 1)"
  if [ -e "$TARGET/.complete" ]; then
    [ "$(cat "$TARGET/.complete")" = "$digest" ] \
      || fail "$TARGET: expected this bundle's files or none, found another build of $VERSION. Uninstall that one first"
    say "$VERSION is there already"
    return
  fi
  rm -rf "$TARGET" # what an interrupted install left
  "$PYTHON" -I -m venv --without-pip "$TARGET"
  local pip
  pip="$(echo "$STAGE"/bundle/tools/pip-*.whl)"
  PIP_CONFIG_FILE=/dev/null "$TARGET/bin/python" -I "$pip/pip" --isolated --quiet \
    --disable-pip-version-check --no-cache-dir install --no-index --no-deps --require-hashes \
    --only-binary :all: --no-compile --find-links "$STAGE/bundle/wheels" \
    --requirement "$STAGE/bundle/requirements.txt"
  if [ "$COMPILE" = yes ]; then
    say "compiling (once; a minute or two)"
    "$TARGET/bin/python" -I -m compileall -q -j 0 "$TARGET/lib" > "$STAGE/compile.log" || true
  fi
  mkdir -p "$TARGET/share/fedward"
  cp -R "$STAGE/bundle/units" "$STAGE/bundle/settings" "$STAGE/bundle/requirements.txt" \
    "$STAGE/bundle/sbom.cdx.json" "$STAGE/bundle/LICENSE" "$STAGE/bundle/README.md" "$TARGET/share/fedward/"
  install -m 0755 "$STAGE/bundle/uninstall.sh" "$TARGET/uninstall.sh"
  echo "$digest" > "$TARGET/.complete"
  say "installed $TARGET"
}

create_users() {
  [ "$USERS" = yes ] || return 0
  getent group fedward > /dev/null || groupadd --system fedward
  local user
  for user in $(role_users); do
    getent passwd "$user" > /dev/null || useradd --system --gid fedward --no-create-home \
      --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
  done
}

role_users() {
  if [ "$ROLE" = site ]; then
    echo fedward-guard fedward-gateway fedward-node fedward-worker
  else
    echo fedward-coordinator
  fi
}

prepare_folders() {
  install -d -m 0750 "$ETC"
  [ -d "$STATE" ] || install -d -m 0700 "$STATE"
  local example="$ETC/$SETTINGS.example"
  if [ ! -e "$example" ]; then
    sed "s|@ROOT@|$ROOT|g" "$TARGET/share/fedward/settings/$SETTINGS" > "$example.new"
    chmod 0640 "$example.new"
    mv "$example.new" "$example"
  fi
  if [ ! -e "$ETC/release-key" ]; then
    echo "$KEY" > "$ETC/release-key"
    chmod 0644 "$ETC/release-key"
  fi
  if [ "$USERS" = yes ]; then
    chgrp fedward "$ETC" "$example"
    # `init` writes both as that user; its service unit sees settings read-only.
    if [ "$ROLE" = coordinator ]; then chown fedward-coordinator:fedward "$ETC" "$STATE"; fi
  fi
}

install_units() {
  [ "$SYSTEMD" = yes ] || return 0
  install -d -m 0755 "$UNITS"
  local unit
  for unit in "$1"/share/fedward/units/*; do
    sed "s|@ROOT@|$ROOT|g" "$unit" > "$UNITS/.${unit##*/}.new"
    chmod 0644 "$UNITS/.${unit##*/}.new"
    mv "$UNITS/.${unit##*/}.new" "$UNITS/${unit##*/}"
  done
  if systemd_runs; then systemctl daemon-reload; fi
  say "wrote service units to $UNITS"
}

make_current() {
  local before=""
  if [ -L "$OPT/current" ]; then before="$(readlink "$OPT/current")"; fi
  if [ "$before" != "$VERSION" ]; then
    if [ -n "$before" ]; then point "$before" previous; fi
    point "$VERSION" current
  fi
  ln -sfn current/uninstall.sh "$OPT/uninstall.sh"
}

if [ "$ACTION" = rollback ]; then
  rollback
  exit 0
fi
check_machine
mkdir -p "$OPT"
if [ -e "$OPT/role" ] && [ "$(cat "$OPT/role")" != "$ROLE" ]; then
  fail "expected a $ROLE or nothing in $OPT, found a $(cat "$OPT/role"). A coordinator and a site do not share a machine"
fi
check_disk "$OPT"
release_key
verify
echo "$ROLE" > "$OPT/role"
install_programs
create_users
prepare_folders
install_units "$TARGET"
make_current
say "$NAME $VERSION is current. Next: $OPT/current/share/fedward/README.md"
